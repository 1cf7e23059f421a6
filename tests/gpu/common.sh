# shellcheck shell=bash
# What the scripts of tests/gpu share; sourced with the build directory as $1. They work in a
# directory of their own, which goes when they end.

source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null
export MTLLM_MODULES=${MTLLM_MODULES:-$build_dir}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 71
number=0 status=0

ok() {
    echo "ok $((++number)) $1"
}

# With the end of the log that was written last.
not_ok() {
    local log
    echo "not ok $((++number)) $1"
    log=$(ls -t ./*.log 2>/dev/null | head -n 1)
    [ -z "$log" ] || tail -n 5 "$log" | sed "s|^|#   $log: |"
    status=1
}

# expect TEXT COMMAND...
expect() {
    local text=$1
    shift
    if "$@"; then ok "$text"; else not_ok "$text"; fi
}

finish() {
    echo "1..$number"
    exit $status
}

gpu_count() {
    nvidia-smi -L 2>/dev/null | grep -c '^GPU'
}

# on RANKS COMMAND...
on() {
    local ranks=$1
    shift
    if [ "$ranks" = 1 ]; then
        "$@"
    else
        mpirun --quiet --bind-to none -n "$ranks" "$@"
    fi
}

# train RANKS RUN OPTION...
train() {
    local ranks=$1 run=$2
    shift 2
    on "$ranks" "$build_dir/mtllm-train" --run-dir="$run" --data=data "$@" > "$run.log" 2>&1
}

losses() {
    sed -n '/"eval"/d; s/.*"loss": *\([^,}]*\).*/\1/p' "$1/metrics.jsonl"
}

# steps_seen RUN
steps_seen() {
    losses "$1" 2>/dev/null | wc -l
}

# same_run RUN OTHER STEPS: every loss, and every bit of the last checkpoint.
same_run() {
    [ "$(losses "$1")" = "$(losses "$2")" ] && [ "$(steps_seen "$1")" = "$3" ] &&
        "$build_dir/mtllm-ckpt" diff "$1/ckpt/latest" "$2/ckpt/latest"
}

# near RUN OTHER BOUND STEPS: every loss within that, relative.
near() {
    paste <(losses "$1") <(losses "$2") | awk -v bound="$3" -v steps="$4" -v what="$1 against $2" '
        { d = $1 / $2 - 1; if (d < 0) d = -d; if (!(d <= worst)) { worst = d; at = NR } }
        END { printf "# %s: %d steps, at most %.2e apart, at step %d (bound %g)\n", what, NR,
                  worst, at, bound
              exit !(NR == steps && worst <= bound) }'
}

# wait_for SECONDS COMMAND...: until the command succeeds, but not for ever.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.05
    done
}

# reached RUN STEP
reached() {
    [ "$(steps_seen "$1")" -ge "$2" ]
}
