/* make_checkpoint ROOT STEP SHARDS SEED: a small checkpoint for tests of the programs. */
#include <stdio.h>
#include <stdlib.h>

#include "ckpt/test_fixture.h"

int main(int argc, char **argv)
{
    struct error error = {0};

    if (argc != 5) {
        fprintf(stderr, "usage: %s ROOT STEP SHARDS SEED\n", argv[0]);
        return EXIT_STATUS_USAGE;
    }
    if (fixture_write(argv[1], atoll(argv[2]), atoi(argv[3]), strtoull(argv[4], NULL, 10), &error) <
        0)
        return error_print(&error);
    return 0;
}
