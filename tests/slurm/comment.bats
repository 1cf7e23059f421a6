#!/usr/bin/env bats
# A run's progress in its job's comment, on a private Slurm of two nodes with accounting: squeue
# shows it, sacct keeps the last one, the user's own comment stays, and a controller that does not
# answer delays nothing.

load ../common

setup_file() {
    local source_dir build_dir
    source_dir=$(cd "${srcdir:-$BATS_TEST_DIRNAME/../..}" && pwd)
    build_dir=${builddir:-$PWD}
    cluster="$source_dir/tests/slurm/cluster.sh"
    export cluster
    "$build_dir/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 259 300 1
    "$cluster" start "$BATS_FILE_TMPDIR/slurm" --nodes=2 --accounting \
        --plugin="$build_dir/.libs/mtllm.so"
}

teardown_file() {
    "$cluster" stop "$BATS_FILE_TMPDIR/slurm"
}

setup() {
    common_setup
    eval "$("$cluster" env "$BATS_FILE_TMPDIR/slurm")"
    export OMPI_MCA_btl_tcp_if_include=lo
    cat > job.sh <<'JOB'
#!/bin/bash
srun --mpi=pmix mtllm-train "$@"
JOB
    arguments="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --vocab-size=259
        --max-positions=32 --data=$BATS_FILE_TMPDIR/data --run-dir=$PWD/run --global-batch-size=32
        --micro-batch-size=4"
}

teardown() {
    controller CONT
    scancel --user="$(id -un)" 2>/dev/null || true
    wait_for 60 eval '[ -z "$(squeue -h)" ]' || { squeue; false; }
}

# controller SIGNAL
controller() {
    kill -"$1" "$(cut -d' ' -f1 "$BATS_FILE_TMPDIR/slurm/run/slurmctld.pid")"
}

comment_of() {
    squeue -h -j "$1" -o %k 2>/dev/null || true
}

# comment_is JOB REGEX: as squeue has it.
comment_is() {
    [[ $(comment_of "$1") =~ ^$2$ ]]
}

# recorded JOB TEXT: as the accounting has it.
recorded() {
    [ "$(sacct -X -n -P -j "$1" -o comment)" = "$2" ]
}

# final_text STATE FILE: what the last step in a metrics.jsonl gives.
final_text() {
    losses "$2" | tail -n 1 | { read -r step loss; printf '%s step %d/%d loss %.2f' "$1" "$step" "$3" "$loss"; }
}

in_state() {
    [ "$(scontrol -o show job "$1" | grep -o 'JobState=[A-Z_]*')" = "JobState=$2" ]
}

@test "squeue shows the step while the job runs, sacct the last one after it" {
    local job
    job=$(sbatch --parsable -N2 -n2 -o out job.sh $arguments --steps=200)
    wait_for 60 comment_is "$job" 'step [0-9]+/200 loss [0-9]+\.[0-9]{2}( ETA [0-9dhms]+)?' ||
        { cat out; comment_of "$job"; false; }
    in_state "$job" RUNNING
    wait_for 60 in_state "$job" COMPLETED || { cat out; false; }
    [ "$(losses run/metrics.jsonl | wc -l)" = 200 ]
    text=$(final_text 'done' run/metrics.jsonl 200)
    scontrol -o show job "$job" | grep -F " Comment=$text "
    wait_for 30 recorded "$job" "$text" || { sacct -X -P -j "$job" -o comment; false; }
    ! grep warning out || false
}

@test "the user's own comment stays in front, and a requeued job goes on with it" {
    local job own='project="a b", x|y'
    job=$(sbatch --parsable -N2 -n2 -o out --comment="$own" --llm-save-interval=0 job.sh $arguments \
        --steps=100000)
    wait_for 60 eval '[[ $(comment_of '"$job"') == "$own | step "*"/100000 loss "* ]]' ||
        { cat out; comment_of "$job"; false; }
    scancel --signal=TERM "$job"
    wait_for 60 eval '[[ $(comment_of '"$job"') == "$own | stopped step "*"/100000 loss "* ]]' ||
        { cat out; comment_of "$job"; false; }
    # Requeued, it makes a first step of its own.
    wait_for 90 eval '[[ $(comment_of '"$job"') == "$own | step "*"/100000 loss "* ]]' ||
        { cat out; comment_of "$job"; false; }
    grep 'resuming from' out
    scancel "$job"
    wait_for 60 in_state "$job" CANCELLED
    sacct -X -n -P -j "$job" -o comment | tail -n 1 | grep -F "$own | "
}

@test "--llm-job-comment=no leaves it alone" {
    local job
    job=$(sbatch --parsable -n1 -o out --comment=mine --llm-job-comment=no job.sh $arguments \
        --steps=5)
    wait_for 60 in_state "$job" COMPLETED || { cat out; false; }
    scontrol -o show job "$job" | grep -F ' Comment=mine '
}

@test "an array task has the comment of its own steps" {
    local job
    cat > array.sh <<'JOB'
#!/bin/bash
srun --mpi=pmix mtllm-train "$@" --run-dir=run-$SLURM_ARRAY_TASK_ID --steps=${SLURM_ARRAY_TASK_ID}0
JOB
    job=$(sbatch --parsable --array=1-2 -n1 -o out-%a array.sh $arguments)
    for task in 1 2; do
        wait_for 60 in_state "${job}_$task" COMPLETED || { cat out-*; false; }
        scontrol -o show job "${job}_$task" | grep -F " Comment=done step ${task}0/${task}0 loss "
    done
}

@test "a controller that does not answer delays no step, and the end by ten seconds at most" {
    local job start
    cat > frozen.sh <<'JOB'
#!/bin/bash
touch ready
until [ -e go ]; do sleep 0.1; done
mtllm-train "$@"
echo $? > status
JOB
    job=$(sbatch --parsable -n1 -o out frozen.sh $arguments --steps=200)
    wait_for 60 test -e ready
    controller STOP
    start=$SECONDS
    touch go
    wait_for 120 test -s status || { cat out; false; }
    [ "$(cat status)" = 0 ]
    controller CONT
    [ "$(losses run/metrics.jsonl | wc -l)" = 200 ]
    # The commands hung for as long as they may; had a step waited for one, it would show.
    grep -c 'warning: the comment of job' out | grep -x 1
    grep 'squeue did not end in time' out
    jq -e -s 'map(.step_s) | max < 2' run/metrics.jsonl
    jq -s 'map(.step_s) | sort | {steps: length, median: .[100], longest: .[-1]}' run/metrics.jsonl
    [ $((SECONDS - start)) -lt 60 ]
}
