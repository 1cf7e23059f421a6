#!/bin/bash
# The share of a step that pipeline stages wait for each other, four of them with eight microbatches,
# beside the formula's: 1F1B, interleaved with two chunks, zero-bubble. The bar is 1.3 times the
# formula, and zero-bubble below 1F1B. Products sleep as long as their FLOPs take instead of
# computing, so that ranks overlap whatever the number of cores; messages and all else are the
# trainer's (tests/bench/pipeline.c). Other work on the machine makes it worse.
#
# usage: make tests/bench/pipeline && tests/bench/pipeline.sh [BUILD_DIRECTORY]
set -eu
build_dir=$(cd "${1:-.}" && pwd)
stages=4 microbatches=8 bar=1.3
export OMP_NUM_THREADS=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none

good=0
# measure NAME CHUNKS SCHEDULE: sets `share`.
measure() {
    local formula
    read -r share formula < <(mpirun --quiet --oversubscribe -n $stages \
        "$build_dir/tests/bench/pipeline" $microbatches "$2" "$3")
    awk -v name="$1" -v share="$share" -v formula="$formula" -v bar=$bar 'BEGIN {
        printf "%-24s waits %.3f of a step, formula %.3f: %.2f times (bar %.1f)\n", name, share,
               formula, share / formula, bar
        exit !(share <= bar * formula)
    }' || good=1
}

measure 1F1B 1 1f1b
plain=$share
measure 'interleaved, 2 chunks' 2 1f1b
measure zero-bubble 1 zero-bubble
awk -v zero="$share" -v plain="$plain" 'BEGIN { exit !(zero < plain) }' || good=1
exit $good
