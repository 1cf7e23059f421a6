#!/bin/bash
# Installs what is missing on Debian and its relatives: packages.sh USE..., where the uses are those
# of packages.txt (build, try, test). Does nothing, and needs no rights, when nothing is missing.
# With --list it prints what is missing and installs nothing.
set -euo pipefail

list=no
[ "${1:-}" = --list ] && { list=yes; shift; }
[ $# -gt 0 ] || { echo "usage: packages.sh [--list] build|try|test..." >&2; exit 64; }

wanted=()
while read -r use package; do
    [[ " $* " == *" $use "* ]] && wanted+=("$package")
done < <(grep -v '^#' "$(dirname "$0")/packages.txt")

if ! command -v dpkg-query >/dev/null; then
    echo "packages: not a Debian system; I take it that these or their like are installed:" \
        "${wanted[*]}" >&2
    exit 0
fi

installed=$(dpkg-query -W -f '${db:Status-Status} ${binary:Package}\n' | sed -n 's/^installed //p' |
    sed 's/:.*//')
missing=()
for package in "${wanted[@]}"; do
    grep -qx "$package" <<< "$installed" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ $list = yes ]; then
    printf '%s\n' "${missing[@]}"
    exit 0
fi

as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
        echo "packages: missing: ${missing[*]}" >&2
        echo "packages: you are not root and sudo would ask for a password; please run" >&2
        echo "    sudo apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo -n)
fi
echo "packages: installing ${missing[*]}"
apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300
    -o Acquire::Retries=3)
"${as_root[@]}" "${apt[@]}" update
"${as_root[@]}" "${apt[@]}" install --no-install-recommends "${missing[@]}"
