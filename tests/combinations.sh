#!/bin/bash
# Guards: every combination of tensor, sequence, pipeline (each schedule), data and context
# parallelism, ZeRO and recomputation, up to eight ranks and with dropout, has the losses of one rank
# (1e-5 relative, every step), and reads what any other has saved.
#
# Combinations follow each other in an order that mixes them, each going on for three steps from
# the checkpoint of the one before it; after twenty of them a run begins anew.
#
# usage: tests/combinations.sh [NUMBER]    that many of them, spread over all (default: all)
set -euo pipefail
# shellcheck source=tests/common.bash
. "$(dirname "$0")/common.bash"
export srcdir
srcdir=$(cd "$(dirname "$0")/.." && pwd)
BATS_TEST_TMPDIR=$(mktemp -d)
trap 'rm -rf "$BATS_TEST_TMPDIR"' EXIT
builddir=$(cd "${builddir:-.}" && pwd)
common_setup

chain=20 each=3
model=(--family=llama --layers=8 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=32)
run=(--data=data --lr=3e-3 --lr-warmup-steps=3 --lr-decay-steps=$((chain * each))
    --global-batch-size=8 --seed=5 --hidden-dropout=0.1 --attention-dropout=0.1 --keep=1)

# "RANKS OPTION..." of every combination.
all() {
    local tp pp dp cp sp schedule zero recompute
    for tp in 1 2 4; do for pp in 1 2 4; do for dp in 1 2 4; do for cp in 1 2; do
        [ $((tp * pp * dp * cp)) -le 8 ] || continue
        for sp in no yes; do
            [ $tp$sp != 1yes ] || continue
            for schedule in 1f1b interleaved zero-bubble; do
                [ $pp != 1 ] || [ $schedule = 1f1b ] || continue
                for zero in 0 1; do
                    [ $((dp * cp)) != 1 ] || [ $zero = 0 ] || continue
                    for recompute in none selective full; do
                        echo "$((tp * pp * dp * cp)) --tp=$tp --pp=$pp --dp=$dp --cp=$cp" \
                            "--sequence-parallel=$sp --zero=$zero --recompute=$recompute" \
                            "$(how "$schedule")"
                    done
                done
            done
        done
    done; done; done; done
}

how() {
    case $1 in
    1f1b) echo --pp-schedule=1f1b ;;
    interleaved) echo --pp-schedule=1f1b --pp-chunks=2 ;;
    *) echo "--pp-schedule=$1" ;;
    esac
}

# Steps by a prime number that does not divide their count mix them.
mapfile -t combinations < <(all)
count=${#combinations[@]} number=${1:-${#combinations[@]}} stride=379
[ $((count % stride)) != 0 ] || stride=383
"$builddir/tests/make_tokens" data 259 300 1
train 1 "${model[@]}" "${run[@]}" --micro-batch-size=8 --steps=$((chain * each)) --run-dir=one \
    > log 2>&1 || { cat log; exit 1; }

worst=0 failed=0
for ((i = 0; i < number; i++)); do
    read -r ranks options <<< "${combinations[i * stride % count]}"
    place=$((i % chain)) steps=$((each * (i % chain + 1)))
    [ $place != 0 ] || rm -rf run
    # shellcheck disable=SC2086
    if ! train "$ranks" "${model[@]}" "${run[@]}" $options --steps=$steps --run-dir=run > log 2>&1 ||
        ! difference=$(losses_agree <(head -n $steps run/metrics.jsonl) \
            <(head -n $steps one/metrics.jsonl) 1e-5 $steps); then
        echo "not ok: $ranks ranks, $options"
        echo "${difference:-}" | tail -n 3
        tail -n 3 log
        failed=$((failed + 1))
        rm -rf run # the next one begins where this one should have ended
        train 1 "${model[@]}" "${run[@]}" --micro-batch-size=8 --steps=$steps --run-dir=run > log 2>&1
        continue
    fi
    worst=$(printf '%s\n' "$worst" "${difference##* }" | sort -g | tail -n 1)
done
echo "$number of $count combinations, $failed failed, losses at most $worst from those of one rank"
[ $failed = 0 ]
