#!/bin/bash
# What --tensorboard and --wandb cost: tokens a second of llama-tiny with both over those with
# neither, one rank on all cores, by turns. A turn's rate is that of the whole loop, from the first
# step's line in metrics.jsonl to the last one's. The bar is 0.99, of the medians.
#
# usage: tests/bench/viewers.sh [BUILD_DIRECTORY [TURNS]]
set -eu
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
turns=${2:-7} steps=150 bar=0.99

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null
"$build_dir/tests/make_tokens" data 1024 3000 1

# train FILE yes|no: adds its tokens a second to the file.
train() {
    "$build_dir/mtllm-train" --model=llama-tiny --data=data --steps=$steps --global-batch-size=4 \
        --micro-batch-size=4 --run-dir=run --log-every=1000 --tensorboard="$2" --wandb="$2" \
        > log 2>&1 || { cat log; exit 1; }
    sed -n '1p;$p' run/metrics.jsonl |
        sed 's/.*"tokens": *\([0-9]*\).*"time": *\([0-9.]*\).*/\1 \2/' |
        awk '{ t[NR] = $1; s[NR] = $2 } END { print (t[2] - t[1]) / (s[2] - s[1]) }' >> "$1"
    rm -rf run
}

median() {
    sort -g "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

for _ in $(seq "$turns"); do
    train with yes
    train without no
done
echo "$(median with) $(median without)" | awk -v bar=$bar '{
    printf "%.0f tokens/s with both, %.0f without: %.4f (bar %.2f)\n", $1, $2, $1 / $2, bar
    exit !($1 / $2 >= bar)
}'
