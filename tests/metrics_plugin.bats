#!/usr/bin/env bats
# Guards: a metric of one's own, built with the installed header alone, sees what mtllm's metrics see,
# on any layout, and is where they are; one that misbehaves is named and switched off, and the run
# goes on with the same bits.

load common

model="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=32"
run="--data=$BATS_FILE_TMPDIR/data --steps=4 --lr=3e-3 --global-batch-size=8 --seed=5
    --eval-interval=2 --eval-steps=2 --valid-data=$BATS_FILE_TMPDIR/data --run-dir=run"

setup_file() {
    common_setup
    "$build_dir/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 259 300 1
    make -s -C "$build_dir" install-includeHEADERS DESTDIR="$BATS_FILE_TMPDIR/installed"
    includes=$(dirname "$(find "$BATS_FILE_TMPDIR/installed" -name mtllm-metric.h)")
    ln -s "$includes" "$BATS_FILE_TMPDIR/include"
}

setup() { common_setup; }

# compile SOURCE OPTION...: metric.so
compile() {
    local source=$1
    shift
    cc -std=c11 -Wall -Wextra -Werror -O2 -shared -fPIC -I"$BATS_FILE_TMPDIR/include" "$@" \
        -o metric.so "$source" -lm
}

# value NAME: of every validation in run/metrics.jsonl.
value() { sed -n '/"eval"/s/.*"'"$1"'": *\([^,}]*\).*/\1/p' run/metrics.jsonl; }

# agree A B TOLERANCE: lists of as many numbers, at least two.
agree() {
    paste -d' ' <(echo "$1") <(echo "$2") | awk -v tolerance="$3" '
        NF != 2 { exit bad = 1 }
        { d = $1 - $2; if (d < 0) d = -d; if (d > tolerance * ($2 < 0 ? -$2 : $2)) bad = 1 }
        END { exit bad || NR < 2 }'
}

@test "the example: one rank and eight, in every place" {
    compile "$source_dir/examples/metric.c"
    train 1 $model $run --metrics-plugin=metric.so --tensorboard=yes --wandb=yes > log 2>&1
    for name in sure entropy; do
        grep -a "val/valid/$name" run/tensorboard/events.out.tfevents.*
        grep -a "val/valid/$name" run/wandb/latest-run/run-*.wandb
        mtllm-report --svg=list run | grep -w "$name"
    done
    sure=$(value sure) entropy=$(value entropy)
    grep -E 'validation loss at iteration 4 .* sure: [0-9.E+-]+ \| entropy: [0-9.E+-]+ \|' log
    # An untrained model is about as unsure as one can be: ln 259 is 5.56.
    echo "$entropy" | awk '{ bad = bad || $1 < 5 || $1 > 5.56 } END { exit bad || NR != 2 }'
    train 8 $model $run --metrics-plugin=metric.so --tp=2 --pp=2 --dp=2 --resume=never > log 2>&1
    agree "$(value sure)" "$sure" 1e-5
    agree "$(value entropy)" "$entropy" 1e-5
}

@test "tokens, labels, masks, losses, first choices and logits, on any layout" {
    compile "$source_dir/tests/metric_plugin.c" -DLOGITS
    for layout in "--tp=2" "--pp=2 --micro-batch-size=2" "--tp=2 --pp=2 --dp=2"; do
        train 8 $model $run --metrics-plugin=metric.so --resume=never $layout > log 2>&1 ||
            { cat log; false; }
        agree "$(value my_loss)" "$(value loss)" 1e-6
        agree "$(value logit_loss)" "$(value loss)" 1e-5
        agree "$(value my_accuracy)" "$(value accuracy)" 1e-12
        [ "$(value followed | sort -u)" = 1 ]
    done
    compile "$source_dir/tests/metric_plugin.c"
    train 4 $model $run --metrics-plugin=metric.so --resume=never --cp=2 --tp=2 > log 2>&1
    agree "$(value my_loss)" "$(value loss)" 1e-6
    agree "$(value my_accuracy)" "$(value accuracy)" 1e-12
}

# switched_off WORDS OPTION...: with such a metric the run says so once and ends as without.
switched_off() {
    local words=$1 ranks
    shift
    compile "$source_dir/tests/metric_plugin.c" "$@"
    for ranks in 1 4; do
        train $ranks $model $run --resume=never --tp=$((ranks > 1 ? 2 : 1)) \
            --metrics-plugin=metric.so --metrics-plugin-timeout=1 > log 2>&1 || { cat log; return 1; }
        grep -F "$words" log || { cat log; return 1; }
        [ "$(grep -c 'switched off' log)" -ge 1 ]
        [ "$(grep -c 'switched off' log)" -le "$ranks" ]
        [ "$(grep -c '"eval"' run/metrics.jsonl)" = 2 ]
        losses run/metrics.jsonl > "with-$ranks"
        train $ranks $model $run --resume=never --tp=$((ranks > 1 ? 2 : 1)) > log 2>&1
        losses run/metrics.jsonl | cmp - "with-$ranks"
    done
}

@test "one that crashes is switched off" {
    switched_off "its process was ended by signal 11 (Segmentation fault); it is switched off" -DCRASH
}

@test "one that writes where it should read, leaves or refuses is switched off" {
    switched_off "its process was ended by signal 11" -DWRITE -Wno-cast-qual
    switched_off "its process ended with status 7; it is switched off" -DLEAVE
    switched_off "metric my_loss: add returned 3; it is switched off" -DREFUSE
}

@test "one that does not come back is switched off" {
    switched_off "it has not answered for 1 s (metrics-plugin-timeout); it is switched off" -DHANG
}

@test "one that is no number is switched off, the others stay" {
    switched_off "metric nothing: its value is" -DNOT_A_NUMBER
    train 2 $model $run --resume=never --dp=2 --metrics-plugin=metric.so > log 2>&1
    [ "$(value my_loss | wc -l)" = 2 ]
    [ "$(value nothing | wc -l)" = 0 ]
    [ "$(grep -c 'switched off' log)" = 1 ]
}

@test "one of another version, of a taken name, or none at all is switched off" {
    switched_off "it was built for version 99 of mtllm-metric.h, and this is version 1" -DVERSION=99
    switched_off "metric loss: the name is taken" -DTAKEN
    echo "int x;" > other.c
    cc -shared -fPIC -o metric.so other.c
    train 1 $model $run --resume=never --metrics-plugin=metric.so > log 2>&1
    grep 'it exports no mtllm_metrics' log
    echo nothing > metric.so
    train 1 $model $run --resume=never --metrics-plugin=metric.so > log 2>&1
    grep 'metrics-plugin=.*metric.so: .*; it is switched off' log
}

@test "no such file: an error" {
    status=0
    train 2 $model $run --resume=never --dp=2 --metrics-plugin=nowhere.so > log 2>&1 || status=$?
    [ $status = 78 ]
    grep 'metrics-plugin=nowhere.so: cannot read: No such file or directory' log
}

@test "no process is left behind, also when the training is killed" {
    compile "$source_dir/tests/metric_plugin.c"
    train_in_background log 1 $model $run --steps=100000 --metrics-plugin=metric.so
    wait_for 60 reached run/metrics.jsonl 3
    host=$(pgrep -f "metric-host $PWD/metric.so")
    pkill -KILL -f "mtllm-train .*--steps=100000 --metrics-plugin=metric.so"
    wait_for 20 eval '! kill -0 '"$host"' 2>/dev/null'
}
