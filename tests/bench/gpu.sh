#!/bin/bash
# Speed on a GPU: every kernel at training sizes against the limits of the device, and training
# runs against the same model in PyTorch with torch.compile (tests/gpu/peer.py) in the same call.
#
# usage: tests/bench/gpu.sh [BUILD_DIRECTORY] [PART...]
#
#   PART   kernels, tinyllama-1.1b, llama-2-7b, viewers, two-gpus, llama-3-8b; all of them by default
#
# The table at the end: tokens/s of the median step, the ratio to PyTorch's (bar 1.0), memory in
# use, and seconds from the start of the process to the end of the first step (bar 5). Without
# PyTorch (python3 with torch) ours stand alone. viewers has TinyLlama with --tensorboard, --wandb and
# a line a step, and with none of them. two-gpus has Llama-2-7B's shape on one GPU (the mean of two:
# cards differ) and on two: data, tensor, pipeline and context parallel; llama-3-8b that model on as
# many as fit it.
set -u
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
shift
parts=${*:-kernels tinyllama-1.1b llama-2-7b viewers two-gpus llama-3-8b}
export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null
export MTLLM_MODULES=${MTLLM_MODULES:-$build_dir}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0

# What does not fit an 80 GB device otherwise.
save_memory=
[ "$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | sort -n | head -n 1)" -gt \
    90000 ] || save_memory=--recompute=selective

# measure RANKS STEPS OPTION...: sets ours (tokens/s of the median step but for the first three),
# first (when the first step ended) and used (GiB). The run is killed when it has made its steps:
# it would write a checkpoint, 40 GB of the 7B model.
measure() {
    local ranks=$1 steps=$2 launch=() child deadline=$((SECONDS + 240))
    shift 2
    [ "$ranks" = 1 ] || launch=(mpirun --quiet --bind-to none -n "$ranks")
    ours=0 first=0 used=0
    rm -rf "$work/run"
    setsid "${launch[@]}" "$build_dir/mtllm-train" --seq-length=4096 --data="$work/data" \
        --steps=1000 --run-dir="$work/run" --resume=never --device=cuda "$@" > "$work/log" 2>&1 &
    child=$!
    until [ "$(wc -l < "$work/run/metrics.jsonl" || echo 0)" -ge "$steps" ] ||
        ! kill -0 $child || [ $SECONDS -ge $deadline ]; do
        sleep 0.1
    done 2>/dev/null
    pkill -KILL -s "$child"
    wait $child 2>/dev/null
    [ "$(wc -l < "$work/run/metrics.jsonl")" -ge "$steps" ] || { cat "$work/log"; status=1; return 1; }
    grep -E 'planned|in use' "$work/log"
    ours=$(head -n "$steps" "$work/run/metrics.jsonl" | tail -n +4 |
        sed 's/.*"tokens_per_s": *\([^,}]*\).*/\1/' | sort -g |
        awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }')
    first=$(sed -n '1s/.*"time": *\([^,}]*\).*/\1/p' "$work/run/metrics.jsonl")
    used=$(sed -n 's/.*: \([0-9.]*\) GiB in use.*/\1/p' "$work/log" | head -n 1)
    echo "losses: $(sed -n 's/.*"loss": *\([^,}]*\).*/\1/p' "$work/run/metrics.jsonl" | tr '\n' ' ')"
    rm -rf "$work/run"
}

# against_peer MODEL OPTION...: the peer's shape, and the peer. A line of the table.
against_peer() {
    local model=$1 begin peer
    shift
    begin=$(date +%s.%N)
    measure 1 12 --model="$model" "$@" || return
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

# on_two NAME MODEL ONE OPTION...: a line of the table; ONE is what one GPU does, 0 where the model
# does not fit one.
on_two() {
    local name=$1 model=$2 one=$3
    shift 3
    measure 2 12 --model="$model" --micro-batch-size=1 --optimizer-state=bf16 "$@" &&
        awk -v name="$name" -v ours="$ours" -v one="$one" -v used="$used" 'BEGIN {
            printf "%-34s %9.0f tokens/s, %s times one GPU, %.1f GiB\n", name, ours,
                (one > 0 ? sprintf("%.3f", ours / one) : "-"), used
        }' >> "$work/table"
}

# By turns: a GPU gets slower as it gets warm. Bar 0.99.
viewers() {
    local switch with=() without=()
    for switch in yes no no yes; do
        measure 1 24 --model=tinyllama-1.1b --micro-batch-size=4 --global-batch-size=16 \
            --tensorboard=$switch --wandb=$switch \
            --log-every="$([ $switch = yes ] && echo 1 || echo 1000)" || return
        if [ $switch = yes ]; then with+=("$ours"); else without+=("$ours"); fi
    done
    echo "${with[*]} ${without[*]}" | awk '{
        printf "TensorBoard, W&B and log on: %.0f %.0f tokens/s, off: %.0f %.0f, ratio %.4f (bar 0.99)\n",
            $1, $2, $3, $4, ($1 + $2) / ($3 + $4)
    }' >> "$work/table"
}

# Bars, times one GPU: dp 1.95, tp with sequence parallelism 1.75, pp 1.75.
two_gpus() {
    local one card cards=()
    [ "$(nvidia-smi -L | wc -l)" -ge 2 ] || { echo "two-gpus: skipped: there are not two"; return; }
    for card in 0 1; do
        CUDA_VISIBLE_DEVICES=$card measure 1 12 --model=llama-2-7b --micro-batch-size=1 \
            --global-batch-size=8 --optimizer-state=bf16 $save_memory || return
        cards+=("$ours")
    done
    one=$(echo "${cards[*]}" | awk '{ print ($1 + $2) / 2 }')
    printf '%-34s %9.0f tokens/s (%.0f, %.0f), %.1f GiB\n' "llama-2-7b, one GPU" "$one" \
        "${cards[@]}" "$used" >> "$work/table"
    on_two "dp=2, 8 microbatches each" llama-2-7b "$one" --dp=2 --global-batch-size=16 $save_memory
    on_two "dp=2, zero=0" llama-2-7b "$one" --dp=2 --global-batch-size=16 --zero=0 $save_memory
    on_two "tp=2, 8 microbatches" llama-2-7b "$one" --tp=2 --global-batch-size=8
    on_two "tp=2, sequence-parallel=no" llama-2-7b "$one" --tp=2 --global-batch-size=8 \
        --sequence-parallel=no
    on_two "pp=2, 8 microbatches" llama-2-7b "$one" --pp=2 --global-batch-size=8
    on_two "pp=2, 8 microbatches, 2 chunks" llama-2-7b "$one" --pp=2 --pp-chunks=2 \
        --global-batch-size=8
    on_two "cp=2, 8 microbatches" llama-2-7b "$one" --cp=2 --global-batch-size=8 $save_memory
}

# All-bf16 state.
llama_3_8b() {
    local one=0
    if [ -z "$save_memory" ]; then
        against_peer llama-3-8b --micro-batch-size=1 --global-batch-size=8 \
            --optimizer-state=bf16 --recompute=selective || return
        one=$ours
    fi
    [ "$(nvidia-smi -L | wc -l)" -ge 2 ] || return
    on_two "llama-3-8b, dp=2" llama-3-8b "$one" --dp=2 --global-batch-size=16 $save_memory
    on_two "llama-3-8b, tp=2" llama-3-8b "$one" --tp=2 --global-batch-size=8
}

# cuDNN's attention behind our entry, whose backward pass is deterministic, and in PyTorch, whose is
# not: a line of the table.
cudnn() {
    local ours peer
    ours=$(MTLLM_TEST_ATTENTION=cudnn "$build_dir/kernels/cuda/bench_attention" |
        awk '$1 == 128 && $2 == 8192 { print $8, $11 }')
    peer=$(python3 "$source_dir/tests/gpu/peer_attention.py" 2> "$work/peer.log") ||
        tail -n 3 "$work/peer.log"
    awk -v ours="$ours" -v peer="$peer" 'BEGIN {
        if (split(ours, o) != 2 || split(peer, p) != 2) {
            print "cuDNN attention: not compared: cuDNN here, and PyTorch with it, are needed"
            exit
        }
        printf "cuDNN attention, d 128, T 8192: forward %.0f of %.0f TFLOP/s (%.2f), backward %.0f of %.0f (%.2f)\n",
            o[1], p[1], o[1] / p[1], o[2], p[2], o[2] / p[2]
    }' >> "$work/table"
}

for part in $parts; do
    case $part in
    kernels)
        "$build_dir/kernels/cuda/bench_memory" && "$build_dir/kernels/cuda/bench_attention" ||
            status=1
        cudnn ;;
    tinyllama-1.1b)
        "$build_dir/tests/make_tokens" "$work/data" 32000 6000 1
        against_peer "$part" --micro-batch-size=4 --global-batch-size=16 ;;
    llama-2-7b)
        "$build_dir/tests/make_tokens" "$work/data" 32000 6000 1
        against_peer "$part" --micro-batch-size=1 --global-batch-size=8 --optimizer-state=bf16 \
            $save_memory ;;
    viewers)
        "$build_dir/tests/make_tokens" "$work/data" 32000 6000 1
        viewers ;;
    two-gpus)
        "$build_dir/tests/make_tokens" "$work/data" 32000 6000 1
        two_gpus ;;
    llama-3-8b)
        "$build_dir/tests/make_tokens" "$work/data" 128256 3000 1
        llama_3_8b ;;
    *)
        echo "gpu.sh: $part: unknown part" >&2
        exit 64 ;;
    esac
done
[ ! -f "$work/table" ] || cat "$work/table"
exit $status
