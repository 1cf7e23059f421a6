#!/bin/bash
# Guards, on GPUs under a private Slurm: a job that is preempted is requeued, goes on where it was
# and ends with the bits of one that was not.
#
# usage: tests/gpu/slurm.sh [BUILD_DIRECTORY]
set -u
# shellcheck source=tests/gpu/common.sh
. "$(dirname "$0")/common.sh"
gpus=$(gpu_count)
[ "$gpus" -ge 1 ] || { echo "no GPU"; exit 77; }
[ "$gpus" -le 2 ] || gpus=2
cluster=$source_dir/tests/slurm/cluster.sh
for program in slurmctld slurmd munged; do
    PATH=$PATH:/usr/sbin:/sbin command -v $program >/dev/null || { echo "no $program"; exit 77; }
done

"$build_dir/tests/make_tokens" data 32000 3000 1
run=(--model=llama-100m --seq-length=512 --micro-batch-size=2 --global-batch-size=8 --steps=600
    --lr=1e-4 --device=cuda --save-interval=100 --data="$work/data")
cat > job.sh <<'JOB'
#!/bin/bash
srun --mpi=pmix mtllm-train "$@"
JOB
export PATH=$build_dir:$PATH

"$cluster" start "$work/slurm" --nodes=1 --cpus=8 --gpus="$gpus" --grace=60 \
    --plugin="$build_dir/.libs/mtllm.so" > cluster.log 2>&1
expect "a private Slurm with $gpus GPUs" [ $? = 0 ]
trap '"$cluster" stop "$work/slurm"; rm -rf "$work"' EXIT
eval "$("$cluster" env "$work/slurm")"

field() { # JOB NAME
    scontrol -o show job "$1" | grep -o "$2=[A-Z0-9_]*" | head -n 1 | cut -d= -f2
}

# shellcheck disable=SC2317 # called by name
field_is() { # JOB NAME TEST VALUE
    test "$(field "$1" "$2")" "$3" "$4"
}

# shellcheck disable=SC2317
over() { # JOB
    case $(field "$1" JobState) in COMPLETED | FAILED | CANCELLED | NODE_FAIL) ;; *) return 1 ;; esac
}

submit() { # RUN
    sbatch --parsable -N1 -n "$gpus" --gpus-per-task=1 -o "$work/$1.log" --open-mode=append \
        --llm-run-dir="$work/$1" job.sh "${run[@]}"
}

whole=$(submit whole)
wait_for 120 over "$whole"
expect "a job that is left alone ends" field_is "$whole" JobState = COMPLETED

job=$(submit preempted)
wait_for 60 reached preempted 150
urgent=$(sbatch --parsable -p high -N1 --exclusive -o /dev/null --wrap="sleep 300")
wait_for 90 field_is "$job" Restarts = 1
expect "preempted: requeued" field_is "$job" Restarts = 1
wait_for 30 field_is "$urgent" JobState = RUNNING
expect "the more urgent job runs meanwhile" field_is "$urgent" JobState = RUNNING
scancel "$urgent"
wait_for 120 over "$job"
expect "goes on and ends" field_is "$job" JobState = COMPLETED
expect "from its checkpoint" grep -q 'resuming from' preempted.log
expect "on the GPU" grep -q 'GiB in use' preempted.log
expect "the bits of the one that was left alone" same_run whole preempted 600
grep -h 'resuming from' preempted.log | sed "s|$work/||; s/^/# /"
finish
