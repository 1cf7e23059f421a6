/* How much memory attention's backward pass works in on a GPU: for the kernels that work there, and
 * for who plans for a GPU that this host does not have.
 */
#ifndef MTLLM_KERNELS_ATTENTION_WORKSPACE_H
#define MTLLM_KERNELS_ATTENTION_WORKSPACE_H

#include "kernels/kernels.h"

/* What of a GPU decides on it. */
struct attention_device {
    int multiprocessors;
    size_t shared_bytes; /* that a block can have */
};

/* attention_simt: [heads, rows] */
static inline size_t attention_simt_bytes(const struct attention_shape *shape)
{
    return sizeof(float) * (size_t)shape->heads * (size_t)shape->rows;
}

/* attention_mma, which rounds head_dim up to `dim` and works with blocks of `queries` on that many
 * warps: sums of dQ, two statistics of each row, a turn of each warp and one of the whole. */
static inline size_t attention_mma_tiled_bytes(const struct attention_shape *shape, int dim,
                                               int queries, int warps)
{
    size_t parts =
        (size_t)shape->heads * (size_t)(shape->rows / queries + (int64_t)shape->sequences);

    return 4 * (parts * (size_t)(queries * (dim + 2) + warps) + 1);
}

/* The tiles that attention_mma_backward.cu takes: the largest that there is shared memory for. */
static inline size_t attention_mma_bytes(const struct attention_shape *shape, size_t shared_bytes)
{
    bool largest = shared_bytes >= (size_t)200 << 10, large = shared_bytes >= (size_t)163 << 10;

    if (shape->head_dim <= 32)
        return attention_mma_tiled_bytes(shape, 32, 64, 8);
    if (shape->head_dim <= 64)
        return attention_mma_tiled_bytes(shape, 64, large ? 128 : 32, 8);
    if (shape->head_dim <= 128)
        return attention_mma_tiled_bytes(shape, 128, large ? 64 : 32, 8);
    return attention_mma_tiled_bytes(shape, 256, largest ? 64 : 16, largest ? 8 : 4);
}

enum { ATTENTION_WGMMA_KEYS = 128 }; /* of a tile */

/* Rows of attention_wgmma's workspace: every sequence gets whole tiles. */
static inline int64_t attention_wgmma_rows(int64_t rows, int sequences)
{
    return (rows + (int64_t)ATTENTION_WGMMA_KEYS * sequences) / ATTENTION_WGMMA_KEYS *
           ATTENTION_WGMMA_KEYS;
}

/* Parts that the query heads of a key/value head are split into. Enough tiles for all
 * multiprocessors, if the sequences are not many and short: then the longest tile, twice as long as
 * the mean one, is no longer than a multiprocessor's share. */
static inline int attention_wgmma_splits(const struct attention_shape *shape, int multiprocessors)
{
    int group = shape->heads / shape->kv_heads, splits = 1;
    int64_t tiles =
        (shape->rows + ATTENTION_WGMMA_KEYS - 1) / ATTENTION_WGMMA_KEYS * shape->kv_heads;

    while (splits < group && (group % splits || tiles * splits < 2 * multiprocessors))
        splits++;
    return splits;
}

/* attention_wgmma: sums of dQ, of dK and dV where they are split, two statistics of each row and
 * counters of tiles. */
static inline size_t attention_wgmma_bytes(const struct attention_shape *shape, int multiprocessors)
{
    size_t rows =
        (size_t)attention_wgmma_rows(shape->rows, shape->sequences) * (size_t)shape->heads;
    size_t sums = rows * (size_t)shape->head_dim;
    int splits = attention_wgmma_splits(shape, multiprocessors);
    size_t parts =
        splits > 1 ? 2 * sums / (size_t)(shape->heads / shape->kv_heads) * (size_t)splits : 0;

    return (sums + parts + 2 * rows + rows / 32 + 1) * 4;
}

/* --- cuDNN's, whose gradients of scores are in memory ----------------------------------------- */

/* Bytes that the gradients of one part's scores may take, if a part can be that small. Larger parts
 * are faster (cuda/NOTES.md); 32 heads of a sequence of 8192 are one. */
#define ATTENTION_CUDNN_PART_BYTES ((int64_t)4 << 30)
#define ATTENTION_CUDNN_COUNTERS   ((int64_t)1 << 16) /* both passes count tiles */

/* The largest divisor of `whole` for which memory suffices, or 1. */
static inline int64_t attention_cudnn_largest(int64_t whole, int64_t bytes_of_one)
{
    for (int64_t parts = 1; parts < whole; parts++)
        if (whole % parts == 0 && whole / parts * bytes_of_one <= ATTENTION_CUDNN_PART_BYTES)
            return whole / parts;
    return 1;
}

/* How much of sequences of one length the backward pass does at a time. */
static inline void attention_cudnn_part(const struct attention_shape *shape, int64_t *sequences,
                                        int64_t *kv_heads)
{
    int64_t length = shape->rows / shape->sequences, head_bytes = length * length * 2;

    *kv_heads = shape->kv_heads;
    *sequences = attention_cudnn_largest(shape->sequences, shape->heads * head_bytes);
    if (*sequences == 1)
        *kv_heads =
            attention_cudnn_largest(shape->kv_heads, shape->heads / shape->kv_heads * head_bytes);
}

/* Of a part: gradients of scores and, where heads share keys, those of keys and values for every
 * head. */
static inline int64_t attention_cudnn_plan_bytes(int64_t heads, int64_t length, int64_t head_dim)
{
    length = (length + 127) / 128 * 128;
    return heads * length * 2 * (length + 2 * head_dim) + ATTENTION_CUDNN_COUNTERS;
}

static inline int64_t attention_cudnn_sums_bytes(int64_t heads, int64_t length)
{
    return (heads * length * (int64_t)sizeof(float) + 255) / 256 * 256;
}

static inline size_t attention_cudnn_bytes(const struct attention_shape *shape)
{
    int64_t length = shape->rows / shape->sequences, sequences, kv_heads, heads;

    attention_cudnn_part(shape, &sequences, &kv_heads);
    heads = sequences * kv_heads * (shape->heads / shape->kv_heads);
    return (size_t)(attention_cudnn_sums_bytes(heads, length) +
                    attention_cudnn_plan_bytes(heads, length, shape->head_dim));
}

/* What is enough for each of mtllm's own. */
static inline size_t attention_workspace_bytes(const struct attention_shape *shape,
                                               const struct attention_device *device)
{
    size_t bytes = attention_simt_bytes(shape);
    size_t mma = attention_mma_bytes(shape, device->shared_bytes);
    size_t wgmma = attention_wgmma_bytes(shape, device->multiprocessors);

    bytes = mma > bytes ? mma : bytes;
    return wgmma > bytes ? wgmma : bytes;
}

#endif
