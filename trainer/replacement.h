/* A file that takes the place of the one of its name when it is whole: it is written beside it and
 * renamed. Until then, and when anything fails, the one that was there stays.
 */
#ifndef MTLLM_TRAINER_REPLACEMENT_H
#define MTLLM_TRAINER_REPLACEMENT_H

#include <stdbool.h>
#include <stdio.h>

#include "ckpt/disk.h"
#include "core/error.h"

struct replacement {
    FILE *stream; /* to write to; what goes wrong there replacement_close() sees */
    char path[DISK_PATH_SIZE], beside[DISK_PATH_SIZE];
};

/* `beside`: where it is until it is whole, on the same file system; NULL: PATH.tmp.
 * Error: EXIT_STATUS_IO, EXIT_STATUS_CONFIGURATION for a path that is too long; also in errno. */
int replacement_open(struct replacement *file, const char *path, const char *beside,
                     struct error *error);
/* With `result` 0 it takes its place, `durable`: before this returns, and for good; else it goes,
 * and -1 is returned. Error: EXIT_STATUS_IO, also in errno; with `result` -1 as it was. */
int replacement_close(struct replacement *file, int result, bool durable, struct error *error);

#endif
