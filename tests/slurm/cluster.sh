#!/bin/bash
# A private Slurm on this host: munge, slurmctld and several slurmd, for tests and for trying
# things out. Everything it writes lies in one directory, it listens on ports that were free when
# it started, it stops the processes it started and no others, and a Slurm that the host may
# already have is never looked at. Runs as root or as any other user.
#
#   cluster.sh start DIR [--nodes=4] [--cpus=4] [--gpus=0] [--plugin="FILE [KEY=VALUE ...]"]
#                        [--cli-filter=FILE] [--grace=30] [--accounting]
#                        [--conf="KEY=VALUE"]...
#   cluster.sh stop DIR             stop the daemons, end the jobs; DIR and its logs stay
#   cluster.sh env DIR              shell lines that point Slurm's commands at it
#   cluster.sh node DIR NAME start|stop|kill
#                                   one slurmd: start it, stop it, or kill it and its steps (-9)
#
# Nodes n1, n2, ... have --cpus CPUs each, whatever the host has. --gpus gives the first so many of
# the host's GPUs to n1: two nodes would both hand out the same ones. Partitions: "normal" (tier 1,
# preempted with --grace seconds of warning, then requeued) and "high" (tier 10). --accounting adds
# a slurmdbd, which keeps the comments of jobs too, and its MariaDB. --conf sets a line of
# slurm.conf, in place of the default one if there is one.
#
# May also be sourced: the functions are cluster_start, cluster_stop, cluster_env, cluster_node
# and wait_for.

# wait_for SECONDS COMMAND...: run the command until it succeeds, but not for ever.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.2
    done
}

cluster_say() {
    echo "cluster: $*" >&2
}

# Slurm's daemons are in sbin, which an ordinary user's PATH lacks; Debian renames them.
cluster_program() {
    local name
    for name in "$1" "$1-wlm"; do
        PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "$name" && return 0
    done
    cluster_say "$1 is not installed"
    return 1
}

# --- processes ------------------------------------------------------------------------------------

# The kernel's start time of a process: with the pid, a name that is never used twice.
cluster_start_time() {
    local line
    { read -r line < "/proc/$1/stat"; } 2>/dev/null || return 1
    line=${line##*) }
    set -- $line
    echo "${20}"
}

# cluster_alive PIDFILE: prints the pid if that very process still runs and is no zombie.
cluster_alive() {
    local pid start state
    [ -s "$1" ] && read -r pid start < "$1" && [ "$(cluster_start_time "$pid")" = "$start" ] ||
        return 1
    state=$(sed 's/.*) //; s/ .*//' "/proc/$pid/stat" 2>/dev/null)
    [ -n "$state" ] && [ "$state" != Z ] && echo "$pid"
}

# cluster_spawn DIR NAME COMMAND...: a daemon in a session of its own, without our descriptors.
cluster_spawn() {
    local dir=$1 name=$2 pidfile=$1/run/$2.pid
    shift 2
    rm -f "$pidfile"
    SLURM_CONF=$dir/etc/slurm.conf setsid /bin/bash -c '
        pidfile=$1 log=$2
        shift 2
        for descriptor in /proc/self/fd/*; do
            descriptor=${descriptor##*/}
            [ "$descriptor" -le 2 ] || eval "exec $descriptor>&-"
        done
        exec </dev/null >>"$log" 2>&1
        cd /
        read -r line < /proc/$$/stat
        set -- "$line" "$@"
        rest=(${1##*) })
        shift
        echo "$$ ${rest[19]}" > "$pidfile"
        exec "$@"' sh "$pidfile" "$dir/log/$name.out" "$@" &
    disown
    wait_for 10 test -s "$pidfile"
}

# Every process below PID, nearest first.
cluster_descendants() {
    local children child
    children=$(ps -o pid= --ppid "$1" 2>/dev/null)
    for child in $children; do
        echo "$child"
        cluster_descendants "$child"
    done
}

# Steps that their slurmd left behind: kill what they run, then them. NODE limits it to one node.
# A slurmstepd overwrites its own environment, so it is known by the socket it listens on.
cluster_kill_steps() {
    local dir=$1 node=$2 inode pid
    for inode in $(awk -v prefix="$dir/spool/${node:+$node/}" \
        'index($NF, prefix) == 1 { print $(NF - 1) }' /proc/net/unix); do
        for pid in $(pgrep -x slurmstepd); do
            # shellcheck disable=SC2010
            ls -l "/proc/$pid/fd" 2>/dev/null | grep -qF "socket:[$inode]" || continue
            kill -KILL $(cluster_descendants "$pid") "$pid" 2>/dev/null
        done
    done
    return 0
}

cluster_gone() {
    ! cluster_alive "$1" >/dev/null
}

# cluster_end PIDFILE: TERM, a while to obey, KILL.
cluster_end() {
    local pid
    pid=$(cluster_alive "$1") && kill -TERM "$pid" 2>/dev/null
    if ! wait_for 10 cluster_gone "$1"; then
        pid=$(cluster_alive "$1") && kill -KILL "$pid" 2>/dev/null
        wait_for 10 cluster_gone "$1"
    fi
    rm -f "$1"
}

# --- configuration --------------------------------------------------------------------------------

# cluster_ports COUNT: the first of COUNT ports in a row that nobody listens on, below the range
# from which the kernel takes ports for outgoing connections.
cluster_ports() {
    local count=$1 base used
    used=$(awk 'FNR > 1 { split($2, address, ":"); print address[2] }' /proc/net/tcp /proc/net/tcp6 \
        2>/dev/null)
    for _ in $(seq 50); do
        base=$((12000 + RANDOM % 20000))
        for port in $(seq "$base" $((base + count - 1))); do
            grep -qx "$(printf %04X "$port")" <<< "$used" && continue 2
        done
        echo "$base"
        return 0
    done
    cluster_say "no $count free ports in a row"
    return 1
}

cluster_default_conf() {
    local dir=$1 port=$2 grace=$3 user host
    user=$(id -un)
    host=$(hostname -s)
    cat <<END
ClusterName=mtllm
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/run/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/run/slurmctld.own
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdSpoolDir=$dir/spool/%n
SlurmdPidFile=$dir/run/%n.own
SlurmdLogFile=$dir/log/%n.log
TmpFS=$dir/tmp/%n
PlugStackConfig=$dir/etc/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog=$dir/etc/task_prolog
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobs
PropagateResourceLimits=NONE
MailProg=/bin/true
MpiDefault=pmix
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
JobFileAppend=1
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,batch_sched_delay=1,bf_interval=5
ReturnToService=2
InactiveLimit=0
KillWait=5
MinJobAge=600
MessageTimeout=30
BatchStartTimeout=30
SlurmctldTimeout=60
SlurmdTimeout=60
GraceTime=$grace
END
}

# Slurm refuses a line given twice, so a --conf line takes the place of the default one.
cluster_write_conf() {
    local dir=$1 port=$2 nodes=$3 cpus=$4 gpus=$5 grace=$6 host line key
    shift 6
    host=$(hostname -s)
    {
        cluster_default_conf "$dir" "$port" "$grace" | while IFS= read -r line; do
            for key in "$@"; do
                [ "${line%%=*}" != "${key%%=*}" ] || continue 2
            done
            [ "${line%%=*}" = GraceTime ] || echo "$line"
        done
        [ $# -eq 0 ] || printf '%s\n' "$@"
        if [ "$gpus" -gt 0 ]; then
            echo "GresTypes=gpu"
            echo "NodeName=n1 Gres=gpu:$gpus NodeHostname=$host NodeAddr=127.0.0.1" \
                "Port=$((port + 1)) CPUs=$cpus"
        fi
        if [ "$gpus" = 0 ] || [ "$nodes" -gt 1 ]; then
            echo "NodeName=n[$((gpus > 0 ? 2 : 1))-$nodes] NodeHostname=$host NodeAddr=127.0.0.1" \
                "Port=[$((port + (gpus > 0 ? 2 : 1)))-$((port + nodes))] CPUs=$cpus"
        fi
        echo "PartitionName=normal Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE" \
            "GraceTime=$grace"
        echo "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF"
    } > "$dir/etc/slurm.conf"
    [ "$gpus" = 0 ] ||
        echo "NodeName=n1 Name=gpu File=/dev/nvidia[0-$((gpus - 1))]" > "$dir/etc/gres.conf"
    # The nodes share a host name, by which Open MPI names its shared memory.
    cat > "$dir/etc/task_prolog" <<END
#!/bin/sh
echo export OMPI_MCA_btl_vader_backing_directory=$dir/tmp/\$SLURMD_NODENAME
echo export OMPI_MCA_btl_vader_single_copy_mechanism=none
echo export OMPI_MCA_pml=ob1
echo export OMPI_MCA_btl=self,vader,tcp
echo export OMPI_MCA_btl_tcp_if_include=lo
echo export OMPI_MCA_oob_tcp_if_include=lo
echo export OMPI_MCA_mpi_yield_when_idle=1
END
    chmod 755 "$dir/etc/task_prolog"
    # Without systemd a slurmd refuses cgroup v2; linuxproc and task/none use neither.
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' > "$dir/etc/cgroup.conf"
}

# --- accounting -----------------------------------------------------------------------------------

cluster_write_accounting_conf() {
    local dir=$1 port=$2 password=$3
    (umask 077 && cat > "$dir/etc/slurmdbd.conf") <<END
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$port
SlurmUser=$(id -un)
LogFile=$dir/log/slurmdbd.log
PidFile=$dir/run/slurmdbd.own
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 1))
StorageUser=slurm
StoragePass=$password
StorageLoc=slurm
END
    (umask 077 && cat > "$dir/etc/database.sql") <<END
CREATE DATABASE slurm;
CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '$password';
GRANT ALL ON slurm.* TO slurm@'127.0.0.1';
END
}

# On ports $2 and the next one.
cluster_start_accounting() {
    local dir=$1 port=$2 user
    user=$(id -un)
    cluster_write_accounting_conf "$dir" "$port" "$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')"
    rm -rf "$dir/database"
    # What is lost when this machine goes down is not missed.
    set -- --no-defaults --datadir="$dir/database" --user="$user" --innodb-log-file-size=4M \
        --innodb-buffer-pool-size=16M --innodb-flush-method=nosync
    mariadb-install-db "$@" --auth-root-authentication-method=normal --skip-test-db \
        > "$dir/log/database.out" 2>&1 || return 1
    cluster_spawn "$dir" database "$(cluster_program mariadbd)" "$@" --bind-address=127.0.0.1 \
        --port=$((port + 1)) --socket="$dir/run/database.socket" \
        --init-file="$dir/etc/database.sql" --innodb-flush-log-at-trx-commit=0 --skip-log-bin &&
        wait_for 30 grep -q 'ready for connections' "$dir/log/database.out" &&
        cluster_spawn "$dir" slurmdbd "$(cluster_program slurmdbd)" -D &&
        wait_for 60 cluster_accounting_answers "$dir"
}

# The controller starts only when the database knows the cluster.
cluster_accounting_answers() {
    SLURM_CONF=$1/etc/slurm.conf timeout 10 sacctmgr -i add cluster mtllm > "$1/log/sacctmgr.out" 2>&1
}

cluster_end_daemons() {
    local dir=$1 node
    cluster_end "$dir/run/slurmctld.pid"
    for node in $(seq -f 'n%g' "$(cat "$dir/run/nodes" 2>/dev/null || echo 0)"); do
        cluster_end "$dir/run/$node.pid"
    done
    cluster_end "$dir/run/slurmdbd.pid"
    cluster_end "$dir/run/database.pid"
}

# --- commands -------------------------------------------------------------------------------------

cluster_node_start() {
    local dir=$1 node=$2
    cluster_spawn "$dir" "$node" "$(cluster_program slurmd)" -D -N "$node"
}

cluster_controller_answers() {
    SLURM_CONF=$1/etc/slurm.conf timeout 10 scontrol ping 2>/dev/null | grep -q 'is UP'
}

cluster_all_idle() {
    [ "$(SLURM_CONF=$1/etc/slurm.conf timeout 10 sinfo -hN -p normal -t idle -o %N 2>/dev/null |
        sort -u | wc -l)" -eq "$2" ]
}

# One attempt with the ports from $2 on.
cluster_start_daemons() {
    local dir=$1 nodes=$2 accounting=$3 node
    [ -z "$accounting" ] || cluster_start_accounting "$dir" "$accounting" || return 1
    cluster_spawn "$dir" slurmctld "$(cluster_program slurmctld)" -D || return 1
    for node in $(seq -f 'n%g' "$nodes"); do
        cluster_node_start "$dir" "$node" || return 1
    done
    wait_for 60 cluster_controller_answers "$dir" && wait_for 60 cluster_all_idle "$dir" "$nodes"
}

cluster_start() {
    local dir nodes=4 cpus=4 gpus=0 grace=30 plugin='' cli_filter='' conf=() option port node
    local accounting=no accounting_programs=() dbd_port
    mkdir -p "$1" && dir=$(cd "$1" && pwd -P) || return 1
    shift
    for option in "$@"; do
        case $option in
        --nodes=*) nodes=${option#*=} ;;
        --cpus=*) cpus=${option#*=} ;;
        --gpus=*) gpus=${option#*=} ;;
        --grace=*) grace=${option#*=} ;;
        --accounting) accounting=yes ;;
        --plugin=*) plugin=${option#*=} ;;
        --cli-filter=*) cli_filter=${option#*=} ;;
        --conf=*) conf+=("${option#*=}") ;;
        *) cluster_say "$option: unknown option"; return 64 ;;
        esac
    done
    if [ ${#dir} -gt 60 ]; then
        cluster_say "$dir: too long a name for the sockets in it; use one of at most 60 characters"
        return 64
    fi
    if cluster_alive "$dir/run/slurmctld.pid" >/dev/null; then
        cluster_say "$dir: already running"
        return 1
    fi
    [ $accounting = no ] || accounting_programs=(slurmdbd mariadbd mariadb-install-db sacctmgr)
    for program in munged slurmctld slurmd slurmstepd srun "${accounting_programs[@]}"; do
        cluster_program $program >/dev/null || return 1
    done
    for node in $(seq -f 'n%g' "$nodes"); do
        mkdir -p "$dir/spool/$node" "$dir/tmp/$node" || return 1
    done
    mkdir -p "$dir/etc" "$dir/log" "$dir/run" "$dir/state" || return 1
    chmod 755 "$dir" "$dir/run" "$dir/etc"
    echo "$nodes" > "$dir/run/nodes"
    [ -z "$plugin" ] || echo "required $plugin" > "$dir/etc/plugstack.conf"
    [ -n "$plugin" ] || : > "$dir/etc/plugstack.conf"
    if [ -n "$cli_filter" ]; then
        cp "$cli_filter" "$dir/etc/cli_filter.lua" || return 1
        conf+=(CliFilterPlugins=lua)
    fi

    (umask 077 && head -c 128 /dev/urandom > "$dir/etc/munge.key") || return 1
    # --force: the directory may well be one that only this user can enter.
    cluster_spawn "$dir" munged "$(cluster_program munged)" --foreground --force --num-threads=2 \
        --key-file="$dir/etc/munge.key" --socket="$dir/run/munge.socket" \
        --pid-file="$dir/run/munged.own" --seed-file="$dir/state/munge.seed" &&
        wait_for 20 test -S "$dir/run/munge.socket" || {
        cluster_say "munged did not start; see $dir/log/munged.out"
        cluster_stop "$dir"
        return 1
    }
    # Somebody may take a port between our look and the daemon's: then again with others.
    for _ in 1 2 3; do
        port=$(cluster_ports $((nodes + 3))) || break
        dbd_port=
        [ $accounting = no ] || dbd_port=$((port + nodes + 1))
        cluster_write_conf "$dir" "$port" "$nodes" "$cpus" "$gpus" "$grace" "${conf[@]}" \
            ${dbd_port:+AccountingStorageType=accounting_storage/slurmdbd} \
            ${dbd_port:+AccountingStorageHost=127.0.0.1} \
            ${dbd_port:+AccountingStoragePort=$dbd_port} \
            ${dbd_port:+AccountingStoragePass=$dir/run/munge.socket} \
            ${dbd_port:+AccountingStoreFlags=job_comment}
        cluster_start_daemons "$dir" "$nodes" "$dbd_port" && return 0
        cluster_end_daemons "$dir"
        grep -qs 'Address already in use' "$dir"/log/* || break
    done
    cluster_say "Slurm did not start; see $dir/log"
    tail -n 3 "$dir"/log/slurmctld.log "$dir"/log/n*.log >&2
    cluster_stop "$dir"
    return 1
}

cluster_no_jobs() {
    [ -z "$(SLURM_CONF=$1/etc/slurm.conf timeout 10 squeue -h -o %A 2>/dev/null)" ]
}

cluster_stop() {
    local dir node jobs
    dir=$(cd "$1" 2>/dev/null && pwd -P) && [ -d "$dir/run" ] || return 0
    if cluster_alive "$dir/run/slurmctld.pid" >/dev/null; then
        jobs=$(SLURM_CONF=$dir/etc/slurm.conf timeout 10 squeue -h -o %A 2>/dev/null | sort -u)
        [ -z "$jobs" ] || SLURM_CONF=$dir/etc/slurm.conf timeout 20 scancel $jobs 2>/dev/null
        wait_for 20 cluster_no_jobs "$dir"
    fi
    cluster_end_daemons "$dir"
    cluster_kill_steps "$dir"
    cluster_end "$dir/run/munged.pid"
    rm -f "$dir"/run/*.own "$dir/run/munge.socket"*
    return 0
}

cluster_env() {
    local dir name
    dir=$(cd "$1" && pwd -P) || return 1
    # What an allocation of another Slurm, or a user's defaults, would say.
    for name in $(compgen -e); do
        case $name in
        SLURM_CONF) ;;
        SLURM_* | SLURMD_* | SBATCH_* | SALLOC_* | SRUN_*) echo "unset $name" ;;
        PMIX_NAMESPACE | PMIX_RANK | PMIX_SERVER_*) echo "unset $name" ;;
        esac
    done
    printf 'export SLURM_CONF=%q\n' "$dir/etc/slurm.conf"
}

cluster_node() {
    local dir node=$2 pid
    dir=$(cd "$1" && pwd -P) || return 1
    case $3 in
    start) cluster_node_start "$dir" "$node" ;;
    stop) cluster_end "$dir/run/$node.pid" ;;
    kill)
        pid=$(cluster_alive "$dir/run/$node.pid") && kill -KILL "$pid"
        cluster_kill_steps "$dir" "$node"
        # As a site should after a reboot: what Slurm's PMIx plugin leaves behind when slurmstepd
        # is killed keeps the same step from starting again; see mtllm(8).
        rm -rf "$dir/spool/$node"/stepd.slurm.pmix.* "$dir/spool/$node"/pmix.* \
            "$dir/tmp/$node"/spmix_appdir_*
        ;;
    *) cluster_say "node: start, stop or kill"; return 64 ;;
    esac
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    case $1:$# in
    start:[2-9] | start:?? | stop:2 | env:2 | node:4)
        command=$1
        shift
        "cluster_$command" "$@"
        ;;
    *)
        sed -n '2,/^$/{s/^# \{0,1\}//p}' "$0" >&2
        exit 64
        ;;
    esac
fi
