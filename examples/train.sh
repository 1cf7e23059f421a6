#!/bin/bash
# A training job. Say which model and how to lay it out when you submit it; everything behind the
# script's name goes to mtllm-train (mtllm-train --help lists what it understands):
#
#   sbatch --llm-model=codellama-34b --llm-tp=8 train.sh --data=PREFIX --steps=10000
#
# The job needs no more than this to survive preemption, its time limit and lost nodes: it writes
# a checkpoint, goes back to the queue by itself, and the next start goes on from there.

#SBATCH --job-name=train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --time=01:00:00
# The output of every start, one behind the other.
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
# On a cluster with GPUs, one task a GPU:
##SBATCH --gpus-per-node=8 --ntasks-per-node=8

# What your site needs before a program runs, if anything:
#   module load mtllm

# No "exec" in front of srun: the shell that waits for it is what keeps the job alive while the
# tasks save their checkpoint.
#
# What is set here is what this job is about; the same option in "$@" takes its place.
srun --mpi=pmix mtllm-train --save-interval=50 --lr-warmup-steps=20 "$@"
