#!/usr/bin/env bats
# Guards: whatever the layout, every metric of steps and validations is one rank's (1e-5 relative),
# several validation sets and a mixture included; a run that stops and goes on has the metrics of
# one that never did; what the console shows, on a terminal and elsewhere.

load common

model="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=64"
run="--lr=3e-3 --lr-warmup-steps=3 --lr-decay-steps=20 --global-batch-size=8 --seed=5
    --eval-interval=10 --eval-steps=2 --test=yes"

# What follows from clocks and from the machine; all else is to be the same.
clocks='["tokens_per_s", "tokens_per_s_gpu", "tflops", "tflops_full", "mfu", "mfu_full", "step_s",
    "data_wait_s", "forward_s", "backward_s", "communication_s", "optimizer_s", "pipeline_idle",
    "checkpoint_s", "memory_gib", "eta_s", "time"]'

setup_file() {
    builddir=${builddir:-$PWD}
    "$builddir/tests/make_tokens" "$BATS_FILE_TMPDIR/text" 259 300 1
    "$builddir/tests/make_tokens" "$BATS_FILE_TMPDIR/chat" 259 300 2 chat 40
}

setup() {
    common_setup
    cd "$BATS_FILE_TMPDIR"
    mkdir -p "$BATS_TEST_NUMBER" && cd "$BATS_TEST_NUMBER"
}

# run_on RANKS ARGUMENT...: a mixture, two validation sets by name, and a test set.
run_on() {
    local ranks=$1
    shift
    train "$ranks" $model $run --data="2 ../text 1 ../chat" --valid-data="text=../text chat=../chat" \
        --test-data=../chat "$@" > log 2>&1 || { cat log; return 1; }
}

# One rank, 20 steps, once a file.
reference() {
    local directory="$BATS_FILE_TMPDIR/one-rank"
    if [ ! -e "$directory/done" ]; then
        mkdir -p "$directory"
        (cd "$directory" && run_on 1 --micro-batch-size=8 --steps=20 --run-dir=run) || return 1
        touch "$directory/done"
    fi
    echo "$directory/run/metrics.jsonl"
}

# "LINE KEY VALUE" of all numbers that follow from the data and the model.
numbers() {
    jq -r --argjson clocks "$clocks" '
        with_entries(select(.key as $key | $clocks | index($key) | not))
        | . as $row | "\(.eval // "train")-\(.step)" as $line
        | paths(scalars) | . as $path | "\($line) \($path | join("/")) \($row | getpath($path))"
        ' "$1" | tr -d '"'
}

# agree FILE TOLERANCE: the same numbers as the reference's.
agree() {
    local one
    one=$(reference)
    [ "$(numbers "$1" | wc -l)" -gt 300 ]
    paste -d' ' <(numbers "$1") <(numbers "$one") | awk -v tolerance="$2" '
        NF != 6 || $1 != $4 || $2 != $5 { print "lines do not match: " $0; bad = 1; exit }
        $3 == $6 { next }
        {
            d = $3 - $6; if (d < 0) d = -d
            size = $6 < 0 ? -$6 : $6; if (size < 1) size = 1
            if (d / size > most) most = d / size
            if (!(d / size <= tolerance)) { print $1, $2 ": " $3 " against " $6; bad = 1 }
        }
        END { printf "greatest difference %.2e\n", most; exit bad }' >&2
}

@test "the lines of one rank: names, counts, sets" {
    local one
    one=$(reference)
    # Text has a target everywhere; of a chat the assistant's tokens count, no more than there are.
    jq -es 'map(select(.eval == "text")) | length == 2 and all(.[]; .count_loss_mask == 64 and
        (has("instruct_accuracy") or has("count_instruct_mask") | not))' "$one"
    jq -es 'map(select(.eval == "chat")) | length == 2 and all(.[]; .count_instruct_mask > 0 and
        .count_loss_mask == .count_instruct_mask and .accuracy == .instruct_accuracy)' "$one"
    jq -es 'map(select(.eval == "test")) | length == 1' "$one"
    jq -es 'map(select(.eval)) | all(.[]; (.perplexity / (.loss | exp) - 1 | fabs) < 1e-12)' "$one"
    # Learned, and not by chance.
    jq -es 'map(select(.eval == "text")) | .[1].accuracy > 0.2' "$one"
    # The mixture is two to one, and what was seen of it is all that was trained on.
    jq -es 'map(select(has("eval") | not)) | last | .tokens == ([.datasets[].tokens] | add) and
        .datasets["../text"].tokens == 64 * 107 and (.datasets | length) == 2' "$one"
    # A score needs sixteen steps before it.
    jq -es 'map(select(has("eval") | not)) | all(.[]; has("loss_outlier") == (.step > 16) and
        has("grad_norm_outlier") == (.step > 16))' "$one"
    # Parts of a step are no more than it.
    jq -es 'map(select(has("eval") | not)) | length == 20 and all(.[]; .forward_s > 0 and
        .backward_s > 0 and .optimizer_s > 0 and .memory_gib > 0 and
        .forward_s + .backward_s + .communication_s + .optimizer_s + .data_wait_s <=
        .step_s * 1.001 and .tflops < .tflops_full)' "$one"
}

@test "eight ranks: tp, pp and dp" {
    run_on 8 --tp=2 --pp=2 --steps=20 --run-dir=run
    agree run/metrics.jsonl 1e-5
    jq -es 'map(select(has("eval") | not)) | all(.[]; .communication_s > 0 and .pipeline_idle > 0 and
        .forward_s + .backward_s + .communication_s + .pipeline_idle * .step_s <= .step_s * 1.001)' \
        run/metrics.jsonl
}

@test "eight ranks: tp, shared key/value heads" {
    run_on 8 --tp=8 --micro-batch-size=4 --steps=20 --run-dir=run
    agree run/metrics.jsonl 1e-5
}

@test "four ranks: context parallel, in two replicas" {
    run_on 4 --cp=2 --micro-batch-size=2 --steps=20 --run-dir=run
    agree run/metrics.jsonl 1e-5
}

@test "four ranks: sequence parallel, interleaved stages" {
    run_on 4 --tp=2 --sequence-parallel=yes --pp=2 --pp-chunks=2 --steps=20 --run-dir=run
    agree run/metrics.jsonl 1e-5
}

@test "stopped and gone on with: the metrics of a run that never stopped, to the last bit" {
    run_on 1 --micro-batch-size=8 --steps=18 --test=no --run-dir=run
    run_on 1 --micro-batch-size=8 --steps=20 --run-dir=run
    agree run/metrics.jsonl 0
}

@test "a file that is twice in a mixture is one dataset" {
    train 1 $model $run --data="1 ../text 3 ../chat 1 ../text" --eval-interval=0 --test=no --steps=5 \
        --micro-batch-size=8 --run-dir=run
    ! grep -E '"\.\./text":.*"\.\./text":' run/metrics.jsonl || false
    jq -es 'last | (.datasets | keys == ["../chat-text", "../text"]) and
        ([.datasets[].tokens] | add) == .tokens' run/metrics.jsonl
}

@test "a validation that is not made again stays" {
    # At step 8 one set was validated and the test data evaluated; then the run is made longer.
    run_on 1 --micro-batch-size=8 --steps=8 --eval-interval=4 --valid-data="text=../text" --run-dir=run
    jq -cs 'map(select(.step == 8))' run/metrics.jsonl > before
    run_on 1 --micro-batch-size=8 --steps=12 --eval-interval=6 --run-dir=run
    jq -cs 'map(select(.step == 8))' run/metrics.jsonl | cmp - before
    jq -es 'map(select(.eval) | "\(.eval)-\(.step)") == ["text-4", "text-8", "test-8",
        "text-12", "chat-12", "test-12"]' run/metrics.jsonl
    # One that is made again is there once.
    run_on 1 --micro-batch-size=8 --steps=12 --eval-interval=6 --run-dir=run
    jq -es 'map(select(.eval and .step == 12) | .eval) == ["text", "chat", "test"]' run/metrics.jsonl
}

@test "updates that are not finite: said once, counted, also after a resume" {
    train 1 $model --data=../text --steps=0 --run-dir=begin > log 2>&1
    h5-to-hf begin finite
    mkdir init
    cp finite/config.json init/
    "$build_dir/tests/model_tool" make finite init fp32 1 \
        set=model.embed_tokens.weight:$((7 * 64)):inf
    hf-to-h5 --allow-nonfinite=yes init infinite
    for steps in 6 9; do
        train 1 $run --data=../text --init=infinite --micro-batch-size=8 --steps=$steps \
            --eval-interval=0 --test=no --run-dir=run > log.$steps 2>&1
        grep -c 'the gradient is not finite; the update was skipped' log.$steps | grep -x 1
    done
    bad=$(jq -s 'map(select(.step <= 6 and .loss == null)) | length' run/metrics.jsonl)
    [ "$bad" -gt 1 ]
    grep "warning: the updates of $bad steps were skipped" log.6
    # Each line says how many there were so far.
    jq -es 'length == 9 and last.nonfinite > 0 and . as $rows | all(range(9);
        . as $i | $rows[$i].nonfinite == ($rows[:$i + 1] | map(select(.loss == null)) | length) and
        $rows[$i].skipped == $rows[$i].nonfinite)' run/metrics.jsonl
    bad=$(jq -s last.nonfinite run/metrics.jsonl)
    grep "skipped iterations:   $bad | number of nan iterations:   $bad | time left: 0s |" log.9
}

@test "the console has Megatron's fields in its order" {
    reference
    grep -cE '^ iteration +[0-9]+/ +20 \| consumed samples: +[0-9]+ \| elapsed time per iteration \(ms\): [0-9.]+ \| rate \(tokens/sec\): [0-9.]+ \| TFLOP/s per rank: [0-9.]+ \| learning rate: [0-9.E+-]+ \| global batch size: +8 \| lm loss: [0-9.E+-]+ \| loss scale: 1\.0 \| grad norm: [0-9.]+ \| number of skipped iterations:   0 \| number of nan iterations:   0 \| time left: [0-9hms]+ \|$' \
        "$BATS_FILE_TMPDIR/one-rank/log" | grep -x 20
    grep -cE '^ validation loss at iteration [12]0 \| set: (text|chat) \| lm loss value: [0-9.E+-]+ \| lm loss PPL: ' \
        "$BATS_FILE_TMPDIR/one-rank/log" | grep -x 4
}

# in_terminal NAME=VALUE... COMMAND: with a terminal of $columns (100) for output and messages.
in_terminal() {
    local command=${*: -1}
    env "${@:1:$#-1}" script -qec "stty cols ${columns:-100}; $command" shown > /dev/null < /dev/null
}

@test "a bar on a terminal, no colour where it is not wanted, lines where there is no bar" {
    local command
    command="mtllm-train $(echo $model $run) --data=../text --valid-data=../text --steps=20 \
        --test=no --micro-batch-size=8 --run-dir"

    in_terminal TERM=xterm NO_COLOR= "$command=a"
    grep -F $'\033[32m' shown
    grep -E '20/20  loss [0-9.]+  [0-9]+ tokens/s  0s left' shown
    ! grep ' iteration ' shown | grep -v 'validation loss at iteration' || false
    grep -c 'validation loss at iteration' shown | grep -x 2
    # No line begins behind what is left of the bar.
    ! tr '\r' '\n' < shown | sed 's/\x1b\[[0-9;]*[mK]//g' | grep -E '^\[.*(validation|mtllm-train)' || false
    # As wide as the terminal at most.
    tr '\r' '\n' < shown | sed 's/\x1b\[[0-9;]*[mK]//g' | awk '/^\[/ && length > 99 { exit 1 }'
    columns=20 in_terminal TERM=xterm NO_COLOR=1 "$command=narrow"
    tr '\r' '\n' < shown | sed 's/\x1b\[K//g' | grep -x '\[=*\]'
    tr '\r' '\n' < shown | sed 's/\x1b\[K//g' | awk '/^\[/ && length > 19 { exit 1 }'

    in_terminal TERM=xterm NO_COLOR=1 "$command=b"
    ! grep -F $'\033[32m' shown || false
    grep '20/20  loss' shown

    in_terminal TERM=dumb NO_COLOR= "$command=c"
    ! grep '20/20  loss' shown || false
    grep -c '^ iteration ' shown | grep -x 20

    # Lines go on where standard output is a file.
    in_terminal TERM=xterm NO_COLOR= "$command=d > lines"
    grep -c '^ iteration ' lines | grep -x 20
    grep '20/20  loss' shown
}

@test "standard streams that are closed, or whose reader is gone: the training goes on without" {
    local command
    command="mtllm-train $(echo $model $run) --data=../text --valid-data=../text --steps=20 \
        --test=no --micro-batch-size=8 --run-dir"
    # No file gets the number of one of them, and with it the text.
    bash -c "$command=a <&- >&- 2>&-"
    [ "$(steps_seen a/metrics.jsonl)" = 20 ]
    ! grep -rE 'mtllm-train: |iteration ' a || false
    # Both read by head, which is gone after a line.
    bash -c "set -o pipefail; { $command=b 2>&1; echo \$? > status; } | head -n 1"
    [ "$(cat status)" = 0 ]
    [ "$(steps_seen b/metrics.jsonl)" = 20 ] && [ -e b/ckpt/latest ]
}

@test "validation sets that make no sense" {
    local data
    for data in "a=../text a=../chat:two sets have the name a" "test=../text:test is the name of" \
        "a=:names no data" "a=../text b=../none:none" \
        "v1.2=../text:NAME of letters, digits, _ and -" \
        "a=../text é=../text:NAME of letters, digits, _ and -"; do
        status=0
        train 1 $model $run --data=../text --test=no --steps=1 --valid-data="${data%%:*}" \
            --run-dir=none > log 2>&1 || status=$?
        [ $status != 0 ] && [ $status -lt 80 ]
        grep -e "valid-data.*${data#*:}" log
    done
    # Space is no part of it.
    train 1 $model $run --data=../text --test=no --steps=1 --eval-interval=1 --run-dir=space \
        --valid-data=" a=../text   b=../chat "
    jq -es 'map(.eval // empty) == ["a", "b"]' space/metrics.jsonl
}
