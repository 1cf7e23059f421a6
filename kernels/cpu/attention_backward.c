/* Attention backward, recomputing the probabilities from the stored log-sum-exp:
 *
 *   P = exp(scale q k^T - lse)     dV = P^T dO      dP = dO V^T      D = rowsum(dO o)
 *   dS = scale P (dP - D)          dQ = dS K        dK = dS^T Q
 *
 * With dropout, whose factors M are 0 or 1 / (1 - rate), dV = (P M)^T dO and dP = (dO V^T) M; D is
 * the same, of the output that dropout has left.
 *
 * A task is one key/value head of one sequence with all query heads that it serves, since they
 * add to the same dK and dV, in a fixed order. All sums build up in dqkv itself.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/vector.h"

/* One column a query, as everywhere. */
struct scratch {
    float p[KEY_BLOCK * QUERY_BLOCK] __attribute__((aligned(64)));
    float ds[KEY_BLOCK * QUERY_BLOCK] __attribute__((aligned(64)));
    float factors[KEY_BLOCK * QUERY_BLOCK] __attribute__((aligned(64))); /* of dropout */
    float lse[QUERY_BLOCK], delta[QUERY_BLOCK];
};

/* What belongs to one query head; k and v gradients are its key/value head's. */
struct head_gradient {
    float *dq, *dk, *dv;     /* laid out as head.q, head.k, head.v */
    const float *dout, *out; /* row 0 of the sequence */
    int64_t out_stride;
    const float *lse; /* of the sequence's rows */
};

VECTORIZED static float row_dot(const float *x, const float *y, int n)
{
    float sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* p: scores in, probabilities out; ds: dP in, dS out. */
VECTORIZED static void gradient_block(struct scratch *scratch, float scale, int keys)
{
    for (int64_t key = 0; key < keys; key++) {
        float *p = scratch->p + key * QUERY_BLOCK, *ds = scratch->ds + key * QUERY_BLOCK;

#pragma omp simd
        for (int i = 0; i < QUERY_BLOCK; i++) {
            float probability = exp_vector(p[i] - scratch->lse[i]);

            p[i] = probability;
            ds[i] = probability * (ds[i] - scratch->delta[i]) * scale;
        }
    }
}

/* The block's keys, against all of its queries; `first`: dq holds nothing yet. */
static void backward_keys(const struct head_gradient *to, const struct attention_head *head,
                          const struct attention_block *block, struct scratch *scratch,
                          const float *q, const float *dout, bool first)
{
    int dim = head->head_dim, queries = block->queries, keys = block->keys;
    int64_t stride = head->stride, key = block->key * stride, query = block->query * stride;

    attention_product(CblasNoTrans, keys, QUERY_BLOCK, dim, head->k + key, stride, q, QUERY_BLOCK,
                      0, scratch->p, QUERY_BLOCK);
    attention_product(CblasNoTrans, keys, QUERY_BLOCK, dim, head->v + key, stride, dout,
                      QUERY_BLOCK, 0, scratch->ds, QUERY_BLOCK);
    attention_mask(scratch->p, head, block);
    if (head->dropout) {
        attention_dropout_factors(scratch->factors, head, block);
        attention_multiply(scratch->ds, scratch->factors, keys);
    }
    gradient_block(scratch, head->scale, keys);
    if (head->dropout)
        attention_multiply(scratch->p, scratch->factors, keys);
    attention_product(CblasNoTrans, keys, dim, queries, scratch->p, QUERY_BLOCK,
                      to->dout + block->query * to->out_stride, to->out_stride, 1, to->dv + key,
                      stride);
    attention_product(CblasNoTrans, keys, dim, queries, scratch->ds, QUERY_BLOCK, head->q + query,
                      stride, 1, to->dk + key, stride);
    attention_product(CblasTrans, queries, dim, keys, scratch->ds, QUERY_BLOCK, head->k + key,
                      stride, first ? 0 : 1, to->dq + query, stride);
}

static void backward_head(const struct head_gradient *to, const struct attention_head *head)
{
    int dim = head->head_dim;
    float q[dim * QUERY_BLOCK] __attribute__((aligned(64)));
    float dout[dim * QUERY_BLOCK] __attribute__((aligned(64)));
    struct scratch scratch = {.lse = {0}};
    struct attention_block block;

    for (int64_t query = 0; query < head->length; query += QUERY_BLOCK) {
        const float *dout_rows = to->dout + query * to->out_stride;
        const float *out_rows = to->out + query * to->out_stride;
        int64_t first_key;

        attention_block_begin(&block, head, query);
        attention_transpose(q, head->q + query * head->stride, head->stride, block.queries, dim,
                            head->scale);
        attention_transpose(dout, dout_rows, to->out_stride, block.queries, dim, 1);
        for (int i = 0; i < block.queries; i++) {
            scratch.lse[i] = to->lse[query + i];
            scratch.delta[i] =
                row_dot(dout_rows + i * to->out_stride, out_rows + i * to->out_stride, dim);
        }
        first_key = attention_first_key(head, &block);
        for (int64_t key = first_key; key < attention_end_key(&block); key += KEY_BLOCK) {
            attention_block_keys(&block, key);
            backward_keys(to, head, &block, &scratch, q, dout, key == first_key);
        }
    }
}

static void zero_columns(float *x, int64_t stride, int64_t rows, int columns)
{
    for (int64_t row = 0; row < rows; row++)
        memset(x + row * stride, 0, (size_t)columns * sizeof(float));
}

void cpu_attention_backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                            const void *qkv, const float *lse, void *workspace,
                            const struct attention_shape *shape)
{
    int dim = shape->head_dim, group = shape->heads / shape->kv_heads;
    int64_t stride = (int64_t)(shape->heads + 2 * shape->kv_heads) * dim;
    int64_t out_stride = (int64_t)shape->heads * dim;
    int64_t tasks = (int64_t)shape->sequences * shape->kv_heads;

    (void)stream;
    (void)workspace;
    assert(shape->heads % shape->kv_heads == 0);
    assert(shape->dropout.rate >= 0 && shape->dropout.rate < 1);
    assert(shape->starts[0] == 0 && shape->starts[shape->sequences] == shape->rows);
    blas_serial_begin();
#pragma omp parallel for schedule(dynamic) if (shape->rows * stride > PARALLEL_ELEMENTS)
    for (int64_t task = 0; task < tasks; task++) {
        int kv_head = (int)(task % shape->kv_heads);
        int64_t sequence = task / shape->kv_heads, start = shape->starts[sequence];
        int64_t k = (int64_t)(shape->heads + kv_head) * dim, v = k + (int64_t)shape->kv_heads * dim;
        const float *from = (const float *)qkv + start * stride;
        float *to = (float *)dqkv + start * stride;
        struct attention_head view = {
            .k = from + k,
            .v = from + v,
            .stride = stride,
            .length = shape->starts[sequence + 1] - start,
            .head_dim = dim,
            .scale = (float)(1 / sqrt(dim)),
            .dropout = shape->dropout.rate > 0 ? &shape->dropout : NULL,
            .dropout_row = shape->dropout.first_row + start,
        };

        view.window = shape->window > 0 ? shape->window : view.length;
        zero_columns(to + k, stride, view.length, dim);
        zero_columns(to + v, stride, view.length, dim);
        for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
            int64_t q = (int64_t)head * dim, out_offset = start * out_stride + q;
            struct head_gradient gradient = {
                .dq = to + q,
                .dk = to + k,
                .dv = to + v,
                .dout = (const float *)dout + out_offset,
                .out = (const float *)out + out_offset,
                .out_stride = out_stride,
                .lse = lse + head * shape->rows + start,
            };

            view.q = from + q;
            view.dropout_head = shape->dropout.first_head + head;
            backward_head(&gradient, &view);
        }
    }
    blas_serial_end();
}
