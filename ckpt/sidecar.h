/* What a shard's writer tells the process that commits: its piece table and block checksums.
 *
 * A small file beside the shard while the checkpoint is being made, written after the shard is on
 * the disk; commit folds it into the index and removes it. It never outlives a checkpoint's making
 * and is read on machines of the job that wrote it, so it is 64-bit words in the host's order. */
#ifndef MTLLM_CKPT_SIDECAR_H
#define MTLLM_CKPT_SIDECAR_H

#include <stdint.h>

#include "ckpt/format.h"
#include "ckpt/table.h"

struct sidecar {
    int64_t step;
    int number;         /* of the shard */
    uint64_t size;      /* of the shard file */
    struct table table; /* not finished */
    uint64_t *blocks;   /* [format_block_count(size)] XXH3 */
};

static inline void format_sidecar_name(char name[FORMAT_NAME_SIZE], int number)
{
    snprintf(name, FORMAT_NAME_SIZE, ".shard-%05d.pieces", number);
}

int sidecar_write(const char *path, const struct sidecar *sidecar, struct error *error);

/* Error: EXIT_STATUS_DATA, naming the file, when it is missing or damaged. */
int sidecar_read(const char *path, struct sidecar *sidecar, struct error *error);

void sidecar_free(struct sidecar *sidecar);

#endif
