#!/usr/bin/env bats
# Guards: hf-to-h5 and then h5-to-hf give every tensor back to the bit, whatever the type and the
# number of files; tokenizer and generation files come through unchanged; sources and checkpoints
# that are not what they say are refused with the right exit status, by name, and leave nothing.

setup() {
    build=${builddir:-.}
    source=${srcdir:-.}
    golden=$source/tests/golden/models
    cd "$BATS_TEST_TMPDIR"
    case $golden in /*) ;; *) golden=$build/$golden ;; esac
}

# model NAME DTYPE FILES [EDIT]...: a source directory "hf" made from a golden model
model() {
    mkdir -p hf
    cp --no-preserve=mode "$golden/$1/config.json" hf/
    "$build/tests/model_tool" make "$golden/$1" hf "${@:2}"
}

# set_config KEY VALUE: replace one member of hf/config.json
set_config() {
    sed -i "s/\"$1\": [^,]*/\"$1\": $2/" hf/config.json
    grep -Fq "\"$1\": $2" hf/config.json
}

# refused STATUS WORDS COMMAND...: the command ends with STATUS, says WORDS, in one line
refused() {
    run "${@:3}"
    echo "$output"
    [ "$status" -eq "$1" ]
    [[ $output == *"$2"* ]]
    [ "${#lines[@]}" -eq 1 ]
}

hf_to_h5() { "$build/hf-to-h5" "$@"; }
h5_to_hf() { "$build/h5-to-hf" "$@"; }
same() { "$build/tests/model_tool" compare "$@"; }

round_trip() {
    hf_to_h5 hf run
    h5_to_hf run out "${@}"
    same hf out
}

@test "round trip: fp32, bf16, fp16 and mixed, tied and untied, one file and several" {
    for name in llama-mha llama-gqa-tied codellama; do
        for dtype in fp32 bf16 fp16 mixed; do
            for files in 1 3; do
                rm -rf hf run out
                model $name $dtype $files
                round_trip
                [ -e out/model.safetensors ]
                [ ! -e out/model.safetensors.index.json ]
            done
        done
    done
}

@test "round trip: every family, each scaling of positions" {
    for name in falcon-7b falcon-40b mistral qwen2 llama-bias llama-headdim llama-linear \
        llama-dynamic llama-yarn llama-llama3; do
        for dtype in fp32 bf16; do
            rm -rf hf run out
            model $name $dtype 1
            round_trip
        done
    done
}

@test "round trip into small files" {
    model codellama bf16 1
    round_trip --max-shard-size=50KB
    [ ! -e out/model.safetensors ]
    grep -q total_size out/model.safetensors.index.json
    files=(out/model-*-of-*.safetensors)
    [ "${#files[@]}" -gt 3 ]
    [ -e "out/model-00001-of-$(printf %05d "${#files[@]}").safetensors" ]
    # A tensor is never cut: the embedding is 307 x 64 x 2 bytes, a smaller limit gives it a file.
    h5_to_hf run tiny --max-shard-size 1KB
    same hf tiny
}

@test "another type: as written, 16-bit values widened without change" {
    model llama-mha bf16 1
    hf_to_h5 hf run
    h5_to_hf run wide --dtype=fp32
    grep -q '"torch_dtype": "float32"' wide/config.json
    rm -rf hf/model.safetensors
    "$build/tests/model_tool" make wide hf bf16 1
    h5_to_hf run narrow
    grep -q '"torch_dtype": "bfloat16"' narrow/config.json
    same hf narrow
    hf_to_h5 --dtype fp32 narrow again
    h5_to_hf again wide2
    same wide wide2
}

@test "config and generation settings come back" {
    model llama-gqa-tied fp32 1
    set_config eos_token_id '[2, 7]'
    set_config pad_token_id 0
    round_trip
    grep -q '"tie_word_embeddings": true' out/config.json
    grep -q '"rope_theta": 10000.0' out/config.json
    grep -q '"rope_scaling": null' out/config.json
    grep -q '"transformers_version": "4.51.0"' out/config.json
    tr -d ' \n' <out/config.json | grep -q '"eos_token_id":\[2,7\]'
    tr -d ' \n' <out/generation_config.json | grep -q '"eos_token_id":\[2,7\]'
    grep -q '"pad_token_id": 0' out/config.json
    # A second time round nothing changes at all.
    hf_to_h5 out run2
    h5_to_hf run2 out2
    diff -r out out2
}

@test "a list of end tokens in generation_config.json is kept" {
    model llama-mha fp32 1
    echo '{"eos_token_id": [2, 99], "do_sample": true, "temperature": 0.6}' >hf/generation_config.json
    round_trip
    cmp hf/generation_config.json out/generation_config.json
    tr -d ' \n' <out/config.json | grep -q '"eos_token_id":\[2,99\]'
}

@test "tokenizer files come through byte for byte, others do not" {
    model llama-mha fp32 1
    for file in tokenizer.model tokenizer.json tokenizer_config.json special_tokens_map.json \
        added_tokens.json chat_template.jinja vocab.json merges.txt; do
        head -c 5000 /dev/urandom >hf/$file
    done
    echo evil >hf/modeling.py
    round_trip
    rm hf/modeling.py
    for file in hf/*.model hf/*.jinja hf/*.txt hf/[actsv]*.json; do
        [ "$file" = hf/config.json ] || cmp "$file" "out/${file#hf/}"
    done
    [ ! -e out/modeling.py ]
}

@test "a tokenizer.model that is alone gets a tokenizer.json, unless ids would change" {
    export_with() { # ADDED_TOKENS
        rm -rf run out
        echo "$1" >hf/added_tokens.json
        hf_to_h5 hf run
        run h5_to_hf run out
        echo "$output"
        [ "$status" -eq 0 ]
        cmp hf/tokenizer.model out/tokenizer.model
    }
    class() { jq -r .tokenizer_class out/tokenizer_config.json; }
    model mistral bf16 1
    cp --no-preserve=mode "$golden/../tokenizers/sentencepiece/tokenizer.model" hf/
    export_with '{"<b>": 3001, "<a>": 3000}'
    [ -z "$output" ]
    [ "$(class)" = PreTrainedTokenizerFast ]
    [ "$(jq -c '[.model.vocab | length, has("</s>")]' out/tokenizer.json)" = "[3000,true]" ]
    [ "$(jq -c '[.added_tokens[-2:][] | .content, .id]' out/tokenizer.json)" = '["<a>",3000,"<b>",3001]' ]
    export_with '{"<a>": 3007}'
    [[ $output == *"tokenizer.model has added tokens whose ids do not follow"* ]]
    [ "${#lines[@]}" -eq 1 ]
    [ "$(class)" = LlamaTokenizer ]
    [ ! -e out/tokenizer.json ]
}

@test "one checkpoint by step, by ckpt/ and by run directory" {
    model llama-mha bf16 1
    hf_to_h5 hf run
    for from in run run/ckpt run/ckpt/step-00000000; do
        h5_to_hf "$from" "out-${from//\//-}"
        same hf "out-${from//\//-}"
    done
}

@test "h5-to-hf does not touch a directory that has something in it" {
    model llama-mha fp32 1
    hf_to_h5 hf run
    mkdir empty full
    echo text >full/README.md
    h5_to_hf run empty
    same hf empty
    refused 64 "full: exists and is not empty" h5_to_hf run full
    [ "$(ls full)" = README.md ]
    refused 64 "exists and is not a directory" h5_to_hf run hf/config.json
    refused 74 "directory above" h5_to_hf run missing/out
    [ ! -e .out.partial ]
}

@test "--force replaces the model and keeps what is not part of one" {
    model codellama fp32 1
    hf_to_h5 hf run
    h5_to_hf run out --max-shard-size=100KB
    echo text >out/README.md
    echo stale >out/tokenizer.json
    touch out/pytorch_model.bin
    mkdir out/.git
    ln -s out link
    h5_to_hf run link --force
    same hf out
    [ "$(LC_ALL=C ls -A out | tr '\n' ' ')" = ".git README.md config.json generation_config.json model.safetensors " ]
    [ -z "$(ls -A | grep partial)" ]
    # What a killed run left is no obstacle.
    mkdir .new.partial
    echo half >.new.partial/model.safetensors.tmp
    h5_to_hf run new
    same hf new
    [ ! -e .new.partial ]
    # Unless it had a file of the user's in hand.
    mkdir .new.partial
    echo text >.new.partial/README.md
    refused 64 ".new.partial/README.md" h5_to_hf run new --force
    [ "$(cat .new.partial/README.md)" = text ]
    same hf new
}

@test "a run that is stopped leaves a whole model or none" {
    model llama-mha fp32 1
    hf_to_h5 hf run
    for i in 1 2 3 4 5 6; do
        rm -rf out
        "$build/h5-to-hf" run out --max-shard-size=1KB &
        pid=$!
        # Caught at its work, or done already.
        until [ -e .out.partial/model-00001-of-00030.safetensors ] || [ -e out ]; do
            kill -0 $pid 2>kill.log || break
        done
        kill -TERM $pid || true
        status=0
        wait $pid || status=$?
        echo "exit status $status"
        [ ! -e .out.partial ]
        case $status in
        0) same hf out ;;
        143) [ ! -e out ] ;;
        *) false ;;
        esac
    done
}

@test "wrong tensors are refused by name" {
    norm=model.layers.1.input_layernorm.weight
    query=model.layers.0.self_attn.q_proj.weight
    check() {
        rm -rf hf
        model llama-mha fp32 "$2" "$3"
        refused 65 "$1" hf_to_h5 hf run
        [ ! -e run ]
    }
    check "tensor $norm is missing" 1 drop=$norm
    check "tensor model.extra.weight is no part" 2 add=model.extra.weight
    check "tensor model.layers.2.mlp.up_proj.weight is missing" 1 \
        rename=model.layers.2.mlp.up_proj.weight:model.layers.3.mlp.up_proj.weight
    check "tensor model.layers.3.mlp.up_proj.weight is no part" 1 \
        copy=model.layers.2.mlp.up_proj.weight:model.layers.3.mlp.up_proj.weight
    check "tensor $query is [65, 64], hf/config.json asks for [64, 64]" 3 row=$query
    check "tensor $query: element [1, 6] is NaN" 1 set=$query:70:nan
    check "tensor $norm: element [5] is infinite" 1 set=$norm:5:-inf
}

@test "NaN passes when it is asked for" {
    model llama-mha bf16 1 set=model.norm.weight:3:nan
    refused 65 NaN hf_to_h5 hf run
    hf_to_h5 --allow-nonfinite=yes hf run
    h5_to_hf run out
    same hf out
}

@test "a value that the asked type cannot hold is refused" {
    model llama-mha fp32 1 set=lm_head.weight:130:1e5
    refused 65 "lm_head.weight: element [2, 2] is 100000, more than fp16 can hold" \
        hf_to_h5 --dtype=fp16 hf run
    [ ! -e run ]
    hf_to_h5 hf run
    refused 65 "lm_head.weight: element [2, 2] is 100000, more than fp16 can hold" \
        h5_to_hf --dtype=fp16 run out
    [ ! -e out ]
    [ ! -e .out.partial ]
}

@test "old rotary buffers are ignored" {
    model llama-mha fp32 1 add=model.layers.0.self_attn.rotary_emb.inv_freq
    hf_to_h5 hf run
    h5_to_hf run out
    same out "$golden/llama-mha"
}

@test "a tied model's stored head: equal is fine, another is refused, alone is taken" {
    embed=model.embed_tokens.weight
    model llama-gqa-tied bf16 1
    mv hf plain
    model llama-gqa-tied bf16 1 copy=$embed:lm_head.weight
    hf_to_h5 hf run
    h5_to_hf run out
    same out plain
    model llama-gqa-tied bf16 1 rename=$embed:lm_head.weight
    hf_to_h5 hf run2
    h5_to_hf run2 out2
    same out2 plain
    model llama-gqa-tied bf16 1 copy=$embed:lm_head.weight set=lm_head.weight:65:3
    refused 65 "lm_head.weight differs from model.embed_tokens.weight at [1, 1]" hf_to_h5 hf run3
    [[ $output == *"tie_word_embeddings"* ]]
    [ ! -e run3 ]
    set_config tie_word_embeddings false
    hf_to_h5 hf run3
    h5_to_hf run3 out3
    same out3 hf
}

@test "damaged files are refused by name" {
    model llama-mha fp32 3
    last=hf/model-00003-of-00003.safetensors
    cp $last saved
    truncate -s -1 $last
    refused 65 "$last" hf_to_h5 hf run
    rm $last
    refused 65 "$last: missing" hf_to_h5 hf run
    cp saved $last
    sed -i 's/model-00003-of-00003/..\/saved/g' hf/model.safetensors.index.json
    refused 65 "../saved" hf_to_h5 hf run
    rm hf/*.safetensors hf/*.index.json
    touch hf/pytorch_model.bin
    refused 65 save_pretrained hf_to_h5 hf run
    rm hf/pytorch_model.bin
    refused 65 "neither model.safetensors" hf_to_h5 hf run
    echo '{' >hf/config.json
    refused 65 "hf/config.json:2" hf_to_h5 hf run
    rm hf/config.json
    refused 65 "no config.json" hf_to_h5 hf run
    [ ! -e run ]
}

# damage OLD NEW: in the header of hf/model.safetensors, whose length stays
damage() {
    [ ${#1} -eq ${#2} ]
    grep -aFq "$1" hf/model.safetensors
    LC_ALL=C sed -i "s/$(sed 's/[].*[]/\\&/g' <<< "$1")/${2//\\/\\\\}/" hf/model.safetensors
}

# header TEXT BYTES: hf/model.safetensors with this header and BYTES of zeros for data
header() {
    local length=${#1}
    { printf "$(printf '\\x%02x' $((length & 255)) $((length >> 8 & 255)) $((length >> 16)))"
      printf '\0\0\0\0\0%s' "$1"
      head -c "$2" /dev/zero; } >hf/model.safetensors
}

@test "a damaged file is refused by the names of file and tensor" {
    file=hf/model.safetensors
    norm=model.layers.0.input_layernorm.weight
    down=model.layers.0.mlp.down_proj.weight
    check() { # WORDS [OLD NEW]...
        rm -rf hf
        model llama-mha fp32 1
        "${@:2}"
        refused 65 "$file: $1" hf_to_h5 hf run
        [ ! -e run ]
    }
    check "0 bytes are too short" truncate -s 0 $file
    check "7 bytes are too short" truncate -s 7 $file
    check "asks for a header of" truncate -s 3000 $file
    check "tensor model.embed_tokens.weight: data_offsets 65536 to 131072 are not inside the file's 65536 bytes of data; is the file complete?" \
        truncate -s $((4096 + 65536)) $file
    check "1 bytes at the end of the file belong to no tensor" eval "printf x >>$file"
    check "asks for a header of 18446744073709551615 bytes" \
        eval "printf '\377\377\377\377\377\377\377\377' | dd of=$file conv=notrunc status=none"
    check "asks for a header of 100000001 bytes" \
        eval "truncate -s 200000000 $file; printf '\1\341\365\5' | dd of=$file conv=notrunc status=none"
    check "tensor $norm: data_offsets 131072 to 999999 are not inside" damage 131328 999999
    check "tensor $norm: data_offsets 131072 to 131000 are not inside" damage 131328 131000
    check "tensors model.embed_tokens.weight and $norm overlap" \
        damage "[131072,131328]" "[131008,131264]"
    check "64 bytes before tensor $norm belong to none" damage "[131072,131328]" "[131136,131392]"
    check "not a safetensors header: duplicate object key \"model.layers.0.mlp.up_proj.weight\"" \
        damage layers.1.mlp.up_proj layers.0.mlp.up_proj
    # The first F32 is that of lm_head.weight.
    check "tensor lm_head.weight: shape and dtype ask for 131072 bytes, data_offsets give 65536" \
        damage F32 F64
    check "tensor lm_head.weight is of type I32; F32, BF16 and F16 are supported" damage F32 I32
    check "tensor lm_head.weight: unknown dtype X32" damage F32 X32
    check "tensor $down is [80, 128], hf/config.json asks for [64, 160]" damage "[64,160]" "[80,128]"
    check "tensor $down is [10240], hf/config.json asks for [64, 160]" damage "[64,160]" "[ 10240]"
    check "tensor $down: shape and dtype ask for" damage "[64,160]" "[64,161]"
    check "tensor $down: dimension 0 of its shape is not a size" damage "[64,160]" "[-4,160]"
    # Nothing in a name speaks to the terminal.
    check "tensor lm_hea?[2: unknown dtype X32" \
        eval 'damage lm_head.weight "lm_hea\u001b[2"; damage F32 X32'
}

@test "shards and an index that contradict each other are refused by name" {
    first=hf/model-00001-of-00003.safetensors second=hf/model-00002-of-00003.safetensors
    index=hf/model.safetensors.index.json
    check() { # WORDS COMMAND...
        rm -rf hf
        model llama-mha fp32 3
        "${@:2}"
        refused 65 "$1" hf_to_h5 hf run
        [ ! -e run ]
    }
    change() { jq "$1" $index >changed && mv changed $index; }
    check "$second: missing, although $index names it" rm $second
    check "$second: missing, although $index names it" ln -sf nowhere $second
    check "$second: not a regular file" eval "rm $second; mkdir $second"
    check "$second: tensor lm_head.weight is in $first too" cp $first $second
    check "$index: tensor lm_head.weight is not in model-00002" \
        change '.weight_map["lm_head.weight"] = "model-00002-of-00003.safetensors"'
    check "$first: tensor lm_head.weight is not in the weight_map of $index" \
        change 'del(.weight_map["lm_head.weight"])'
    check "$index: tensor extra is not in model-00001" \
        change '.weight_map.extra = "model-00001-of-00003.safetensors"'
    for name in ../x /etc/passwd . .. "" a/../b "$(printf '%0256d' 0)"; do
        check "$index: weight_map puts tensor lm_head.weight into \"${name:0:200}\"" \
            change ".weight_map[\"lm_head.weight\"] = \"$name\""
    done
    check "$index: weight_map puts tensor lm_head.weight into something" \
        change '.weight_map["lm_head.weight"] = ["a"]'
    check "$index: has no weight_map" change 'del(.weight_map)'
}

@test "a config that contradicts the tensors is refused by the tensor's name" {
    model llama-mha fp32 1
    cp hf/config.json saved
    check() { # WORDS KEY VALUE
        cp saved hf/config.json
        set_config "$2" "$3"
        refused 65 "$1" hf_to_h5 hf run
        [[ $output == *hf/config.json* ]]
        [ ! -e run ]
    }
    check "hf/model.safetensors: tensor model.embed_tokens.weight is [256, 64]" vocab_size 257
    check "hf/model.safetensors: tensor model.embed_tokens.weight is [256, 64]" hidden_size 128
    check "hf: tensor model.layers.3.input_layernorm.weight is missing" num_hidden_layers 4
    check "hf: tensor model.layers.3.input_layernorm.weight is missing" num_hidden_layers 100000
    check "hf/model.safetensors: tensor model.layers.2.input_layernorm.weight is no part" \
        num_hidden_layers 2
    check "tensor model.layers.0.self_attn.k_proj.weight is [64, 64]" num_key_value_heads 2
    check "tensor model.layers.0.self_attn.q_proj.weight is [64, 64]" head_dim 32
    check "tensor model.layers.0.mlp.gate_proj.weight is [160, 64]" intermediate_size 1048576
    check "lm_head.weight differs from model.embed_tokens.weight" tie_word_embeddings true
    check "hidden_size is 9223372036854775807" hidden_size 9223372036854775807
}

@test "JSON that would fill the memory is refused" {
    deep=$(yes '[' | head -n 100000 | tr -d '\n')
    # In the address space that a small model takes, and little more; sanitizers need terabytes.
    limit='ulimit -v 600000'
    bash -c "$limit"'; exec "$@"' limited "$build/hf-to-h5" --version >version 2>&1 || limit=:
    wide() { yes '{},[],' | head -n "$1" | tr -d '\n'; }
    check() { # WORDS
        run bash -c "$limit"'; exec "$@"' limited "$build/hf-to-h5" hf run
        echo "$output"
        [ "$status" -eq 65 ]
        [ "${#lines[@]}" -eq 1 ]
        [[ $output == *"$1"* ]]
        [ ! -e run ]
    }
    model llama-mha fp32 1
    cp -r hf plain
    header "{\"a\":$deep}" 0
    check "hf/model.safetensors: not a safetensors header: maximum parsing depth reached near '['"
    header "{\"a\":[$(wide 2000000)0]}" 0
    check "hf/model.safetensors: not a safetensors header: holds more than"
    rm hf/model.safetensors
    echo "{\"weight_map\":{},\"metadata\":$deep}" >hf/model.safetensors.index.json
    check "hf/model.safetensors.index.json:1: maximum parsing depth"
    { echo '{"weight_map":{},"metadata":['; wide 5000000; echo ']}'; } >hf/model.safetensors.index.json
    check "hf/model.safetensors.index.json:2: holds more than"
    truncate -s 100M hf/model.safetensors.index.json
    check "hf/model.safetensors.index.json: 104857600 bytes, more than"
    rm hf/model.safetensors.index.json
    echo "{\"model_type\":\"llama\",\"a\":$deep}" >hf/config.json
    check "hf/config.json:1: maximum parsing depth"
    { echo '{"model_type":"llama","a":['; wide 2000000; echo ']}'; } >hf/config.json
    check "hf/config.json:2: holds more than"
    truncate -s 100M hf/config.json
    check "hf/config.json: 104857600 bytes, more than"
    rm -rf hf
    mv plain hf
    # Where it is only carried along it does no harm: nobody parses it.
    echo "$deep" >hf/generation_config.json
    { echo '['; wide 1000000; echo ']'; } >hf/tokenizer.json
    hf_to_h5 hf run
    h5_to_hf run out
    cmp hf/tokenizer.json out/tokenizer.json
    cmp hf/generation_config.json out/generation_config.json
}

@test "a model that mtllm does not compute is refused by name" {
    model llama-mha fp32 1
    sed -i 's/"rope_type": "default"/"rope_type": "longrope"/' hf/config.json
    refused 65 "longrope" hf_to_h5 hf run
    set_config model_type '"mixtral"'
    refused 65 "mixtral" hf_to_h5 hf run
    [ ! -e run ]
}

@test "hf-to-h5 does not mix with other checkpoints" {
    model llama-mha fp32 1
    hf_to_h5 hf run
    refused 64 "holds a checkpoint of step 0" hf_to_h5 hf run
    rm -rf hf
    model codellama bf16 1
    hf_to_h5 --force hf run
    h5_to_hf run out
    same hf out
    mv run/ckpt/step-00000000 run/ckpt/step-00000007
    refused 64 "step 7" hf_to_h5 --force hf run
}

@test "a damaged checkpoint gives no model" {
    model llama-mha fp32 1
    hf_to_h5 hf run
    truncate -s -1 run/ckpt/step-00000000/shard-00000.h5
    run h5_to_hf run out
    [ "$status" -eq 65 ]
    [[ $output == *shard-00000.h5* ]]
    [ ! -e out ]
    rm -rf run
    hf_to_h5 hf run
    printf X | dd of=run/ckpt/step-00000000/shard-00000.h5 bs=1 seek=300000 conv=notrunc 2>dd.log
    run h5_to_hf run out
    [ "$status" -eq 65 ]
    [[ $output == *shard-00000.h5* ]]
    [ ! -e out ]
    [ ! -e .out.partial ]
    refused 65 nowhere h5_to_hf nowhere out
}

@test "a full disk leaves nothing" {
    [ -w /dev/full ] || skip "no /dev/full"
    model llama-mha fp32 1
    hf_to_h5 hf run
    # The limit on the size of a file stands for the end of the disk.
    run bash -c "trap '' XFSZ; ulimit -f 100; '$build/h5-to-hf' run out"
    echo "$output"
    [ "$status" -eq 74 ]
    [[ $output == *model.safetensors* ]]
    [ ! -e out ]
    [ ! -e .out.partial ]
    run bash -c "trap '' XFSZ; ulimit -f 100; '$build/hf-to-h5' hf new"
    echo "$output"
    [ "$status" -ne 0 ]
    [ ! -e new ]
}

@test "options" {
    refused 64 "expected CHECKPOINT and OUT_DIR" h5_to_hf one
    refused 64 "expected HF_DIR and OUT" hf_to_h5 one two three
    refused 64 "--dtype=int8" h5_to_hf --dtype=int8 a b
    refused 64 "--max-shard-size=5XB" h5_to_hf --max-shard-size 5XB a b
    refused 64 "--allow-nonfinite=maybe" hf_to_h5 --allow-nonfinite maybe a b
    refused 64 "--frobnicate" hf_to_h5 --frobnicate a b
    refused 64 "--dtype" hf_to_h5 a b --dtype
    for program in h5-to-hf hf-to-h5; do
        run "$build/$program" --help
        [ "$status" -eq 0 ]
        [[ $output == "Usage: $program"* ]]
        run "$build/$program" --version
        [ "$status" -eq 0 ]
        [[ $output == "$program (mtllm) "* ]]
    done
}
