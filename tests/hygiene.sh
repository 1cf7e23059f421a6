#!/bin/bash
# Looks at the sources without running them: hygiene.sh format|cppcheck|clang-tidy|man|scripts BUILD
# Silent, with exit status 0, when nothing is wrong. BUILD is a directory that has been configured:
# it knows where headers are, and makes the man pages.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "${2:-.}" && pwd)
cd "$root"

# files PATTERN...: what git tracks or would track; in a release that knows no git, what there is.
files() {
    local pattern arguments=()
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        git ls-files --cached --others --exclude-standard -- "$@" | sort -u |
            while read -r pattern; do [ ! -f "$pattern" ] || echo "$pattern"; done
        return
    fi
    for pattern in "$@"; do
        arguments+=(-o -name "${pattern##*/}")
    done
    find . -path './build*' -prune -o -type f \( "${arguments[@]:1}" \) -printf '%P\n'
}

case ${1:-} in
format)
    files '*.c' '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format --dry-run -Werror
    ;;
cppcheck)
    mapfile -t flags < <(make -s --no-print-directory -C "$build" show-compiler-flags | grep '^-D')
    mapfile -t sources < <(files '*.c')
    cppcheck --quiet --inline-suppr --error-exitcode=1 -j "$(nproc)" --std=c11 --language=c \
        --enable=warning,performance,portability --suppressions-list=tests/cppcheck.txt \
        --template='{file}:{line}: {id}: {message}' "${flags[@]}" '-DSPANK_PLUGIN(name,version)=' \
        -I . -I "$build" "${sources[@]}"
    ;;
clang-tidy)
    mapfile -t flags < <(make -s --no-print-directory -C "$build" show-compiler-flags)
    flags+=("-I$root/trainer") # where an installed mtllm-metric.h comes from
    # One process a file, on all cores; what it says without being asked is left out.
    # shellcheck disable=SC2016
    files '*.c' | sed "s|^|$root/|" | (cd "$build" && xargs -P "$(nproc)" -n 1 bash -c '
        output=$(clang-tidy --quiet "${@: -1}" -- "${@:1:$#-1}" 2>&1) && exit 0
        grep -v "warnings\? \(generated\|treated\)" <<< "$output"
        exit 1' tidy "${flags[@]}")
    ;;
man)
    output=$(make -s --no-print-directory -C "$build" show-man-pages | xargs -r mandoc -T lint -W warning || true)
    [ -z "$output" ] || { echo "$output"; exit 1; }
    ;;
scripts)
    # SC1007: "name= command" and "local name=" are meant. SC2046: lists that are split on purpose.
    # SC1090, SC1091, SC2154: files that are sourced are looked at by themselves.
    ignored=SC1007,SC1090,SC1091,SC2046,SC2154
    files '*.sh' bootstrap .ci/run | xargs shellcheck --severity=warning --exclude=$ignored
    # bats ends a test where a command fails; what is loaded sets variables for others.
    files '*.bats' '*.bash' | xargs -r shellcheck --shell=bats --severity=warning \
        --exclude=$ignored,SC2010,SC2034,SC2164
    ;;
*)
    echo "usage: hygiene.sh format|cppcheck|clang-tidy|man|scripts BUILD" >&2
    exit 64
    ;;
esac
