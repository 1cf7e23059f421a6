#!/bin/bash
# What converting a model costs: a directory of Llama-2-7B's shape in bf16 (13.5 GB, random weights)
# through hf-to-h5 and h5-to-hf, against `cp -r` and `sync` of the same bytes, by turns.
#
# usage: tests/bench/convert.sh [BUILD_DIRECTORY [ROUNDS [LAYERS]]]
#
# Prints the seconds of every round (3), the ratio of the medians to the copy's (bar 1.5) and the
# greatest memory in use (bar 1 GiB), and compares the weights that come back. LAYERS (32) makes the
# model smaller. Writes into the build directory three times the model, which is removed at the end.
set -eu
build_dir=$(cd "${1:-.}" && pwd)
rounds=${2:-3} layers=${3:-32}
work=$(mktemp -d "$build_dir/bench-convert.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

mkdir hf
cat > hf/config.json << END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
 "intermediate_size": 11008, "num_hidden_layers": $layers, "num_attention_heads": 32,
 "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
 "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16"}
END
"$build_dir/tests/model_tool" random hf 3

# timed NAME COMMAND...: a line "NAME seconds KiB" in the file results.
timed() {
    sync
    /usr/bin/time -f "$1 %e %M" -a -o results "${@:2}"
    tail -n 1 results
}

for ((i = 0; i < rounds; i++)); do
    rm -rf copy run out
    timed cp-sync sh -c 'cp -r hf copy && sync'
    rm -rf copy
    timed hf-to-h5 "$build_dir/hf-to-h5" hf run
    timed cp-sync sh -c 'cp -r run copy && sync'
    rm -rf copy
    timed h5-to-hf "$build_dir/h5-to-hf" run out
done

# median NAME: of the seconds
median() {
    awk -v name="$1" '$1 == name { print $2 }' results | sort -n |
        awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

status=0
for name in hf-to-h5 h5-to-hf; do
    kib=$(awk -v name=$name '$1 == name && $3 > most { most = $3 } END { print most }' results)
    awk -v name=$name -v s="$(median $name)" -v copy="$(median cp-sync)" -v kib="$kib" 'BEGIN {
        printf "%s: %.1f s, %.2f of the copy in %.1f s (bar 1.5); %.0f MiB (bar 1024)\n", name, s,
            s / copy, copy, kib / 1024
        exit !(s <= 1.5 * copy && kib <= 1048576)
    }' || status=1
done
"$build_dir/tests/model_tool" compare hf out && echo "the same weights" || status=1
exit $status
