#!/bin/bash
# Guards, on a GPU: a training gives the same bits twice, and when it is stopped and goes on; its
# loss is the CPU's in fp32 and near it in bf16 and fp16.
#
# usage: tests/gpu/training.sh [BUILD_DIRECTORY] [PART...]
#
#   PART   bits: the same twice, and when stopped; losses: against the CPU; families: the same for a
#          small model of every kind; dropout; init: from a Hugging Face directory; profile. All by
#          default
#
# MTLLM_GPU_MODEL (tinyllama-1.1b) and MTLLM_GPU_LENGTH (128) say what is compared with the CPU;
# MTLLM_GPU_DATA is a PREFIX of tokens to compare bf16 with fp32 on, instead of made-up ones.
set -u
# shellcheck source=tests/gpu/common.sh
. "$(dirname "$0")/common.sh"
shift
parts=" ${*:-bits losses families dropout init profile} "
model=${MTLLM_GPU_MODEL:-tinyllama-1.1b} length=${MTLLM_GPU_LENGTH:-128}

"$build_dir/tests/make_tokens" data 32000 3000 1
large=(--model="$model" --seq-length="$length" --micro-batch-size=1 --steps=50 --lr-warmup-steps=20)
# TinyLlama's own schedule, which these are the first steps of. With a warm-up of 50 steps losses jump
# by 10 to 20 % for single steps, in fp32 as in bf16, at other steps (kernels/cuda/NOTES.md).
"$build_dir/tests/make_tokens" natural 32000 3000 1 natural
text=(--model="$model" --seq-length=1024 --micro-batch-size=4 --steps=50 --lr=4e-4
    --lr-warmup-steps=2000 --lr-decay-steps=100000 --device=cuda --data="${MTLLM_GPU_DATA:-$work/natural}")
if [[ $parts == *" losses "* ]]; then # the CPU takes long: beside all the rest
    train 1 cpu "${large[@]}" --device=cpu & cpu=$!
fi

if [[ $parts == *" bits "* ]]; then
    small=(--model=llama-100m --seq-length=512 --micro-batch-size=4 --global-batch-size=8 --steps=200
        --lr=1e-4 --lr-warmup-steps=20 --device=cuda --save-interval=60)

    train 1 first "${small[@]}"; expect "trains in bf16" [ $? = 0 ]
    train 1 second "${small[@]}"
    expect "two runs: the same bits" same_run first second 200

    # Told to stop somewhere in the middle, then the same command again.
    train 1 stopped "${small[@]}" &
    child=$!
    wait_for 60 reached stopped 15
    pkill -TERM -P "$child"
    wait "$child"
    expect "a signal: ends with 75" [ $? = 75 ]
    train 1 stopped "${small[@]}"; expect "goes on" [ $? = 0 ]
    expect "stopped and resumed: the same bits" same_run first stopped 200
    expect "how products are computed is recorded" [ -s stopped/products/00000.txt ]

    train 1 again "${small[@]}" --recompute=full; expect "computes layers again" [ $? = 0 ]
    expect "recompute=full: the same bits" same_run first again 200

    train 1 state "${small[@]}" --optimizer-state=bf16; expect "trains with bf16 state" [ $? = 0 ]
    train 1 state2 "${small[@]}" --optimizer-state=bf16
    expect "bf16 state: the same bits" same_run state state2 200
    expect "bf16 state: loss near that of fp32 state" near state first 0.02 200
    train 1 half "${small[@]}" --dtype=fp16; expect "trains in fp16" [ $? = 0 ]
    rm -rf first second stopped again state state2
fi

if [[ $parts == *" losses "* ]]; then
    train 1 fp32 "${large[@]}" --device=cuda --dtype=fp32; expect "trains in fp32" [ $? = 0 ]
    train 1 text32 "${text[@]}" --dtype=fp32; expect "trains $model in fp32" [ $? = 0 ]
    train 1 text16 "${text[@]}"; expect "trains $model in bf16" [ $? = 0 ]
    wait "$cpu"; expect "trains on the CPU" [ $? = 0 ]
    expect "$model, fp32: the CPU's loss at every step" near fp32 cpu 1e-4 50
    expect "$model, bf16: near fp32 at every step" near text16 text32 0.01 50
    grep -hE 'planned|in use' text16.log | sed 's/^/# /'
fi

# on_both NAME OPTION...: fp32 on the CPU and the GPU, bf16 on the GPU.
on_both() {
    local name=$1
    shift
    set -- --layers=4 --hidden-size=256 --heads=4 --ffn-size=704 --vocab-size=32000 \
        --seq-length=256 --micro-batch-size=1 --global-batch-size=2 --steps=50 --lr=1e-4 \
        --lr-warmup-steps=20 "$@"
    train 1 "$name-cpu" --device=cpu "$@" && train 1 "$name-fp32" --device=cuda --dtype=fp32 "$@" &&
        train 1 "$name-bf16" --device=cuda "$@"
    expect "$name trains" [ $? = 0 ]
    expect "$name, fp32: the CPU's loss at every step" near "$name-fp32" "$name-cpu" 1e-4 50
    expect "$name, bf16: near fp32 at every step" near "$name-bf16" "$name-fp32" 0.01 50
    rm -rf "$name"-*/ckpt
}

if [[ $parts == *" families "* ]]; then
    on_both mistral --family=mistral --kv-heads=2 --sliding-window=48
    on_both qwen2 --family=qwen2 --kv-heads=2 --tied-embeddings=yes --norm-eps=1e-6
    on_both falcon --family=falcon --kv-heads=1 --tied-embeddings=yes
    on_both falcon-two-norms --family=falcon --kv-heads=2 --parallel-norms=2
    on_both yarn --rope-scaling=yarn --rope-factor=4 --rope-original-positions=64 --mlp-bias=yes \
        --qkv-bias=yes --output-bias=yes
    on_both llama3 --rope-scaling=llama3 --rope-factor=8 --rope-original-positions=64
    on_both dynamic --rope-scaling=dynamic --rope-factor=2 --max-positions=64
fi

if [[ $parts == *" dropout "* ]]; then
    on_both dropout --hidden-dropout=0.1 --attention-dropout=0.1 --recompute=full --recompute-layers=2
fi

if [[ $parts == *" init "* ]]; then
    some=(--seq-length=512 --micro-batch-size=4 --steps=20 --lr=1e-4 --device=cuda)
    train 1 begun --model=llama-100m "${some[@]}"; expect "trains" [ $? = 0 ]
    "$build_dir/h5-to-hf" begun hf && "$build_dir/hf-to-h5" hf imported
    expect "converts to Hugging Face and back" [ $? = 0 ]
    train 1 from-hf --init=hf --add-tokens="<a>,<b>" "${some[@]}"
    expect "trains from Hugging Face" [ $? = 0 ]
    train 1 from-h5 --init=imported --add-tokens="<a>,<b>" "${some[@]}"
    expect "from Hugging Face: the bits of a checkpoint of it" same_run from-hf from-h5 20
fi

# spans FILE NAME LANE: "start end", in microseconds from the profile's beginning.
spans() {
    sed -n 's/.*"name":"'"$2"'",.*"tid":'"$3"',"ts":\(-\{0,1\}[0-9.]*\),"dur":\(-\{0,1\}[0-9.]*\),.*/\1 \2/p' "$1" |
        awk '{ printf "%.3f %.3f\n", $1, $1 + $2 }'
}

# device_spans FILE NAME COUNT: so many on the compute stream, one behind the other, between the
# beginning of the first step and the end of the last; a clock may be off by a tenth of a millisecond.
device_spans() {
    { spans "$1" step 0; echo; spans "$1" "$2" 1; } | awk -v want="$3" -v off=100 '
        NF == 0 { device = 1; next }
        !device { if (first == "") first = $1; last = $2; next }
        { if ($2 < $1 || $1 < end || $1 < first - off || $2 > last + off) bad = 1; end = $2; count++ }
        END { exit bad || count != want }'
}

if [[ $parts == *" profile "* ]]; then
    small=(--model=llama-100m --seq-length=512 --micro-batch-size=4 --global-batch-size=8 --steps=6
        --device=cuda)
    train 1 plain "${small[@]}" && train 1 traced "${small[@]}" --profile=3:2
    expect "trains with a profile" [ $? = 0 ]
    expect "a profile: the same bits" same_run plain traced 6
    trace=traced/profile/step-00000003.json
    expect "a profile: forward on the stream" device_spans $trace forward 4
    expect "a profile: backward on the stream" device_spans $trace backward 4
    expect "a profile: the optimizer on the stream" device_spans $trace optimizer 2
fi

finish
