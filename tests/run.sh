#!/bin/bash
# Installs what is missing (Debian), builds, and runs every test. The last line counts them:
# "N passed, N failed", with ", N skipped" if any were; the exit status is 0 if none failed.
#
#   tests/run.sh [--fast] [--no-install] [--build=DIR] [-k PATTERN]
#
#   --fast        only what needs no daemons: build, unit tests, format
#   --no-install  install no packages
#   --build=DIR   where to build and to keep logs (default: build, in the checkout)
#   -k PATTERN    only the parts and test files whose name matches the regular expression
#
# The parts, in order:
#   packages    what packages.txt lists
#   build       bootstrap, configure --enable-werror, make
#   check       make check: units, layouts under mpirun, and a private Slurm
#   sanitizers  a second build with AddressSanitizer and UndefinedBehaviorSanitizer: its units
#   format, cppcheck, clang-tidy, man, scripts    hygiene.sh
#   fuzz        make check-fuzz, for a minute, where clang has its fuzzer
#   distcheck   make distcheck: a release builds and installs by itself, and its units pass
#   parity      make check-hf: logits against Hugging Face transformers, in a virtual environment
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 71

fast=no install=yes build=$root/build pattern=.
while [ $# -gt 0 ]; do
    case $1 in
    --fast) fast=yes ;;
    --no-install) install=no ;;
    --build=*) build=${1#*=} ;;
    -k) pattern=${2:?-k needs a pattern}; shift ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "run.sh: $1: unknown option; see --help" >&2; exit 64 ;;
    esac
    shift
done
mkdir -p "$build/logs" && build=$(cd "$build" && pwd) || exit 71
jobs=$(nproc)
passed=0 failed=0 skipped=0 failures=()

say() { printf '%s\n' "$*"; }

matches() { [[ $1 =~ $pattern ]]; }

# run_part NAME SECONDS COMMAND...: run it with its output in a log, and say how it went. Sets
# `elapsed`; the caller counts.
run_part() {
    local name=$1 limit=$2 log=$build/logs/$1.log start=$SECONDS status
    shift 2
    printf '%-11s ' "$name"
    timeout --foreground --kill-after=30 "$limit" "$@" > "$log" 2>&1 < /dev/null
    status=$?
    elapsed=$((SECONDS - start))
    if [ $status = 0 ]; then
        say "ok, $elapsed s"
        return 0
    fi
    [ $status != 124 ] || say "still running after $limit s" | tee -a "$log"
    say "FAILED with status $status after $elapsed s; the end of $log:"
    tail -n 30 "$log" | sed 's/^/    /'
    return 1
}

count_pass() { passed=$((passed + 1)); }
count_fail() { failed=$((failed + 1)); failures+=("$1"); }

# A part that is one test.
part() {
    matches "$1" || return 0
    if run_part "$@"; then count_pass; else count_fail "$1"; fi
}

# A part whose tests automake counts, one .trs file each: part_trs NAME SECONDS DIR COMMAND...
part_trs() {
    local name=$1 limit=$2 directory=$3 status=0 before=$failed file result test named next
    shift 3
    find "$directory" -name '*.trs' -delete 2>/dev/null
    run_part "$name" "$limit" "$@" || status=1
    while read -r file; do
        # What is not a plain pass is named in the log, if the file holds several tests.
        mapfile -t named < <(grep -aE '^(XFAIL|FAIL|XPASS|ERROR|SKIP): ' "${file%.trs}.log")
        next=0
        while read -r result; do
            [ "$result" = PASS ] && count_pass && continue
            test=${file#"$directory"/}
            test=${named[next]:-$result: ${test%.trs}}
            next=$((next + 1))
            case $result in
            XFAIL) count_pass ;;
            SKIP) skipped=$((skipped + 1)); say "    $test" ;;
            *) count_fail "$name: $test" ;;
            esac
        done < <(sed -n 's/^:test-result: //p' "$file")
    done < <(find "$directory" -name '*.trs' | sort)
    [ $status = 0 ] || [ "$failed" != "$before" ] || count_fail "$name"
}

finish() {
    trap - INT TERM
    if [ ${#failures[@]} -gt 0 ]; then
        say "failed:"
        printf '    %s\n' "${failures[@]}"
    fi
    say "the whole took $((SECONDS / 60)) min $((SECONDS % 60)) s; logs are in $build/logs"
    if [ $skipped -gt 0 ]; then
        say "$passed passed, $failed failed, $skipped skipped"
    else
        say "$passed passed, $failed failed"
    fi
    [ $failed = 0 ]
    exit
}
trap 'count_fail interrupted; finish' INT TERM

# configure_and_make DIR OPTION...
configure_and_make() {
    local directory=$1
    shift
    mkdir -p "$directory" || return 1
    if [ ! -x configure ] || [ -n "$(find configure.ac Makefile.am ./*/local.mk -newer configure)" ]
    then
        ./bootstrap || return 1
    fi
    # A build from an earlier run serves again, unless configure is newer.
    if [ ! -f "$directory/Makefile" ] || [ configure -nt "$directory/config.status" ]; then
        (cd "$directory" && "$root/configure" --enable-werror "$@") || return 1
    fi
    make -C "$directory" -j "$jobs"
}

# Units at once; what takes all cores by itself, or servers, one after the other.
make_check() { # DIR TARGET [TEST...]
    local directory=$1 target=$2
    shift 2
    make -C "$directory" -j "$jobs" check-programs || return 1
    if [ $# -gt 0 ]; then
        make -C "$directory" check TESTS="$*"
    elif [ "$target" = check-unit ]; then
        make -C "$directory" -j "$jobs" check-unit
    else
        make -C "$directory" "$target"
    fi
}

# With the unit tests alone; the others have run already. Without CUDA's part, like the sanitizers:
# it was compiled once, and it takes minutes.
make_distcheck() { # DIR
    make -C "$1" distcheck TESTS="$(make -s --no-print-directory -C "$1" show-unit-tests | tr '\n' ' ')" \
        DISTCHECK_CONFIGURE_FLAGS="--enable-werror --with-cuda=no" AM_MAKEFLAGS="-j$jobs"
}

export -f configure_and_make make_check make_distcheck
export root build jobs

if [ $install = yes ]; then
    run_part packages 1200 tests/packages.sh build try test || { count_fail packages; finish; }
fi
run_part build 900 bash -c 'configure_and_make "$build/plain"' || { count_fail build; finish; }
count_pass

if [ $fast = yes ]; then
    part_trs check 900 "$build/plain" bash -c 'make_check "$build/plain" check-unit'
    part format 60 tests/hygiene.sh format "$build/plain"
    finish
fi

# -k means parts, or else single test files of the part "check".
tests=()
[ "$pattern" = . ] || matches check ||
    mapfile -t tests < <(make -s --no-print-directory -C "$build/plain" show-tests | grep -E -e "$pattern")
if matches check || [ ${#tests[@]} -gt 0 ]; then
    part_trs check 2400 "$build/plain" bash -c 'make_check "$build/plain" check "$@"' check \
        "${tests[@]}"
fi
if matches sanitizers; then
    part_trs sanitizers 900 "$build/sanitizers" bash -c '
        configure_and_make "$build/sanitizers" --enable-sanitizers --with-cuda=no &&
        make_check "$build/sanitizers" check-unit'
fi
for look in format cppcheck clang-tidy man scripts; do
    part $look 600 tests/hygiene.sh $look "$build/plain"
done
if tests/fuzz/run.sh --probe; then
    part fuzz 300 env FUZZ_SECONDS=12 FUZZ_SEED=1 make -C "$build/plain" check-fuzz
fi
part distcheck 900 bash -c 'make_distcheck "$build/plain"'
if make -s --no-print-directory -C "$build/plain" -n check-hf >/dev/null 2>&1; then
    part parity 1200 env CHECK_HF_VENV="$build/venv" make -C "$build/plain" check-hf
fi
finish
