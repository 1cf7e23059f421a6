/* Attention forward: blocks of scores with a running maximum and sum (Dao et al.,
 * "FlashAttention", 2022), so that memory grows with the sequence and not with its square.
 *
 * A task is one query head of one sequence; its queries go block by block over the keys they see.
 * The sum so far is rescaled whenever a block raises the maximum. Dropout comes behind the softmax:
 * what it drops is part of the sum of exponentials, but not of the output. Every task writes its
 * own part of `out` and `lse`, so their order does not matter and threads take them as they come.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/vector.h"
#include "kernels/philox.h"

/* So that a query's first block holds a key that it sees, and its maximum is finite from there on:
 * with a window the block begins where the first query's window does, QUERY_BLOCK - 1 before the
 * last one's. */
_Static_assert(QUERY_BLOCK <= KEY_BLOCK, "a block of keys must reach into every query's window");

/* A block of queries on its way over the keys; one column a query. */
struct running_block {
    float scores[KEY_BLOCK * QUERY_BLOCK] __attribute__((aligned(64)));
    float factors[KEY_BLOCK * QUERY_BLOCK] __attribute__((aligned(64))); /* of dropout */
    float maximum[QUERY_BLOCK];
    float factor[QUERY_BLOCK]; /* what the last block made of the sums before it */
    double sum[QUERY_BLOCK];
};

void attention_dropout_factors(float *factors, const struct attention_head *head,
                               const struct attention_block *block)
{
    const struct attention_dropout *dropout = head->dropout;
    const uint32_t seed[2] = {(uint32_t)dropout->seed, (uint32_t)(dropout->seed >> 32)};
    uint32_t threshold = (uint32_t)(dropout->rate * 0x1p32);
    float kept = (float)(1 / (1 - dropout->rate));
    int64_t end = block->key + block->keys;

    for (int query = 0; query < QUERY_BLOCK; query++)
        for (int64_t group = block->key / 32 * 32; group < end; group += 32)
            for (int64_t first = group; first < group + 8; first++) {
                uint32_t numbers[4];

                philox_attention(numbers, seed, dropout->place,
                                 head->dropout_row + block->query + query, head->dropout_head,
                                 (int)first);
                for (int i = 0; i < 4; i++) {
                    int64_t key = first + 8 * i;

                    if (key >= block->key && key < end)
                        factors[(key - block->key) * QUERY_BLOCK + query] =
                            numbers[i] < threshold ? 0 : kept;
                }
            }
}

VECTORIZED void attention_multiply(float *x, const float *factors, int keys)
{
#pragma omp simd
    for (int64_t i = 0; i < (int64_t)keys * QUERY_BLOCK; i++)
        x[i] *= factors[i];
}

/* Turn a block of scores into exponentials, and take them into the maxima and sums. */
VECTORIZED static void softmax_block(struct running_block *running, int keys)
{
    float maximum[QUERY_BLOCK], sum[QUERY_BLOCK] = {0};

    memcpy(maximum, running->maximum, sizeof(maximum));
    for (int64_t key = 0; key < keys; key++) {
        const float *x = running->scores + key * QUERY_BLOCK;

#pragma omp simd
        for (int i = 0; i < QUERY_BLOCK; i++)
            maximum[i] = x[i] > maximum[i] ? x[i] : maximum[i];
    }
#pragma omp simd
    for (int i = 0; i < QUERY_BLOCK; i++) {
        float before = running->maximum[i];

        running->maximum[i] = maximum[i];
        running->factor[i] = exp_vector(before - maximum[i]);
    }
    for (int64_t key = 0; key < keys; key++) {
        float *x = running->scores + key * QUERY_BLOCK;

#pragma omp simd
        for (int i = 0; i < QUERY_BLOCK; i++) {
            float p = exp_vector(x[i] - maximum[i]);

            x[i] = p;
            sum[i] += p;
        }
    }
#pragma omp simd
    for (int i = 0; i < QUERY_BLOCK; i++)
        running->sum[i] = running->sum[i] * (double)running->factor[i] + (double)sum[i];
}

VECTORIZED static void scale_row(float *x, float factor, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        x[i] *= factor;
}

static void forward_head(float *out, int64_t out_stride, float *lse,
                         const struct attention_head *head)
{
    int dim = head->head_dim;
    float q[dim * QUERY_BLOCK] __attribute__((aligned(64)));
    struct running_block running;
    struct attention_block block;

    for (int64_t query = 0; query < head->length; query += QUERY_BLOCK) {
        float *out_block = out + query * out_stride;
        int64_t first_key, end_key;

        attention_block_begin(&block, head, query);
        attention_transpose(q, head->q + query * head->stride, head->stride, block.queries, dim,
                            head->scale);
        first_key = attention_first_key(head, &block);
        end_key = attention_end_key(&block);
        for (int i = 0; i < QUERY_BLOCK; i++) {
            running.maximum[i] = -INFINITY;
            running.sum[i] = 0;
        }
        for (int64_t key = first_key; key < end_key; key += KEY_BLOCK) {
            attention_block_keys(&block, key);
            attention_product(CblasNoTrans, block.keys, QUERY_BLOCK, dim,
                              head->k + key * head->stride, head->stride, q, QUERY_BLOCK, 0,
                              running.scores, QUERY_BLOCK);
            attention_mask(running.scores, head, &block);
            softmax_block(&running, block.keys);
            if (head->dropout) {
                attention_dropout_factors(running.factors, head, &block);
                attention_multiply(running.scores, running.factors, block.keys);
            }
            for (int i = 0; i < block.queries && key > first_key; i++)
                if (running.factor[i] != 1)
                    scale_row(out_block + i * out_stride, running.factor[i], dim);
            attention_product(CblasTrans, block.queries, dim, block.keys, running.scores,
                              QUERY_BLOCK, head->v + key * head->stride, head->stride,
                              key > first_key ? 1 : 0, out_block, out_stride);
        }
        for (int i = 0; i < block.queries; i++) {
            scale_row(out_block + i * out_stride, (float)(1 / running.sum[i]), dim);
            lse[query + i] = (float)((double)running.maximum[i] + log(running.sum[i]));
        }
    }
}

void cpu_attention_forward(struct stream *stream, void *out, float *lse, const void *qkv,
                           const struct attention_shape *shape)
{
    int dim = shape->head_dim;
    int64_t stride = (int64_t)(shape->heads + 2 * shape->kv_heads) * dim;
    int64_t out_stride = (int64_t)shape->heads * dim;
    int64_t tasks = (int64_t)shape->sequences * shape->heads;

    (void)stream;
    assert(shape->heads % shape->kv_heads == 0);
    assert(shape->dropout.rate >= 0 && shape->dropout.rate < 1);
    assert(shape->starts[0] == 0 && shape->starts[shape->sequences] == shape->rows);
    blas_serial_begin();
#pragma omp parallel for schedule(dynamic) if (shape->rows * stride > PARALLEL_ELEMENTS)
    for (int64_t task = 0; task < tasks; task++) {
        int head = (int)(task % shape->heads), kv_head = head / (shape->heads / shape->kv_heads);
        int64_t sequence = task / shape->heads, start = shape->starts[sequence];
        const float *row = (const float *)qkv + start * stride;
        struct attention_head view = {
            .q = row + (int64_t)head * dim,
            .k = row + (int64_t)(shape->heads + kv_head) * dim,
            .v = row + (int64_t)(shape->heads + shape->kv_heads + kv_head) * dim,
            .stride = stride,
            .length = shape->starts[sequence + 1] - start,
            .head_dim = dim,
            .scale = (float)(1 / sqrt(dim)),
            .dropout = shape->dropout.rate > 0 ? &shape->dropout : NULL,
            .dropout_row = shape->dropout.first_row + start,
            .dropout_head = shape->dropout.first_head + head,
        };

        view.window = shape->window > 0 ? shape->window : view.length;
        forward_head((float *)out + start * out_stride + (int64_t)head * dim, out_stride,
                     lse + head * shape->rows + start, &view);
    }
    blas_serial_end();
}
