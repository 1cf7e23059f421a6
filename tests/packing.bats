#!/usr/bin/env bats
# Guards: what a training reads. Packed conversations, ends of documents and mixtures give every
# layout the losses of one rank and go on, stopped, with the same bits; orders of samples are kept
# and what is damaged of them is made anew; what cannot work is refused by name.

bats_require_minimum_version 1.5.0
load common

model="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=64"
run="--steps=12 --lr=3e-3 --lr-warmup-steps=3 --global-batch-size=8 --seed=5 --run-dir=run"

setup_file() {
    builddir=${builddir:-$PWD}
    "$builddir/tests/make_tokens" "$BATS_FILE_TMPDIR/chat" 259 400 1 chat 15
    "$builddir/tests/make_tokens" "$BATS_FILE_TMPDIR/text" 259 40 2
}

setup() {
    common_setup
    ln -s "$BATS_FILE_TMPDIR"/chat-* "$BATS_FILE_TMPDIR"/text.* .
}

# one_and_layouts OPTION...: the losses of one rank, and of layouts.
one_and_layouts() {
    local layout
    train 1 $model $run --run-dir=one "$@"
    losses one/metrics.jsonl | awk 'NR == 1 { first = $2 } END { exit !($2 < first) }'
    for layout in "2 1 1" "1 2 1" "1 1 4" "2 2 2"; do
        set -- $layout "$@"
        rm -rf run
        train $(($1 * $2 * $3)) $model $run --tp="$1" --pp="$2" --dp="$3" "${@:4}" > log 2>&1 ||
            { cat log; return 1; }
        losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 12
        shift 3
    done
}

# metric NAME FILE: of every training step.
metric() {
    sed -n "/\"eval\"/d; s/.*\"$1\": *\([^,}]*\).*/\1/p" "$2"
}

@test "packed conversations: any layout" { one_and_layouts --data=chat --split=1 --packing=yes; }

@test "conversations in rows of their own: any layout" { one_and_layouts --data=chat --split=1; }

@test "ends of documents: any layout" {
    one_and_layouts --data=text --split=1 --eod-token=3 --eod-mask-loss=yes \
        --reset-position-ids=yes --reset-attention-mask=yes
}

@test "a mixture, packed, with weights on what is not the assistant's: any layout" {
    one_and_layouts --data="2 text 1 chat" --split=1 --packing=yes --loss-mask-weight=0.25
}

@test "each of the settings changes what is learned" {
    local name
    train 1 $model $run --run-dir=plain --data=text --split=1
    for name in eod-mask-loss reset-position-ids reset-attention-mask packing; do
        train 1 $model $run --run-dir=$name --data=text --split=1 --eod-token=3 --$name=yes
        ! diff -q <(losses plain/metrics.jsonl) <(losses $name/metrics.jsonl) || false
    done
    train 1 $model $run --run-dir=masked --data=chat --split=1
    train 1 $model $run --run-dir=weighed --data=chat --split=1 --loss-mask-weight=1
    ! diff -q <(losses masked/metrics.jsonl) <(losses weighed/metrics.jsonl) || false
}

@test "tokens are counted where there is a target" {
    train 1 $model $run --run-dir=padded --data=chat --split=1
    train 1 $model $run --run-dir=packed --data=chat --split=1 --packing=yes
    # Rows of 64: packed ones are nearly full, padded ones hold a conversation of 15 or so.
    metric tokens padded/metrics.jsonl | awk 'END { exit !($1 < 12 * 8 * 64 / 3) }'
    metric tokens packed/metrics.jsonl | awk 'END { exit !($1 > 12 * 8 * 64 * 0.9) }'
}

@test "stopped in the middle of packed data: the same bits, another layout the same losses" {
    local status=0
    train 1 $model $run --run-dir=whole --data=chat --split=1 --packing=yes --steps=200
    train_in_background log 1 $model $run --data=chat --split=1 --packing=yes --steps=200
    wait_for 60 reached run/metrics.jsonl 20
    kill -TERM $(trainer_pids)
    wait "$run_pid" || status=$?
    [ $status = 75 ]
    train 1 $model $run --data=chat --split=1 --packing=yes --steps=200
    mtllm-ckpt diff whole run
}

@test "validation and test data: a share, or sets of their own" {
    train 1 $model $run --data=text --split=8,1,1 --eval-interval=6 --eval-steps=2 --test=yes
    grep -c '"eval": *"valid"' run/metrics.jsonl | grep -x 2
    tail -n 1 run/metrics.jsonl | grep '"eval": *"test"'
    # Done again, it is not there twice.
    train 1 $model $run --data=text --split=8,1,1 --eval-interval=6 --eval-steps=2 --test=yes
    grep -c '"eval": *"test"' run/metrics.jsonl | grep -x 1
    rm -rf run
    train 1 $model $run --data=text --valid-data=chat --test-data="1 text 1 chat" --test=yes \
        --eval-interval=6 --eval-steps=2
    [ "$(grep -c '"eval"' run/metrics.jsonl)" = 3 ]
}

@test "the order of samples is kept, and damage to it changes nothing" {
    local file
    train 1 $model $run --run-dir=one --data="2 text 1 chat" --split=1 --data-cache=cache
    ls cache
    train 2 $model $run --run-dir=two --data="2 text 1 chat" --split=1 --data-cache=cache --dp=2
    losses_agree two/metrics.jsonl one/metrics.jsonl 1e-5 12
    for file in cache/*; do
        printf x | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") / 2)) conv=notrunc status=none
    done
    train 1 $model $run --run-dir=three --data="2 text 1 chat" --split=1 --data-cache=cache 2> log
    grep cache/ log
    mtllm-ckpt diff one three
}

@test "a step does not wait for its data" {
    train 1 $model $run --data=text --split=1 --steps=40
    # One step in ten may, where the machine has other things to do.
    metric data_wait_s run/metrics.jsonl | sort -g | awk '
        { wait[NR] = $1 } END { exit !(NR == 40 && wait[36] == 0) }'
}

@test "what cannot work is refused by name" {
    run -78 train 1 $model $run --data=text --eod-mask-loss=yes
    [[ $output == *"eod-mask-loss=yes"*"--eod-token"* ]]
    run -64 train 1 $model $run --data="text 1"
    [[ $output == *"data: "*"where a weight is expected"* ]]
    run -64 train 1 $model $run --data=text --valid-data=text --test=yes
    [[ $output == *"--test-data is missing"* ]]
    cp chat-role.idx broken-role.idx; cp chat-role.bin broken-role.bin
    cp text.idx broken-text.idx; cp text.bin broken-text.bin
    run -65 train 1 $model $run --data=broken
    [[ $output == *"broken-text"*"broken-role"* ]]
}
