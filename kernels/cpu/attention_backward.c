/* Attention backward, recomputing the probabilities from the stored log-sum-exp:
 *
 *   P = exp(scale q k^T - lse)     dV = P^T dO      dP = dO V^T      D = rowsum(dO o)
 *   dS = scale P (dP - D)          dQ = dS K        dK = dS^T Q
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

struct scratch {
    float p[QUERY_BLOCK * KEY_BLOCK] __attribute__((aligned(64)));
    float ds[QUERY_BLOCK * KEY_BLOCK] __attribute__((aligned(64)));
    float delta[QUERY_BLOCK];
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

/* p: products in, probabilities out; ds: dP in, dS out. */
VECTORIZED static void row_gradient(float *p, float *ds, float scale, float lse, float delta, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++) {
        float probability = exp_vector(p[i] * scale - lse);

        p[i] = probability;
        ds[i] = probability * (ds[i] - delta) * scale;
    }
}

static void gradient_block(struct scratch *scratch, const struct attention_head *head,
                           const struct attention_block *block, const float *lse)
{
    for (int row = 0; row < block->queries; row++) {
        float *p = scratch->p + row * KEY_BLOCK, *ds = scratch->ds + row * KEY_BLOCK;
        struct attention_span visible = attention_visible(head, block, row);

        for (int i = 0; i < visible.begin; i++)
            p[i] = -INFINITY;
        for (int i = visible.end; i < block->keys; i++)
            p[i] = -INFINITY;
        row_gradient(p, ds, head->scale, lse[block->query + row], scratch->delta[row], block->keys);
    }
}

static void backward_head(const struct head_gradient *to, const struct attention_head *head)
{
    struct scratch scratch;
    struct attention_block block;
    int dim = head->head_dim;

    for (block.query = 0; block.query < head->length; block.query += QUERY_BLOCK) {
        int64_t left = head->length - block.query;
        int64_t first_key = attention_first_key(head, block.query), end_key;
        const float *q = head->q + block.query * head->stride;
        const float *dout = to->dout + block.query * to->out_stride;
        const float *out = to->out + block.query * to->out_stride;

        block.queries = left < QUERY_BLOCK ? (int)left : QUERY_BLOCK;
        end_key = block.query + block.queries;
        for (int row = 0; row < block.queries; row++)
            scratch.delta[row] =
                row_dot(dout + row * to->out_stride, out + row * to->out_stride, dim);
        for (block.key = first_key; block.key < end_key; block.key += KEY_BLOCK) {
            const float *k = head->k + block.key * head->stride;
            const float *v = head->v + block.key * head->stride;
            int m = block.queries, n;

            left = end_key - block.key;
            n = block.keys = left < KEY_BLOCK ? (int)left : KEY_BLOCK;
            attention_product(CblasNoTrans, CblasTrans, m, n, dim, 1, q, head->stride, k,
                              head->stride, 0, scratch.p, KEY_BLOCK);
            attention_product(CblasNoTrans, CblasTrans, m, n, dim, 1, dout, to->out_stride, v,
                              head->stride, 0, scratch.ds, KEY_BLOCK);
            gradient_block(&scratch, head, &block, to->lse);
            attention_product(CblasTrans, CblasNoTrans, n, dim, m, 1, scratch.p, KEY_BLOCK, dout,
                              to->out_stride, 1, to->dv + block.key * head->stride, head->stride);
            attention_product(CblasTrans, CblasNoTrans, n, dim, m, 1, scratch.ds, KEY_BLOCK, q,
                              head->stride, 1, to->dk + block.key * head->stride, head->stride);
            attention_product(CblasNoTrans, CblasNoTrans, m, dim, n, 1, scratch.ds, KEY_BLOCK, k,
                              head->stride, block.key == first_key ? 0 : 1,
                              to->dq + block.query * head->stride, head->stride);
        }
    }
}

static void zero_columns(float *x, int64_t stride, int64_t rows, int columns)
{
    for (int64_t row = 0; row < rows; row++)
        memset(x + row * stride, 0, (size_t)columns * sizeof(float));
}

void cpu_attention_backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                            const void *qkv, const float *lse, const struct attention_shape *shape)
{
    int dim = shape->head_dim, group = shape->heads / shape->kv_heads;
    int64_t stride = (int64_t)(shape->heads + 2 * shape->kv_heads) * dim;
    int64_t out_stride = (int64_t)shape->heads * dim;
    int64_t tasks = (int64_t)shape->sequences * shape->kv_heads;

    (void)stream;
    assert(shape->heads % shape->kv_heads == 0);
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
            backward_head(&gradient, &view);
        }
    }
    blas_serial_end();
}
