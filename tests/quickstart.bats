# Guards what a newcomer is promised: examples/quickstart.sh, as it is, ends well in less than ten
# minutes and leaves no process behind; nor does it when it is interrupted.

setup_file() {
    # Short, because sockets lie below it.
    QUICKSTART=$(mktemp -d "${TMPDIR:-/tmp}/mtllm-q.XXXXXX")
    export QUICKSTART
}

teardown_file() {
    [ -z "$QUICKSTART" ] || rm -rf "$QUICKSTART"
}

setup() {
    source_dir=$(cd "${srcdir:-$BATS_TEST_DIRNAME/..}" && pwd)
}

# The daemons, and what they started, know the private Slurm by its configuration.
processes_of() {
    grep -lzsF "SLURM_CONF=$1/" /proc/[0-9]*/environ | cut -d/ -f3
    pgrep -f -- "--key-file=$1/" || true
}

wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.2
    done
}

@test "the quickstart: built, trained, preempted, resumed, converted" {
    start=$SECONDS
    run timeout 600 "$source_dir/examples/quickstart.sh" --no-install --dir="$QUICKSTART/whole"
    echo "$output"
    [ "$status" -eq 0 ]
    echo "# the quickstart took $((SECONDS - start)) s" >&3
    [ -z "$(processes_of "$QUICKSTART/whole")" ]
    # What it says that it made is there, each start in one log.
    [ "$(grep -c 'resuming from' "$QUICKSTART"/whole/train-*.out)" -ge 1 ]
    [ -s "$QUICKSTART/whole/hf/model.safetensors" ]
    [ -s "$QUICKSTART/whole/loss.svg" ]
    [ -s "$QUICKSTART/whole/report.html" ]
}

@test "the quickstart, interrupted: no daemon stays" {
    [ -x "$QUICKSTART/whole/mtllm/bin/mtllm-train" ] || skip "needs what the first one built"
    log=$QUICKSTART/interrupted.log
    # Job control gives it a process group of its own, and lets it hear Ctrl-C.
    set -m
    timeout --foreground 300 "$source_dir/examples/quickstart.sh" --no-install \
        --mtllm="$QUICKSTART/whole/mtllm" --dir="$QUICKSTART/interrupted" > "$log" 2>&1 3>&- &
    pid=$!
    set +m
    wait_for 120 grep -q 'step   *10 of' "$log" || { cat "$log"; false; }
    [ -n "$(processes_of "$QUICKSTART/interrupted")" ]
    kill -INT -- "-$pid"
    status=0
    wait "$pid" || status=$?
    cat "$log"
    [ "$status" -eq 130 ]
    [ -z "$(processes_of "$QUICKSTART/interrupted")" ]
}

@test "the quickstart refuses a directory that is in use, and options it does not know" {
    mkdir "$QUICKSTART/used" && touch "$QUICKSTART/used/file"
    run "$source_dir/examples/quickstart.sh" --no-install --dir="$QUICKSTART/used"
    [ "$status" -eq 1 ]
    [[ "$output" == *"not empty"* ]]
    run "$source_dir/examples/quickstart.sh" --kepp
    [ "$status" -eq 64 ]
}
