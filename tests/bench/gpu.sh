#!/bin/bash
# Speed on a GPU: every kernel at training sizes against the limits of the device, and training
# runs against the same model in PyTorch with torch.compile (tests/gpu/peer.py) in the same call.
#
# usage: tests/bench/gpu.sh [BUILD_DIRECTORY] [PART...]
#
#   PART   kernels, tinyllama-1.1b, llama-2-7b; all of them by default
#
# The table at the end: tokens/s of the median step, the ratio to PyTorch's (bar 1.0), memory in
# use, and seconds from the start of the process to the end of the first step (bar 5). Without
# PyTorch (python3 with torch) ours stand alone.
set -u
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
shift
parts=${*:-kernels tinyllama-1.1b llama-2-7b}
export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null
export MTLLM_MODULES=${MTLLM_MODULES:-$build_dir}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0

# train MODEL OPTION...: the peer's shape, 12 steps. A line of the table.
train() {
    local model=$1 begin ours peer
    shift
    begin=$(date +%s.%N)
    "$build_dir/mtllm-train" --model="$model" --seq-length=4096 --data="$work/data" --steps=12 \
        --run-dir="$work/run" --resume=never --device=cuda "$@" > "$work/log" 2>&1
    # The checkpoint at the end, 40 GB of the 7B model, may find no room: the rates stand.
    [ "$(wc -l < "$work/run/metrics.jsonl")" = 12 ] || { cat "$work/log"; status=1; return; }
    grep -E 'planned|in use' "$work/log"
    ours=$(sed -n '/"eval"/d; s/.*"tokens_per_s": *\([^,}]*\).*/\1/p' "$work/run/metrics.jsonl" |
        tail -n +4 | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }')
    first=$(sed -n '1s/.*"time": *\([^,}]*\).*/\1/p' "$work/run/metrics.jsonl")
    losses=$(sed -n 's/.*"loss": *\([^,}]*\).*/\1/p' "$work/run/metrics.jsonl" | tr '\n' ' ')
    echo "losses: $losses"
    used=$(sed -n 's/.*: \([0-9.]*\) GiB in use.*/\1/p' "$work/log")
    rm -rf "$work/run"
    python3 "$source_dir/tests/gpu/peer.py" "$model" --steps=8 --attention="${peer_attention:-cudnn}" \
        > "$work/peer" 2> "$work/peer.log" || { tail -3 "$work/peer.log"; echo '{}' > "$work/peer"; }
    cat "$work/peer"
    peer=$(sed -n 's/.*"tokens_per_s": \([0-9]*\).*/\1/p' "$work/peer")
    awk -v model="$model" -v ours="$ours" -v peer="${peer:-0}" -v used="$used" -v first="$first" \
        -v begin="$begin" 'BEGIN {
        printf "%-16s %9.0f tokens/s, PyTorch %9.0f, ratio %s, %.1f GiB, first step %.1f s\n",
            model, ours, peer, (peer > 0 ? sprintf("%.3f", ours / peer) : "-"), used, first - begin
    }' >> "$work/table"
}

for part in $parts; do
    case $part in
    kernels)
        "$build_dir/kernels/cuda/bench_memory" && "$build_dir/kernels/cuda/bench_attention" ||
            status=1 ;;
    tinyllama-1.1b)
        "$build_dir/tests/make_tokens" "$work/data" 32000 6000 1
        train "$part" --micro-batch-size=4 --global-batch-size=16 ;;
    llama-2-7b)
        "$build_dir/tests/make_tokens" "$work/data" 32000 6000 1
        train "$part" --micro-batch-size=1 --global-batch-size=8 --optimizer-state=bf16 ;;
    *)
        echo "gpu.sh: $part: unknown part" >&2
        exit 64 ;;
    esac
done
[ ! -f "$work/table" ] || cat "$work/table"
exit $status
