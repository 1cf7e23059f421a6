#!/usr/bin/env bats
# What a user sees of the plugin in Slurm's own sbatch, salloc and srun, without any daemon: the
# options are there, come in from where Slurm takes options, and nonsense is refused on the terminal
# by name; a job without them is treated as if there were no plugin.

setup() {
    . "$BATS_TEST_DIRNAME/slurm/plugin.bash"
    why=$(plugin_missing sbatch srun salloc)
    [ -z "$why" ] || skip "$why"
    work=$BATS_TEST_TMPDIR
    client_conf "$work/etc" "required $plugin models=$top/etc/models"
    mkdir -p "$work/job" && cd "$work/job"
}

# The job is fine as far as the plugin is concerned, and goes on to a controller that is not there.
assert_accepted() {
    run timeout 20 "$@"
    [[ $output == *"Unable to contact slurm controller"* ]]
    [[ $output != *mtllm:* ]]
}

# assert_refused MESSAGE COMMAND...: with status 1, and before the controller is asked.
assert_refused() {
    local message=$1
    shift
    run timeout 20 "$@"
    echo "$output"
    [ "$status" -eq 1 ]
    [[ $output == *"error: mtllm: $message"* ]]
    [[ $output != *"slurm controller"* ]]
}

script() {
    printf '%s\n' '#!/bin/sh' "$@" 'srun mtllm-train' > job.sh
}

@test "--help lists every setting that can be given at submission" {
    wanted=$(sed -n 's/^SETTING([^"]*"\([^"]*\)".* SUBMIT, .*/--llm-\1/p' \
        "$top/core/settings.def")
    [ -n "$wanted" ]
    wanted=$(sort <<< "$wanted"$'\n'--llm-dry-run)
    for command in sbatch salloc srun; do
        run $command --help
        [ "$status" -eq 0 ]
        found=$(grep -o -e '--llm-[a-z0-9-]*' <<< "$output" | sort)
        [ "$found" = "$wanted" ]
    done
}

@test "a layout that the model's heads refuse is refused with the arithmetic" {
    message="--llm-tp=3: codellama-34b has 8 key/value heads, which 3 does not divide;"
    message+=" use 1, 2, 4, 8, 16, 32 or 64"
    script
    assert_refused "--llm-tp=2: falcon-7b has 71 query heads, which 2 does not divide" \
        sbatch --llm-model=falcon-7b --llm-tp=2 job.sh
    assert_refused "$message" sbatch --llm-model=codellama-34b --llm-tp=3 job.sh
    assert_refused "$message" salloc --llm-model=codellama-34b --llm-tp=3 true
    assert_refused "$message" srun --llm-model=codellama-34b --llm-tp=3 mtllm-train
}

@test "a layout that fits goes on to the controller" {
    script
    assert_accepted sbatch --llm-model=codellama-34b --llm-tp=8 job.sh
    assert_accepted sbatch --llm-model=falcon-40b --llm-tp=8 job.sh
    # Neighbours share a key/value head.
    assert_accepted sbatch --llm-model=falcon-40b --llm-tp=16 job.sh
    assert_accepted sbatch --test-only --llm-model codellama-34b --llm-tp 8 job.sh
    assert_accepted salloc --llm-model=codellama-34b --llm-tp=8 true
    assert_accepted srun --llm-model=codellama-34b --llm-tp=8 mtllm-train
}

@test "options of #SBATCH lines count, and the command line counts for more" {
    script '#SBATCH --llm-model=codellama-34b' '#SBATCH --llm-tp 3'
    assert_refused "--llm-tp=3: codellama-34b" sbatch job.sh
    assert_accepted sbatch --llm-tp=4 job.sh
    assert_refused "--llm-tp=5: codellama-34b" sbatch --llm-tp=5 job.sh
    assert_refused "--llm-tp=5: codellama-34b" sbatch --llm-tp=4 --llm-tp=5 job.sh
}

@test "an unknown model is refused with the list of those there are" {
    script
    assert_refused "--llm-model=gpt-9: unknown model; known in $top/etc/models: codellama-13b" \
        sbatch --llm-model=gpt-9 job.sh
    [[ $output == *", llama-tiny"* ]]
}

@test "values that are no values are refused" {
    script
    assert_refused "--llm-tp=two: not a whole number" sbatch --llm-tp=two job.sh
    assert_refused "--llm-tp=0: out of range; use 1 to 4096" sbatch --llm-tp=0 job.sh
    assert_refused "--llm-requeue=perhaps: use yes or no" sbatch --llm-requeue=perhaps job.sh
    assert_refused "--llm-margin=soon: not a time" sbatch --llm-margin=soon job.sh
    assert_refused "--llm-device=tpu: unknown; use one of auto|cpu|cuda" \
        sbatch --llm-device=tpu job.sh
    assert_refused "--llm-run-dir: the value is empty" sbatch --llm-run-dir= job.sh
}

@test "sizes that contradict each other are refused" {
    script
    assert_refused "--llm-global-batch-size=6: not a multiple of micro-batch-size x dp" \
        sbatch --llm-micro-batch-size=4 --llm-global-batch-size=6 job.sh
}

@test "a missing, malformed or misspelt ini file is refused with file and line" {
    script
    assert_refused "$PWD/none.ini: cannot read settings: No such file" \
        sbatch --llm-config=none.ini job.sh
    printf 'tp = 2\nthree\n' > bad.ini
    assert_refused "$PWD/bad.ini:2: not a section" sbatch --llm-config=bad.ini job.sh
    printf '[job]\nmodell = x\n' > bad.ini
    assert_refused "$PWD/bad.ini:2: modell: unknown setting; did you mean model?" \
        sbatch --llm-config=bad.ini job.sh
    printf 'tp = two\n' > bad.ini
    assert_refused "$PWD/bad.ini:1: tp=two: not a whole number" sbatch --llm-config=bad.ini job.sh
    echo 'heads = 6' > mine.ini
    assert_refused "no model: " sbatch --llm-model=./mine.ini job.sh
}

@test "config files, the user's MTLLM_ variables and options work together" {
    script
    printf 'model = codellama-34b\ntp = 3\n' > run.ini
    assert_refused "--llm-tp=3: codellama-34b" sbatch --llm-config=run.ini job.sh
    assert_accepted sbatch --llm-config=run.ini --llm-tp=4 job.sh
    MTLLM_TP=5 assert_refused "--llm-tp=5: codellama-34b" sbatch --llm-config=run.ini job.sh
    MTLLM_TP=5 assert_accepted sbatch --llm-config=run.ini --llm-tp=4 job.sh
}

@test "heterogeneous jobs are refused" {
    script
    assert_refused "a run cannot be spread over the components of a heterogeneous job" \
        sbatch --llm-tp=2 : -N1 job.sh
}

@test "conf= names the site's settings" {
    script
    printf 'model = codellama-34b\ntp = 3\n' > site.conf
    client_conf "$work/etc" "required $plugin models=$top/etc/models conf=$PWD/site.conf"
    assert_refused "--llm-tp=3: codellama-34b" sbatch --llm-pp=2 job.sh
    assert_accepted sbatch --llm-tp=2 job.sh
}

@test "--llm-dry-run prints the layouts and submits nothing" {
    script
    PATH=$build:$PATH
    for command in "sbatch --llm-dry-run=32 --llm-model=llama-2-70b job.sh" \
        "salloc --llm-model=llama-2-70b --llm-dry-run=32 true" \
        "srun --llm-model=llama-2-70b --llm-dry-run=32 mtllm-train"; do
        run timeout 20 $command
        [ "$status" -eq 0 ]
        [[ $output == "llama-2-70b: 68.98 billion weights"* ]]
        [[ $output == *"GiB/rank"*refused:*"needs "*" GiB a rank, of 79.1"* ]]
        [[ $output != *"slurm controller"* ]]
    done
    # Options of #SBATCH lines and what the layout is kept to count as for the job.
    script '#SBATCH --llm-model=llama-2-7b' '#SBATCH --llm-device-type=h200'
    run timeout 20 sbatch --llm-dry-run=8:16 --llm-tp=2 job.sh
    [ "$status" -eq 0 ]
    [ "$(grep -cE '^ +(8|16) +2 ' <<< "$output")" -eq 2 ]
    run timeout 20 sbatch --llm-dry-run=1 --llm-model=llama-2-70b job.sh
    [ "$status" -eq 78 ]
    [[ $output == *"no layout fits"* ]]
    run timeout 20 sbatch --llm-dry-run=many job.sh
    [ "$status" -eq 64 ]
    assert_refused "--llm-tp=3: codellama-34b" \
        sbatch --llm-dry-run=32 --llm-model=codellama-34b --llm-tp=3 job.sh
}

@test "an unknown plugin argument disturbs no job but those that use the plugin" {
    script
    client_conf "$work/etc" "required $plugin module=/x"
    assert_refused "plugstack.conf: module=/x: unknown argument; mtllm.so knows conf=FILE and" \
        sbatch --llm-tp=2 job.sh
    assert_accepted sbatch job.sh
    client_conf "$work/etc" "required $plugin conf=site.conf"
    assert_refused "plugstack.conf: conf=site.conf: not an absolute path" sbatch --llm-tp=2 job.sh
}

@test "without an option, sbatch says and does the same with and without the plugin" {
    script '#SBATCH -n2'
    said() {
        MTLLM_TP=nonsense timeout 20 sbatch --test-only -vv job.sh 2>&1 | grep -iv 'spank\|plugin'
    }
    with=$(said)
    client_conf "$work/etc" ""
    without=$(said)
    [ -n "$with" ]
    [ "$with" = "$without" ]
}

@test "without an option, no file is touched but the plugin and the libraries it is linked to" {
    command -v strace >/dev/null || skip "strace is not installed"
    strace -o trace true || skip "tracing is not permitted here"
    script
    touched() {
        strace -f -e trace=file -o trace timeout 20 sbatch --test-only "$@" job.sh >/dev/null 2>&1 ||
            true
        grep -o '"[^"]*"' trace | tr -d '"' | sort -u
    }
    with=$(touched)
    grep -qxF "$plugin" <<< "$with"
    with_option=$(touched --llm-model=llama-tiny)
    grep -qxF "$top/etc/models/llama-tiny.ini" <<< "$with_option"
    client_conf "$work/etc" ""
    more=$(comm -23 <(echo "$with") <(touched))
    [ "$(grep -v '/libinih\.so' <<< "$more")" = "$plugin" ]
}

@test "the plugin shows Slurm its callbacks and nothing else, and brings no second libslurm" {
    run bash -c "nm -D --defined-only '$plugin' | awk '{ print \$3 }'"
    [ "$status" -eq 0 ]
    [[ $output == *slurm_spank_init* ]]
    run grep -v '^plugin_\|^spank_\|^slurm_spank_' <<< "$output"
    [ "$status" -eq 1 ]
    run ldd "$plugin"
    [[ $output != *libslurm* ]]
}

@test "cli_filter.lua sets defaults for jobs with an option, and for no other" {
    ls "$(dirname "$(ldd "$(command -v sbatch)" | sed -n 's/.*=> \(.*libslurmfull.so\).*/\1/p')")" |
        grep -q cli_filter_lua || skip "Slurm without cli_filter/lua"
    cp "$top/etc/cli_filter.lua" "$work/etc/"
    echo CliFilterPlugins=lua >> "$work/etc/slurm.conf"
    script
    run timeout 20 sbatch -v --llm-tp=2 job.sh
    [[ $output =~ open-mode\ +:\ a ]]
    [[ $output =~ requeue\ +:\ requeue ]]
    [[ $output =~ signal\ +:\ USR2 ]]
    run timeout 20 sbatch -v --llm-tp=2 --no-requeue --open-mode=truncate --signal=B:USR1@90 job.sh
    [[ $output =~ open-mode\ +:\ t ]]
    [[ $output =~ no-requeue\ +:\ no-requeue ]]
    [[ $output =~ signal\ +:\ B:USR1 ]]
    run timeout 20 sbatch -v job.sh
    [[ $output == *"slurm controller"* ]]
    [[ $output != *open-mode* && $output != *requeue* && $output != *signal* ]]
}
