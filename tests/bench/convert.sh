#!/bin/bash
# What converting a model costs: a directory of Llama-2-7B's shape in bf16 (13.5 GB, random weights)
# through hf-to-h5 and h5-to-hf, against `cp -r` and `sync` of the same bytes, by turns.
#
# usage: tests/bench/convert.sh [BUILD_DIRECTORY [LAYERS]]
#
# Prints seconds, their ratio to the copy (bar 1.5) and the greatest memory in use (bar 1 GiB), and
# compares the weights that come back. LAYERS (32) makes the model smaller. Writes into the build
# directory three times the model, which is removed at the end.
set -eu
build_dir=$(cd "${1:-.}" && pwd)
layers=${2:-32}
work=$(mktemp -d "$build_dir/bench-convert.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
status=0

mkdir hf
cat > hf/config.json << END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
 "intermediate_size": 11008, "num_hidden_layers": $layers, "num_attention_heads": 32,
 "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
 "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16"}
END
"$build_dir/tests/model_tool" random hf 3
sync

# timed COMMAND...: sets seconds and kib (the greatest resident set).
timed() {
    /usr/bin/time -f '%e %M' -o time.out "$@"
    read -r seconds kib < time.out
}

copy() {
    timed sh -c 'cp -r hf copy && sync'
    rm -rf copy
    printf '%-12s %7.1f s\n' "cp and sync" "$seconds"
    copied=$seconds
}

# convert NAME COMMAND...
convert() {
    local name=$1
    shift
    timed "$@"
    awk -v name="$name" -v s="$seconds" -v copied="$copied" -v kib="$kib" 'BEGIN {
        printf "%-12s %7.1f s, %.2f of the copy (bar 1.5), %.0f MiB (bar 1024)\n", name, s,
            s / copied, kib / 1024
        exit !(s <= 1.5 * copied && kib <= 1048576)
    }' || status=1
}

copy
convert hf-to-h5 "$build_dir/hf-to-h5" hf run
copy
convert h5-to-hf "$build_dir/h5-to-hf" run out
rm -rf run
"$build_dir/tests/model_tool" compare hf out && echo "the same weights" || status=1
exit $status
