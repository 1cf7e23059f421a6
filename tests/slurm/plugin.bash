# Where the plugin's tests find what they test; sourced by them and by tests/bench/plugin.sh.

top=$(cd "${srcdir:-$(dirname "${BASH_SOURCE[0]}")/../..}" && pwd)
build=${builddir:-$PWD}
plugin=$build/.libs/mtllm.so

# Why the plugin cannot be tried here; nothing when it can.
plugin_missing() {
    local program
    for program in "$@"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || {
            echo "$program is not installed"
            return
        }
    done
    if [ ! -e "$plugin" ]; then
        echo "$plugin is not built"
    elif nm -D "$plugin" | grep -q __asan_init; then
        echo "Slurm's programs cannot load a plugin that needs AddressSanitizer"
    fi
}

# client_conf DIR [PLUGSTACK-LINE]: a slurm.conf for Slurm's commands alone. Nothing listens where
# it points to, so a job that is not refused ends with "Unable to contact slurm controller".
client_conf() {
    mkdir -p "$1"
    cat > "$1/slurm.conf" <<END
ClusterName=none
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=9
AuthType=auth/none
CredType=cred/none
PlugStackConfig=$1/plugstack.conf
NodeName=n1
PartitionName=normal Nodes=ALL Default=YES
MessageTimeout=1
END
    echo "$2" > "$1/plugstack.conf"
    for variable in $(compgen -e); do
        case $variable in
        SLURM_* | SLURMD_* | SBATCH_* | SALLOC_* | MTLLM_*) unset "$variable" ;;
        esac
    done
    export SLURM_CONF=$1/slurm.conf
}
