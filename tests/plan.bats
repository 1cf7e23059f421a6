#!/usr/bin/env bats
# Guards: mtllm-plan says to the byte what mtllm-train takes, for every layout of up to eight ranks; a
# layout that it accepts runs within the memory it was given, one that it refuses for memory runs out
# when it is forced; and a run that names no layout takes the smallest that fits.

load common

model="--family=llama --layers=5 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=32"

setup_file() {
    builddir=${builddir:-$PWD}
    "$builddir/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 259 300 1
}

setup() {
    common_setup
    data="--data=$BATS_FILE_TMPDIR/data"
}

# planned OPTION...: the plans as lines of "tp pp dp micro recompute weights gradients state
# activations total".
planned() {
    mtllm-plan --device-type=cpu --json "$@" | tr -d '\n' | sed 's/"tp"/\n&/g' | sed -n \
        's/"tp": *\([0-9]*\), *"pp": *\([0-9]*\), *"dp": *\([0-9]*\), *"micro_batch_size": *\([0-9]*\), *"recompute": *"\([a-z]*\)", *"accepted": true, *"bytes": {[^0-9]*\([0-9]*\)[^0-9]*\([0-9]*\)[^0-9]*\([0-9]*\)[^0-9]*\([0-9]*\)[^0-9]*[0-9]*[^0-9]*\([0-9]*\).*/\1 \2 \3 \4 \5 \6 \7 \8 \9/p'
}

# taken FILE: "weights gradients state activations" from the console of a training.
taken() {
    sed -n 's/.*planned on rank.*weights \([0-9]*\), gradients \([0-9]*\), optimizer state \([0-9]*\), activations \([0-9]*\).*/\1 \2 \3 \4/p' "$1"
}

@test "bytes of every layout up to eight ranks are those that the trainer takes" {
    for ranks in 1 2 4 8; do
        planned --gpus=$ranks $model --global-batch-size=8 > plans
        [ -s plans ]
        # One microbatch and one kind of recomputation of each layout, by turns.
        awk '{ layout = $1 " " $2 " " $3; n[layout]++; line[layout, n[layout]] = $0 }
            END { for (l in n) { turn++; print line[l, turn % n[l] + 1] } }' plans > chosen
        while read -r tp pp dp micro recompute bytes; do
            rm -rf run
            train $ranks $model $data --steps=1 --global-batch-size=8 --tp=$tp --pp=$pp --dp=$dp \
                --micro-batch-size=$micro --recompute=$recompute --run-dir=run > log 2>&1 \
                < /dev/null || { cat log; false; }
            echo "tp=$tp pp=$pp dp=$dp micro=$micro $recompute: $bytes, taken $(taken log)"
            [ "$(taken log)" = "$bytes" ]
        done < chosen
        [ "$(wc -l < chosen)" -eq $((ranks == 1 ? 1 : ranks == 2 ? 3 : ranks == 4 ? 6 : 9)) ]
    done
}

@test "other families and packed rows, to the byte" {
    for how in "--family=falcon --parallel-norms=2" "--family=qwen2 --tied-embeddings=yes" \
        "--packing=yes" "--kv-heads=2 --hidden-dropout=0.1" "--recompute-layers=1 --recompute=full"; do
        rm -rf run
        bytes=$(planned --gpus=4 $model $how --global-batch-size=8 --tp=2 --pp=2 \
            --micro-batch-size=2 | grep " ${how##*--recompute=}\| none" | tail -n 1 | cut -d' ' -f6-9)
        train 4 $model $data $how --steps=1 --global-batch-size=8 --tp=2 --pp=2 \
            --micro-batch-size=2 --run-dir=run > log 2>&1 || { cat log; false; }
        echo "$how: $bytes, taken $(taken log)"
        [ -n "$bytes" ] && [ "$(taken log)" = "$bytes" ]
    done
}

# within BYTES OPTION...: a training of one rank whose address space is what the program has anyway
# and that many more.
within() {
    local kib=$(($1 / 1024 + $(<idle)))
    shift
    rm -rf run
    (ulimit -v $kib && exec timeout 60 mtllm-train $wide $data --steps=1 --run-dir=run "$@") > log 2>&1
}

@test "what is accepted runs within that memory, what is refused for it runs out" {
    wide="--family=llama --layers=4 --hidden-size=256 --ffn-size=1024 --heads=8 --vocab-size=259
        --max-positions=1024 --global-batch-size=16"
    # What is mapped anyway: of a run whose own part is small.
    train 1 $model $data --steps=1 --run-dir=small > log 2>&1
    (mtllm-train $model $data --steps=2000 --run-dir=idle-run > /dev/null 2>&1 & pid=$!
        for i in $(seq 100); do
            grep -qs '"step"' idle-run/metrics.jsonl && break
            sleep 0.1
        done
        sed -n 's/^VmPeak:[^0-9]*\([0-9]*\).*/\1/p' /proc/$pid/status
        kill $pid) > idle
    [ "$(<idle)" -gt 10000 ]
    planned --gpus=1 $wide --device-memory=1000 | sort -n -k4 > plans
    limit=$((420 << 20))
    accepted=0 refused=0
    while read -r tp pp dp micro recompute weights gradients state activations; do
        stage=$((weights + gradients + state + activations))
        options="--micro-batch-size=$micro --recompute=$recompute"
        answer=$(mtllm-plan --device-type=cpu --gpus=1 $wide $options --device-memory=0.41015625 |
            grep -c "^refused") || true
        echo "$options: $stage bytes of $limit and a checkpoint's, refused: $answer"
        if [ "$answer" = 0 ]; then
            accepted=$((accepted + 1))
            within $limit $options || { cat log; false; }
        elif [ $stage -gt $((limit + (256 << 20))) ]; then
            # What OpenBLAS takes later is free yet; where that does not come, OpenBLAS hangs.
            refused=$((refused + 1))
            ! within $limit $options || false
            grep "out of memory" log
        fi
    done < plans
    [ $accepted -gt 2 ] && [ $refused -gt 2 ]
}

@test "a run that names no layout takes the smallest that fits" {
    run="--steps=3 --global-batch-size=8 --zero=0 --run-dir=run"
    train 4 $model $data $run > log 2>&1
    ! grep "layout:" log || false
    mv run one
    # Too little for one rank, by a little: two fit.
    train 4 $model $data $run --device-memory=0.007 > log 2>&1 || { cat log; false; }
    grep -E "layout: tp=2 pp=1 dp=2, the smallest whose ranks fit into 0.007 GiB" log
    losses_agree run/metrics.jsonl one/metrics.jsonl 1e-5 3 >&2
    # What is named is kept, whatever the memory.
    rm -rf run
    train 4 $model $data $run --device-memory=0.007 --pp=1 > log 2>&1
    ! grep "layout:" log || false
    rm -rf run
    status=0
    train 4 $model $data $run --device-memory=0.001 > log 2>&1 || status=$?
    [ $status -eq 78 ]
    [ "$(grep -c 'no layout of 4 ranks fits into the 0.001 GiB of a device: the least' log)" -eq 1 ]
    # What makes every layout impossible is said.
    status=0
    train 4 $model $data $run --device-memory=0.007 --dp=3 > log 2>&1 || status=$?
    [ $status -eq 78 ] && grep -e "--dp=3: no layout of 4 ranks has that" log
    status=0
    train 4 $model $data $run --device-memory=0.007 --seq-length=31 --cp=2 > log 2>&1 || status=$?
    [ $status -eq 78 ]
    grep "no layout of 4 ranks is possible: with tp=1 pp=1 dp=2, cp=2: does not divide the rows" log
}

@test "a ramp whose steps have fewer microbatches, to the byte; quickly for many" {
    ramp="--train-samples=100 --global-batch-size=16 --micro-batch-size=1 --recompute=none"
    for how in "4 --pp=4 --pp-chunks=2" "2 --pp=2 --pp-chunks=4" "3 --pp=3 --pp-chunks=2" \
        "4 --pp=4 --pp-schedule=zero-bubble"; do
        set -- $how
        rm -rf run
        bytes=$(planned --gpus=$1 $model --layers=8 $ramp --batch-size-ramp="2 2 40" "${@:2}" |
            cut -d' ' -f6-9)
        train $1 $model $data --layers=8 $ramp --batch-size-ramp="2 2 40" "${@:2}" --run-dir=run \
            > log 2>&1 || { cat log; false; }
        echo "$how: $bytes, taken $(taken log)"
        [ -n "$bytes" ] && [ "$(taken log)" = "$bytes" ]
    done
    timeout 20 mtllm-plan --model=llama-3.1-405b --seq-length=8192 --device-type=h200 --gpus=512 \
        --global-batch-size=4096 --train-samples=100000000 --batch-size-ramp="256 256 1000000" > log
    grep -E '^ +[0-9]+ .*%$' log
}

@test "the model that --init stores" {
    train 1 $model $data --steps=0 --run-dir=begin > log 2>&1
    h5-to-hf begin hf > log 2>&1
    planned --gpus=2 $model --global-batch-size=8 > named
    for init in begin hf; do
        planned --gpus=2 --init=$init --global-batch-size=8 > stored
        [ -s stored ] && diff stored named
    done
    status=0
    mtllm-plan --gpus=2 --init=nowhere > log 2>&1 || status=$?
    [ $status -eq 65 ] && grep "init: nowhere: no such directory" log
}

@test "rows of several sequences divide where those of one do not, as in training" {
    for how in "--sequence-parallel=yes --tp=4" "--cp=4"; do
        mtllm-plan $model --device-type=cpu --gpus=4 --seq-length=31 --global-batch-size=8 $how > log
        grep -E "^ +[14] +1 +1 +4 +none .*[0-9]$" log
        [ "$(grep -c "micro-batch-size 1 x seq-length 31" log)" -ge 1 ]
        ! grep "micro-batch-size 2 x seq-length 31" log || false
        rm -rf run
        train 4 $model $data --steps=1 --seq-length=31 --global-batch-size=8 $how \
            --micro-batch-size=4 --run-dir=run > log 2>&1 || { cat log; false; }
    done
}

@test "numbers of devices that tp, pp, cp and dp do not go with" {
    mtllm-plan --model=llama-tiny --simulate=1:8 --tp=4 --global-batch-size=8 > log
    [ "$(grep -cE "^ +[12] +none: --tp=4: no layout of [12] ranks has that" log)" -eq 2 ]
    [ "$(grep -cE "^ +[48] +4 .*%$" log)" -eq 2 ]
    status=0
    mtllm-plan --model=llama-tiny --gpus=4 --cp=3 > log 2>&1 || status=$?
    [ $status -eq 78 ] && grep -e "--cp=3: no layout of 4 ranks has that" log
}

@test "tables, refusals and simulations" {
    mtllm-plan --model=llama-2-70b --gpus=64 --global-batch-size=512 > log
    grep -E '^ +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+ +(none|selective|full) .* [0-9.]+%$' log
    grep -E '^refused:' log
    grep -E 'needs [0-9.]+ GiB a rank, of 79.1' log
    for model in llama-2-70b llama-3.1-405b; do
        mtllm-plan --model=$model --seq-length=4096 --simulate=256:4096 --global-batch-size=4096 > log
        [ "$(grep -cE '^ *(256|512|1024|2048|4096) .*%$' log)" -eq 5 ]
    done
    # tp stays on a node.
    mtllm-plan --model=llama-2-70b --gpus=64 --gpus-per-node=4 --global-batch-size=512 --all > log
    grep 'tp=8: does not divide the 4 ranks of a node' log
    grep "16 .*tp=16: does not divide" log
    ! grep -E '^ +8 .*%$' log || false
    # Every step of a ramp has to go with dp.
    mtllm-plan --model=llama-tiny --gpus=4 --device-type=cpu --train-samples=1000 \
        --global-batch-size=8 --batch-size-ramp="2 2 100" --micro-batch-size=1 --all > log
    grep -E '^ +2 +1 +2 +1 +none .*[0-9]$' log
    grep -E '^ +1 +1 +4 .*batch-size-ramp=2 2 100: not by multiples of .* = 1 x 4$' log
    for wrong in "" "--gpus=none" "--gpus=2 --modell=x" "--gpus=2 --simulate=4:2" "--gpus 2"; do
        status=0
        mtllm-plan --model=llama-tiny $wrong > log 2>&1 || status=$?
        [ $status -eq 64 ]
    done
    status=0
    mtllm-plan --model=llama-2-70b --gpus=1 > log 2>&1 || status=$?
    [ $status -eq 78 ] && grep "no layout fits" log
    status=0
    mtllm-plan --gpus=1 --dtype=bf16 --device-type=cpu --model=llama-tiny > log 2>&1 || status=$?
    [ $status -eq 78 ] && grep "CPUs compute in fp32" log
    for device in "cpu" "h100 --dtype=fp32"; do
        status=0
        mtllm-plan --gpus=1 --optimizer-state=bf16 --device-type=$device --model=llama-tiny > log 2>&1 ||
            status=$?
        [ $status -eq 78 ] && grep "optimizer-state=bf16: the weights are fp32 here" log
    done
}
