/* Attention forward: blocks of scores with a running maximum and sum (Dao et al.,
 * "FlashAttention", 2022), so that memory grows with the sequence and not with its square.
 *
 * A task is one query head of one sequence; its queries go block by block over the keys they see.
 * The sum so far is rescaled whenever a block raises the maximum. Every task writes its own part
 * of `out` and `lse`, so their order does not matter and threads take them as they come.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/vector.h"

/* A block of queries on its way over the keys. */
struct running_block {
    float scores[QUERY_BLOCK * KEY_BLOCK] __attribute__((aligned(64)));
    float maximum[QUERY_BLOCK];
    double sum[QUERY_BLOCK];
};

VECTORIZED static float row_maximum(const float *x, int n)
{
    float maximum = -INFINITY;

#pragma omp simd reduction(max : maximum)
    for (int i = 0; i < n; i++)
        maximum = x[i] > maximum ? x[i] : maximum;
    return maximum;
}

/* x = exp(x scale - maximum); returns their sum. */
VECTORIZED static float row_exp(float *x, float scale, float maximum, int n)
{
    float sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) {
        float p = exp_vector(x[i] * scale - maximum);

        x[i] = p;
        sum += p;
    }
    return sum;
}

VECTORIZED static void row_scale(float *x, float factor, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        x[i] *= factor;
}

/* Turn a block's products into exponentials and bring `out`, which holds the blocks before, to the
 * new maximum. */
static void softmax_block(struct running_block *running, float *out, int64_t out_stride,
                          const struct attention_head *head, const struct attention_block *block,
                          bool first)
{
    for (int row = 0; row < block->queries; row++) {
        float *x = running->scores + row * KEY_BLOCK;
        struct attention_span visible = attention_visible(head, block, row);
        float before = running->maximum[row], maximum, factor;

        /* Whole rows go through the vector loops: what is not visible counts as -infinity. */
        for (int i = 0; i < visible.begin; i++)
            x[i] = -INFINITY;
        for (int i = visible.end; i < block->keys; i++)
            x[i] = -INFINITY;
        maximum = row_maximum(x, block->keys) * head->scale;
        maximum = maximum > before ? maximum : before;
        running->maximum[row] = maximum;
        /* Nothing visible yet, or nothing but NaN, which must stay NaN. */
        if (maximum == -INFINITY)
            maximum = 0;
        factor = expf(before - maximum);
        running->sum[row] *= (double)factor;
        running->sum[row] += (double)row_exp(x, head->scale, maximum, block->keys);
        if (!first && factor != 1)
            row_scale(out + row * out_stride, factor, head->head_dim);
    }
}

static void forward_head(float *out, int64_t out_stride, float *lse,
                         const struct attention_head *head)
{
    struct running_block running;
    struct attention_block block;

    for (block.query = 0; block.query < head->length; block.query += QUERY_BLOCK) {
        int64_t left = head->length - block.query;
        int64_t first_key = attention_first_key(head, block.query), end_key;
        float *out_block = out + block.query * out_stride;

        block.queries = left < QUERY_BLOCK ? (int)left : QUERY_BLOCK;
        end_key = block.query + block.queries;
        for (int row = 0; row < block.queries; row++) {
            running.maximum[row] = -INFINITY;
            running.sum[row] = 0;
        }
        for (block.key = first_key; block.key < end_key; block.key += KEY_BLOCK) {
            left = end_key - block.key;
            block.keys = left < KEY_BLOCK ? (int)left : KEY_BLOCK;
            attention_product(CblasNoTrans, CblasTrans, block.queries, block.keys, head->head_dim,
                              1, head->q + block.query * head->stride, head->stride,
                              head->k + block.key * head->stride, head->stride, 0, running.scores,
                              KEY_BLOCK);
            softmax_block(&running, out_block, out_stride, head, &block, block.key == first_key);
            attention_product(CblasNoTrans, CblasNoTrans, block.queries, head->head_dim, block.keys,
                              1, running.scores, KEY_BLOCK, head->v + block.key * head->stride,
                              head->stride, block.key == first_key ? 0 : 1, out_block, out_stride);
        }
        for (int row = 0; row < block.queries; row++) {
            row_scale(out_block + row * out_stride, (float)(1 / running.sum[row]), head->head_dim);
            lse[block.query + row] = (float)((double)running.maximum[row] + log(running.sum[row]));
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
        };

        view.window = shape->window > 0 ? shape->window : view.length;
        forward_head((float *)out + start * out_stride + (int64_t)head * dim, out_stride,
                     lse + head * shape->rows + start, &view);
    }
    blas_serial_end();
}
