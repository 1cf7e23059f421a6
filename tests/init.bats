#!/usr/bin/env bats
# Guards: --init takes a Hugging Face directory as it takes the checkpoint that hf-to-h5 makes of it,
# into any layout, and what comes out of a run of no steps is that directory again; new tokens get
# rows of their own and the same ids after every restart; a directory that is no model is refused
# before anything is trained.

load common

setup_file() {
    builddir=${builddir:-$PWD}
    "$builddir/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 100 300 1
}

setup() {
    common_setup
    golden=$source_dir/tests/golden
    run="--data=$BATS_FILE_TMPDIR/data --seq-length=32 --device=cpu --global-batch-size=8"
}

# init RANKS HF_DIR ARGUMENT...: what mtllm-train prints is in the file log.
init() {
    train "$1" $run --init="$2" "${@:3}" > log 2>&1 || { cat log; return 1; }
}

# refused STATUS WORDS ARGUMENT...: no run on one rank, nor on two.
refused() {
    for ranks in 1 2; do
        status=0
        train $ranks $run --steps=1 --run-dir=refused "${@:3}" > log 2>&1 || status=$?
        cat log
        [ $status = "$1" ]
        [ "$(grep -cF "$2" log)" = 1 ]
        [ ! -e refused/ckpt/latest ]
    done
}

same() { "$build_dir/tests/model_tool" compare "$@"; }

# stages NAME: of a golden model, one a layer
stages() { sed -n 's/.*"num_hidden_layers": \([0-9]*\).*/\1/p' "$golden/models/$1/config.json"; }

# value DIR TENSOR ELEMENT
value() { "$build_dir/tests/model_tool" value "$@"; }

@test "the same losses as from a checkpoint, every family, any layout" {
    for name in mistral qwen2 falcon-40b llama-gqa-tied; do
        hf-to-h5 "$golden/models/$name" "imported-$name"
        init 1 "imported-$name" --steps=3 --micro-batch-size=8 --run-dir="one-$name"
        init 1 "$golden/models/$name" --steps=3 --micro-batch-size=8 --run-dir="hf-$name"
        cmp <(losses "one-$name/metrics.jsonl") <(losses "hf-$name/metrics.jsonl")
        init $((4 * $(stages "$name"))) "$golden/models/$name" --steps=3 --tp=2 \
            --pp="$(stages "$name")" --dp=2 --run-dir="many-$name"
        losses_agree "one-$name/metrics.jsonl" "many-$name/metrics.jsonl" 1e-5 3
    done
}

@test "no steps: every bit comes back, whatever the layout" {
    for name in mistral qwen2 falcon-40b llama-gqa-tied llama-bias; do
        pp=$(stages $name)
        for layout in "1 1 1" "2 1 1" "1 $pp 1" "1 1 2" "2 $pp 1"; do
            set -- $layout
            rm -rf run out
            init $(($1 * $2 * $3)) "$golden/models/$name" --steps=0 --tp="$1" --pp="$2" --dp="$3" \
                --run-dir=run
            h5-to-hf run out
            same "$golden/models/$name" out
        done
    done
}

@test "a run of no steps can be gone on with" {
    init 1 "$golden/models/mistral" --steps=0 --run-dir=run
    init 1 "$golden/models/mistral" --steps=2 --run-dir=run
    grep -q "resuming from run/ckpt/step-00000000" log
    init 1 "$golden/models/mistral" --steps=2 --run-dir=once
    cmp <(losses run/metrics.jsonl) <(losses once/metrics.jsonl)
}

@test "the tokenizer's files and the token ids come along" {
    cp -r "$golden/models/llama-mha" hf
    cp "$golden/tokenizers/sentencepiece/tokenizer.model" hf/
    sed -i 's/"eos_token_id": 2/"eos_token_id": [2, 5]/; s/"pad_token_id": null/"pad_token_id": 0/' \
        hf/config.json
    init 1 hf --steps=1 --run-dir=run
    h5-to-hf run out
    cmp hf/tokenizer.model out/tokenizer.model
    tr -d ' \n' < out/config.json | grep -q '"eos_token_id":\[2,5\].*"pad_token_id":0'
}

@test "a longer context than the stored model's" {
    longer="--max-positions=512 --rope-scaling=linear --rope-factor=4"
    init 1 "$golden/models/llama-mha" $longer --steps=1 --run-dir=run
    init 1 "$golden/models/llama-mha" $longer --steps=2 --run-dir=run
    grep -q "resuming" log
    h5-to-hf run out
    tr -d ' \n' < out/config.json |
        grep -q '"max_position_embeddings":512.*"rope_scaling":{"factor":4.0,"rope_type":"linear"}'
    refused 78 "rope-factor: goes with rope-scaling" --init="$golden/models/llama-mha" \
        --rope-factor=4
    refused 78 "hidden-size=32: the stored model has 64;" --init="$golden/models/llama-mha" --hidden-size=32
    refused 78 "family=llama: the stored model has mistral;" --init="$golden/models/mistral" --family=llama
    status=0
    train 1 $run --steps=3 --run-dir=run $longer --rope-theta=5e5 > log 2>&1 || status=$?
    [ $status = 78 ]
    grep -q "differs from the settings' in rope-theta" log
}

@test "new tokens: the mean of the old rows, the same after a restart" {
    mkdir hf
    cp "$golden/models/llama-mha/config.json" hf/
    "$build_dir/tests/model_tool" make "$golden/models/llama-mha" hf fp32 1
    printf '{"added_tokens": [{"id": 255, "content": "<old>"}], "model": {"vocab": {"a": 0}}}\n' \
        > hf/tokenizer.json
    add="--add-tokens=<new>,<old>,<newer>"
    init 1 hf $add --steps=0 --run-dir=run
    h5-to-hf run out
    grep -q '"vocab_size": 258' out/config.json
    tr -d ' \n' < out/tokenizer.json |
        grep -q '"id":255,"content":"<old>".*"id":256,"content":"<new>".*"id":257,"content":"<newer>"'
    for tensor in model.embed_tokens.weight lm_head.weight; do
        sum=0
        for row in $(seq 0 255); do
            sum=$(awk "BEGIN { printf \"%.9g\", $sum + $(value out $tensor $((row * 64))) }")
            [ $((row % 50)) != 0 ] ||
                [ "$(value hf $tensor $((row * 64 + 3)))" = "$(value out $tensor $((row * 64 + 3)))" ]
        done
        for row in 256 257; do
            awk "BEGIN { d = $sum / 256 - $(value out $tensor $((row * 64))); exit !(d * d < 1e-14) }"
        done
    done

    # The same as through hf-to-h5, on several ranks, and stopped in between.
    hf-to-h5 "$add" hf imported
    h5-to-hf imported out-imported
    same out out-imported
    cmp out/tokenizer.json out-imported/tokenizer.json
    init 4 hf $add --steps=4 --tp=2 --pp=1 --run-dir=whole
    init 4 hf $add --steps=4 --tp=2 --pp=1 --save-interval=2 --run-dir=parts
    rm -rf parts/ckpt/step-00000004 parts/ckpt/latest
    init 4 hf $add --steps=4 --tp=2 --pp=1 --run-dir=parts
    grep -q "resuming from parts/ckpt/step-00000002" log
    cmp <(losses whole/metrics.jsonl) <(losses parts/metrics.jsonl)
    h5-to-hf whole out-whole
    h5-to-hf parts out-parts
    same out-whole out-parts
    cmp out/tokenizer.json out-parts/tokenizer.json

    # Not in the middle of a run.
    status=0
    train 4 $run --init=hf --tp=2 --pp=1 --add-tokens="<new>,<late>" --steps=5 --run-dir=parts \
        > log 2>&1 || status=$?
    [ $status = 78 ]
    grep -q "add-tokens: .*vocabulary of 258" log
}

@test "new tokens for random weights, and with a preset" {
    printf '{"model": {"vocab": {"a": 0, "b": 299}}}\n' > tokenizer.json
    train 1 $run --model=llama-tiny --tokenizer=tokenizer.json --add-tokens="<x>" --steps=1 \
        --run-dir=run > log 2>&1
    h5-to-hf run out
    size=$(sed -n 's/^vocab-size *= *//p' "$MTLLM_MODELS/llama-tiny.ini")
    grep -q "\"vocab_size\": $((size > 301 ? size : 301))" out/config.json
    printf '{"model": {"vocab": {"a": 0, "b": %s}}}\n' $((size - 1)) > tokenizer.json
    train 1 $run --model=llama-tiny --tokenizer=tokenizer.json --add-tokens="<x>,<y>" --steps=1 \
        --run-dir=grown > log 2>&1
    train 1 $run --model=llama-tiny --tokenizer=tokenizer.json --add-tokens="<x>,<y>" --steps=2 \
        --run-dir=grown > log 2>&1
    h5-to-hf grown out-grown
    grep -q "\"vocab_size\": $((size + 2))" out-grown/config.json
}

@test "what is no model, or a damaged one" {
    mkdir hf
    refused 65 "init: hf" --init=hf
    touch hf/pytorch_model.bin
    cp "$golden/models/llama-mha/config.json" hf/
    refused 65 "save_pretrained" --init=hf
    rm hf/pytorch_model.bin
    weights="$golden/models/llama-mha"
    "$build_dir/tests/model_tool" make "$weights" hf fp32 1 drop=model.layers.1.mlp.up_proj.weight
    refused 65 "model.layers.1.mlp.up_proj.weight is missing" --init=hf
    "$build_dir/tests/model_tool" make "$weights" hf fp32 1 set=lm_head.weight:70:nan
    refused 65 "lm_head.weight" --init=hf
    "$build_dir/tests/model_tool" make "$weights" hf fp32 1 row=lm_head.weight
    refused 65 "lm_head.weight is" --init=hf
    refused 64 "add-tokens: token 2 is empty" --init="$weights" --add-tokens="<a>,"
    refused 65 "add-tokens: " --init="$weights" --add-tokens=@not-there
}
