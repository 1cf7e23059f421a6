/* Names and numbers of the checkpoint format that writer and reader share; mtllm-checkpoint(5)
 * says what they mean. */
#ifndef MTLLM_CKPT_FORMAT_H
#define MTLLM_CKPT_FORMAT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define FORMAT_NAME     "mtllm-checkpoint"
#define FORMAT_VERSION  1
#define FORMAT_INDEX    "index.h5"
#define FORMAT_MANIFEST "manifest.json"
#define FORMAT_LATEST   "latest"

/* Every block of a shard file has its own checksum; the last one may be short. */
#define FORMAT_BLOCK ((size_t)1 << 20)

/* A piece begins at a multiple of this, a blob at a multiple of the other. */
#define FORMAT_PIECE_ALIGNMENT 64
#define FORMAT_BLOB_ALIGNMENT  4096

/* A run of more ranks than this needs a new format: the names have five digits. */
#define FORMAT_MAX_SHARDS 100000

enum { FORMAT_NAME_SIZE = 32 }; /* holds any file or directory name below */

static inline void format_shard_name(char name[FORMAT_NAME_SIZE], int number)
{
    snprintf(name, FORMAT_NAME_SIZE, "shard-%05d.h5", number);
}

static inline void format_step_name(char name[FORMAT_NAME_SIZE], int64_t step)
{
    snprintf(name, FORMAT_NAME_SIZE, "step-%08lld", (long long)step);
}

static inline uint64_t format_block_count(uint64_t size)
{
    return size / FORMAT_BLOCK + (size % FORMAT_BLOCK != 0);
}

#endif
