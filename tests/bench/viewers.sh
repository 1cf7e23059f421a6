#!/bin/bash
# What --tensorboard and --wandb cost: tokens a second of llama-tiny with both over those with
# neither, one rank on one core, by turns. What a training does between its steps is all that they
# can change; where others use the host, steps themselves differ by much more. So the cost is how
# much longer it is between steps, over the duration of a step with what is between. The bar is a
# ratio of 0.99. The plain ratio is printed too.
#
# usage: tests/bench/viewers.sh [BUILD_DIRECTORY [TURNS]]
set -eu
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
turns=${2:-5} steps=60 bar=0.99

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null OMP_NUM_THREADS=1
"$build_dir/tests/make_tokens" data 1024 3000 1

# train FILE yes|no: adds a line, seconds a step, and of them seconds between steps.
train() {
    "$build_dir/mtllm-train" --model=llama-tiny --data=data --steps=$steps --global-batch-size=4 \
        --micro-batch-size=4 --run-dir=run --log-every=1000 --tensorboard="$2" --wandb="$2" \
        > log 2>&1 || { cat log; exit 1; }
    sed 's/.*"step_s": *\([0-9.]*\).*"time": *\([0-9.]*\).*/\1 \2/' run/metrics.jsonl | awk '
        NR == 1 { first = $2; next }
        { inside += $1; last = $2 }
        END { print (last - first) / (NR - 1), (last - first - inside) / (NR - 1) }' >> "$1"
    rm -rf run
}

# median FILE COLUMN
median() {
    sort -g -k "$2" "$1" | awk -v column="$2" '{ v[NR] = $column } END { print v[int((NR + 1) / 2)] }'
}

for _ in $(seq "$turns"); do
    train with yes
    train without no
done
echo "$(median with 1) $(median with 2) $(median without 1) $(median without 2)" |
    awk -v bar=$bar '{
        rate = 1 - ($2 - $4) / $1
        printf "between steps %.0f us with both, %.0f without, of %.1f ms: %.4f of the tokens/s (bar %.2f); ",
            $2 * 1e6, $4 * 1e6, $1 * 1000, rate, bar
        printf "plain ratio %.4f\n", $3 / $1
        exit !(rate >= bar)
    }'
