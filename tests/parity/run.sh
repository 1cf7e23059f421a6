#!/bin/sh
# make check-hf: compares with transformers, in a virtual environment of its own.
#
# The environment is made in the build directory when it is missing or requirements.txt changed,
# and kept; CHECK_HF_VENV names another place for it. Takes 5 GB there and the network the first
# time.
set -eu

srcdir=$(cd "${srcdir:-.}" && pwd)
builddir=$(cd "${builddir:-.}" && pwd)
parity=$srcdir/tests/parity
venv=${CHECK_HF_VENV:-$builddir/check-hf-venv}

if ! cmp -s "$parity/requirements.txt" "$venv/requirements.txt"; then
    echo "check-hf: installing transformers into $venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$parity/requirements.txt"
    cp "$parity/requirements.txt" "$venv/"
fi

export srcdir builddir
# Nothing is fetched from the hub, and the checkout stays as it is.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TRANSFORMERS_VERBOSITY=error PYTHONDONTWRITEBYTECODE=1
failed=0
for test in "$parity"/test_*.py; do
    echo "check-hf: $(basename "$test")"
    "$venv/bin/python" "$test" -v || failed=1
done
exit $failed
