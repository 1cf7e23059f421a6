/* The checkpoints of a run, whole or not, for people to look at. */
#ifndef MTLLM_CKPT_LISTING_H
#define MTLLM_CKPT_LISTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ckpt/disk.h"
#include "core/error.h"

struct listing_row {
    char directory[DISK_PATH_SIZE];
    int64_t step;
    char created[32], layout[32];
    uint64_t bytes;
    size_t tensors;
    bool described; /* the members above are known */
    bool latest;
    char fault[1024]; /* "" when it is complete */
};

/* One checkpoint; row->directory says which. Sizes and the index's checksum are checked, as
 * checkpoint_open() does. */
int listing_fill(struct listing_row *row, struct error *error);

/* All checkpoints under `root` (RUN/ckpt), oldest first, those being written or abandoned among
 * them; *rows is the caller's to free, also after an error. */
int listing_read(const char *root, struct listing_row **rows, size_t *count, struct error *error);

#endif
