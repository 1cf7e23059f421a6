#!/usr/bin/env bats
# Guards: combinations of parallelism have the losses of one rank (1e-5 relative, every step, with
# dropout) and read each other's checkpoints. Here some of them; tests/combinations.sh has all.

load common

@test "sixty combinations of parallelism, spread over all" {
    common_setup
    builddir=$build_dir timeout 600 bash "$BATS_TEST_DIRNAME/combinations.sh" 60
}
