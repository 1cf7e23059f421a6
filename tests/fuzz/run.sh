#!/bin/bash
# Fuzzes what reads Hugging Face models, text and tokens, under AddressSanitizer and UndefinedBehaviorSanitizer;
# make check-fuzz runs it. What the targets are is said in readers.c.
#
#   run.sh --probe     succeed if this machine's clang can do it
#   run.sh BUILD       build the fuzzer in BUILD/tests/fuzz, and run it
#
# In the environment: FUZZ_SECONDS for each target (600), FUZZ_TARGETS (all), FUZZ_SEED (0: another
# every time; else it begins from the seeds alone), CLANG (clang). What is learnt is kept for the
# next time in BUILD/tests/fuzz/TARGET/corpus, an input that fails in BUILD/tests/fuzz/TARGET.
set -euo pipefail
source=$(cd "$(dirname "$0")/../.." && pwd)
clang=${CLANG:-clang} seconds=${FUZZ_SECONDS:-600} seed=${FUZZ_SEED:-0}
targets=${FUZZ_TARGETS:-safetensors index config tokenizer encoder chat import tokens corpus resume order rows}
sanitizers=("-fsanitize=fuzzer,address,undefined" -fno-sanitize-recover=all)

probe() {
    local directory status=0
    directory=$(mktemp -d) || return 1
    echo 'int LLVMFuzzerTestOneInput(void); int LLVMFuzzerTestOneInput(void) { return 0; }' |
        "$clang" "${sanitizers[@]}" -x c - -o "$directory/probe" 2> "$directory/log" || status=1
    rm -r "$directory"
    return $status
}

if [ "${1:-}" = --probe ]; then
    probe
    exit
fi
[ $# = 1 ] || { echo "usage: run.sh --probe | BUILD" >&2; exit 64; }
probe || {
    echo "fuzz: $clang -fsanitize=fuzzer does not work; on Debian:" \
        "apt-get install clang libclang-rt-dev" >&2
    exit 78
}
build=$(cd "$1" && pwd)
mkdir -p "$build/tests/fuzz/objects"
cd "$build/tests/fuzz"

# --- build: everything again each time, it takes less than a minute --------------------------------
mapfile -t flags < <(make -s --no-print-directory -C "$build" show-compiler-flags)
mapfile -t parts < <(make -s --no-print-directory -C "$build" show-fuzz-parts)
files=(tests/fuzz/{readers,change_json,conversations,corpora,rows}.c) libs=()
for part in "${parts[@]}"; do
    case $part in
    *.c) files+=("$part") ;;
    -*) libs+=("$part") ;;
    esac
done
rm -f objects/*.o
printf "$source/%s\n" "${files[@]}" | (cd objects && xargs -P "$(nproc)" -n 1 \
    "$clang" "${flags[@]}" -O1 -g "${sanitizers[@]}" -c)
"$clang" "${sanitizers[@]}" objects/*.o "${libs[@]}" -o readers

# --- seeds, from the golden models -----------------------------------------------------------------
# number N: 8 bytes, little-endian
number() {
    local i
    for ((i = 0; i < 64; i += 8)); do
        printf "\\x$(printf %02x $((($1 >> i) & 255)))"
    done
}

# tensors FILE: its size and what is before its data
tensors() {
    number "$(stat -L -c %s "$1")"
    head -c $((8 + $(od -An -t u8 -N 8 "$1"))) "$1"
}

# sequences: index and data with their lengths before them, of 3, 2 and 4 tokens
sequences() {
    local i
    printf '\x66\0MMIDIDX\0\0'
    number 1
    printf '\x08'
    number 3; number 4
    printf '\3\0\0\0\2\0\0\0\4\0\0\0'
    for i in 0 6 10 0 1 2 3; do number $i; done
    printf '\x12\0\1\0\2\0\2\0\0\0\1\0\2\0\1\0\2\0\2\0'
}

seeds() { # TARGET
    local name models=$source/tests/golden/models
    case $1 in
    index)
        echo '{"metadata": {"total_size": 22}, "weight_map": {"a": "one", "b": "two"}}' > seeds/map
        return
        ;;
    tokenizer)
        cp "$source/tests/golden/tokenizers/sentencepiece/tokenizer.model" seeds/sentencepiece
        # One piece "a"; trainer: BPE, bos 5, "<b>"; a float that is skipped; normalizer.
        {
            printf '\x0a\x03\x0a\x01a\x12\x10\x18\x02\xc8\x02\x05\xf2\x02\x03<b>'
            printf '\x15\x00\x00\x00\x00\x1a\x02\x20\x00'
        } > seeds/short
        echo '{"added_tokens": [{"id": 1, "content": "<s>"}, {"id": 2, "content": "</s>"}]}' \
            > seeds/json
        cp "$models/llama-mha/generation_config.json" seeds/generation
        echo '{"eos_token_id": [2, 7], "pad_token_id": 0}' > seeds/generation-list
        return
        ;;
    tokens) # two documents, of two tokens and of one
        printf '\x14MMIDIDX\0\0\1\0\0\0\0\0\0\0\x08' > seeds/two
        { number 2; number 3; printf '\2\0\0\0\1\0\0\0'; number 0; number 4; number 0; number 1
            number 2; printf '\1\0\2\0\3\0'; } >> seeds/two
        return
        ;;
    chat)
        for name in llama2 plain mistral; do
            {
                cat "$source/etc/templates/$name.ini"
                printf '\0{"messages": [{"role": "system", "content": " b"}, {"role": "user", %s' \
                    '"content": "a"}, {"role": "assistant", "content": "ab <s>a", "weight": 1}]}'
            } > "seeds/$name"
        done
        { cat "$source/etc/templates/plain.ini"; printf '\0{"input": "a", "output": "b"}'; } > seeds/pair
        return
        ;;
    order) # arrays of 4, 0 and 65 bytes; the target puts in key and hashes
        { head -c 24 /dev/zero; number 4; number 0; number 65; head -c 208 /dev/zero; } > seeds/three
        return
        ;;
    rows)
        for name in 0 1 2 3 8 9 10 11 24 59; do
            { printf "\\x$(printf %02x $((name | 32)))\\1\\6"; sequences; sequences; } > "seeds/$name"
        done
        return
        ;;
    corpus)
        printf '\x08one\n\ntwo\nthree' > seeds/paragraphs
        printf '\x10one\xff\n\ntwo\nthree' > seeds/lines
        printf '\x21{"text": "one", "a": "two"}\n{"text": 1}\n{"text": "\\u0000"}\n' > seeds/json
        { printf '\x02'; printf 'one\ntwo\n' | gzip; printf 'three' | gzip; } > seeds/gzip
        { printf '\x04'; echo '{"text": "one"}' | gzip; } > seeds/json-gzip
        command -v zstd > /dev/null || return 0
        { printf '\x03'; printf 'one\ntwo\n' | zstd; printf 'three' | zstd; } > seeds/zstd
        { printf '\x05'; echo '{"text": "one"}' | zstd; } > seeds/json-zstd
        return
        ;;
    resume)
        cat > seeds/record << 'END'
{"version":1,"digest":"d","streams":[{"tokens":7,"sequences":2,"open_tokens":1},{"tokens":7,
"sequences":2,"open_tokens":0}],"position":{"input":0,"offset":5,"line":2,"text_bytes":5,
"file_bytes":5,"document_begun":false},"dropping":false,"empty":0,"bad":1}
END
        return
        ;;
    encoder)
        cat > seeds/byte-level << 'END'
{"added_tokens": [{"id": 9, "content": "<x>", "lstrip": true}, {"id": 5, "content": "123",
 "normalized": true, "single_word": true}], "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type":
 "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": " ?\\p{L}+|\\s+(?!\\S)"},
 "behavior": "Isolated", "invert": false}, {"type": "Digits", "individual_digits": true}, {"type":
 "Punctuation", "behavior": "Contiguous"}, {"type": "ByteLevel", "add_prefix_space": true,
 "use_regex": true}]}, "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "ignore_merges":
 true, "vocab": {"a": 0, "b": 1, "\u0120": 2, "aa": 3, "\u0120a": 4}, "merges": ["a a", "\u0120 a"]}}
END
        cat > seeds/fallback << 'END'
{"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"}, {"type":
 "Replace", "pattern": {"String": " "}, "content": "_"}]}, "pre_tokenizer": {"type": "Metaspace",
 "replacement": "_", "prepend_scheme": "first", "split": true}, "decoder": {"type": "Sequence",
 "decoders": [{"type": "Replace", "pattern": {"String": "_"}, "content": " "}, {"type":
 "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 1}]},
 "model": {"unk_token": "?", "fuse_unk": true, "byte_fallback": true, "vocab": {"?": 0, "a": 1,
 "_": 2, "_a": 3, "<0x41>": 4}, "merges": [["_", "a"]]}, "post_processor": {"single":
 [{"SpecialToken": {"id": "?"}}]}}
END
        return
        ;;
    esac
    for name in llama-mha llama-gqa-tied codellama; do
        case $1 in
        safetensors) tensors "$models/$name/model.safetensors" ;;
        config) cat "$models/$name/config.json" ;;
        import)
            cat "$models/$name/config.json"
            printf '\0'
            tensors "$models/$name/model.safetensors"
            ;;
        esac > "seeds/$name"
    done
}

# --- run: as many targets at a time as there are cores -----------------------------------------------
# The files that the fuzzer writes for the readers, in memory where that can be.
scratch=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fuzz() { # TARGET
    local corpus=corpus options
    export FUZZ_DIRECTORY=$scratch/$1
    rm -rf "$1/seeds"
    mkdir -p "$1/seeds" "$1/corpus" "$FUZZ_DIRECTORY"
    cd "$1"
    seeds "$1"
    ../readers --target="$1" --accept seeds/* > seeds.log 2>&1 || { cat seeds.log; return 1; }
    [ "$seed" = 0 ] || { corpus=fixed; rm -rf fixed; mkdir fixed; }
    options=(-max_total_time="$seconds" -seed="$seed" -dict="$source/tests/fuzz/words.dict")
    # Little that is compressed can be much, and a frame may ask for 2 GiB in which to look back.
    options+=(-malloc_limit_mb=4096 -max_len="$([ "$1" = corpus ] && echo 1024 || echo 65536)")
    options+=(-timeout=20 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=1)
    ../readers --target="$1" "${options[@]}" "$corpus" seeds > fuzz.log 2>&1 ||
        { tail -n 60 fuzz.log; echo "fuzz: $1: see $PWD" >&2; return 1; }
    tail -n 400 fuzz.log | grep -a ' cov: ' | tail -n 1
    grep -a 'inputs, .* accepted' fuzz.log
}

status=0 running=0
for target in $targets; do
    if [ $running = "$(nproc)" ]; then
        wait -n || status=1
        running=$((running - 1))
    fi
    (set -e; fuzz "$target") &
    running=$((running + 1))
done
for ((; running > 0; running--)); do
    wait -n || status=1
done
exit $status
