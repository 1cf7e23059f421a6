#!/usr/bin/env bats
# Guards: a run that was stopped, at any moment and any number of times, ends with the same bits as
# one that never was; a run can change its layout on the way; no damage to the newest checkpoint, no
# kill and no full disk costs more than the work since the last good one.

load common

model="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=32"
run="--data=$BATS_FILE_TMPDIR/data --steps=60 --lr=3e-3 --lr-warmup-steps=3 --global-batch-size=64
    --seed=5 --run-dir=run --log-every=1000"

setup_file() {
    "${builddir:-$PWD}/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 259 300 1
}

setup() {
    common_setup
}

# The uninterrupted run that others are compared with, once a file.
uninterrupted() {
    local directory="$BATS_FILE_TMPDIR/uninterrupted"
    if [ ! -e "$directory/done" ]; then
        mkdir -p "$directory"
        (cd "$directory" && train 4 $model $run --tp=2 --pp=2 > log 2>&1) ||
            { cat "$directory/log"; return 1; }
        touch "$directory/done"
    fi
    echo "$directory/run"
}

# stop_at STEP SIGNAL: wait for the step, signal every rank, expect exit 75.
stop_at() {
    local status=0
    wait_for 60 reached run/metrics.jsonl "$1"
    kill "-$2" $(trainer_pids)
    wait "$run_pid" || status=$?
    [ $status = 75 ] || { echo "exit $status"; cat log; return 1; }
}

@test "stopped twice, by SIGTERM and by SIGUSR2: the same bits" {
    local whole
    whole=$(uninterrupted)
    train_in_background log 4 $model $run --tp=2 --pp=2
    stop_at 7 TERM
    train_in_background log 4 $model $run --tp=2 --pp=2
    stop_at 23 USR2
    train 4 $model $run --tp=2 --pp=2
    mtllm-ckpt diff "$whole" run
    losses_agree run/metrics.jsonl "$whole/metrics.jsonl" 0 60
}

@test "resuming with another layout, there and back" {
    local one
    train 1 $model $run --run-dir=one
    train_in_background log 4 $model $run --tp=2 --pp=2
    stop_at 15 TERM
    train_in_background log 4 $model $run --tp=1 --pp=1 --dp=4
    stop_at 30 TERM
    train 4 $model $run --tp=2 --pp=2
    losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 60
}

@test "a signal before the first step, during a validation, during a save" {
    local whole status
    whole=$(uninterrupted)
    # Before the first step: at once, over and over until it has begun.
    status=0
    train_in_background log 4 $model $run --tp=2 --pp=2
    wait_for 60 [ -e run/lock ]
    kill -TERM $(trainer_pids)
    wait "$run_pid" || status=$?
    [ $status = 75 ]
    # During a validation of many batches that is not over when the signal comes.
    status=0
    train_in_background log 4 $model $run --tp=2 --pp=2 --eval-interval=$(($(newest_step run) + 5)) \
        --eval-steps=2000
    wait_for 60 reached run/metrics.jsonl $(($(newest_step run) + 5))
    kill -TERM $(trainer_pids)
    wait "$run_pid" || status=$?
    [ $status = 75 ] || { cat log; return 1; }
    # While every step saves.
    train_in_background log 4 $model $run --tp=2 --pp=2 --save-interval=1
    stop_at $(($(newest_step run) + 4)) TERM
    train 4 $model $run --tp=2 --pp=2
    mtllm-ckpt diff "$whole" run
}

@test "validation that was cut short is made up for, and no line comes twice" {
    train 1 $model $run --run-dir=whole --eval-interval=10 --eval-steps=3
    train_in_background log 1 $model $run --eval-interval=10 --eval-steps=3
    stop_at 25 TERM
    # Stopped exactly where a validation is due.
    train 1 $model $run --eval-interval=10 --eval-steps=3
    diff <(grep eval whole/metrics.jsonl | sed 's/,"time.*//') \
        <(grep eval run/metrics.jsonl | sed 's/,"time.*//')
}

@test "the job's end less the margin: stops with a checkpoint, exit 75" {
    local status=0 end=$(($(date +%s) + 8))
    MTLLM_JOB_END_TIME=$end train 1 $model $run --steps=50000 --margin=4 > log 2>&1 || status=$?
    [ $status = 75 ]
    [ "$(date +%s)" -lt $end ]
    grep "stopped by the job's time limit" log
    [ "$(newest_step run)" -gt 0 ]
}

@test "no step before the job's end: exit 78, which is not requeued" {
    local status=0
    MTLLM_JOB_END_TIME=$(date +%s) train 1 $model $run > log 2>&1 || status=$?
    [ $status = 78 ]
    grep "give the job more time or a smaller --margin" log
}

@test "damage to the newest checkpoint: refused by name, the one before it used" {
    local damage file
    train 4 $model $run --tp=2 --pp=2 --save-interval=20 --keep=10
    cp -r run good
    for damage in missing short flipped index manifest; do
        rm -rf run && cp -r good run
        file=run/ckpt/step-00000060/shard-00002.h5
        case $damage in
        missing) rm $file ;;
        short) truncate -s -100 $file ;;
        flipped) flip_bit $file $(($(stat -c %s $file) / 2)) ;;
        index) file=run/ckpt/step-00000060/index.h5 && flip_bit $file 3000 ;;
        manifest) file=run/ckpt/step-00000060/manifest.json && flip_bit $file 20 ;;
        esac
        run mtllm-ckpt verify run/ckpt/step-00000060
        [ "$status" = 65 ]
        [[ "$output" == *"${file##*/}"* ]]
        train 4 $model $run --tp=2 --pp=2 > log 2>&1
        grep "${file##*/}" log
        grep "resuming from run/ckpt/step-00000040" log
        mtllm-ckpt diff good run
    done
}

@test "every checkpoint damaged: exit 65, nothing lost, never silent zeros" {
    local status=0
    train 1 $model $run --save-interval=20
    for file in run/ckpt/step-*/shard-00000.h5; do
        flip_bit "$file" 100000
    done
    train 1 $model $run > log 2>&1 || status=$?
    [ $status = 65 ]
    grep "none of the 3 checkpoints can be used" log
    [ "$(ls -d run/ckpt/step-* | wc -l)" = 3 ]
}

# flip_bit FILE OFFSET
flip_bit() {
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    printf "\\x$(printf %x $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# Ten kills (twenty more, of slurmd too, in slurm/train.bats); every start goes on from the newest checkpoint that was complete before the kill.
@test "kill -9 of a rank or of all of them at 10 random moments, also inside saves" {
    local whole i before pids victim resumed
    whole=$(uninterrupted)
    RANDOM=1
    for i in $(seq 10); do
        train_in_background log 4 $model $run --tp=2 --pp=2 --save-interval=1
        if [ $((i % 4)) = 0 ]; then
            # Inside a save: while its temporary directory is there.
            wait_for 20 eval '[ -n "$(ls -d run/ckpt/.step-*.tmp 2>/dev/null)" ]' || true
        else
            wait_for 60 reached run/metrics.jsonl $(($(newest_step run) + RANDOM % 3 + 1))
            sleep "0.$((RANDOM % 100 + 100))"
        fi
        before=$(newest_step run)
        pids=$(trainer_pids)
        if [ $((i % 2)) = 0 ]; then
            kill -KILL $pids 2>/dev/null || true
        else
            victim=$(echo $pids | cut -d' ' -f$((RANDOM % 4 + 1)))
            kill -KILL "$victim" 2>/dev/null || true
        fi
        wait "$run_pid" || true
        wait_for 20 eval '[ -z "$(trainer_pids)" ]'
        [ "$before" = 0 ] || mtllm-ckpt verify "$(printf 'run/ckpt/step-%08d' "$(newest_step run)")"
        [ "$(newest_step run)" -ge "$before" ]
        [ "$(newest_step run)" -lt 50 ] || rm -rf run
    done
    before=$(newest_step run)
    train 4 $model $run --tp=2 --pp=2 > log 2>&1
    resumed=$(sed -n 's/.*resuming from .*, step \([0-9]*\)$/\1/p' log)
    [ "${resumed:-0}" -ge "$before" ]
    mtllm-ckpt diff "$whole" run
}

@test "full disk while saving: said clearly, training goes on, the next save works" {
    unshare -m true 2>/dev/null || skip "cannot mount a small disk here"
    cat > script <<'SCRIPT'
set -e
mkdir disk && mount -t tmpfs -o size=4m none disk && cd disk
mtllm-train $* --steps=20 --keep=1
cp run/ckpt/latest/manifest.json ../before.json
# Take the room, wait until two saves have failed, give it back, wait until one works.
head -c $(($(df --output=avail -B1 . | tail -n 1) - 200000)) /dev/zero > filler
mtllm-train $* --steps=50000 --save-interval=10 --keep=1 > ../log 2>&1 &
pid=$!
deadline=$((SECONDS + 60))
until [ "$(grep -c 'could not be written' ../log)" -ge 2 ]; do
    [ $SECONDS -lt $deadline ] && kill -0 $pid
    sleep 0.05
done
cmp ../before.json run/ckpt/latest/manifest.json
mtllm-ckpt verify run
rm filler
until [ "$(readlink run/ckpt/latest)" != step-00000020 ]; do
    [ $SECONDS -lt $deadline ] && kill -0 $pid
    sleep 0.05
done
kill -TERM $pid
wait $pid || [ $? = 75 ]
mtllm-ckpt verify run
[ -z "$(find run/ckpt -name '.*.tmp')" ]
SCRIPT
    unshare -m bash script $model $run || { cat log; return 1; }
    grep -i "no space\|not enough space" log
}
