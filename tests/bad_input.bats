#!/usr/bin/env bats
# Guards: whatever is wrong with what mtllm-train is given, it ends with the exit status that
# mtllm-train(1) promises and one message that says what to do, on any number of ranks; it neither
# dumps core nor leaves anything half-written.

load common

model="--family=llama --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=32"

setup_file() {
    builddir=${builddir:-$PWD}
    "$builddir/tests/make_tokens" "$BATS_FILE_TMPDIR/good" 259 30 1
    "$builddir/tests/make_tokens" "$BATS_FILE_TMPDIR/wide" 400 30 1
}

setup() {
    common_setup
    ulimit -c unlimited
    good="--data=$BATS_FILE_TMPDIR/good --steps=2 --global-batch-size=4 --run-dir=run"
}

# refused STATUS RANKS TEXT ARGUMENT...: it ends so, and says TEXT, in one line. Launchers add lines
# of their own.
refused() {
    local wanted=$1 ranks=$2 text=$3 status=0 said left
    shift 3
    train "$ranks" "$@" > out 2> err || status=$?
    said=$(grep '^mtllm-train: ' err | grep -v 'GiB planned' || true)
    echo "\$ mtllm-train $*: status $status"
    cat err
    [ "$status" -eq "$wanted" ]
    [ "$(grep -c . <<< "$said")" -eq 1 ]
    [[ "$said" == *"$text"* ]]
    # What a run directory may hold before the first step, and nothing else.
    left=$(find . -type f ! -path ./out ! -path ./err ! -name settings.ini ! -name lock \
        ! -name starts.jsonl ! -path './given*' ! -path './run/data-cache/*.order' \
        ! \( -name metrics.jsonl -empty \))
    [ -z "$left" ] || { echo "left: $left"; false; }
}

@test "unknown model" {
    refused 64 1 "model=lama-tiny: unknown model; known in" --model=lama-tiny $good
    refused 64 2 "model=./lama.ini" --model=./lama.ini $good
    grep -q 'No such file' err
}

@test "unknown and malformed settings" {
    refused 64 1 "--micro-batch: unknown setting; did you mean --micro-batch-size?" $model $good \
        --micro-batch=4
    refused 64 4 "--stepps: unknown setting; did you mean --steps?" $model $good --stepps=4
    refused 64 1 "--steps=ten: not a whole number" $model $good --steps=ten
    refused 64 1 "--tp=0: out of range" $model $good --tp=0
    refused 64 1 "--lr-schedule=cosinus: unknown; use one of" $model $good --lr-schedule=cosinus
    refused 64 1 "train.txt: not an option" $model $good train.txt
    refused 64 1 "--seed: the value is missing" $model $good --seed
    MTLLM_LR=fast refused 64 1 "MTLLM_LR=fast: not a number" $model $good
}

@test "malformed ini files" {
    printf '[model]\nlayers = 4\nhiden-size = 64\n' > given.ini
    refused 64 1 "given.ini:3: hiden-size: unknown setting; did you mean hidden-size?" \
        --config=given.ini $good
    printf '[model]\nlayers\n' > given.ini
    refused 64 2 "given.ini:2" --config=given.ini $good
    printf '[model\nlayers = 4\n' > given.ini
    refused 64 1 "given.ini:1" --config=given.ini $good
    printf 'layers = four\n' > given.ini
    refused 64 1 "given.ini:1: layers=four: not a whole number" --config=given.ini $good
    head -c 3000 "$(command -v mtllm-train)" > given.ini
    refused 64 1 "given.ini:1: not a text file" --config=given.ini $good
    refused 64 1 "given-not.ini" --config=given-not.ini $good
    MTLLM_CONF=given.ini refused 64 1 "given.ini:" $model $good
}

@test "layouts that do not divide" {
    refused 78 3 "--tp=3" $model $good --tp=3
    refused 78 6 "--tp=6" $model $good --tp=6
    refused 78 5 "--pp=5" $model $good --pp=5
    refused 78 3 "--tp=2" $model $good --tp=2
    refused 78 1 "--tp=2 --pp=2" $model $good --tp=2 --pp=2
    refused 78 2 "--dp=4" $model $good --dp=4
    refused 78 2 "global-batch-size" $model $good --micro-batch-size=3
    refused 78 1 "vocab-size" --layers=4 --hidden-size=64 --ffn-size=96 --heads=8 $good
    refused 78 1 "heads" $model $good --hidden-size=65
}

@test "settings that are missing" {
    refused 64 1 "--data" $model --steps=2 --run-dir=run
    refused 64 2 "--steps" $model --data="$BATS_FILE_TMPDIR/good" --run-dir=run
    refused 78 1 "no model: give --model=NAME" $good
}

@test "no, unreadable, damaged data" {
    refused 74 1 "no token file given" $model --data=given --steps=2 --run-dir=run
    refused 74 2 "no token file given" $model --data=given --steps=2 --run-dir=run
    mkdir given.idx given.bin
    refused 74 1 "given.idx" $model --data=given --steps=2 --run-dir=run
    rmdir given.idx given.bin

    cp "$BATS_FILE_TMPDIR/good.idx" given.idx
    head -c 1000 "$BATS_FILE_TMPDIR/good.bin" > given.bin
    refused 65 4 "given.bin" $model --data=given --steps=2 --run-dir=run
    grep -q 'damaged or cut short' err
    cp "$BATS_FILE_TMPDIR/good.bin" given.bin
    head -c 200 "$BATS_FILE_TMPDIR/good.idx" > given.idx
    refused 65 1 "given.idx" $model --data=given --steps=2 --run-dir=run
    : > given.idx
    refused 65 1 "given.idx" $model --data=given --steps=2 --run-dir=run
    head -c 5000 /dev/urandom > given.idx
    refused 65 1 "given.idx" $model --data=given --steps=2 --run-dir=run
}

@test "tokens outside the vocabulary" {
    for ranks in 1 2 4; do
        refused 65 $ranks "vocab" $model --data="$BATS_FILE_TMPDIR/wide" --steps=200 \
            --global-batch-size=4 --run-dir=run --pp=$((ranks > 1 ? 2 : 1))
        [ -z "$(ls -A run/ckpt)" ]
        rm -r run
    done
}

@test "data that does not suffice" {
    refused 65 1 "tokens, but one sample takes" $model $good --max-positions=20000
    refused 64 1 "split" $model $good --split=1,x
    refused 65 1 "valid" $model $good --split=1,0,0 --eval-interval=1
}

@test "run directories that cannot be written" {
    touch given
    refused 74 1 "run-dir=given/run" $model $good --run-dir=given/run
    refused 74 2 "run-dir=given/run" $model $good --run-dir=given/run
    refused 74 4 "run-dir=given" $model $good --run-dir=given
    refused 74 1 "run-dir=/proc/run" $model $good --run-dir=/proc/run
}

@test "a run directory that is in use" {
    mkdir -p given/run
    exec 7> given/run/lock
    flock 7
    refused 78 2 "another process is training" $model $good --run-dir=given/run
    exec 7>&-
}

@test "checkpoints that are not there, or of another model" {
    refused 65 1 "given" $model $good --init=given
    refused 65 2 "given" $model $good --resume=given
    train 1 $model --data="$BATS_FILE_TMPDIR/good" --steps=1 --run-dir=given > out 2>&1
    refused 78 1 "the model in it differs" $model $good --run-dir=given --layers=2
    refused 78 2 "the model in it differs" $model $good --init=given --layers=2
}

@test "files that are named and not there" {
    refused 65 1 "given-tokenizer" $model $good --tokenizer=given-tokenizer
    refused 74 1 "given/logits.h5" $model $good --eval-only --dump-logits=given/logits.h5
}

@test "a device that is not there" {
    refused 78 1 "device=cuda" $model $good --device=cuda
}
