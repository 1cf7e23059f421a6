#!/bin/bash
# Guards, on two GPUs: tensor, pipeline and data parallel ranks have the losses of one; twice the
# same layout has the same bits; another layout goes on from a checkpoint; and when a rank dies the
# other one ends, with a message, instead of waiting.
#
# usage: tests/gpu/layouts.sh [BUILD_DIRECTORY]
set -u
# shellcheck source=tests/gpu/common.sh
. "$(dirname "$0")/common.sh"
[ "$(gpu_count)" -ge 2 ] || { echo "one GPU, or none"; exit 77; }
command -v mpirun >/dev/null || { echo "no mpirun"; exit 77; }

"$build_dir/tests/make_tokens" data 32000 3000 1
run=(--model=llama-100m --seq-length=512 --micro-batch-size=2 --global-batch-size=8 --steps=30
    --lr=1e-4 --lr-warmup-steps=5 --device=cuda)

if [ -x "$build_dir/trainer/test_comm" ]; then
    (cd "$build_dir" && timeout 120 mpirun --quiet -n 2 trainer/test_comm cuda) > comm.log 2>&1
    expect "communication through NCCL" [ $? = 0 ]
fi

# A name for each, and its options.
declare -A options=([tp]="--tp=2 --sequence-parallel=no" [sp]="--tp=2" [pp]="--pp=2 --pp-schedule=1f1b"
    [chunks]="--pp=2 --pp-chunks=2" [bubble]="--pp=2 --pp-schedule=zero-bubble" [dp]="--dp=2"
    [zero]="--dp=2 --zero=0" [cp]="--cp=2")
layouts=(tp sp pp chunks bubble dp zero cp)
for dtype in fp32 bf16; do
    train 1 "one-$dtype" "${run[@]}" --dtype=$dtype; expect "one GPU, $dtype" [ $? = 0 ]
    bound=1e-5
    [ $dtype = fp32 ] || bound=0.01
    for layout in "${layouts[@]}"; do
        # shellcheck disable=SC2086
        train 2 "$layout-$dtype" "${run[@]}" --dtype=$dtype ${options[$layout]}
        expect "$layout, $dtype: trains, and ends" [ $? = 0 ]
        expect "$layout, $dtype: the losses of one GPU" near "$layout-$dtype" "one-$dtype" $bound 30
    done
done
for layout in "${layouts[@]}"; do
    # shellcheck disable=SC2086
    train 2 "$layout-again" "${run[@]}" --dtype=bf16 ${options[$layout]}
    expect "$layout: the same bits again" same_run "$layout-bf16" "$layout-again" 30
done
expect "zero-bubble has the bits of 1F1B" same_run pp-bf16 bubble-bf16 30
for recompute in selective full; do
    train 2 sp-$recompute "${run[@]}" --dtype=bf16 --tp=2 --recompute=$recompute
    expect "tp=2, recompute=$recompute: the same bits" same_run sp-bf16 sp-$recompute 30
done

# A step of another layout behind those of the first.
train 2 tp-fp32 "${run[@]}" --dtype=fp32 --dp=2 --steps=40 --lr-decay-steps=30
expect "from tp=2 to dp=2" [ "$(steps_seen tp-fp32)" = 40 ]

# What a launcher starts that does not see the end of a rank.
cat > hidden <<'SCRIPT'
#!/bin/bash
"$@"
echo $? > "status-$OMPI_COMM_WORLD_RANK"
sleep 120
SCRIPT
chmod +x hidden
for layout in tp sp pp dp; do
    rm -f status-*
    # shellcheck disable=SC2086
    mpirun --quiet --bind-to none -n 2 ./hidden "$build_dir/mtllm-train" --run-dir="death-$layout" \
        --data=data "${run[@]}" --steps=100000 ${options[$layout]} > "death-$layout.log" 2>&1 &
    launcher=$!
    wait_for 60 reached "death-$layout" 20
    pkill -KILL -n -f "mtllm-train --run-dir=death-$layout"
    wait_for 60 eval '[ "$(ls status-* 2>/dev/null | wc -l)" = 2 ]'
    expect "$layout: a rank dies, the other one ends with 74" \
        [ "$(sort -n status-* | tr '\n' ' ')" = "74 137 " ]
    expect "$layout: and says why" grep -q 'rank [01] on node .* is gone' "death-$layout.log"
    kill $launcher
    wait $launcher 2>/dev/null
done
finish
