#!/bin/bash
# Instruction tuning, packed against padded rows: tokens with a target a second, on conversations
# whose mean length is a sixth of the row. The bar is 3. Also what steps wait for their data: the bar
# is nothing, once the run is under way.
#
# usage: tests/bench/packing.sh [BUILD_DIRECTORY] [--device=cuda]
set -eu
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
shift || true
bar=3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null
export MTLLM_MODULES=${MTLLM_MODULES:-$build_dir}
if [ "${1:-}" = --device=cuda ]; then
    run=(--device=cuda --model=tinyllama-1.1b --seq-length=2048 --micro-batch-size=4
        --global-batch-size=16 --optimizer-state=bf16)
    length=2048 steps=20
else
    run=(--family=llama --layers=4 --hidden-size=256 --ffn-size=688 --heads=4 --vocab-size=4000
        --seq-length=512 --max-positions=512 --micro-batch-size=2 --global-batch-size=8)
    length=512 steps=12
fi
# Lengths of make_tokens have a mean of 0.9 of what it is told.
"$build_dir/tests/make_tokens" data 4000 6000 1 chat $((length * 10 / 9 / 6))

# train NAME OPTION...: sets rate (the median step's) and waits (of all steps but the first two).
train() {
    local name=$1
    shift
    "$build_dir/mtllm-train" "${run[@]}" --data=data --split=1 --steps=$steps --run-dir="$name" \
        --resume=never "$@" > log 2>&1 || { cat log; exit 1; }
    rate=$(tail -n +3 "$name/metrics.jsonl" | sed 's/.*"tokens_per_s": *\([^,}]*\).*/\1/' | sort -g |
        awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }')
    waits=$(tail -n +3 "$name/metrics.jsonl" | sed 's/.*"data_wait_s": *\([^,}]*\).*/\1/' |
        awk '{ sum += $1 } END { print sum }')
    printf '%-8s %10.0f tokens/s, waited %s s for data in %d steps\n' "$name" "$rate" "$waits" \
        $((steps - 2))
    awk -v waits="$waits" 'BEGIN { exit !(waits < 1e-3) }' || { echo "$name: waited"; status=1; }
}

status=0
train padded; padded=$rate
train packed --packing=yes; packed=$rate
awk -v packed="$packed" -v padded="$padded" -v bar=$bar 'BEGIN {
    printf "ratio    %.2f (bar %.1f)\n", packed / padded, bar
    exit !(packed / padded >= bar)
}' || status=1
exit $status
