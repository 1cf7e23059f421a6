/* Small checkpoints whose every value is known, for the tests of this library and its programs.
 *
 * Values depend on (seed, tensor, kind, place) alone, not on how many shards hold them. */
#ifndef MTLLM_CKPT_TEST_FIXTURE_H
#define MTLLM_CKPT_TEST_FIXTURE_H

#include "ckpt/checkpoint.h"

enum { FIXTURE_TENSORS = 6, FIXTURE_PATH = 512 };

struct fixture_tensor {
    const char *name;
    int dimensions;
    int64_t shape[2];
    enum dtype weight;
};

extern const struct fixture_tensor fixture_tensors[FIXTURE_TENSORS];

static inline enum dtype fixture_dtype(int tensor, int kind)
{
    return kind == CHECKPOINT_WEIGHT ? fixture_tensors[tensor].weight : DTYPE_F32;
}

/* A new empty directory, removed by fixture_remove(). */
void fixture_directory(char path[FIXTURE_PATH]);
void fixture_remove(const char *path);

/* Is there a file of that name? */
int fixture_exists(const char *directory, const char *name);

/* Write and commit a checkpoint; shards are cut by rows, by columns, into quarters and not at all,
 * tensor by tensor. 0 or -1. */
int fixture_shard(const char *root, int64_t step, int number, int shards, uint64_t seed,
                  struct error *error);
int fixture_commit(const char *root, int64_t step, int shards, uint64_t seed, struct error *error);
int fixture_write(const char *root, int64_t step, int shards, uint64_t seed, struct error *error);

/* A rectangle as it must be read, in `dtype`; the caller frees it. */
void *fixture_values(uint64_t seed, int tensor, int kind, const int64_t start[2],
                     const int64_t extent[2], enum dtype dtype);

/* The seed of a checkpoint that fixture_write() made, as its state tells. */
uint64_t fixture_seed(const struct checkpoint *checkpoint);

/* Read everything and compare every bit; the text of the first difference, or NULL. It is in a
 * static buffer. */
const char *fixture_compare(struct checkpoint *checkpoint, uint64_t seed);

#endif
