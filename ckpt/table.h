/* The piece table: which rectangle of which tensor lies where in which shard.
 *
 * A shard's writer builds one of its own pieces; commit joins them all, and a reader gets the whole
 * from the index. table_finish() is the judge of every table that anything is read by.
 */
#ifndef MTLLM_CKPT_TABLE_H
#define MTLLM_CKPT_TABLE_H

#include "ckpt/checkpoint.h"

enum { TABLE_ABSENT = -1, TABLE_NAME_LIMIT = 1024 };

struct table_tensor {
    char *name;
    int dimensions;
    int64_t shape[2];
    int8_t dtype[CHECKPOINT_KINDS]; /* TABLE_ABSENT where this kind is not kept */
    /* after table_finish(): this kind's pieces are pieces[first] and the count - 1 after it */
    size_t first[CHECKPOINT_KINDS], count[CHECKPOINT_KINDS];
};

struct table_piece {
    uint32_t tensor;
    uint32_t shard;
    uint8_t kind, dtype;
    int64_t start[2], extent[2];
    uint64_t offset;  /* of its first byte in the shard file */
    uint64_t element; /* of its first element in the shard's dataset of this kind and dtype */
};

struct table {
    struct table_tensor *tensors;
    size_t tensor_count, tensor_capacity;
    struct table_piece *pieces;
    size_t piece_count, piece_capacity;
    uint32_t *slots; /* hash by name, tensor number + 1 */
    size_t slot_count;
};

/* Add a tensor, or find it; one of that name must have this shape. Returns its number or -1.
 * Errors of all functions here: EXIT_STATUS_BUG (the caller asks the impossible) or
 * EXIT_STATUS_SYSTEM (no memory). */
int64_t table_add_tensor(struct table *table, const char *name, int dimensions,
                         const int64_t shape[2], struct error *error);

/* Add a piece; `piece->tensor` is what table_add_tensor() returned. It must lie in its tensor and
 * have the dtype that other pieces of the same tensor and kind have. */
int table_add_piece(struct table *table, const struct table_piece *piece, struct error *error);

/* Order tensors by name and pieces by tensor, kind and place; refuse a kind whose pieces leave a
 * gap or overlap, and a tensor without weights. */
int table_finish(struct table *table, struct error *error);

static inline uint64_t table_piece_bytes(const struct table_piece *piece)
{
    return (uint64_t)piece->extent[0] * (uint64_t)piece->extent[1] *
           dtype_bytes((enum dtype)piece->dtype);
}

/* The number of the tensor of that name in a finished table, or -1. */
int64_t table_find(const struct table *table, const char *name);

void table_free(struct table *table);

#endif
