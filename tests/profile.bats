#!/usr/bin/env bats
# --profile: one trace file with every rank, of the steps that were asked for, in which spans lie
# within one another; and a run that computes what it computes without.

load common

setup() {
    common_setup
    "$build_dir/tests/make_tokens" data 259 300 1
    arguments="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --vocab-size=259
        --max-positions=32 --data=data --global-batch-size=16 --micro-batch-size=2 --lr=3e-3"
}

# events FILTER FILE: its complete events, through jq's FILTER.
events() {
    jq -e "[.traceEvents[] | select(.ph == \"X\")] | $1" "$2"
}

# Whether the spans of each lane lie within one another, none of negative length, none before 0.
# Times are whole nanoseconds.
spans_nest() {
    events 'map(.start = (.ts * 1000 | round) | .end = .start + (.dur * 1000 | round)) |
        all(.start >= 0 and .end >= .start) and
        (group_by([.pid, .tid]) | map(sort_by(.start, -.end) |
            reduce .[] as $span ({nest: true, open: []};
                .open |= map(select(. > $span.start)) |
                .nest = (.nest and all(.open[]; . >= $span.end)) |
                .open += [$span.end]) | .nest) | all)' "$1"
}

@test "two steps of two pipeline stages in two replicas" {
    train 4 $arguments --pp=2 --pp-chunks=2 --dp=2 --steps=6 --run-dir=plain
    train 4 $arguments --pp=2 --pp-chunks=2 --dp=2 --steps=6 --run-dir=run --profile=3:2
    diff <(losses plain/metrics.jsonl) <(losses run/metrics.jsonl)
    mtllm-ckpt diff plain run
    [ "$(ls -A run/profile)" = step-00000003.json ]
    trace=run/profile/step-00000003.json
    spans_nest $trace
    events 'map(.pid) | unique == [0, 1, 2, 3]' $trace
    events 'map(.args.step) | unique == [3, 4]' $trace
    # 4 microbatches in 2 chunks, on each rank, in each step.
    events 'group_by([.pid, .args.step]) | length == 8 and all(
        map(select(.name == "forward") | [.args.microbatch, .args.chunk]) | sort ==
        ([range(4) as $m | range(2) as $c | [$m, $c]] | sort))' $trace
    events 'group_by([.pid, .args.step]) | all(
        map(select(.name == "backward" or .name == "input gradient") |
            [.args.microbatch, .args.chunk]) | sort ==
        ([range(4) as $m | range(2) as $c | [$m, $c]] | sort))' $trace
    events '(map(select(.name == "input gradient")) | length) ==
        (map(select(.name == "weight gradient")) | length)' $trace
    for name in step "data wait" optimizer; do
        events "group_by([.pid, .args.step]) | all(map(select(.name == \"$name\")) | length == 1)" \
            $trace
    done
    for name in "receive wait" "send wait" "gradient bucket" "weight gather"; do
        events "map(select(.name == \"$name\") | .pid) | unique == [0, 1, 2, 3]" $trace
    done
    # A stage receives what it computes with: nothing at all starts before that.
    events 'map(select(.args.step == 3 and .args.microbatch == 0 and .args.chunk == 0 and
                       .name == "forward")) | sort_by(.pid) |
        .[2].ts + .[2].dur > .[0].ts + .[0].dur and .[3].ts + .[3].dur > .[1].ts + .[1].dur' $trace
    jq -e '[.traceEvents[] | select(.name == "process_name") | .args.name] |
        length == 4 and (.[3] | startswith("rank 3: pp 1, dp 1, cp 0, tp 0 ("))' $trace
}

@test "tensor and context parallel ranks; a checkpoint and a validation between the steps" {
    train 4 $arguments --tp=2 --cp=2 --sequence-parallel=yes --steps=3 --run-dir=run --profile=2:9 \
        --save-interval=2 --eval-interval=2 --eval-steps=1 > log 2>&1
    trace=run/profile/step-00000002.json
    spans_nest $trace
    for name in "tp gather" "tp sum" "cp exchange" "gradient sum" checkpoint evaluation; do
        events "map(select(.name == \"$name\") | .pid) | unique == [0, 1, 2, 3]" $trace
    done
    events 'map(.args.step) | unique == [2, 3]' $trace
    grep "profile of steps 2 to 3: $trace" log
}

@test "one step by one rank; a run that goes on behind it records nothing" {
    train 1 $arguments --steps=2 --run-dir=run --profile=2
    events 'map(select(.name == "step") | .args.step) == [2]' run/profile/step-00000002.json
    rm -r run/profile
    train 1 $arguments --steps=4 --run-dir=run --profile=2
    [ ! -e run/profile ]
    train 1 $arguments --steps=6 --run-dir=run --profile=3:4
    events 'map(select(.name == "step") | .args.step) == [5, 6]' run/profile/step-00000005.json
    # Two parts of a range, of two starts, are two files; none is one without a step.
    for start in 1 2; do
        train 1 $arguments --steps=8 --run-dir=run --profile=5:5
        [ "$(ls -A run/profile | tail -n 1)" = step-00000007.json ]
    done
    events 'map(select(.name == "step") | .args.step) == [5, 6]' run/profile/step-00000005.json
    events 'map(select(.name == "step") | .args.step) == [7, 8]' run/profile/step-00000007.json
}

@test "a run that is stopped leaves the steps that it made" {
    train_in_background log 2 $arguments --steps=100000 --run-dir=run --profile=2:50000
    wait_for 60 reached run/metrics.jsonl 10
    kill -TERM $(trainer_pids | head -n 1)
    wait "$run_pid" || [ $? = 75 ]
    spans_nest run/profile/step-00000002.json
    last=$(steps_seen run/metrics.jsonl)
    events "map(select(.name == \"step\") | .args.step) | unique == [range(2; $last + 1)]" \
        run/profile/step-00000002.json
}

@test "a trace that cannot be written is a warning" {
    mkdir run
    touch run/profile
    train 2 $arguments --steps=3 --run-dir=run --profile=2 > log 2>&1
    cat log
    grep 'warning: no profile: cannot write run/profile/' log
    [ "$(losses run/metrics.jsonl | wc -l)" = 3 ]
}

@test "what --profile cannot mean is an error" {
    for value in 0 -1 3: 3:0 3:x 3:2:1 x 99999999999999999999 3:9999999 "3 "; do
        run train 1 $arguments --steps=6 --run-dir=run --profile="$value"
        echo "$output"
        [ "$status" = 64 ]
        [[ $output == "mtllm-train: profile=$value: "* ]]
    done
    run train 2 $arguments --steps=6 --run-dir=run --profile=7
    [[ $output == *"mtllm-train: profile=7: the run has 6 steps"* ]]
    [ "$(grep -c 'the run has' <<< "$output")" = 1 ]
    # Before anything is moved or made.
    train 1 $arguments --steps=2 --run-dir=complete
    run train 1 $arguments --steps=2 --run-dir=complete --resume=never --profile=3
    [ "$status" = 64 ]
    [ -e complete/ckpt/latest ] && [ ! -e complete/ckpt.1 ]
}
