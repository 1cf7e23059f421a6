/* manifest.json: what a checkpoint consists of, with the checksum of every part and its own.
 *
 * It is written last and read first: a checkpoint without one is none. Its last member is the
 * XXH3 of the file's bytes with that member's 16 hexadecimal digits as zeros. */
#ifndef MTLLM_CKPT_MANIFEST_H
#define MTLLM_CKPT_MANIFEST_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

struct manifest_part {
    uint64_t size;
    uint64_t checksum; /* the index: of its bytes; a shard: of its blocks' checksums */
};

struct manifest {
    int64_t step;
    char created[32]; /* UTC, "2026-01-31T12:00:00Z" */
    char producer[64];
    char layout[32];
    struct manifest_part index;
    struct manifest_part *shards;
    size_t shard_count;
};

/* Write `path` and bring it to the disk. */
int manifest_write(const struct manifest *manifest, const char *path, struct error *error);

/* Error: EXIT_STATUS_DATA, naming the file: missing, damaged, of another format or version. */
int manifest_read(struct manifest *manifest, const char *path, struct error *error);

void manifest_free(struct manifest *manifest);

#endif
