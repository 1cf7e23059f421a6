#!/usr/bin/env bats
# Guards, on a private Slurm of four nodes: a training that is preempted, runs into its time limit,
# loses a node or is an array task goes on by itself and ends with the bits of one that was never
# disturbed.

load ../common

model="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=32"

setup_file() {
    local source_dir build_dir
    source_dir=$(cd "${srcdir:-$BATS_TEST_DIRNAME/../..}" && pwd)
    build_dir=${builddir:-$PWD}
    cluster="$source_dir/tests/slurm/cluster.sh"
    export cluster
    "$build_dir/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 259 300 1
    # A node that does not answer is given up soon, or node loss would take a minute to see.
    "$cluster" start "$BATS_FILE_TMPDIR/slurm" --grace=60 --plugin="$build_dir/.libs/mtllm.so" \
        --conf="SlurmdTimeout=10"
}

teardown_file() {
    "$cluster" stop "$BATS_FILE_TMPDIR/slurm"
}

setup() {
    source_dir=$(cd "${srcdir:-$BATS_TEST_DIRNAME/../..}" && pwd)
    common_setup
    eval "$("$cluster" env "$BATS_FILE_TMPDIR/slurm")"
    export OMPI_MCA_btl_tcp_if_include=lo
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    cat > job.sh <<'JOB'
#!/bin/bash
srun --mpi=pmix mtllm-train "$@"
JOB
    # Slow enough to be disturbed, fast enough for a test: about 50 steps a second.
    unlimited="$model --data=$BATS_FILE_TMPDIR/data --lr=3e-3 --lr-warmup-steps=3
        --global-batch-size=32 --micro-batch-size=4 --seed=5 --save-interval=50"
    arguments="$unlimited --steps=600"
}

teardown() {
    scancel --user="$(id -un)" 2>/dev/null || true
    wait_for 60 eval '[ -z "$(squeue -h)" ]' || { squeue; false; }
}

state() {
    scontrol -o show job "$1" | grep -o 'JobState=[A-Z_]*' | head -n 1 | cut -d= -f2
}

restarts() {
    scontrol -o show job "$1" | grep -o 'Restarts=[0-9]*' | head -n 1 | cut -d= -f2
}

in_state() {
    [ "$(state "$1")" = "$2" ]
}

# The same training on the same layout, never disturbed, once a file.
uninterrupted() {
    local directory="$BATS_FILE_TMPDIR/uninterrupted"
    if [ ! -e "$directory/done" ]; then
        mkdir -p "$directory"
        (cd "$directory" && train 4 $arguments --tp=2 --pp=2 --run-dir=run > log 2>&1) ||
            { cat "$directory/log"; return 1; }
        touch "$directory/done"
    fi
    echo "$directory/run"
}

# submit OPTION...: the job's id. Four nodes, a task each, tp 2 and pp 2.
submit() {
    sbatch --parsable -N4 -n4 -o "$PWD/out-%A_%a" --llm-tp=2 --llm-pp=2 "$@"
}

# preempt JOB: a job of higher priority takes the nodes until JOB has stopped.
preempt() {
    local other before
    before=$(restarts "$1")
    other=$(sbatch --parsable -p high -N4 -n4 --exclusive -o /dev/null --wrap="sleep 300")
    wait_for 90 eval '[ "$(restarts '"$1"')" -gt '"$before"' ]' || { scontrol show job "$1"; return 1; }
    wait_for 30 in_state "$other" RUNNING
    scancel "$other"
}

@test "preempted twice, requeued, resumed: the bits of an uninterrupted run" {
    local job whole
    whole=$(uninterrupted)
    job=$(submit --llm-run-dir="$PWD/run" job.sh $arguments)
    wait_for 90 reached run/metrics.jsonl 30 || { cat out-*; false; }
    preempt "$job"
    wait_for 90 reached run/metrics.jsonl $(($(newest_step run) + 30)) || { cat out-*; false; }
    preempt "$job"
    wait_for 120 in_state "$job" COMPLETED || { cat out-*; false; }
    [ "$(restarts "$job")" = 2 ]
    [ "$(cat out-* | grep -c 'resuming from')" -ge 1 ]
    mtllm-ckpt diff "$whole" run
    losses_agree run/metrics.jsonl "$whole/metrics.jsonl" 0 600
}

@test "the time limit: a checkpoint before it, requeued, finished" {
    local job
    # The limit is a minute; with this margin each start has about ten seconds. How far that is
    # depends on the machine, so the goal is set when the first stop has shown it.
    echo "steps = 50000" > goal.ini
    job=$(submit --time=1 --llm-run-dir="$PWD/run" --llm-margin=50s --llm-config="$PWD/goal.ini" \
        job.sh $unlimited)
    wait_for 100 eval '[ "$(restarts '"$job"')" -ge 1 ]' || { cat out-*; false; }
    [ "$(newest_step run)" -gt 0 ]
    grep "stopped by the job's time limit" out-*
    echo "steps = $(($(newest_step run) + 20))" > goal.ini
    wait_for 90 in_state "$job" COMPLETED || { cat out-*; scontrol show job "$job"; false; }
    [ "$(restarts "$job")" = 1 ]
}

@test "a preempted array task requeues only itself" {
    local job first second other
    job=$(sbatch --parsable --array=1-2 -N2 -n2 --exclusive -o "$PWD/out-%A_%a" --llm-tp=2 \
        --chdir="$PWD" job.sh $unlimited --steps=100000)
    wait_for 90 reached "mtllm-${job}_1/metrics.jsonl" 20 || { cat out-*; false; }
    wait_for 90 reached "mtllm-${job}_2/metrics.jsonl" 20 || { cat out-*; false; }
    # Two nodes' worth of higher priority: one of the tasks has to go.
    other=$(sbatch --parsable -p high -N2 -n2 --exclusive -o /dev/null --wrap="sleep 300")
    wait_for 90 eval '[ $(($(restarts '"${job}"'_1) + $(restarts '"${job}"'_2))) -ge 1 ]'
    wait_for 30 in_state "$other" RUNNING
    sleep 2 # time for a second, wrong, requeue to show
    first=$(restarts "${job}_1") second=$(restarts "${job}_2")
    [ $((first + second)) = 1 ]
    if [ "$first" = 0 ]; then in_state "${job}_1" RUNNING; else in_state "${job}_2" RUNNING; fi
    scancel "$other" "$job"
}

# The trainer's processes of this test, on all of the fake nodes.
ranks_here() {
    local pid
    for pid in $(pgrep -x mtllm-train); do
        [ "$(readlink "/proc/$pid/cwd")" = "$PWD" ] && echo "$pid"
    done
    return 0
}

# lose_node JOB NODE: its slurmd and steps die; Slurm notices and requeues the job; it comes back.
lose_node() {
    local before
    before=$(restarts "$1")
    "$cluster" node "$BATS_FILE_TMPDIR/slurm" "$2" kill
    # What SlurmdTimeout would do later.
    scontrol update NodeName="$2" State=DOWN Reason=killed
    wait_for 60 eval '[ "$(restarts '"$1"')" -gt '"$before"' ]' || { scontrol show job "$1"; return 1; }
    "$cluster" node "$BATS_FILE_TMPDIR/slurm" "$2" start
    wait_for 30 eval '[ "$(sinfo -hN -n '"$2"' -o %T | sort -u)" = idle ]' || { sinfo; return 1; }
}

# start_again: what the run's user does when Slurm has ended the job: submit it once more. Open MPI's
# TCP transport, too, crashes now and then in MPI_Init() when it starts right after a kill.
start_again() {
    in_state "$job" FAILED || return 0
    job=$(submit --llm-run-dir="$PWD/run" job.sh $arguments --save-interval=2)
}

running_or_failed() {
    [ "$(ranks_here | wc -l)" = 4 ] || in_state "$job" FAILED
}

@test "kill -9 of a rank, of the step, of a slurmd, at 20 random moments, also inside saves" {
    local job whole before i victim goal deadline
    whole=$(uninterrupted)
    RANDOM=2
    job=$(submit --llm-run-dir="$PWD/run" job.sh $arguments --save-interval=2)
    for i in $(seq 20); do
        # Some kills come while the run starts, most after it has made a few steps.
        goal=$(($(newest_step run) + RANDOM % 4 + 2))
        until [ "$(ranks_here | wc -l)" = 4 ] && reached run/metrics.jsonl $goal; do
            start_again
            wait_for 90 running_or_failed || { scontrol show job "$job"; false; }
            sleep 0.05
        done
        if [ $((i % 4)) = 0 ]; then
            wait_for 10 eval '[ -n "$(ls -d run/ckpt/.step-*.tmp 2>/dev/null)" ]' || true
        else
            sleep "0.$((RANDOM % 200 + 100))"
        fi
        before=$(newest_step run)
        case $((i % 3)) in
        0) lose_node "$job" "n$((RANDOM % 4 + 1))" ;;
        1)
            victim=$(ranks_here | sed -n "$((RANDOM % 4 + 1))p")
            kill -KILL "$victim"
            ;;
        2) kill -KILL $(ranks_here) ;;
        esac
        if [ $((i % 3)) != 0 ]; then
            # Slurm ends such a job; its user starts it again.
            wait_for 60 in_state "$job" FAILED || { scontrol show job "$job"; false; }
            start_again
        fi
        [ "$(newest_step run)" -ge "$before" ]
        [ "$before" = 0 ] || mtllm-ckpt verify "$(printf 'run/ckpt/step-%08d' "$(newest_step run)")"
        # No further than the run goes.
        [ "$before" -lt 590 ] || { echo "the run is too short for twenty kills"; false; }
    done
    deadline=$((SECONDS + 180))
    until in_state "$job" COMPLETED; do
        start_again
        [ $SECONDS -lt $deadline ] || { cat out-*; scontrol show job "$job"; false; }
        sleep 0.2
    done
    # No start, after any kill, went back behind a checkpoint that was complete.
    cat $(ls -tr out-*) | sed -n 's/.*resuming from .*, step \([0-9]*\)$/\1/p' | sort -nc
    mtllm-ckpt diff "$whole" run > differences || { head -n 3 differences; cat out-*; false; }
}
