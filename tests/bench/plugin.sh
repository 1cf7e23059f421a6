#!/bin/bash
# What the plugin costs those who do not use it: sbatch --test-only against a private Slurm, with
# the plugin in plugstack.conf and without, by turns.
#
#   tests/bench/plugin.sh [RUNS]      (500 pairs by default; in the build directory)
#
# Prints the median of each, and the median of the differences of neighbouring runs with its 95 %
# confidence interval (the ranks of the sign test). Ends with 1 if a run with the plugin is slower
# by more than the spread (half the interquartile range) of runs without it.

. "$(dirname "$0")/../slurm/plugin.bash"
. "$(dirname "$0")/../slurm/cluster.sh"
runs=${1:-500}
why=$(plugin_missing sbatch slurmctld slurmd munged)
[ -z "$why" ] || { echo "plugin.sh: $why" >&2; exit 77; }

directory=$(mktemp -d "${TMPDIR:-/tmp}/mtllm-XXXXXX")
trap 'cluster_stop "$directory"; rm -rf "$directory"' EXIT
trap 'exit 130' INT TERM
cluster_start "$directory" --nodes=1 || exit 1
eval "$(cluster_env "$directory")"
for variant in with without; do
    sed "s|^PlugStackConfig=.*|PlugStackConfig=$directory/etc/plugstack.$variant|" \
        "$directory/etc/slurm.conf" > "$directory/etc/slurm.$variant"
done
echo "required $plugin" > "$directory/etc/plugstack.with"
: > "$directory/etc/plugstack.without"
printf '#!/bin/sh\n' > "$directory/job.sh"

# once VARIANT: microseconds of one submission that is only tried.
once() {
    local start=${EPOCHREALTIME/[.,]/}
    SLURM_CONF=$directory/etc/slurm.$1 sbatch --test-only "$directory/job.sh" 2>/dev/null || return
    echo $((${EPOCHREALTIME/[.,]/} - start))
}

for run in $(seq 20); do
    once with && once without
done >/dev/null
for run in $(seq "$runs"); do
    # Each goes first in half of the pairs.
    if [ $((run % 2)) -eq 0 ]; then
        with=$(once with) && without=$(once without)
    else
        without=$(once without) && with=$(once with)
    fi || { echo "plugin.sh: sbatch --test-only fails" >&2; exit 1; }
    echo "$with $without $((with - without))"
done > "$directory/times"

column() {
    cut -d' ' -f"$1" "$directory/times" | sort -n
}
# rank COLUMN R: the value of rank R (0 to 1).
rank() {
    column "$1" | awk -v r="$2" '{ v[NR] = $1 } END { i = int(r * (NR - 1) + 1.5); print v[i] }'
}
half=$(awk -v n="$runs" 'BEGIN { print 0.98 / sqrt(n) }')
low=$(rank 3 "$(awk -v h="$half" 'BEGIN { print 0.5 - h }')")
high=$(rank 3 "$(awk -v h="$half" 'BEGIN { print 0.5 + h }')")
spread=$((($(rank 2 0.75) - $(rank 2 0.25)) / 2))
difference=$(rank 3 0.5)
echo "sbatch --test-only, $runs runs each, median:" \
    "$(rank 1 0.5) us with the plugin, $(rank 2 0.5) us without"
echo "difference: $difference us (95 %: $low to $high us);" \
    "spread of runs without it: +-$spread us"
[ "$difference" -le "$spread" ]
