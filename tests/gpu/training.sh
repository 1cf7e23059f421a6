#!/bin/bash
# Guards, on a GPU: a training gives the same bits twice, and when it is stopped and goes on; its
# loss is the CPU's in fp32 and near it in bf16 and fp16.
#
# usage: tests/gpu/training.sh [BUILD_DIRECTORY] [PART...]
#
#   PART   bits: the same twice, and when stopped; losses: against the CPU. Both by default
#
# MTLLM_GPU_MODEL (tinyllama-1.1b) and MTLLM_GPU_LENGTH (128) say what is compared with the CPU.
set -u
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
shift
parts=" ${*:-bits losses} "
model=${MTLLM_GPU_MODEL:-tinyllama-1.1b} length=${MTLLM_GPU_LENGTH:-128}
export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null
export MTLLM_MODULES=${MTLLM_MODULES:-$build_dir}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 71
number=0 status=0

ok() {
    echo "ok $((++number)) $1"
}

not_ok() {
    echo "not ok $((++number)) $1"
    status=1
}

# expect TEXT COMMAND...
expect() {
    local text=$1
    shift
    if "$@"; then ok "$text"; else not_ok "$text"; fi
}

# train RUN OPTION...
train() {
    local run=$1
    shift
    "$build_dir/mtllm-train" --run-dir="$run" --data=data --lr-warmup-steps=20 "$@" \
        > "$run.log" 2>&1
}

losses() {
    sed -n 's/.*"loss": *\([^,}]*\).*/\1/p' "$1/metrics.jsonl"
}

# shellcheck disable=SC2317 # called by name
same_run() {
    [ "$(losses "$1")" = "$(losses "$2")" ] && [ "$(losses "$1" | wc -l)" = 200 ] &&
        "$build_dir/mtllm-ckpt" diff "$1/ckpt/latest" "$2/ckpt/latest"
}

# shellcheck disable=SC2317
# near RUN OTHER BOUND: every loss within that, relative.
near() {
    paste <(losses "$1") <(losses "$2") | awk -v bound="$3" -v what="$1 against $2" '
        { d = $1 / $2 - 1; if (d < 0) d = -d; if (!(d <= worst)) worst = d }
        END { printf "# %s: %d steps, at most %.2e apart (bound %g)\n", what, NR, worst, bound
              exit !(NR >= 50 && worst <= bound) }'
}

"$build_dir/tests/make_tokens" data 32000 3000 1
large=(--model="$model" --seq-length="$length" --micro-batch-size=1 --steps=50)
# Enough tokens a step, and small enough steps, that the loss falls without spikes: rounding is to
# be compared, not chaos.
calm=(--model="$model" --seq-length=512 --micro-batch-size=4 --steps=50 --lr=1e-4
    --lr-warmup-steps=50 --device=cuda)
if [[ $parts == *" losses "* ]]; then # the CPU takes long: beside all the rest
    train cpu "${large[@]}" --device=cpu & cpu=$!
fi

if [[ $parts == *" bits "* ]]; then
    small=(--model=llama-100m --seq-length=512 --micro-batch-size=4 --global-batch-size=8 --steps=200
        --lr=1e-4 --device=cuda --save-interval=60)

    train first "${small[@]}"; expect "trains in bf16" [ $? = 0 ]
    train second "${small[@]}"
    expect "two runs: the same bits" same_run first second

    # Told to stop somewhere in the middle, then the same command again.
    train stopped "${small[@]}" &
    child=$!
    until [ "$(losses stopped 2>/dev/null | wc -l)" -ge 15 ] || ! kill -0 "$child" 2>/dev/null; do
        sleep 0.05
    done
    pkill -TERM -P "$child"
    wait "$child"
    expect "a signal: ends with 75" [ $? = 75 ]
    train stopped "${small[@]}"; expect "goes on" [ $? = 0 ]
    expect "stopped and resumed: the same bits" same_run first stopped
    expect "how products are computed is recorded" [ -s stopped/products/00000.txt ]

    train state "${small[@]}" --optimizer-state=bf16; expect "trains with bf16 state" [ $? = 0 ]
    train state2 "${small[@]}" --optimizer-state=bf16
    expect "bf16 state: the same bits" same_run state state2
    expect "bf16 state: loss near that of fp32 state" near state first 0.02
    train half "${small[@]}" --dtype=fp16; expect "trains in fp16" [ $? = 0 ]
    rm -rf first second stopped state state2
fi

if [[ $parts == *" losses "* ]]; then
    train fp32 "${large[@]}" --device=cuda --dtype=fp32; expect "trains in fp32" [ $? = 0 ]
    train calm32 "${calm[@]}" --dtype=fp32; expect "trains $model in fp32" [ $? = 0 ]
    train calm16 "${calm[@]}"; expect "trains $model in bf16" [ $? = 0 ]
    wait "$cpu"; expect "trains on the CPU" [ $? = 0 ]
    expect "$model, fp32: the CPU's loss at every step" near fp32 cpu 1e-4
    expect "$model, bf16: near fp32 at every step" near calm16 calm32 0.01
    grep -hE 'planned|in use' calm16.log | sed 's/^/# /'
fi
[ $status = 0 ] || tail -n 3 ./*.log
echo "1..$number"
exit $status
