#!/bin/bash
# From text to a Hugging Face model, on this host alone: builds mtllm, starts a private Slurm of
# four nodes, trains a small language model in it, lets a more urgent job take the nodes away in
# the middle, watches the training go back to the queue and finish, and converts the result.
#
#   examples/quickstart.sh [--dir=DIR] [--steps=N] [--keep] [--no-install]
#                          [--mtllm=PREFIX]
#
#   --dir=DIR       where to put everything; must be empty or missing (default: a fresh directory)
#   --steps=N       how long to train (default 300, some two minutes on two cores)
#   --keep          leave the Slurm running to play with
#   --no-install    install no Debian packages, even if some are missing
#   --mtllm=PREFIX  use the mtllm that is installed there instead of building one
#
# A Slurm that the host may have is not touched. Needs root (or sudo) only to install packages.
# Exits with 0 only if all of this has happened; every daemon is stopped in any case.
set -euo pipefail
source_dir=$(cd "$(dirname "$0")/.." && pwd)

directory='' steps=300 keep=no install=yes prefix=''
for option in "$@"; do
    case $option in
    --dir=?*) directory=${option#*=} ;;
    --steps=[1-9]*) steps=${option#*=} ;;
    --keep) keep=yes ;;
    --no-install) install=no ;;
    --mtllm=?*) prefix=${option#*=} ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "quickstart: $option: unknown option; see --help" >&2; exit 64 ;;
    esac
done

say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }
fail() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }

# quietly LOG COMMAND...: its output matters only if it fails.
quietly() {
    local log=$1
    shift
    "$@" > "$log" 2>&1 || { tail -n 20 "$log" >&2; fail "$1 failed; all it said is in $log"; }
}

# --- where -----------------------------------------------------------------------------------------

if [ -z "$directory" ]; then
    directory=$(mktemp -d "${TMPDIR:-/tmp}/mtllm-quickstart.XXXXXX")
else
    mkdir -p "$directory"
    [ -z "$(ls -A "$directory")" ] || fail "$directory is not empty; give another --dir"
fi
directory=$(cd "$directory" && pwd -P)
chmod 755 "$directory"
# Names of sockets are short, so a deep directory cannot hold them.
cluster=$directory/slurm
[ ${#cluster} -le 60 ] || cluster=$(mktemp -d /tmp/mtllm-slurm.XXXXXX)
cluster_sh=$source_dir/tests/slurm/cluster.sh

stop_cluster() {
    local status=$?
    trap '' INT TERM HUP
    if [ $status = 0 ] && [ $keep = yes ]; then
        cat <<END

The Slurm is still running. To use it in this shell, and to stop it in the end:
    eval "\$($cluster_sh env $cluster)"; export PATH=$prefix/bin:\$PATH
    $cluster_sh stop $cluster
END
    else
        "$cluster_sh" stop "$cluster" || true
        [ $status = 0 ] || echo "quickstart: stopped; what there is so far is in $directory" >&2
    fi
    exit $status
}
trap stop_cluster EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# --- build -----------------------------------------------------------------------------------------

if [ $install = yes ]; then
    say "Packages: installing what is missing"
    "$source_dir/tests/packages.sh" build try
fi

build() {
    [ -x "$source_dir/configure" ] || "$source_dir/bootstrap" || return 1
    mkdir "$directory/build" && cd "$directory/build" || return 1
    # On CPUs: eight ranks share this host, and few hosts have eight GPUs.
    "$source_dir/configure" --prefix="$prefix" --with-slurm-plugindir="$prefix/lib/slurm" \
        --with-cuda=no &&
        make -j "$(nproc)" && make install
}
if [ -z "$prefix" ]; then
    prefix=$directory/mtllm
    say "Building mtllm and installing it into $prefix"
    quietly "$directory/build.log" build
fi
[ -x "$prefix/bin/mtllm-train" ] || fail "$prefix: no bin/mtllm-train in it"
[ -f "$prefix/lib/slurm/mtllm.so" ] || fail "$prefix: no lib/slurm/mtllm.so in it"
export PATH=$prefix/bin:$PATH

# --- Slurm -----------------------------------------------------------------------------------------

say "Starting a Slurm of four nodes in $cluster"
"$cluster_sh" start "$cluster" --nodes=4 --cpus=2 --plugin="$prefix/lib/slurm/mtllm.so"
eval "$("$cluster_sh" env "$cluster")"
cd "$directory"
sinfo

# --- data ------------------------------------------------------------------------------------------

say "Text: the King James Bible of Debian's package bible-kjv, a chapter a paragraph"
# A line is "Ge1:1 In the beginning ...": without the reference, and an empty line where the
# chapter changes.
bible -f 'gen1:1-rev22:21' < /dev/null | awk '
    { chapter = $1; sub(/:.*/, "", chapter); sub(/^[^ ]* /, "") }
    chapter != last && NR > 1 { print "" }
    { print; last = chapter }' > text.txt
[ "$(wc -c < text.txt)" -gt 4000000 ] || fail "text.txt: the text is not whole"
head -n 3 text.txt

say "Tokenizer: 1024 tokens, of the same kind as Llama's"
quietly tokenizer.log spm_train --input=text.txt --model_prefix=tokenizer --vocab_size=1024 \
    --model_type=bpe --byte_fallback=true --character_coverage=1 --split_digits=true \
    --normalization_rule_name=identity --remove_extra_whitespaces=false \
    --allow_whitespace_only_pieces=true
mtllm-data tokenize --tokenizer=tokenizer.model --split-documents=paragraph --output=tokens text.txt

# --- training --------------------------------------------------------------------------------------

# squeue as the user would see it, whenever it has changed.
queue=''
show_queue() {
    local now
    now=$(squeue -o '    %8i %10P %10j %12T %R') || return 0
    [ "$now" = "$queue" ] || printf '%s\n' "$now"
    queue=$now
}

# The steps that have been made since the last time, a line for every tenth.
shown=0
show_progress() {
    local lines
    [ -f "$run/metrics.jsonl" ] || return 0
    lines=$(metrics | awk -v after="$shown" -v steps="$steps" '
        $1 > after && ($1 % 10 == 0 || $1 == 1) {
            bar = sprintf("%*s", int(8 * $2), ""); gsub(/ /, "#", bar)
            printf "    step %4d of %d   loss %.3f  %s\n", $1, steps, $2, bar
        }')
    [ -n "$lines" ] || return 0
    printf '%s\n' "$lines"
    shown=$(sed -n '$s/ *step *\([0-9]*\).*/\1/p' <<< "$lines")
}

# "step loss" of every training step.
metrics() {
    sed -n '/"eval"/d; s/.*"step": *\([0-9]*\).*"loss": *\([^,}]*\).*/\1 \2/p' "$run/metrics.jsonl"
}
step() { metrics 2>/dev/null | tail -n 1 | cut -d' ' -f1 | grep . || echo 0; }

# job_field JOB NAME: what scontrol says of it.
job_field() { scontrol -o show job "$1" | sed -n "s/.* $2=\([^ ]*\).*/\1/p"; }
is_state() { [ "$(job_field "$1" JobState)" = "$2" ]; }

# follow SECONDS COMMAND...: show what happens until the command succeeds. A job that failed is
# the end of it.
follow() {
    local deadline=$((SECONDS + $1)) state
    shift
    until "$@"; do
        show_queue
        show_progress
        state=$(job_field "$train" JobState)
        case $state in
        FAILED | CANCELLED | TIMEOUT | NODE_FAIL | OUT_OF_MEMORY | BOOT_FAIL)
            tail -n 20 "$log" >&2
            fail "the training job ended as $state; its output is $directory/$log"
            ;;
        esac
        [ $SECONDS -lt $deadline ] || fail "gave up waiting for \"$*\"; see $directory/$log"
        sleep 0.5
    done
    show_queue
    show_progress
}

reached() { [ "$(step)" -ge "$1" ]; }
# The point of it all: the urgent job has the nodes, and the training waits in the queue.
was_preempted() { is_state "$urgent" RUNNING && is_state "$train" PENDING; }

say "Training: sbatch --llm-model=llama-tiny --llm-tp=2 --llm-pp=2 examples/train.sh"
# The four nodes share the cores of this host.
export MTLLM_THREADS=1
train=$(sbatch --parsable --llm-model=llama-tiny --llm-tp=2 --llm-pp=2 \
    "$source_dir/examples/train.sh" --data="$directory/tokens" \
    --tokenizer="$directory/tokenizer.model" --steps="$steps" --seq-length=128 \
    --global-batch-size=16 --micro-batch-size=4 --lr=2e-3 \
    --eval-interval=$((steps > 100 ? 100 : steps)) --eval-steps=2)
log=train-$train.out run=mtllm-$train
echo "    job $train, its output in $log, its run in $run"
follow 300 reached $((steps / 3))

say "A job of higher priority wants the nodes"
urgent=$(sbatch --parsable --partition=high --job-name=urgent --nodes=4 --ntasks-per-node=2 \
    --output=urgent-%j.out --wrap='srun sleep 6')
follow 120 was_preempted
at=$(step)
grep 'stopped by' "$log" | tail -n 1 || fail "the training did not say that it was stopped"
say "The training has made its checkpoint after step $at and is in the queue again"
ls "$run/ckpt"
follow 120 is_state "$urgent" COMPLETED
say "The urgent job is done; the training goes on by itself"
follow 600 is_state "$train" COMPLETED

# --- what came of it -------------------------------------------------------------------------------

say "Hugging Face model"
h5-to-hf "$run" hf
ls -l hf

# A page of everything that was measured, and the loss by itself.
mtllm-report --output=report.html "$run"
mtllm-report --svg=loss --output=loss.svg "$run"

say "Did all of it happen?"
check() { # WHAT COMMAND...
    local what=$1
    shift
    "$@" || fail "no: $what"
    echo "    yes: $what"
}
restarts=$(job_field "$train" Restarts)
resumed=$(sed -n 's/.*resuming from .*, step \([0-9]*\).*/\1/p' "$log" | tail -n 1)
first=$(metrics | awk 'NR <= 10 { s += $2 } END { print s / 10 }')
last=$(metrics | tail -n 10 | awk '{ s += $2 } END { print s / 10 }')
check "Slurm restarted the job ($restarts time, says scontrol)" [ "$restarts" -ge 1 ]
check "it resumed where it was stopped, at step $resumed" [ "$resumed" = "$at" ]
check "every step from 1 to $steps was made once" \
    [ "$(metrics | cut -d' ' -f1)" = "$(seq "$steps")" ]
check "the loss fell from $first to $last" \
    awk -v a="$first" -v b="$last" 'BEGIN { exit !(b < 0.85 * a) }'
for file in config.json generation_config.json model.safetensors tokenizer.model; do
    check "hf/$file" [ -s "hf/$file" ]
done
check "the loss curve, loss.svg" grep -q '^</svg>' loss.svg
check "the restart in report.html" grep -q "restart 1, from step $at, job" report.html

say "Done. Everything is in $directory:"
cat <<END
    text.txt               what was learned from
    tokenizer.model        the tokenizer, tokens.bin and tokens.idx the text in tokens
    $(printf '%-22s' "$log") what the job printed, over both starts
    $(printf '%-22s' "$run/metrics.jsonl") a line a step
    $(printf '%-22s' "$run/ckpt") the checkpoints
    hf                     the Hugging Face model
    report.html            what was measured, as a page
    loss.svg               the loss curve
END
