#!/usr/bin/env bats
# Guards: TensorBoard's and wandb's own readers find in a run what metrics.jsonl has, every step
# once, also after kills and requeues; a place that cannot be written costs one warning and nothing
# of the training.
#
# The readers are Python packages, in a virtual environment in the build directory or in
# CHECK_VIEWERS_VENV; without the network the first time these tests are skipped.

load common

model="--family=llama --layers=2 --hidden-size=32 --ffn-size=48 --heads=4 --vocab-size=259
    --max-positions=32"
run="--data=$BATS_FILE_TMPDIR/data --lr=3e-3 --global-batch-size=8 --seed=5 --run-dir=run
    --log-every=7 --eval-interval=6 --eval-steps=1 --valid-data=a=$BATS_FILE_TMPDIR/data
    --tensorboard --wandb"

setup_file() {
    "${builddir:-$PWD}/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 259 300 1
    local requirements="${srcdir:-$BATS_TEST_DIRNAME/..}/tests/viewers/requirements.txt"
    export viewers_venv=${CHECK_VIEWERS_VENV:-${builddir:-$PWD}/viewers-venv}
    if ! cmp -s "$requirements" "$viewers_venv/requirements.txt"; then
        python3 -m venv "$viewers_venv" &&
            "$viewers_venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements" &&
            cp "$requirements" "$viewers_venv/" || rm -f "$viewers_venv/requirements.txt"
    fi
}

setup() {
    common_setup
    unset ${!WANDB_*}
}

# viewers SCRIPT ARGUMENT...: a script in viewers/, which says what the arguments are.
viewers() {
    local script=$1
    shift
    [ -e "$viewers_venv/requirements.txt" ] || skip "no Python packages tensorboard and wandb"
    PYTHONDONTWRITEBYTECODE=1 "$viewers_venv/bin/python" -W ignore \
        "$source_dir/tests/viewers/$script" "$@"
}

check() {
    viewers check.py "$@"
}

# warnings LOG: how many there are.
warnings() {
    grep -c 'warning: ' "$1" || true
}

# lines FILE...: those of the console.
lines() {
    grep -hE '^ (iteration|validation loss) ' "$@"
}

output_log=run/wandb/latest-run/files/output.log

# What the training makes without any of it, once a file.
plain_losses() {
    local directory="$BATS_FILE_TMPDIR/plain"
    if [ ! -e "$directory/losses" ]; then
        mkdir -p "$directory"
        (cd "$directory" && train 1 $model $run --tensorboard=no --wandb=no --steps=40 > log 2>&1 &&
            losses run/metrics.jsonl > losses) || { cat "$directory/log"; return 1; }
    fi
    cat "$directory/losses"
}

@test "kill -9, and on to the end: every value once" {
    train_in_background log 1 $model $run --steps=20000 --save-interval=50
    wait_for 60 reached run/metrics.jsonl 130
    kill -KILL $(trainer_pids) || kill -KILL $run_pid
    wait "$run_pid" || true
    wait_for 20 eval '[ -z "$(trainer_pids)" ]'
    check run tensorboard wandb killed
    train 1 $model $run --steps=20000 --steps=$(($(newest_step run) + 25)) > log 2>&1
    grep 'resuming from' log
    [ "$(warnings log)" = 0 ]
    check run tensorboard wandb
    # A run that was complete and is made longer.
    train 2 $model $run --steps=$(($(newest_step run) + 5)) > log 2>&1
    check run tensorboard wandb
    [ "$(grep -c 'wandb sync /' log)" = 1 ]
}

@test "three requeues: still one W&B run, no step twice" {
    local i status
    for i in 1 2 3; do
        train_in_background log.$i 2 $model $run --steps=100000
        wait_for 60 reached run/metrics.jsonl $(($(newest_step run) + 20))
        kill -TERM $(trainer_pids)
        status=0
        wait "$run_pid" || status=$?
        [ $status = 75 ] || { cat log.$i; return 1; }
        [ "$(grep -c 'wandb sync' log.$i)" = 0 ]
    done
    train 2 $model $run --steps=$(($(newest_step run) + 10)) > log.4 2>&1
    check run tensorboard wandb
    diff <(lines log.?) <(lines $output_log)
    # And wandb uploads it, and begins output.log anew, without its last newline.
    cp $output_log said
    viewers sync.py "$(readlink -f run/wandb/latest-run)" uploaded > steps
    diff said uploaded.lines
    diff <(lines said) <(lines uploaded/output.log)
    [ "$(tail -n 1 steps)" = "exit 0" ]
    paste -d' ' <(head -n -1 steps) <(losses run/metrics.jsonl) |
        awk '$1 != $3 || $2 != $4 { print; bad = 1 } END { exit bad || NR < 40 }'
}

@test "output.log: all that is said, over a kill -9, a requeue and an error" {
    local status=0
    # Before the W&B run is open, and the shell's own.
    local earlier='mtllm-train: (memory: |resuming from )| Killed '
    train_in_background log.1 1 $model $run --steps=100000 --save-interval=50
    wait_for 60 reached run/metrics.jsonl 130
    kill -KILL $(trainer_pids) || kill -KILL $run_pid
    wait "$run_pid" || true
    wait_for 20 eval '[ -z "$(trainer_pids)" ]'
    # A line comes here first, and a kill can be between.
    [ "$(grep -cvE "$earlier" log.1)" = "$(wc -l < $output_log)" ] || tail -n 1 $output_log >> log.1
    train_in_background log.2 1 $model $run --steps=100000
    wait_for 60 grep -q 'consumed samples' log.2
    kill -TERM $(trainer_pids)
    wait "$run_pid" || status=$?
    [ $status = 75 ]
    status=0
    SLURM_JOB_END_TIME=$(date +%s) train 1 $model $run --steps=100000 > log.3 2>&1 || status=$?
    [ $status = 78 ] || { cat log.3; return 1; }
    train 1 $model $run --steps=$(($(newest_step run) + 10)) > log.4 2>&1
    grep 'no step was possible' $output_log
    diff <(grep -hvE "$earlier" log.?) $output_log
    [ "$(lines $output_log | wc -l)" -gt 40 ]
    check run wandb
    # W&B leaves it without its last newline.
    truncate -s -1 $output_log
    train 1 $model $run --steps=$(($(newest_step run) + 10)) > log.5 2>&1
    diff <(grep -hvE "$earlier" log.?) $output_log
}

@test "output.log has the lines where a terminal shows a bar" {
    local command
    command="mtllm-train $(echo $model $run) --steps=40"
    TERM=xterm script -qec "$command" shown > /dev/null < /dev/null
    grep -q $'\033\[K' shown
    [ "$(grep -c 'consumed samples' shown)" = 0 ]
    diff <(seq 7 7 35 && echo 40) <(sed -n 's,^ iteration *\([0-9]*\)/.*,\1,p' $output_log)
    check run wandb
}

@test "output.log that cannot be written: one warning, the same losses" {
    train 1 $model $run --steps=40 --save-interval=20 > log 2>&1
    rm -r run/ckpt/step-00000040 && cp -a run begun
    ln -sf /dev/full $output_log
    train 1 $model $run --steps=40 > log 2>&1
    [ "$(warnings log)" = 1 ]
    grep 'warning: .*/files/output.log: cannot write: No space left on device; training goes' log
    [ "$(grep -c 'records were lost' log)" = 1 ]
    diff <(plain_losses) <(losses run/metrics.jsonl)
    rm -r run && cp -a begun run
    rm $output_log && mkdir $output_log
    train 1 $model $run --steps=40 > log 2>&1
    [ "$(warnings log)" = 1 ]
    grep 'warning: wandb=yes: .*/files/output.log: cannot write: Is a directory; training goes' log
    diff <(plain_losses) <(losses run/metrics.jsonl)
    # Removed while it is written.
    rm -r run
    train_in_background log 1 $model $run --steps=1000
    wait_for 60 reached run/metrics.jsonl 20
    rm $output_log
    wait "$run_pid"
    [ "$(warnings log)" = 1 ]
    grep 'warning: .*/files/output.log: cannot write: No such file or directory; training goes' log
    train 1 $model $run --steps=1001 > log 2>&1
    [ "$(warnings log)" = 0 ]
    check run wandb
}

@test "Megatron's and torchtitan's names" {
    local names
    for names in megatron torchtitan; do
        rm -rf run
        train 1 $model $run --steps=14 --tensorboard-names=$names --wandb=no > log 2>&1
        [ ! -e run/wandb ]
        check run tensorboard names=$names
    done
}

@test "asked for in the middle of a run: it has all of it; begun anew: nothing of before" {
    # With a metric of the site's, too.
    cc -std=c11 -O2 -shared -fPIC -I"$source_dir/trainer" -o metric.so \
        "$source_dir/examples/metric.c" -lm
    run="$run --metrics-plugin=metric.so"
    train 1 $model $run --steps=10 --tensorboard=no --wandb=no > log 2>&1
    [ ! -e run/tensorboard ] && [ ! -e run/wandb ]
    train 1 $model $run --steps=15 > log 2>&1
    [ "$(grep -c '"sure":' run/metrics.jsonl)" = 2 ]
    check run tensorboard wandb
    before=$(readlink run/wandb/latest-run)
    train 1 $model $run --steps=8 --resume=never > log 2>&1
    check run tensorboard wandb
    [ -d run/ckpt.1/tensorboard ] && [ -d "run/ckpt.1/wandb/$before" ]
    [ "$(readlink run/wandb/latest-run)" != "$before" ]
}

@test "a clock that was put back: the files of TensorBoard stay in order" {
    train 1 $model $run --steps=6 --wandb=no > log 2>&1
    first=$(ls run/tensorboard)
    mv "run/tensorboard/$first" "run/tensorboard/${first/tfevents.??????????/tfevents.4000000000}"
    train 1 $model $run --steps=10 --wandb=no > log 2>&1
    ls run/tensorboard | sed 's/.*tfevents\.\([0-9]*\).*/\1/' | diff - <(echo 4000000000; echo 4000000001)
    check run tensorboard
}

@test "WANDB_ variables, and the options before them" {
    mkdir elsewhere
    export WANDB_DIR=elsewhere WANDB_RUN_ID=my-id WANDB_PROJECT=theirs WANDB_ENTITY=team
    export WANDB_TAGS=a,b WANDB_RUN_GROUP=group WANDB_JOB_TYPE=pretrain WANDB_NOTES=why WANDB_HOST=h
    train 1 $model $run --steps=6 --wandb-project=mine > log 2>&1
    train 1 $model $run --steps=8 --wandb-project=mine > log 2>&1
    [ "$(ls elsewhere/wandb)" = "latest-run
$(basename "$(readlink run/wandb/latest-run)")" ]
    [ "$(readlink elsewhere/wandb/latest-run)" = "$(basename "$(readlink run/wandb/latest-run)")" ]
    check run wandb
    check run record > record
    diff - record <<'END'
display_name run
entity team
host h
job_type pretrain
notes why
project mine
run_group group
run_id my-id
tags a,b
END
    # They are said to be where the values come from.
    grep -E '^wandb-entity = team +; WANDB_ENTITY$' run/settings.ini
    grep -E '^wandb-project = mine +; command line$' run/settings.ini
    echo 'wandb-project = of-a-file' > file.ini
    mtllm-train --print-settings --config=file.ini --wandb |
        grep -E '^wandb-project = theirs +; WANDB_PROJECT$'
    mtllm-train --print-settings --config=file.ini | grep -E '^wandb-project = of-a-file +; file'
    unset WANDB_DIR WANDB_RUN_ID
    # Without these the run is still found.
    train 1 $model $run --steps=10 --wandb-project=mine > log 2>&1
    [ "$(ls run/wandb)" = latest-run ]
    check run wandb
    unset ${!WANDB_*}
    # Two starts that are two W&B runs.
    rm -rf run
    WANDB_RESUME=never train 1 $model $run --steps=2 > log 2>&1
    before=$(readlink run/wandb/latest-run)
    WANDB_RESUME=never train 1 $model $run --steps=4 > log 2>&1
    [ -d "run/wandb/$before" ] && [ "$(readlink run/wandb/latest-run)" != "$before" ]
    rm -r "run/wandb/$before"
    check run wandb
    rm -rf run
    WANDB_MODE=disabled train 1 $model $run --steps=2 > log 2>&1
    [ ! -e run/wandb ]
    WANDB_RUN_ID=a/b train 1 $model $run --steps=4 > log 2>&1
    [ "$(warnings log)" = 1 ]
    grep 'WANDB_RUN_ID=a/b: not an id' log
}

@test "the command for the upload is one that a shell takes" {
    local directory="it's a \$run"
    train 1 $model $run --steps=1 --run-dir="$directory" > log 2>&1
    eval "set -- $(sed -n 's/.*upload the run to W&B with: //p' log)"
    [ "$#" = 3 ] && [ "$3" = "$(readlink -f "$directory/wandb/latest-run")" ]
    train 1 $model $run --steps=1 > log 2>&1
    grep -F "wandb sync $(readlink -f run/wandb/latest-run)" log
}

@test "directories that cannot be made: one warning each, the same losses" {
    mkdir run && touch run/tensorboard run/wandb
    train 1 $model $run --steps=40 > log 2>&1
    [ "$(warnings log)" = 2 ]
    grep 'warning: tensorboard=yes: run/tensorboard: .*training goes on without' log
    grep 'warning: wandb=yes: run/wandb.*training goes on without' log
    diff <(plain_losses) <(losses run/metrics.jsonl)
}

@test "a directory that may not be written: one warning" {
    # Root may write everywhere, but for what it gives up here.
    local drop=
    [ "$(id -u)" != 0 ] || drop="setpriv --bounding-set -dac_override --inh-caps -dac_override"
    mkdir -p run/tensorboard && chmod 500 run/tensorboard
    $drop timeout 300 mtllm-train $model $run --steps=40 > log 2>&1
    diff <(plain_losses) <(losses run/metrics.jsonl)
    [ "$(warnings log)" = 1 ]
    grep 'warning: tensorboard=yes: run/tensorboard/.*Permission denied; training goes on' log
}

@test "W&B's directory is gone while the run goes on: one warning, the same losses" {
    local status=0
    train_in_background log 1 $model $run --steps=1000
    wait_for 60 reached run/metrics.jsonl 20
    rm -r run/wandb
    wait "$run_pid" || status=$?
    [ $status = 0 ] || { cat log; return 1; }
    [ "$(warnings log)" = 1 ]
    grep 'warning: .*/run-.*.wandb: cannot write: No such file or directory; training goes on' log
    [ "$(steps_seen run/metrics.jsonl)" = 1000 ]
    check run tensorboard
    # The next start makes it anew, whole.
    train 1 $model $run --steps=1001 > log 2>&1
    [ "$(warnings log)" = 0 ]
    check run tensorboard wandb
}

@test "full disk: one warning a file, the same losses" {
    unshare -m true 2>/dev/null || skip "cannot mount a small disk here"
    cat > script <<'SCRIPT'
mkdir -p run/tensorboard run/wandb
mount -t tmpfs -o size=16k none run/tensorboard && mount -t tmpfs -o size=32k none run/wandb || exit 99
mtllm-train $* --steps=40 > log 2>&1 || exit
# What there is can be read.
cp -a run whole
SCRIPT
    unshare -m bash script $model $run || { cat log; return 1; }
    [ "$(warnings log)" = 2 ]
    grep 'warning: run/tensorboard/.*: cannot write: No space left' log
    grep 'warning: .*/run-.*.wandb: cannot write: No space left' log
    [ "$(grep -c 'records were lost' log)" = 2 ]
    diff <(plain_losses) <(losses whole/metrics.jsonl)
    # No line in part.
    [ "$(grep -cvxFf log "whole/${output_log#run/}")" = 0 ]
    # With room again, the next start writes what is missing.
    rm -rf run && mv whole run
    train 1 $model $run --steps=41 > log 2>&1
    [ "$(warnings log)" = 0 ]
    check run tensorboard wandb
}
