#!/usr/bin/env bats
# The plugin in a whole Slurm, of four nodes on this host: every task of every step gets what was
# given at submission, a job that stops unfinished is requeued (itself, once, within its limit),
# a job without an option is left alone, and no node is drained, whatever goes wrong. "mtllm-train"
# is a script here. Run by root, the jobs are another user's, as on a real cluster.

setup_file() {
    . "$BATS_TEST_DIRNAME/plugin.bash"
    . "$BATS_TEST_DIRNAME/cluster.sh"
    why=$(plugin_missing sbatch srun slurmctld slurmd munged)
    export why
    [ -z "$why" ] || return 0
    CLUSTER=$(mktemp -d "${TMPDIR:-/tmp}/mtllm-XXXXXX")
    export CLUSTER
    # The jobs' user may have no way into the checkout.
    cp -r "$plugin" "$top/etc/models" "$CLUSTER"
    chmod -R a+rX "$CLUSTER"
    cluster_start "$CLUSTER" --plugin="$CLUSTER/mtllm.so models=$CLUSTER/models"
    cp "$CLUSTER/etc/plugstack.conf" "$CLUSTER/etc/plugstack.with"
    mkdir -m 777 "$CLUSTER/jobs"
}

teardown_file() {
    [ -n "$CLUSTER" ] || return 0
    . "$BATS_TEST_DIRNAME/cluster.sh"
    cluster_stop "$CLUSTER"
    rm -rf "$CLUSTER"
}

setup() {
    [ -z "$why" ] || skip "$why"
    . "$BATS_TEST_DIRNAME/plugin.bash"
    . "$BATS_TEST_DIRNAME/cluster.sh"
    eval "$(cluster_env "$CLUSTER")"
    unset ${!MTLLM_*}
    as_user=
    [ "$(id -u)" -ne 0 ] ||
        as_user="setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/tmp USER=nobody"
    work=$CLUSTER/jobs/$BATS_TEST_NUMBER
    mkdir -m 777 "$work"
    cd "$work"
    # Unfinished until the job was restarted $STARTS times, or with status $STATUS.
    cat > mtllm-train <<'END'
#!/bin/sh
echo "task $SLURM_PROCID restarts=$MTLLM_RESTART_COUNT tp=$MTLLM_TP end=$MTLLM_JOB_END_TIME"
[ "$MTLLM_RESTART_COUNT" -lt "${STARTS:-0}" ] && exit 75
exit "${STATUS:-0}"
END
    chmod 755 mtllm-train
}

# No node may suffer from what a job does, and no test leave anything behind for the next.
teardown() {
    [ -z "$why" ] || return 0
    cp "$CLUSTER/etc/plugstack.with" "$CLUSTER/etc/plugstack.conf"
    jobs=$(squeue -h -o %A | sort -u)
    [ -z "$jobs" ] || scancel $jobs
    wait_for 60 cluster_all_idle "$CLUSTER" 4
    run sinfo -h -R -o '%N %E'
    [ -z "$output" ]
}

script() {
    printf '%s\n' '#!/bin/bash' "$@" > job.sh
}

job_is_over() {
    [ -z "$(squeue -h -j "$1" 2>/dev/null)" ]
}

# submit ARGUMENTS...: sets $job; the log is log.
submit() {
    job=$($as_user sbatch --parsable -o log "$@" job.sh)
}

# submit, and wait for the job's end, restarts included.
run_job() {
    submit "$@"
    wait_for 90 job_is_over "$job"
    cat log
}

# One field of scontrol's: state JOB JobState
field() {
    scontrol -o show job "$1" | sed "s/.* $2=\([^ ]*\).*/\1/"
}

@test "the tasks of a step get the options as MTLLM_ variables, the batch script does not" {
    script '#SBATCH -N2 -n4 -t 3 --llm-tp=2' 'env > script.env' 'srun sh -c "env > task.\$SLURM_PROCID"'
    run_job --llm-model=llama-tiny --llm-run-dir=run --llm-lr 1e-4
    ! grep -q '^MTLLM_\(TP\|MODEL\|RUN_DIR\|LR\)=' script.env || false
    grep -qx 'SLURM_MPI_TYPE=pmix' script.env
    for task in 0 1 2 3; do
        grep -qx 'MTLLM_TP=2' task.$task
        grep -qx 'MTLLM_MODEL=llama-tiny' task.$task
        grep -qx "MTLLM_RUN_DIR=$work/run" task.$task
        grep -qx 'MTLLM_LR=1e-4' task.$task
        grep -qx 'MTLLM_RESTART_COUNT=0' task.$task
        end=$(sed -n 's/^MTLLM_JOB_END_TIME=//p' task.$task)
        [ "$end" -eq "$(($(date -d "$(field "$job" StartTime)" +%s) + 180))" ]
    done
}

@test "srun's own options count for more than the job's" {
    script '#SBATCH -n1 --llm-tp=2' 'srun --llm-tp=4 env | grep ^MTLLM_TP=' \
        'srun env | grep ^MTLLM_TP='
    run_job
    [ "$(cat log)" = $'MTLLM_TP=4\nMTLLM_TP=2' ]
}

@test "relative paths mean the directory of sbatch, wherever the job runs" {
    mkdir -m 777 elsewhere
    echo 'tp = 2' > run.ini
    script '#SBATCH -n2 --llm-config=run.ini --llm-data=data/text' 'pwd' \
        "srun -n1 env | grep '^MTLLM_[CD].*='" "srun -n2 '$work/mtllm-train'"
    run_job -D elsewhere -o "$work/log"
    grep -qx "$work/elsewhere" log
    grep -qx "MTLLM_CONFIG=$work/run.ini" log
    grep -qx "MTLLM_DATA=$work/data/text" log
    grep -q '^task 1 ' log
}

@test "--export=NONE takes none of it away" {
    script '#SBATCH -n1 -t 3' 'srun /usr/bin/env | grep ^MTLLM_ | sort'
    run_job --export=NONE --llm-tp=2 --llm-run-dir=run
    grep -qx 'MTLLM_TP=2' log
    grep -qx "MTLLM_RUN_DIR=$work/run" log
    grep -qx 'MTLLM_RESTART_COUNT=0' log
    grep -qx 'MTLLM_JOB_END_TIME=[0-9]*' log
    run_job --export=FOO --llm-tp=2
    grep -qx 'MTLLM_TP=2' log
}

@test "salloc and a bare srun work like sbatch" {
    run $as_user salloc -n2 --llm-tp=2 srun ./mtllm-train
    [ "$status" -eq 0 ]
    [[ $output == *"task 1 restarts=0 tp=2"* ]]
    run $as_user srun -n2 --llm-tp=2 ./mtllm-train
    [ "$status" -eq 0 ]
    [[ $output == *"task 1 restarts=0 tp=2"* ]]
}

@test "without an option, the environment of script and tasks is the same as without the plugin" {
    script '#SBATCH -N2 -n2' 'env > script' 'srun sh -c "env > task.\$SLURM_PROCID"'
    environment() {
        run_job
        # Numbers are ids, ports and times.
        sort script task.0 task.1 | sed 's/[0-9]\{1,\}/N/g'
    }
    with=$(environment)
    : > "$CLUSTER/etc/plugstack.conf"
    without=$(environment)
    [[ $with == *SLURM_JOB_ID* ]]
    diff <(echo "$with") <(echo "$without")
}

@test "srun refuses a world size that the layout does not fit, and only the trainer's" {
    script '#SBATCH -n3 --llm-model=llama-tiny --llm-tp=2' 'srun -n3 ./mtllm-train; echo status $?' \
        'srun -n3 echo fine' 'srun -n3 ./mtllm-train --tp=1'
    run_job
    grep -q 'srun: error: mtllm: --llm-tp=2 --llm-pp=1: one replica takes 2 x 1 = 2 ranks' log
    grep -qx 'status 78' log
    [ "$(grep -cx fine log)" -eq 3 ]
    grep -q '^task 2 ' log
}

@test "a job whose run ends with status 75 is requeued until it finishes" {
    script '#SBATCH -N2 -n4' 'srun ./mtllm-train; echo status $?'
    run_job --llm-tp=2 --export=ALL,STARTS=2
    [ "$(field "$job" Restarts)" -eq 2 ]
    [ "$(field "$job" JobState)" = COMPLETED ]
    [ "$(grep -c "^mtllm: job $job stopped unfinished and goes back to the queue" log)" -eq 2 ]
    grep -q '^task 3 restarts=2 ' log
    [ "$(grep -c '^task ' log)" -eq 12 ]
    [ "$(grep '^status ' log)" = 'status 0' ]
}

@test "of a job array, only the task that stopped is requeued" {
    # The last task to start carries the array's own number, so each takes its turn.
    script 'STARTS=$SLURM_ARRAY_TASK_ID srun ./mtllm-train'
    run_job -n1 -a 0-2 --llm-tp=1
    for task in 0 1 2; do
        [ "$(field "${job}_$task" Restarts)" -eq $task ]
        [ "$(field "${job}_$task" JobState)" = COMPLETED ]
    done
}

@test "--llm-requeue=no, wherever it is said, and other statuses leave the job alone" {
    script '#SBATCH -n1' 'srun ./mtllm-train'
    echo 'requeue = no' > no.ini
    submit --llm-requeue=no --export=ALL,STARTS=1
    jobs=$job
    submit --llm-config=no.ini --export=ALL,STARTS=1
    jobs+=" $job"
    submit --llm-max-requeue=0 --export=ALL,STARTS=1
    jobs+=" $job"
    submit --llm-tp=1 --export=ALL,STATUS=76
    jobs+=" $job"
    script '#SBATCH -n1' 'srun ./mtllm-train --requeue=no'
    submit --llm-tp=1 --export=ALL,STARTS=1
    jobs+=" $job"
    script '#SBATCH -n1' 'exit 75'
    submit --llm-tp=1
    jobs+=" $job"
    script '#SBATCH -n1' 'srun ./mtllm-train'
    submit --export=ALL,STATUS=75
    jobs+=" $job"
    for job in $jobs; do
        wait_for 60 job_is_over "$job"
        [ "$(field "$job" Restarts)" -eq 0 ]
        [ "$(field "$job" JobState)" = FAILED ]
    done
}

@test "--llm-max-requeue is the end of it" {
    script '#SBATCH -n1' 'srun ./mtllm-train'
    run_job --llm-max-requeue=1 --export=ALL,STARTS=9
    [ "$(field "$job" Restarts)" -eq 1 ]
    [ "$(field "$job" JobState)" = FAILED ]
    grep -q "^mtllm: job $job stopped unfinished and is not requeued: it was 1 times" log
}

@test "a job that may not be requeued is told so, once" {
    script '#SBATCH -n2' 'srun ./mtllm-train'
    run_job --no-requeue --llm-tp=1 --export=ALL,STARTS=1
    [ "$(field "$job" JobState)" = FAILED ]
    [ "$(grep -c "^mtllm: job $job stopped unfinished and cannot be requeued: it was" log)" -eq 1 ]
    run env STARTS=1 $as_user salloc -n2 --llm-tp=1 srun ./mtllm-train
    [ "$(grep -c 'mtllm: job .* only jobs of sbatch can be requeued' <<< "$output")" -eq 1 ]
    [[ $output == *"exit code 75"* ]]
}

@test "a job that is preempted checkpoints, goes back to the queue and finishes" {
    cat > mtllm-train <<'END'
#!/bin/bash
trap 'echo "task $SLURM_PROCID stops"; exit 75' TERM
echo "task $SLURM_PROCID starts"
[ "$MTLLM_RESTART_COUNT" -gt 0 ] && exit 0
[ "$SLURM_PROCID" = 0 ] && touch started
while :; do sleep 0.1; done
END
    script '#SBATCH -N4 -n4' 'srun ./mtllm-train'
    submit --llm-tp=1
    wait_for 30 test -e started
    run $as_user srun -p high -N4 -n4 --exclusive true
    [ "$status" -eq 0 ]
    wait_for 90 job_is_over "$job"
    cat log
    [ "$(field "$job" Restarts)" -eq 1 ]
    [ "$(field "$job" JobState)" = COMPLETED ]
    [ "$(grep -c '^task . starts' log)" -eq 8 ]
}

@test "a run that stops before its time limit is requeued, one that is requeued by hand not again" {
    cat > mtllm-train <<'END'
#!/bin/bash
trap 'exit 75' TERM
[ "$MTLLM_RESTART_COUNT" -gt 0 ] && exit 0
touch "started.$SLURM_JOB_ID"
while [ "$(date +%s)" -lt $((MTLLM_JOB_END_TIME - 45)) ]; do sleep 0.1; done
exit 75
END
    script '#SBATCH -n2' 'srun ./mtllm-train'
    submit -t 1 --llm-tp=1
    limited=$job
    submit -t 60 --llm-tp=1 -o log.2
    wait_for 30 test -e "started.$job"
    $as_user scontrol requeue "$job"
    for job in "$limited" "$job"; do
        wait_for 90 job_is_over "$job"
        [ "$(field "$job" Restarts)" -eq 1 ]
        [ "$(field "$job" JobState)" = COMPLETED ]
    done
    grep -q "^mtllm: job $limited stopped unfinished and goes back to the queue" log
    ! grep '^mtllm:' log.2 || false
}

@test "a job that is cancelled stays cancelled, though its run stops unfinished" {
    cat > mtllm-train <<'END'
#!/bin/bash
trap 'touch stopped; exit 75' TERM
touch started
while :; do sleep 0.1; done
END
    script '#SBATCH -n1' 'srun ./mtllm-train'
    submit --llm-tp=1
    wait_for 30 test -e started
    $as_user scancel "$job"
    wait_for 60 job_is_over "$job"
    [ "$(field "$job" JobState)" = CANCELLED ]
    [ "$(field "$job" Restarts)" -eq 0 ]
}

@test "a step whose environment cannot be set fails, and its node stays" {
    long=/$(printf '%09000d' 0)
    script '#SBATCH -n2 --llm-tp=1' "srun --llm-data=$long true; echo status \$?" 'srun echo fine'
    run_job
    grep -q 'mtllm: --llm-data: the value is too long' log
    grep -qx 'status 1' log
    grep -qx fine log
}

@test "killed tasks and steps are not requeued by the plugin, and drain no node" {
    cat > mtllm-train <<'END'
#!/bin/sh
kill -KILL $$
END
    script '#SBATCH -N2 -n2' 'srun ./mtllm-train'
    run_job --llm-tp=1
    [ "$(field "$job" Restarts)" -eq 0 ]
    [ "$(field "$job" JobState)" = FAILED ]
}
