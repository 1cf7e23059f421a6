/* An open checkpoint, as the parts of the reader see it. */
#ifndef MTLLM_CKPT_READER_H
#define MTLLM_CKPT_READER_H

#include <pthread.h>

#include "ckpt/checkpoint.h"
#include "ckpt/disk.h"
#include "ckpt/index.h"
#include "ckpt/manifest.h"

/* Blocks whose checksum held are kept, because the next tensor often begins where the last ended,
 * in every shard: room for two blocks a shard, within these bounds (of MiB). */
enum { READER_LEAST_BLOCKS = 16, READER_MOST_BLOCKS = 256 };

struct reader_block {
    char *bytes; /* NULL: free */
    uint32_t shard;
    uint64_t number;
    uint64_t used; /* the largest was used last */
};

struct checkpoint {
    char directory[DISK_PATH_SIZE];
    struct manifest manifest;
    struct index index;
    struct checkpoint_state state;
    struct checkpoint_tensor *tensors;
    int directory_fd;
    pthread_mutex_t lock; /* of what follows */
    int *shard_fds;       /* -1 until first needed */
    struct reader_block *cache;
    size_t cache_blocks;
    uint64_t clock;
};

/* Check manifest, index and the sizes of all files of the checkpoint in `directory`. Each thing
 * found wrong goes to `complain`; returns how many. What could be read is in `checkpoint`, which
 * begins as zeros and is the caller's to reader_release() either way. `index_good` says whether the
 * shards' checksums are known. -1 with `error`: the system refused. */
int reader_check(struct checkpoint *checkpoint, const char *directory, bool *index_good,
                 checkpoint_complaint complain, void *user, struct error *error);
void reader_release(struct checkpoint *checkpoint);

/* The descriptor of a shard, open until the checkpoint is closed; -1 with errno. */
int reader_shard_fd(struct checkpoint *checkpoint, uint32_t shard);

/* How many bytes block `number` of a shard has. */
size_t reader_block_size(const struct checkpoint *checkpoint, uint32_t shard, uint64_t number);

/* Read a block into bytes[reader_block_size()] and compare its checksum. 0; 1 when it differs; -1
 * with errno. */
int reader_read_block(struct checkpoint *checkpoint, uint32_t shard, uint64_t number, void *bytes);

#endif
