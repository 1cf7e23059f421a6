#!/bin/bash
# The tests that need a GPU, as a table; `make check-gpu` runs it. Ends with 77 where there is none.
#
# usage: tests/gpu/check.sh [BUILD_DIRECTORY] [PART...]
#
#   PART   test_linear, test_memory, test_attention: kernels against the CPU backend
#          test_comm_nccl: NCCL on one GPU
#          test_packing: documents that share rows, in bf16 and fp32
#          training: bits and losses of whole runs (training.sh)
#          layouts: runs on two GPUs (layouts.sh); slurm: under a private Slurm (slurm.sh)
#          memcheck, racecheck: the kernel tests under compute-sanitizer, where that is installed
set -u
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build_dir=$(cd "${1:-.}" && pwd)
shift
parts=${*:-test_linear test_memory test_attention test_comm_nccl test_packing training layouts slurm memcheck racecheck}
export MTLLM_MODULES=${MTLLM_MODULES:-$build_dir}
[ -e /dev/nvidiactl ] || { echo "skipped: no GPU here"; exit 77; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0 skipped=0

# run NAME COMMAND...: one line of the table; what went wrong below it.
run() {
    local name=$1 start=$SECONDS status
    shift
    "$@" > "$log" 2>&1
    status=$?
    case $status in
    0) passed=$((passed + 1)); echo "$name: ok, $((SECONDS - start)) s"; grep '^# ' "$log" ;;
    77) skipped=$((skipped + 1)); echo "$name: skipped: $(tail -n 1 "$log")" ;;
    *)
        failed=$((failed + 1))
        echo "$name: FAILED with status $status"
        grep '^not ok' "$log"
        tail -n 20 "$log"
        ;;
    esac
}

# The small cases, which reach every kernel: it is slow under the tool. Our kernels only: racecheck
# reports cuBLASLt's own, whose blocks share memory in clusters, which it does not follow. Nor does
# it follow who only arrives at a numbered barrier: it gets a module whose threads wait there too.
sanitize() {
    local test programs="test_memory test_attention" modules=$MTLLM_MODULES
    command -v compute-sanitizer >/dev/null ||
        { echo "compute-sanitizer is not installed"; return 77; }
    if [ "$1" = racecheck ]; then modules=$build_dir/racecheck; else programs="test_linear $programs"; fi
    for test in $programs; do
        MTLLM_MODULES=$modules MTLLM_TEST_SMALL=1 compute-sanitizer --tool "$1" \
            --target-processes all --error-exitcode 9 \
            --kernel-regex-exclude kns=nvjet --kernel-regex-exclude kns=cudnn \
            "$build_dir/kernels/cuda/$test" --dtype=bf16 || return
    done
}

for part in $parts; do
    case $part in
    test_comm_nccl) run "$part" "$build_dir/trainer/$part" ;;
    test_packing)
        for dtype in bf16 fp32; do
            run "$part $dtype" "$build_dir/trainer/$part" --device=cuda --dtype=$dtype
        done ;;
    test_*) run "$part" "$build_dir/kernels/cuda/$part" ;;
    training | layouts | slurm) run "$part" "$source_dir/tests/gpu/$part.sh" "$build_dir" ;;
    memcheck | racecheck) run "$part" sanitize "$part" ;;
    *) echo "check.sh: $part: unknown part" >&2; exit 64 ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
