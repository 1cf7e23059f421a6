# Guards: what mtllm-ckpt says of good, damaged, unfinished and differing checkpoints, and its exit
# statuses; foreign tools read whole tensors through the index.

setup() {
    run_dir=$BATS_TEST_TMPDIR/run
    PATH=$builddir:$builddir/ckpt:$PATH
    mkdir "$run_dir"
}

# Flip one bit of the byte at offset $2 of file $1.
flip() {
    local byte
    byte=$(od -An -tu1 -j"$2" -N1 "$1")
    printf "\\x$(printf %x $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

@test "list tells complete, damaged and unfinished checkpoints apart" {
    make_checkpoint "$run_dir/ckpt" 10 2 1
    make_checkpoint "$run_dir/ckpt" 20 1 2
    make_checkpoint "$run_dir/ckpt" 30 2 3
    rm "$run_dir/ckpt/step-00000010/shard-00001.h5"
    mkdir "$run_dir/ckpt/.step-00000040.tmp"
    run mtllm-ckpt list "$run_dir"
    echo "$output"
    [ "$status" -eq 0 ]
    [ "${#lines[@]}" -eq 5 ]
    [[ ${lines[1]} == *" 10 "*"tp2 pp1 dp1"*"shard-00001.h5: is missing" ]]
    [[ ${lines[2]} == *" 20 "*" 6 "*"tp1 pp1 dp1"*"complete" ]]
    [[ ${lines[3]} == *" 30 "*"complete, latest" ]]
    [[ ${lines[4]} == *" 40 "*"unfinished"* ]]
    run mtllm-ckpt list --json "$run_dir/ckpt"
    [ "$status" -eq 0 ]
    [[ $output == *'"complete": false'*'"fault": "shard-00001.h5: is missing"'* ]]
    run mtllm-ckpt list "$run_dir/ckpt/step-00000020"
    [ "$status" -eq 0 ]
    [ "${#lines[@]}" -eq 2 ]
}

@test "show prints state, tensors, settings and statistics" {
    make_checkpoint "$run_dir/ckpt" 10 2 1
    run mtllm-ckpt show "$run_dir"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"step        10"* ]]
    [[ $output == *"tokens      40960"* ]]
    [[ $output == *"tokenizer.model, 8 bytes"* ]]
    [[ $output =~ model.norm.weight\ +512\ +fp32\ +-\ +fp32\ +fp32 ]]
    run mtllm-ckpt show --settings "$run_dir"
    [ "$output" = "model = llama-tiny" ]
    run mtllm-ckpt show --config "$run_dir"
    [ "$output" = '{"model_type": "llama"}' ]
    run mtllm-ckpt show --stats "$run_dir" 'model.layers.*.down_proj.weight'
    echo "$output"
    [ "$status" -eq 0 ]
    [ "${#lines[@]}" -eq 9 ]
    [[ ${lines[1]} =~ ^model.layers.2.mlp.down_proj.weight\ +7x3\ +weight\ +bf16\ +-0\. ]]
    run mtllm-ckpt show --json --stats "$run_dir" model.norm.weight
    [ "$status" -eq 0 ]
    [[ $output == *'"not_finite": 0'* ]]
    run mtllm-ckpt show "$run_dir" no.such.tensor
    [ "$status" -eq 65 ]
    [[ $output == *"no.such.tensor"* ]]
}

@test "verify says what is damaged and where" {
    make_checkpoint "$run_dir/ckpt" 10 2 1
    make_checkpoint "$run_dir/ckpt" 20 2 2
    run mtllm-ckpt verify "$run_dir"
    echo "$output"
    [ "$status" -eq 0 ]
    [ "${#lines[@]}" -eq 2 ]
    flip "$run_dir/ckpt/step-00000020/shard-00001.h5" 300000
    run mtllm-ckpt verify "$run_dir"
    echo "$output"
    [ "$status" -eq 65 ]
    [[ ${lines[0]} == *"step-00000010: good" ]]
    [[ ${lines[1]} == *"step-00000020/shard-00001.h5: bytes 0 to 1048575 differ"*".weight ("* ]]
    [[ ${lines[2]} == *"step-00000020: damaged" ]]
    run mtllm-ckpt verify --json "$run_dir/ckpt/step-00000020"
    [ "$status" -eq 65 ]
    [[ $output == *'"good": false'* ]]
    flip "$run_dir/ckpt/step-00000010/index.h5" 1000
    run mtllm-ckpt verify "$run_dir/ckpt/step-00000010"
    [ "$status" -eq 65 ]
    [[ $output == *"index.h5: its checksum does not hold"* ]]
    run mtllm-ckpt verify "$run_dir/nothing"
    [ "$status" -eq 65 ]
}

@test "diff compares every bit, whatever the layout" {
    make_checkpoint "$run_dir/one/ckpt" 10 2 1
    make_checkpoint "$run_dir/two/ckpt" 10 3 1
    make_checkpoint "$run_dir/three/ckpt" 11 2 2
    run mtllm-ckpt diff "$run_dir/one" "$run_dir/two"
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$output" = "no difference" ]
    run mtllm-ckpt diff "$run_dir/one" "$run_dir/three/ckpt/step-00000011"
    echo "$output"
    [ "$status" -eq 1 ]
    [[ $output == *"step: 10, 11"* ]]
    [[ $output == *"model.norm.weight (exp_avg_sq): 512 of 512 elements differ, max abs diff"* ]]
    flip "$run_dir/three/ckpt/step-00000011/shard-00000.h5" 200000
    run mtllm-ckpt diff "$run_dir/one" "$run_dir/three"
    [ "$status" -eq 65 ]
    [[ $output == *"shard-00000.h5"* ]]
}

@test "prune keeps the newest good ones" {
    for step in 1 2 3 4; do make_checkpoint "$run_dir/ckpt" $step 1 1; done
    rm "$run_dir/ckpt/step-00000003/index.h5"
    run mtllm-ckpt prune "$run_dir" --keep=2
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$output" = "removed step 1" ]
    [ -e "$run_dir/ckpt/step-00000002" ]
    run mtllm-ckpt prune "$run_dir" --keep=0
    [ "$status" -eq 64 ]
    run mtllm-ckpt prune "$run_dir"
    [ "$status" -eq 64 ]
}

@test "wrong usage is 64 and help is 0" {
    run mtllm-ckpt
    [ "$status" -eq 64 ]
    run mtllm-ckpt frobnicate
    [ "$status" -eq 64 ]
    [[ $output == *"frobnicate"* ]]
    run mtllm-ckpt list --frobnicate "$run_dir"
    [ "$status" -eq 64 ]
    run mtllm-ckpt diff "$run_dir"
    [ "$status" -eq 64 ]
    run mtllm-ckpt --version
    [ "$status" -eq 0 ]
    for command in "" list show verify diff prune; do
        run mtllm-ckpt $command --help
        [ "$status" -eq 0 ]
        [[ ${lines[0]} == Usage:* ]]
    done
    run mtllm-ckpt show "$run_dir"
    [ "$status" -eq 65 ]
}

@test "a full disk behind the output is not silence" {
    make_checkpoint "$run_dir/ckpt" 10 2 1
    run sh -c "mtllm-ckpt show '$run_dir' > /dev/full"
    [ "$status" -eq 74 ]
}

@test "h5dump reads a whole tensor through the index" {
    command -v h5dump > /dev/null || skip "no h5dump"
    make_checkpoint "$run_dir/ckpt" 10 4 1
    mv "$run_dir/ckpt" "$run_dir/moved"
    h5dump -d /model/model.layers.2.mlp.down_proj.weight "$run_dir/moved/latest/index.h5" \
        > "$run_dir/dump"
    # 7 x 3 values, none of them the fill value of a shard that was not found
    run sed -n 's/^ *([0-9,]*): //p' "$run_dir/dump"
    echo "$output"
    [ "${#lines[@]}" -eq 7 ]
    [[ ! $output =~ (^|\ )0(,|$) ]]
}
