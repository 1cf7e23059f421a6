/* index.h5: whole tensors as virtual datasets over the shards, the table of pieces, the checksums
 * of every block of every shard, and all state that is not a tensor. */
#ifndef MTLLM_CKPT_INDEX_H
#define MTLLM_CKPT_INDEX_H

#include "ckpt/table.h"

struct index_shard {
    uint64_t size;    /* of the file */
    uint64_t *blocks; /* [format_block_count(size)] XXH3 */
};

struct index {
    struct table table; /* finished */
    struct index_shard *shards;
    size_t shard_count;
};

/* The bytes of an index.h5, the caller's to free. `created` is a time as text. */
int index_compose(const struct index *index, const struct checkpoint_state *state,
                  const char *created, void **bytes, size_t *size, struct error *error);

/* Parse the bytes of an index.h5 whose checksum has been seen to hold; `path` is for messages.
 * Error: EXIT_STATUS_DATA. */
int index_parse(struct index *index, struct checkpoint_state *state, void *bytes, size_t size,
                const char *path, struct error *error);

void index_free(struct index *index);
void index_state_free(struct checkpoint_state *state);

/* XXH3 over a shard's block checksums, as the manifest holds it. */
uint64_t index_shard_checksum(const struct index_shard *shard);

#endif
