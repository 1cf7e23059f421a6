#!/usr/bin/env bats
# Guards: when a rank dies, every other one ends within seconds, with status 74 and a message that
# names the rank, also when it hangs in a collective and the launcher sees nothing; and nobody takes
# an orderly end for a death.

load common

model="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=32"
run="--data=$BATS_FILE_TMPDIR/data --lr=3e-3 --global-batch-size=64 --seed=5 --run-dir=run
    --log-every=1000"

setup_file() {
    "${builddir:-$PWD}/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 259 300 1
}

setup() {
    common_setup
    # What a launcher starts that does not see the end of a rank: it never ends by itself, and says
    # how the rank ended in a file.
    cat > hidden <<'SCRIPT'
#!/bin/bash
timeout --signal=KILL 120 "$@"
echo $? > "status-$OMPI_COMM_WORLD_RANK"
sleep 120
SCRIPT
    chmod +x hidden
}

# Also what is no longer mpirun's child.
teardown() {
    local pid
    [ -z "${run_pid:-}" ] || { kill "$run_pid" && wait "$run_pid"; } 2>/dev/null || true
    for pid in $(pgrep -x 'mtllm-train|test_peers|hidden'); do
        [ "$(readlink "/proc/$pid/cwd")" != "$PWD" ] || kill -KILL "$pid" 2>/dev/null || true
    done
}

# start_hidden RANKS COMMAND...: sets run_pid.
start_hidden() {
    local ranks=$1
    shift
    rm -f status-*
    mpirun --quiet --oversubscribe -n "$ranks" ./hidden "$@" > log 2>&1 3>&- &
    run_pid=$!
}

# ended COUNT: so many ranks have.
ended() {
    [ "$(find . -maxdepth 1 -name 'status-*' -size +1c | wc -l)" -ge "$1" ]
}

@test "kill -9 of a rank that the launcher does not see: the others end with 74 and say so" {
    local layout victim others
    for layout in "--tp=2 --pp=2" "--dp=4"; do
        rm -rf run
        start_hidden 4 mtllm-train $model $run --steps=20000 $layout
        wait_for 60 reached run/metrics.jsonl 5 || { cat log; false; }
        victim=$(trainer_pids | sed -n 3p)
        kill -KILL "$victim"
        wait_for 20 ended 4 || { cat log; false; }
        cat log
        [ "$(cat status-* | sort | tr '\n' ' ')" = "137 74 74 74 " ]
        victim=$(grep -l 137 status-*)
        [ "$(grep -c "^mtllm-train: rank ${victim#status-} on node $(hostname) is gone; " log)" = 1 ]
        [ "$(grep -c 'is gone' log)" = 1 ]
        kill "$run_pid"
        wait "$run_pid" || true
    done
}

@test "kill -9 of two ranks that are neighbours" {
    start_hidden 5 mtllm-train $model $run --steps=20000 --global-batch-size=60
    wait_for 60 reached run/metrics.jsonl 5 || { cat log; false; }
    kill -KILL $(trainer_pids | sed -n 2,3p)
    wait_for 20 ended 5 || { cat log; false; }
    cat log
    [ "$(cat status-* | sort | tr '\n' ' ')" = "137 137 74 74 74 " ]
    grep 'is gone' log
}

@test "a stop, the end of a run and a failure on all ranks are no deaths" {
    start_hidden 4 mtllm-train $model $run --steps=20000
    wait_for 60 reached run/metrics.jsonl 5 || { cat log; false; }
    kill -TERM "$(trainer_pids | head -n 1)"
    wait_for 60 ended 4 || { cat log; false; }
    [ "$(cat status-* | sort -u)" = 75 ]
    kill "$run_pid"
    wait "$run_pid" || true
    start_hidden 4 mtllm-train $model $run --steps=$(($(newest_step run) + 2))
    wait_for 60 ended 4 || { cat log; false; }
    [ "$(cat status-* | sort -u)" = 0 ]
    kill "$run_pid"
    wait "$run_pid" || true
    start_hidden 4 mtllm-train $model $run --steps=5 --resume=nowhere --run-dir=other
    wait_for 60 ended 4 || { cat log; false; }
    [ "$(cat status-* | sort -u)" = 65 ]
    ! grep -e 'is gone' -e 'has ended' log
}

@test "ranks that end one after the other" {
    timeout 60 mpirun --quiet --oversubscribe -n 4 "$build_dir/trainer/test_peers" staggered \
        > log 2>&1 || { cat log; false; }
    [ ! -s log ] || { cat log; false; }
}

@test "a rank that fails alone, and says goodbye to ranks that still wait for it" {
    start_hidden 4 "$build_dir/trainer/test_peers" stuck
    wait_for 20 ended 4 || { cat log; false; }
    cat log
    [ "$(cat status-* | sort -u)" = 74 ]
    grep 'rank 1 on node .* has ended, and this one still waits for it' log
}
