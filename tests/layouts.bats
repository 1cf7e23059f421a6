#!/usr/bin/env bats
# Guards: whatever the layout, the losses of a training are those of one rank (1e-5 relative, every
# step), and a run can change its layout when it resumes.

load common

model="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=32"
run="--data=../data --steps=20 --lr=3e-3 --lr-warmup-steps=3 --global-batch-size=8 --seed=5"

setup_file() {
    builddir=${builddir:-$PWD}
    "$builddir/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 259 300 1
}

setup() {
    common_setup
    cd "$BATS_FILE_TMPDIR"
    mkdir -p "$BATS_TEST_NUMBER" && cd "$BATS_TEST_NUMBER"
}

# One rank, once a file.
reference() {
    local directory="$BATS_FILE_TMPDIR/one-rank"
    if [ ! -e "$directory/done" ]; then
        mkdir -p "$directory"
        (cd "$directory" && train 1 $model $run --micro-batch-size=8 --run-dir=run > log 2>&1) ||
            { cat "$directory/log"; return 1; }
        touch "$directory/done"
    fi
    echo "$directory/run/metrics.jsonl"
}

# layout TP PP DP MICRO_BATCH
layout() {
    local one
    one=$(reference)
    train $(($1 * $2 * $3)) $model $run --tp="$1" --pp="$2" --dp="$3" --micro-batch-size="$4" \
        --run-dir=run > log 2>&1 || { cat log; return 1; }
    losses_agree run/metrics.jsonl "$one" 1e-5 20 >&2
}

# layouts TP PP: with every DP of {1, 2, 4} that makes at most eight ranks, in as few microbatches as
# the batch of 8 allows and in as many.
layouts() {
    local dp
    for dp in 1 2 4; do
        [ $(($1 * $2 * dp)) -le 8 ] || continue
        rm -rf run few
        layout "$1" "$2" $dp $((8 / dp))
        mv run few
        layout "$1" "$2" $dp 1
    done
}

@test "the loss falls" {
    losses "$(reference)" | awk 'NR == 1 { first = $2 } END { exit !($2 < 0.9 * first) }'
}

@test "tp=1 pp=1, dp 1 to 4" { layouts 1 1; }
@test "tp=1 pp=2, dp 1 to 4" { layouts 1 2; }
@test "tp=1 pp=4, dp 1 to 2" { layouts 1 4; }
@test "tp=2 pp=1, dp 1 to 4" { layouts 2 1; }
@test "tp=2 pp=2, dp 1 to 2" { layouts 2 2; }
@test "tp=2 pp=4, dp 1" { layouts 2 4; }
@test "tp=4 pp=1, dp 1 to 2" { layouts 4 1; }
@test "tp=4 pp=2, dp 1" { layouts 4 2; }

@test "dropout: any layout, computed again or not; LIMA's, attention's; none in validations" {
    for how in --hidden-dropout=0.2 "--hidden-dropout=0.2 --lima-dropout=yes" \
        --attention-dropout=0.2 \
        "--hidden-dropout=0.2 --attention-dropout=0.1 --family=falcon --parallel-norms=2"; do
        dropping=$how
        rm -rf one run again
        train 1 $model $run $dropping --micro-batch-size=8 --run-dir=one > log 2>&1
        ! diff -q <(losses one/metrics.jsonl) <(losses "$(reference)") || false
        for layout in "2 1 1" "1 2 1" "1 1 4" "2 2 2"; do
            set -- $layout
            rm -rf run
            train $(($1 * $2 * $3)) $model $run $dropping --tp=$1 --pp=$2 --dp=$3 \
                --run-dir=run > log 2>&1
            losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20
        done
        recomputed run $dropping
    done
    rm -rf one
    train 1 $model $run --hidden-dropout=0.5 --attention-dropout=0.5 --run-dir=one > log 2>&1
    for rate in 0 0.5; do
        train 1 $model $run --hidden-dropout=$rate --attention-dropout=$rate --resume=one \
            --eval-only=yes > eval-$rate 2>&1
        grep 'validation loss' eval-$rate
    done
    diff <(grep 'validation loss' eval-0) <(grep 'validation loss' eval-0.5)
}

@test "settings that do nothing say so" {
    for how in recompute-layers=3 lima-dropout=yes; do
        train 1 $model $run --steps=4 --$how --run-dir=$how > log 2>&1
        grep "warning: $how: does nothing without" log
    done
    train 1 $model $run --steps=4 --recompute=full --recompute-layers=3 --hidden-dropout=0.1 \
        --lima-dropout=yes --run-dir=both > log 2>&1
    ! grep "warning" log || false
}

@test "steps that are passed over: their data are, no update is made, any layout" {
    train 1 $model $run --skip-steps=4,7-9 --micro-batch-size=8 --run-dir=one > log 2>&1
    grep -c 'no update, as skip-steps says' log | grep -x 4
    cmp <(losses one/metrics.jsonl | head -n 4) <(losses "$(reference)" | head -n 4)
    ! cmp -s <(losses one/metrics.jsonl | sed -n 5p) <(losses "$(reference)" | sed -n 5p) || false
    # The learning rate waits too.
    sed -n 's/.*"lr": *\([^,}]*\).*/\1/p' one/metrics.jsonl | awk '
        { lr[NR] = $1 } END { exit !(lr[4] == lr[5] && lr[7] == lr[10] && lr[10] != lr[11]) }'
    sed -n '20s/.*"skipped": *\([0-9]*\).*/\1/p' one/metrics.jsonl | grep -x 4
    train 8 $model $run --skip-steps=4,7-9 --tp=2 --pp=2 --run-dir=run > log 2>&1
    losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20
    for list in 0 3- 5-4 a 1,,2 '1,'; do
        status=0
        train 1 $model $run --skip-steps=$list --run-dir=none > log 2>&1 || status=$?
        [ $status = 64 ]
        grep "skip-steps=$list: not a list" log
    done
}

# Tokens whose embedding is infinite come in samples of one replica and not in those of another.
@test "a gradient that is not finite on one replica: no rank makes the update" {
    train 1 $model $run --steps=0 --run-dir=begin > log 2>&1
    h5-to-hf begin finite
    mkdir init
    cp finite/config.json init/
    "$build_dir/tests/model_tool" make finite init fp32 1 \
        set=model.embed_tokens.weight:$((7 * 64)):inf
    hf-to-h5 --allow-nonfinite=yes init infinite
    train 1 $run --init=infinite --micro-batch-size=8 --run-dir=one > log 2>&1 || { cat log; false; }
    grep 'the gradient is not finite; the update was skipped' log
    sed -i 's/"loss":null/"loss":1/' one/metrics.jsonl
    for layout in "1 1 4" "1 2 2" "2 2 1"; do
        set -- $layout
        rm -rf run
        train 4 $run --init=infinite --tp=$1 --pp=$2 --dp=$3 --run-dir=run \
            > log 2>&1
        sed -i 's/"loss":null/"loss":1/' run/metrics.jsonl
        losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20
        diff <(sed 's/.*"skipped"/skipped/; s/,.*//' run/metrics.jsonl) \
            <(sed 's/.*"skipped"/skipped/; s/,.*//' one/metrics.jsonl)
    done
}

@test "layers that stages do not divide: 5 on 2, 3 and 4" {
    train 1 $model $run --layers=5 --micro-batch-size=8 --run-dir=one > log 2>&1
    for pp in 2 3 4; do
        rm -rf run
        train $((2 * pp)) $model $run --layers=5 --tp=2 --pp=$pp --run-dir=run > log 2>&1
        losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20
    done
}

@test "sequence-parallel: the same losses with and without; refused where rows do not divide" {
    for how in no yes; do
        train 8 $model $run --tp=4 --pp=2 --sequence-parallel=$how --run-dir=$how > log-$how 2>&1
        losses_agree $how/metrics.jsonl "$(reference)" 1e-5 20
    done
    status=0
    train 4 $model $run --tp=4 --seq-length=31 --sequence-parallel=yes --run-dir=odd > log 2>&1 ||
        status=$?
    [ $status = 78 ]
    grep 'sequence-parallel=yes: micro-batch-size 1 x seq-length 31 rows, which tp=4 does not' log
}

@test "cp: ranks that share sequences have the losses of one; shared heads, packed and biased too" {
    for layout in "2 --cp=2" "4 --cp=4 --micro-batch-size=2" "4 --cp=2 --tp=2" "8 --cp=2 --dp=2 --pp=2" \
        "8 --cp=4 --tp=2 --recompute=full" "8 --cp=8 --recompute=selective"; do
        set -- $layout
        rm -rf run
        train $1 $model $run "${@:2}" --run-dir=run > log 2>&1 || { cat log; false; }
        losses_agree run/metrics.jsonl "$(reference)" 1e-5 20
    done
    for how in "--hidden-dropout=0.2 --attention-dropout=0.1 --kv-heads=2 --output-bias=yes --qkv-bias=yes" "--family=mistral --sliding-window=5" \
        "--family=falcon --kv-heads=1" "--packing=yes --eod-token=0"; do
        rm -rf one run
        train 1 $model $run $how --micro-batch-size=8 --eval-interval=10 --run-dir=one > log 2>&1
        train 8 $model $run $how --cp=4 --dp=2 --eval-interval=10 --run-dir=run > log 2>&1
        losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20
        paste <(grep '"eval"' run/metrics.jsonl | sed 's/.*"loss": *\([^,}]*\).*/\1/') \
            <(grep '"eval"' one/metrics.jsonl | sed 's/.*"loss": *\([^,}]*\).*/\1/') |
            awk '{ d = $1 / $2 - 1; if (d > 1e-5 || d < -1e-5) bad = 1 } END { exit bad || NR != 2 }'
    done
    rm -rf again
    train 8 $model $run --packing=yes --eod-token=0 --cp=4 --dp=2 --eval-interval=10 --run-dir=again > log 2>&1
    mtllm-ckpt diff run/ckpt/latest again/ckpt/latest
    for bad in "3 --cp=3" "2 --cp=2 --seq-length=31" "2 --cp=2 --eval-only=yes --dump-logits=x.h5"; do
        set -- $bad
        status=0
        train $1 $model $run "${@:2}" --run-dir=none > log 2>&1 || status=$?
        cat log
        [ $status = 78 ]
    done
}

@test "zero=0 and 1: the same losses; stopped, the bits of one that was not; another layout goes on" {
    for layout in "4 --dp=4" "6 --tp=2 --dp=3 --global-batch-size=9" "8 --tp=2 --pp=2 --dp=2"; do
        set -- $layout
        for zero in 0 1; do
            rm -rf run-$zero
            train $1 $model $run "${@:2}" --zero=$zero --run-dir=run-$zero > log-$zero 2>&1 ||
                { cat log-$zero; false; }
        done
        losses_agree run-1/metrics.jsonl run-0/metrics.jsonl 1e-6 20
        rm -rf again
        train $1 $model $run "${@:2}" --steps=9 --lr-decay-steps=20 --run-dir=again > log 2>&1
        train $1 $model $run "${@:2}" --run-dir=again > log 2>&1
        mtllm-ckpt diff run-1/ckpt/latest again/ckpt/latest
    done
    train 8 $model $run --tp=2 --pp=2 --zero=1 --steps=10 --lr-decay-steps=20 --run-dir=other > log 2>&1
    train 4 $model $run --dp=4 --zero=0 --steps=15 --lr-decay-steps=20 --run-dir=other > log 2>&1
    train 3 $model $run --pp=1 --global-batch-size=9 --steps=18 --lr-decay-steps=20 --run-dir=other > log 2>&1
    losses_agree <(head -n 15 other/metrics.jsonl) <(head -n 15 "$(reference)") 1e-5 15
}

# stages RANKS OPTION...: eight layers on pipeline stages have the losses of one rank.
stages() {
    local ranks=$1
    shift
    rm -rf run
    train "$ranks" $model --layers=8 $run "$@" --run-dir=run > log 2>&1 || { cat log; return 1; }
    losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20 >&2
}

@test "pp-chunks: stages that take chunks by turns; in any number of microbatches" {
    train 1 $model --layers=8 $run --micro-batch-size=8 --run-dir=one > log 2>&1
    stages 2 --pp=2 --pp-chunks=2
    stages 2 --pp=2 --pp-chunks=4 --micro-batch-size=8
    stages 2 --pp=2 --pp-chunks=3 --micro-batch-size=2
    stages 4 --pp=4 --pp-chunks=2 --micro-batch-size=4
    stages 4 --pp=4 --pp-chunks=2
    stages 8 --pp=4 --pp-chunks=2 --dp=2
    stages 8 --tp=2 --pp=2 --pp-chunks=2 --dp=2
    stages 8 --tp=2 --pp=4 --pp-chunks=2
    stages 4 --cp=2 --pp=2 --pp-chunks=2
    stages 8 --pp=4 --pp-chunks=2 --dp=2 --zero=0
    # Microbatches that stages do not divide: 9 on 2 stages, 6 on 4.
    for odd in 9 6; do
        rm -rf one
        train 1 $model --layers=8 $run --global-batch-size=$odd --run-dir=one > log 2>&1
        stages 2 --pp=2 --pp-chunks=2 --global-batch-size=$odd
        stages 4 --pp=4 --pp-chunks=2 --global-batch-size=$odd
    done
    status=0
    train 4 $model --layers=7 $run --pp=4 --pp-chunks=2 --run-dir=none > log 2>&1 || status=$?
    [ $status = 78 ]
    grep -e '--pp-chunks=2: .* has 7 layers' log
}

@test "pp-chunks: the same bits twice, tied embeddings, dropout, computed again; any layout goes on" {
    options="--layers=8 --tied-embeddings=yes --hidden-dropout=0.2 --lr-decay-steps=25"
    chunks="--pp=2 --pp-chunks=2 --dp=2"
    train 1 $model $run $options --micro-batch-size=8 --run-dir=one > log 2>&1
    stages 4 $options $chunks
    mv run kept
    stages 4 $options $chunks
    mtllm-ckpt diff kept/ckpt/latest run/ckpt/latest
    for how in selective full "full --recompute-layers=3"; do
        stages 4 $options $chunks --recompute=$how
        mtllm-ckpt diff kept/ckpt/latest run/ckpt/latest
    done
    # There and back.
    train 1 $model $run $options --micro-batch-size=8 --steps=25 --run-dir=one > log 2>&1
    for layout in "--pp=2 --pp-chunks=2 --dp=2" "--pp=4 --dp=1" "--tp=2 --pp=2 --pp-chunks=4"; do
        rm -rf on
        cp -r kept on
        train 4 $model $run $options $layout --steps=25 --run-dir=on > log 2>&1
        losses_agree on/metrics.jsonl one/metrics.jsonl 1e-5 25 >&2
    done
    train 4 $model $run $options $chunks --steps=25 --run-dir=kept > log 2>&1
    losses_agree kept/metrics.jsonl one/metrics.jsonl 1e-5 25 >&2
}

# split RANKS OPTION...: a backward in two parts gives the bits of one in one.
split() {
    local ranks=$1 schedule
    shift
    for schedule in 1f1b zero-bubble; do
        rm -rf $schedule
        train "$ranks" $model $run --pp-schedule=$schedule "$@" --run-dir=$schedule > log 2>&1 ||
            { cat log; return 1; }
    done
    mtllm-ckpt diff 1f1b/ckpt/latest zero-bubble/ckpt/latest
}

@test "pp-schedule=zero-bubble: the bits of 1f1b" {
    split 2 --pp=2
    losses_agree zero-bubble/metrics.jsonl "$(reference)" 1e-5 20 >&2
    split 4 --pp=4 --micro-batch-size=4
    split 4 --pp=4 --hidden-dropout=0.2 --tied-embeddings=yes
    split 8 --pp=4 --dp=2
    split 8 --pp=4 --dp=2 --zero=0
    split 8 --tp=2 --pp=2 --dp=2
    split 4 --cp=2 --pp=2
    split 4 --pp=4 --recompute=selective
    split 4 --pp=2 --recompute=full --recompute-layers=1 --dp=2
    split 4 --pp=4 --qkv-bias=yes --output-bias=yes --mlp-bias=yes
    split 4 --pp=4 --family=falcon --parallel-norms=1 --kv-heads=1
    split 4 --pp=4 --family=falcon --parallel-norms=2 --hidden-dropout=0.2
    # By itself where that pays; the share of a step that stages wait is told either way.
    train 4 $model $run --pp=4 --run-dir=run > log 2>&1
    grep -c '"pipeline_idle":0\.[0-9]*[1-9]' run/metrics.jsonl | grep -x 20
    status=0
    train 2 $model $run --pp=2 --pp-chunks=2 --pp-schedule=zero-bubble > log 2>&1 || status=$?
    [ $status = 78 ]
    grep -e '--pp-schedule=zero-bubble: goes with one chunk' log
}

@test "tied embeddings, tp=2 pp=2 dp=2" {
    train 1 $model $run --tied-embeddings=yes --micro-batch-size=8 --run-dir=one > log 2>&1
    train 8 $model $run --tied-embeddings=yes --tp=2 --pp=2 --run-dir=run > log 2>&1
    losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20
}

@test "a vocabulary so small that a tensor parallel rank has no row of it" {
    "$build_dir/tests/make_tokens" small 5 300 1
    for how in "--tied-embeddings=yes" "--tied-embeddings=no"; do
        rm -rf one
        train 1 $model $run --vocab-size=5 --data=small $how --run-dir=one > log 2>&1
        for layout in "--tp=4 --pp=2" "--tp=4 --dp=2" "--tp=8 --sequence-parallel=yes"; do
            rm -rf run
            train 8 $model $run --vocab-size=5 --data=small $how $layout --run-dir=run > log 2>&1 ||
                { cat log; false; }
            losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20
        done
    done
}


# recomputed RUN OPTION...: eight ranks, computing again what backward needs, give that run's bits.
recomputed() {
    local how kept=$1
    shift
    for how in selective full "full --recompute-layers=1"; do
        rm -rf again
        train 8 $model $run --tp=2 --pp=2 --recompute=$how "$@" --run-dir=again > log 2>&1 ||
            { cat log; return 1; }
        mtllm-ckpt diff "$kept/ckpt/latest" again/ckpt/latest
    done
}

@test "recompute=selective and full: every bit as without" {
    for how in selective full; do
        train 1 $model $run --micro-batch-size=8 --recompute=$how --run-dir=$how > log 2>&1
        cmp <(losses $how/metrics.jsonl) <(losses "$(reference)")
    done
    train 8 $model $run --tp=2 --pp=2 --run-dir=kept > log 2>&1
    recomputed kept
}

# family OPTION...: one rank, then tensor, pipeline and data parallel ranks, kept and computed again.
family() {
    rm -rf one run
    train 1 $model $run --micro-batch-size=8 "$@" --run-dir=one > log 2>&1 || { cat log; return 1; }
    train 8 $model $run --tp=2 --pp=2 "$@" --run-dir=run > log 2>&1 || { cat log; return 1; }
    losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20 >&2
    recomputed run "$@"
    rm -rf run
    train 8 $model $run --tp=2 --pp=2 --sequence-parallel=yes "$@" --run-dir=run > log 2>&1 ||
        { cat log; return 1; }
    losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20 >&2
    recomputed run --sequence-parallel=yes "$@"
}

@test "mistral: a sliding window" { family --family=mistral --sliding-window=5; }
@test "qwen2: biases of q, k and v" { family --family=qwen2; }
@test "llama with all biases" { family --qkv-bias=yes --output-bias=yes --mlp-bias=yes; }
@test "falcon with one norm, all heads share keys and values" {
    family --family=falcon --kv-heads=1 --parallel-norms=1
}
@test "falcon with two norms" { family --family=falcon --parallel-norms=2; }

@test "falcon, eight tensor parallel ranks: a key/value head each, and shared ones" {
    for heads in 8 2 1; do
        rm -rf one run
        falcon="--family=falcon --parallel-norms=2 --heads=16 --kv-heads=$heads"
        train 1 $model $run $falcon --micro-batch-size=8 --run-dir=one > log 2>&1
        train 8 $model $run $falcon --tp=8 --run-dir=run > log 2>&1 || { cat log; false; }
        losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20 >&2
    done
}

@test "more tensor parallel ranks than key/value heads" {
    train 1 $model $run --kv-heads=2 --micro-batch-size=8 --run-dir=one > log 2>&1
    for layout in "--tp=4 --dp=2" "--tp=8 --sequence-parallel=yes" "--tp=8"; do
        rm -rf run
        train 8 $model $run --kv-heads=2 $layout --run-dir=run > log 2>&1 || { cat log; false; }
        losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 20 >&2
    done
    # Goes on in another layout.
    train 2 $model $run --kv-heads=2 --tp=1 --steps=25 --lr-decay-steps=20 --run-dir=run > log 2>&1
}
