#!/bin/bash
# What a checkpoint costs.
#
#   shard    the rate of writing a shard, reserved, checksummed and fsynced, over plain write and
#            fsync of the same bytes to the same disk, by turns; the bar is 0.9
#   held     how long a save holds the training step, over the save's own duration, saving
#            llama-100m while it trains; the bar is 0.1
#   slower   how much longer the step is that runs beside a save: nobody waits, but where training
#            keeps every core busy, writing takes its time from it; printed, not judged
#
# usage: tests/bench/ckpt.sh [BUILD_DIRECTORY [MEGABYTES]]
# Writes into the build directory: about 4 GB, and MEGABYTES (400) twice; removed at the end.
set -eu
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
megabytes=${2:-400}

work=$(mktemp -d "$build_dir/bench-ckpt.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
status=0

"$build_dir/ckpt/bench_shard" shards "$megabytes" 7 > shard.log
cat shard.log
awk '$1 == "shard_over_plain" {
    printf "shard    %.3f of plain write and fsync (bar 0.9)\n", $2
    found = 1
    exit !($2 >= 0.9)
} END { if (!found) exit 1 }' shard.log || status=1
rm -rf shards

export MTLLM_MODELS="$source_dir/etc/models" MTLLM_CONF=/dev/null
"$build_dir/tests/make_tokens" data 32000 400 1
"$build_dir/mtllm-train" --model=llama-100m --seq-length=256 --data=data --steps=15 \
    --micro-batch-size=1 --global-batch-size=2 --save-interval=3 --keep=1 --run-dir=run \
    --resume=never > train.log 2>&1 || { cat train.log; exit 1; }
sed -n 's/.*saved in \([0-9.]*\) s, the step was held \([0-9.]*\) s.*/\1 \2/p' train.log > saves
awk '{ printf "save     %.3f s, step held %.4f s\n", $1, $2 }' saves
sed -n '/"eval"/d; s/.*"step": *\([0-9]*\).*"step_s": *\([0-9.]*\).*/\1 \2/p' run/metrics.jsonl |
    awk '$1 > 1 { print ($1 % 3 == 1 ? "beside" : "alone"), $2 }' | sort -k1,1 -k2,2g | awk '
        { v[$1, ++n[$1]] = $2 }
        END {
            beside = v["beside", int((n["beside"] + 1) / 2)]
            alone = v["alone", int((n["alone"] + 1) / 2)]
            printf "slower   %.3f s: a step beside a save takes %.3f s, others %.3f s (medians)\n",
                beside - alone, beside, alone
        }'
awk '{ print $2 / $1 }' saves | sort -g | awk '{ v[NR] = $1 } END {
    median = v[int((NR + 1) / 2)]
    printf "held     %.3f of a save (median of %d, bar 0.1)\n", median, NR
    exit !(NR >= 3 && median <= 0.1)
}' || status=1
exit $status
