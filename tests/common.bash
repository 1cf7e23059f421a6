# What the bats files of the trainer share. Each test works in a directory of its own.

# The build's programs before any installed ones, the checkout's presets, one thread a rank.
common_setup() {
    source_dir=$(cd "${srcdir:-$BATS_TEST_DIRNAME/..}" && pwd)
    build_dir=${builddir:-$PWD}
    export PATH="$build_dir:$PATH"
    export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null
    export MTLLM_TEMPLATES="$source_dir/etc/templates"
    export OMP_NUM_THREADS=1
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none
    unset ${!SLURM_*} ${!MTLLM_RUN_*}
    cd "$BATS_TEST_TMPDIR" || return 1
}

# What a test that failed has left.
teardown() {
    local pid
    for pid in $(trainer_pids); do
        kill -KILL "$pid" 2>/dev/null || true
    done
}

# train RANKS ARGUMENT...: mtllm-train on that many ranks.
train() {
    local ranks=$1
    shift
    if [ "$ranks" = 1 ]; then
        timeout 300 mtllm-train "$@"
    else
        timeout 300 mpirun --quiet --oversubscribe -n "$ranks" mtllm-train "$@"
    fi
}

# losses FILE: "step loss" of every training step of a metrics.jsonl.
losses() {
    sed -n '/"eval"/d; s/.*"step": *\([0-9]*\).*"loss": *\([^,}]*\).*/\1 \2/p' "$1"
}

# steps_seen FILE: the last step in a metrics.jsonl, 0 while there is none.
steps_seen() {
    local last
    last=$(losses "$1" 2>/dev/null | tail -n 1)
    echo "${last%% *}" | grep . || echo 0
}

# losses_agree A B TOLERANCE STEPS: both have exactly steps 1 to STEPS, and no loss differs by more
# than TOLERANCE relative. Prints the greatest difference.
losses_agree() {
    paste -d' ' <(losses "$1") <(losses "$2") | awk -v tolerance="$3" -v steps="$4" '
        NF != 4 || $1 != NR || $3 != NR { print "steps do not match: " $0; bad = 1; exit }
        {
            d = $2 - $4; if (d < 0) d = -d; d /= ($4 < 0 ? -$4 : $4)
            if (d > most) most = d
            if (!(d <= tolerance)) { print "step " $1 ": " $2 " against " $4; bad = 1 }
        }
        END {
            if (NR != steps) { print NR " steps instead of " steps; bad = 1 }
            printf "greatest relative difference %.2e\n", most
            exit bad
        }'
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

# reached FILE STEP: the run has made that step.
reached() {
    [ "$(steps_seen "$1")" -ge "$2" ]
}

# Start training in the background: sets run_pid. Output goes to LOG.
train_in_background() {
    local log=$1
    shift
    train "$@" > "$log" 2>&1 3>&- &
    run_pid=$!
}

# The pids of the trainer's processes that this test started: children of children of run_pid.
trainer_pids() {
    local pid children=$run_pid all=
    while [ -n "$children" ]; do
        children=$(for pid in $children; do cat "/proc/$pid/task/$pid/children" 2>/dev/null; done)
        all="$all $children"
    done
    for pid in $all; do
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = mtllm-train ] && echo "$pid"
    done
    return 0
}

# The newest complete checkpoint of a run: its step, or 0.
newest_step() {
    local name
    name=$(ls -d "$1"/ckpt/step-* 2>/dev/null | tail -n 1)
    [ -n "$name" ] && echo $((10#${name##*step-})) || echo 0
}
