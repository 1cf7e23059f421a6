#!/bin/bash
# What --tensorboard and --wandb cost: tokens a second of llama-tiny with both over those with
# neither, one rank on one core, by turns. A turn's rate is that of the whole loop, from the first
# step's line in metrics.jsonl to the last one's. The bar is 0.99, of the median of neighbours'
# ratios; where others use the host, the ratio of the time that the processor spent says more.
#
# usage: tests/bench/viewers.sh [BUILD_DIRECTORY [TURNS]]
set -eu
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
turns=${2:-9} steps=100 bar=0.99

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null OMP_NUM_THREADS=1
"$build_dir/tests/make_tokens" data 1024 3000 1

# train yes|no: prints its tokens a second, and the processor's seconds.
train() {
    command time -o time -f '%U %S' "$build_dir/mtllm-train" --model=llama-tiny --data=data \
        --steps=$steps --global-batch-size=4 --micro-batch-size=4 --run-dir=run --log-every=1000 \
        --tensorboard="$1" --wandb="$1" > log 2>&1 || { cat log >&2; exit 1; }
    sed -n '1p;$p' run/metrics.jsonl |
        sed 's/.*"tokens": *\([0-9]*\).*"time": *\([0-9.]*\).*/\1 \2/' |
        awk -v cpu="$(awk '{ print $1 + $2 }' time)" '
            { t[NR] = $1; s[NR] = $2 }
            END { print (t[2] - t[1]) / (s[2] - s[1]), cpu }'
    rm -rf run
}

median() {
    sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

# Each is first every other time.
for turn in $(seq "$turns"); do
    if [ $((turn % 2)) = 0 ]; then
        with=$(train yes) without=$(train no)
    else
        without=$(train no) with=$(train yes)
    fi
    echo "$with $without" | tee -a pairs
done
rate=$(awk '{ print $1 / $3 }' pairs | median)
processor=$(awk '{ print $4 / $2 }' pairs | median)
printf '%.4f of the tokens a second (bar %.2f), %.4f by the processor\n' "$rate" $bar "$processor"
awk -v rate="$rate" -v bar=$bar 'BEGIN { exit !(rate >= bar) }'
