#!/bin/bash
# The training FLOP rate of llama-100m, sequence 512, one rank on all cores, over the sgemm rate of
# the same BLAS measured before, between and after: 6 FLOPs a weight of a product and token, plus
# causal attention. The bar is 0.6. Steps but the first are to wait for no data.
#
# usage: tests/bench/cpu.sh [BUILD_DIRECTORY]
set -eu
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
bar=0.6

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null
unset OMP_NUM_THREADS
"$build_dir/tests/make_tokens" data 32000 400 1

sgemm() {
    "$build_dir/kernels/bench_kernels" --sgemm | tee -a sgemm
}

# Rates of the steps but the first, in GFLOP/s.
train() {
    "$build_dir/mtllm-train" --model=llama-100m --seq-length=512 --data=data --steps=3 \
        --micro-batch-size=4 --global-batch-size=8 --run-dir=run --resume=never > log 2>&1 ||
        { cat log; exit 1; }
    sed -n '/"eval"/d; s/.*"tflops": *\([^,}]*\).*/\1/p' run/metrics.jsonl | tail -n +2 |
        awk '{ print $1 * 1000 }' >> training
    sed -n '/"eval"/d; s/.*"data_wait_s": *\([^,}]*\).*/\1/p' run/metrics.jsonl | tail -n +2 >> waits
    rm -rf run
}

printf 'sgemm    %s GFLOP/s\n' "$(sgemm)"
train
printf 'sgemm    %s GFLOP/s\n' "$(sgemm)"
train
printf 'sgemm    %s GFLOP/s\n' "$(sgemm)"
median() {
    sort -g "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}
printf 'training %s GFLOP/s (median of steps)\n' "$(median training)"
awk '{ sum += $1 } END { printf "waited   %g s for data in %d steps\n", sum, NR; exit !(sum == 0) }' waits
awk -v training="$(median training)" -v sgemm="$(median sgemm)" -v bar=$bar 'BEGIN {
    ratio = training / sgemm
    printf "ratio    %.3f (bar %.1f)\n", ratio, bar
    exit !(ratio >= bar)
}'
