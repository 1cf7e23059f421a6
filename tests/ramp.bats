#!/usr/bin/env bats
# Guards: a batch that grows by a ramp has the losses of one rank in any layout, and the bits of a
# run that never stopped when it was stopped inside the ramp, skipped steps or not; runs counted in
# samples end where they should; what does not go together is refused with its status.

load common

model="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=32"
run="--data=$BATS_FILE_TMPDIR/data --lr=3e-3 --lr-warmup-samples=24 --seed=5 --run-dir=run
    --train-samples=200 --global-batch-size=16"
ramp="4 4 80"
steps=20
# Larger from the first step on that begins behind 26.7, 53.3 and 80 samples; 4 samples are left.
sizes="4 4 4 4 4 4 4 8 8 8 8 12 12 16 16 16 16 16 16 16"

setup_file() {
    "${builddir:-$PWD}/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 259 300 1
}

setup() {
    common_setup
}

# batches FILE: the sequences of every step, from a metrics.jsonl.
batches() {
    sed -n '/"eval"/d; s/.*"samples": *\([0-9]*\).*/\1/p' "$1" |
        awk '{ printf "%s%d", space, $1 - before; before = $1; space = " " }'
}

# refused STATUS TEXT ARGUMENT...
refused() {
    local wanted=$1 text=$2 status=0
    shift 2
    train 2 $model "$@" > log 2>&1 || status=$?
    cat log
    [ $status = "$wanted" ]
    [ "$(grep -c '^mtllm-train: ' log)" = 1 ]
    grep -F -- "$text" log
    [ ! -e run/ckpt/latest ]
}

@test "a ramp: the losses of one rank on 2 and 4, in any microbatches" {
    train 1 $model $run --batch-size-ramp="$ramp" --micro-batch-size=2 --run-dir=one > log 2>&1
    [ "$(batches one/metrics.jsonl)" = "$sizes" ]
    # What the console says of each step's.
    [ "$(sed -n 's/.*global batch size: *\([0-9]*\) .*/\1/p' log | paste -sd' ')" = "$sizes" ]
    for layout in "1 1 2 2" "1 2 1 1" "1 1 4 1" "1 2 2 2" "2 2 1 4"; do
        set -- $layout
        rm -rf run
        train $(($1 * $2 * $3)) $model $run --batch-size-ramp="$ramp" --tp=$1 --pp=$2 --dp=$3 \
            --micro-batch-size=$4 > log 2>&1 || { cat log; false; }
        losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 $steps
    done
    # Stages that take chunks by turns, or put off weights' gradients, in whatever microbatches.
    for how in --pp-chunks=2 --pp-schedule=zero-bubble; do
        rm -rf run
        train 2 $model $run --batch-size-ramp="$ramp" --pp=2 $how > log 2>&1 || { cat log; false; }
        losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 $steps
    done
}

# stopped_and_resumed OPTION...: every checkpoint that a stop inside the ramp leaves leads to the bits
# of a run that never stopped.
stopped_and_resumed() {
    local step
    rm -rf whole run
    train 2 $model $run --batch-size-ramp="$ramp" "$@" --save-interval=1 --keep=100 \
        --run-dir=whole > log 2>&1
    [ "$(newest_step whole)" = $steps ]
    for step in 2 7 8 10 12 13 15; do
        rm -rf run
        cp -r whole run
        # As it was when step was the newest.
        rm -rf run/ckpt
        mkdir run/ckpt
        cp -r "$(printf 'whole/ckpt/step-%08d' $step)" run/ckpt/
        ln -s "$(printf 'step-%08d' $step)" run/ckpt/latest
        train 2 $model $run --batch-size-ramp="$ramp" "$@" > log 2>&1 || { cat log; return 1; }
        grep "resuming from .*, step $step$" log
        mtllm-ckpt diff whole/ckpt/latest run/ckpt/latest
        losses_agree run/metrics.jsonl whole/metrics.jsonl 0 $steps
        diff <(grep eval whole/metrics.jsonl | sed "s/,\"time.*//") \
            <(grep eval run/metrics.jsonl | sed "s/,\"time.*//")
    done
}

@test "gone on with from any point of the ramp: the bits of a run that never stopped" {
    stopped_and_resumed --pp=2 --eval-interval=5 --eval-steps=2
    [ "$(batches whole/metrics.jsonl)" = "$sizes" ]
}

@test "the same with steps passed over, and with dp" {
    stopped_and_resumed --dp=2 --skip-steps=3,8-9,14 --weight-decay-schedule=cosine \
        --start-weight-decay=0 --end-weight-decay=0.5
    [ "$(batches whole/metrics.jsonl)" = "$sizes" ]
    # The rate is that of the samples of updates: 4 of 24 for each until step 3 is passed over.
    sed -n '/"eval"/d; s/.*"lr": *\([^,}]*\).*/\1/p' whole/metrics.jsonl | awk '
        function near(a, b) { return a - b < 1e-9 && b - a < 1e-9 }
        NR <= 3 && !near($1, 3e-3 * 4 * (NR - 1) / 24) { bad = 1 }
        NR == 4 && !near($1, 3e-3 * 8 / 24) { bad = 1 }
        NR == 8 && !near($1, 3e-3) { bad = 1 }
        END { exit bad }'
    mtllm-ckpt show --json whole | grep -E '"trained_samples": *160\b'
}

@test "a signal inside the ramp: the same bits; another layout there and back" {
    local long status
    long="$run --train-samples=3000 --global-batch-size=64"
    train 2 $model $long --batch-size-ramp="8 8 1400" --pp=2 --run-dir=whole > log 2>&1
    for layout in "2 --pp=2" "4 --dp=4"; do
        rm -rf run
        status=0
        train_in_background log 2 $model $long --batch-size-ramp="8 8 1400" --pp=2
        wait_for 60 reached run/metrics.jsonl 5
        kill -TERM $(trainer_pids)
        wait "$run_pid" || status=$?
        [ $status = 75 ]
        [ "$(newest_step run)" -lt 60 ]
        train ${layout% *} $model $long --batch-size-ramp="8 8 1400" ${layout#* } > log 2>&1
        if [ "$layout" = "2 --pp=2" ]; then
            mtllm-ckpt diff whole run
        fi
        losses_agree run/metrics.jsonl whole/metrics.jsonl 1e-5 "$(newest_step whole)"
    done
}

@test "train-samples without a ramp: the bits of as many steps; more of them go on" {
    train 1 $model $run --lr-warmup-samples=0 --lr-warmup-fraction=0.1 --train-samples=100 \
        --lr-decay-samples=96 --run-dir=samples > log 2>&1
    train 1 --data="$BATS_FILE_TMPDIR/data" $model --lr=3e-3 --seed=5 --run-dir=steps --steps=6 \
        --lr-warmup-fraction=0.1 --global-batch-size=16 > log 2>&1
    losses_agree samples/metrics.jsonl steps/metrics.jsonl 0 6
    mtllm-ckpt diff samples steps
    train 1 $model $run --train-samples=100 --run-dir=samples > log 2>&1
    grep "nothing left to do; give more --train-samples" log
    # A run that was counted in steps, and grew on the way.
    train 1 $model $run --train-samples=130 --batch-size-ramp="8 8 200" --run-dir=steps > log 2>&1
    [ "$(batches steps/metrics.jsonl)" = "16 16 16 16 16 16 8 8 8 8" ]
}

@test "what is no ramp, or does not go with the rest" {
    refused 64 "--batch-size-ramp=4 4: not three whole numbers" $run --batch-size-ramp="4 4"
    refused 64 "not three whole numbers" $run --batch-size-ramp="4 -4 80"
    refused 78 "--batch-size-ramp=3 1 80: on it is a batch of 3, not a multiple of" $run \
        --batch-size-ramp="3 1 80"
    refused 78 "--batch-size-ramp=4 3 80: on it is a batch of 7, not a multiple of" $run \
        --batch-size-ramp="4 3 80"
    refused 78 "begin with a multiple of 2 and add multiples of 2" $run --batch-size-ramp="3 1 80"
    refused 78 "--global-batch-size=15: not a multiple of micro-batch-size x dp = 1 x 2 = 2; use a multiple of 2" \
        $run --global-batch-size=15
    refused 78 "begins with 16, and --global-batch-size is 16" $run --batch-size-ramp="16 4 80"
    refused 78 "use an increment that divides 12" $run --batch-size-ramp="4 8 80"
    refused 78 "--train-samples=200: --steps=3 says how long to train too" $run --steps=3
    refused 78 "set --train-samples instead of --steps" --data="$BATS_FILE_TMPDIR/data" \
        --run-dir=run --steps=3 --global-batch-size=16 --batch-size-ramp="4 4 80"
    refused 78 "--lr-warmup-steps=3: the run's length is counted in samples" $run \
        --lr-warmup-steps=3
    refused 78 "--lr-warmup-fraction=0.1: --lr-warmup-samples=24 says how long" $run \
        --lr-warmup-fraction=0.1
}
