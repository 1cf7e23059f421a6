/* What both directions of attention share: one head of one sequence at a time, in blocks of
 * queries against blocks of keys.
 *
 * A block of scores is held transposed, [keys, QUERY_BLOCK]: with the queries (few, and transposed
 * once) side by side, maxima, sums and masks run along vectors, and every product is of a kind at
 * which BLAS is fast at these sizes.
 */
#ifndef MTLLM_KERNELS_CPU_ATTENTION_H
#define MTLLM_KERNELS_CPU_ATTENTION_H

#include <cblas.h>
#include <math.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* A block of scores, and with it everything a thread holds for a head, fits the second cache. */
enum { QUERY_BLOCK = 64, KEY_BLOCK = 128 };

/* Rows of one head of one sequence inside qkv. */
struct attention_head {
    const float *q, *k, *v; /* row 0 of the sequence */
    int64_t stride;         /* from row to row, of all three */
    int64_t length;         /* rows of the sequence */
    int64_t window;         /* `length` when there is none */
    int head_dim;
    float scale;
    const struct attention_dropout *dropout; /* NULL: none */
    int64_t dropout_row;                     /* of row 0 among all rows of the run */
    int dropout_head;                        /* of the query head among all of the model */
};

/* Queries [query, query + queries) against keys [key, key + keys), numbered within the sequence. */
struct attention_block {
    int64_t query, key;
    int queries, keys;
};

/* Dropout of a block of probabilities: factors[keys, QUERY_BLOCK] are 0 or 1 / (1 - rate). */
void attention_dropout_factors(float *factors, const struct attention_head *head,
                               const struct attention_block *block);
/* x[keys, QUERY_BLOCK] *= factors */
void attention_multiply(float *x, const float *factors, int keys);

/* Start at the block of queries that begins at `query`. */
static inline void attention_block_begin(struct attention_block *block,
                                         const struct attention_head *head, int64_t query)
{
    int64_t left = head->length - query;

    block->query = query;
    block->queries = left < QUERY_BLOCK ? (int)left : QUERY_BLOCK;
}

/* The first key that some query of the block sees, and the end of those. */
static inline int64_t attention_first_key(const struct attention_head *head,
                                          const struct attention_block *block)
{
    int64_t first = block->query - head->window + 1;

    return first > 0 ? first : 0;
}

static inline int64_t attention_end_key(const struct attention_block *block)
{
    return block->query + block->queries;
}

/* Go to the keys that begin at `key`. */
static inline void attention_block_keys(struct attention_block *block, int64_t key)
{
    int64_t left = attention_end_key(block) - key;

    block->key = key;
    block->keys = left < KEY_BLOCK ? (int)left : KEY_BLOCK;
}

/* Scores that the mask hides become -infinity, whose exponential is 0. */
static inline void attention_mask(float *scores, const struct attention_head *head,
                                  const struct attention_block *block)
{
    for (int i = 0; i < block->keys; i++) {
        float *row = scores + (int64_t)i * QUERY_BLOCK;
        int64_t first = block->key + i - block->query, last = first + head->window;

        /* key j is seen by queries j <= i < j + window */
        for (int64_t query = 0; query < first && query < QUERY_BLOCK; query++)
            row[query] = -INFINITY;
        for (int64_t query = last > 0 ? last : 0; query < QUERY_BLOCK; query++)
            row[query] = -INFINITY;
    }
}

/* to[head_dim, QUERY_BLOCK] = scale * from[queries, head_dim]^T, columns beyond queries zero. */
static inline void attention_transpose(float *to, const float *from, int64_t stride, int queries,
                                       int head_dim, float scale)
{
    for (int i = 0; i < head_dim; i++) {
        for (int query = 0; query < queries; query++)
            to[i * QUERY_BLOCK + query] = from[query * stride + i] * scale;
        for (int query = queries; query < QUERY_BLOCK; query++)
            to[i * QUERY_BLOCK + query] = 0;
    }
}

/* c[m, n] = a b + beta c for one block; a may be transposed. */
static inline void attention_product(CBLAS_TRANSPOSE transpose_a, int m, int n, int k,
                                     const float *a, int64_t a_stride, const float *b,
                                     int64_t b_stride, float beta, float *c, int64_t c_stride)
{
    cblas_sgemm(CblasRowMajor, transpose_a, CblasNoTrans, m, n, k, 1, a, (int)a_stride, b,
                (int)b_stride, beta, c, (int)c_stride);
}

#endif
