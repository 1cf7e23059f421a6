/* Geometry shared by the two directions of attention: one head of one sequence at a time, in
 * blocks of queries against blocks of keys.
 */
#ifndef MTLLM_KERNELS_CPU_ATTENTION_H
#define MTLLM_KERNELS_CPU_ATTENTION_H

#include <cblas.h>
#include <stdint.h>

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
};

/* Queries [query, query + queries) against keys [key, key + keys), numbered within the sequence. */
struct attention_block {
    int64_t query, key;
    int queries, keys;
};

/* The columns [begin, end) of a row of the block that its query sees. */
struct attention_span {
    int begin, end;
};

/* The first block of keys that some query of a block starting at `query` sees. */
static inline int64_t attention_first_key(const struct attention_head *head, int64_t query)
{
    int64_t first = query - head->window + 1;

    return first > 0 ? first : 0;
}

static inline struct attention_span attention_visible(const struct attention_head *head,
                                                      const struct attention_block *block, int row)
{
    int64_t query = block->query + row;
    int64_t begin = query - head->window + 1 - block->key, end = query + 1 - block->key;
    struct attention_span span = {begin < 0             ? 0
                                  : begin > block->keys ? block->keys
                                                        : (int)begin,
                                  end < 0             ? 0
                                  : end > block->keys ? block->keys
                                                      : (int)end};

    return span;
}

/* c[m, n] = alpha a b + beta c for one block; transposes as in BLAS. */
static inline void attention_product(CBLAS_TRANSPOSE transpose_a, CBLAS_TRANSPOSE transpose_b,
                                     int m, int n, int k, float alpha, const float *a,
                                     int64_t a_stride, const float *b, int64_t b_stride, float beta,
                                     float *c, int64_t c_stride)
{
    cblas_sgemm(CblasRowMajor, transpose_a, transpose_b, m, n, k, alpha, a, (int)a_stride, b,
                (int)b_stride, beta, c, (int)c_stride);
}

#endif
