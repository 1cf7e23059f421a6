/* Attention by cuDNN, where its library is found: bf16 and fp16, heads of at most 128, sequences of
 * one length. See cudnn_graph.h for how it is asked.
 *
 * cuDNN knows attention as matrices [sequences, heads, tokens, head_dim]; here they are strided
 * views of the rows. One plan is made for each pass and shape, when it is first asked for, and kept
 * to the end.
 *
 * The backward pass that gives the same bits every time keeps all gradients of scores in memory,
 * [heads, tokens, tokens] of a sequence: it is done part by part.
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cudnn_graph.h"

#include <math.h>
#include <string.h>

/* What a plan is made for: one part of the heads of some of the sequences. No padding in it. */
struct problem {
    enum attention_pass pass;
    enum dtype dtype;
    int64_t sequences, length, heads, kv_heads, head_dim; /* of the part */
    int64_t rows, all_heads, all_kv_heads;                /* of what it is a part of */
};

/* The numbers of the tensors. */
enum {
    Q = 1,
    K,
    V,
    OUT,
    LSE,
    DOUT,
    DQ,
    DK,
    DV,
    ROW_SUMS, /* of dout * out */
    SCALE,
    MINUS_INFINITY,
    ONE
};

static int64_t columns_of_qkv(const struct problem *problem)
{
    return (problem->all_heads + 2 * problem->all_kv_heads) * problem->head_dim;
}

static int64_t columns_of_out(const struct problem *problem)
{
    return problem->all_heads * problem->head_dim;
}

/* [sequences, heads, length, head_dim] in rows of `columns` */
static struct layout heads_of_rows(const struct problem *problem, int64_t heads, int64_t columns)
{
    return {{problem->sequences, heads, problem->length, problem->head_dim},
            {problem->length * columns, problem->head_dim, columns, 1}};
}

static struct layout transposed(const struct layout *of)
{
    const int64_t *dims = of->dims, *strides = of->strides;

    return {{dims[0], dims[1], dims[3], dims[2]}, {strides[0], strides[1], strides[3], strides[2]}};
}

/* [sequences, heads, length, columns] without gaps */
static struct layout contiguous(const struct problem *problem, int64_t columns)
{
    int64_t matrix = problem->length * columns;

    return {{problem->sequences, problem->heads, problem->length, columns},
            {problem->heads * matrix, matrix, columns, 1}};
}

/* lse[heads, rows] as [sequences, heads, length, 1] */
static struct layout layout_of_lse(const struct problem *problem)
{
    return {{problem->sequences, problem->heads, problem->length, 1},
            {problem->length, problem->rows, 1, 1}};
}

static cudnnDataType_t type_of(const struct problem *problem)
{
    return problem->dtype == DTYPE_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
}

/* --- the graphs ---------------------------------------------------------------------------------
 */

/* A new virtual tensor, mode(x, b), of scores or of one number a row. */
static tensor compute(struct graph *graph, const struct layout *layout, cudnnPointwiseMode_t mode,
                      tensor x, tensor b)
{
    tensor y = graph_virtual(graph, CUDNN_DATA_FLOAT, layout);

    graph_pointwise(graph, mode, CUDNN_DATA_FLOAT, y, x, b);
    return y;
}

/* Minus infinity where the column is after the row. */
static tensor mask(struct graph *graph, const struct layout *scores, tensor x)
{
    tensor row = graph_virtual(graph, CUDNN_DATA_INT32, scores);
    tensor column = graph_virtual(graph, CUDNN_DATA_INT32, scores);
    tensor seen = graph_virtual(graph, CUDNN_DATA_BOOLEAN, scores);
    tensor masked = graph_virtual(graph, CUDNN_DATA_FLOAT, scores);

    graph_index(graph, row, x, 2);
    graph_index(graph, column, x, 3);
    graph_pointwise(graph, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, seen, row, column);
    graph_select(graph, masked, x, graph_scalar(graph, MINUS_INFINITY), seen);
    return masked;
}

static void describe_forward(struct graph *graph, const struct problem *problem)
{
    cudnnDataType_t type = type_of(problem);
    struct layout q_layout = heads_of_rows(problem, problem->heads, columns_of_qkv(problem));
    struct layout kv_layout = heads_of_rows(problem, problem->kv_heads, columns_of_qkv(problem));
    struct layout k_layout = transposed(&kv_layout);
    struct layout out_layout = heads_of_rows(problem, problem->heads, columns_of_out(problem));
    struct layout lse_layout = layout_of_lse(problem);
    struct layout row = contiguous(problem, 1);
    struct layout score = contiguous(problem, problem->length);
    tensor product = graph_virtual(graph, CUDNN_DATA_FLOAT, &score);
    tensor maximum = graph_virtual(graph, CUDNN_DATA_FLOAT, &row);
    tensor sum = graph_virtual(graph, CUDNN_DATA_FLOAT, &row);
    tensor softmax = graph_virtual(graph, type, &score);
    tensor scores, exponentials, logarithm;

    graph_matmul(graph, product, graph_tensor(graph, Q, type, &q_layout),
                 graph_tensor(graph, K, type, &k_layout));
    scores = compute(graph, &score, CUDNN_POINTWISE_MUL, product, graph_scalar(graph, SCALE));
    scores = mask(graph, &score, scores);
    graph_reduce(graph, CUDNN_REDUCE_TENSOR_MAX, maximum, scores);
    scores = compute(graph, &score, CUDNN_POINTWISE_SUB, scores, maximum);
    exponentials = compute(graph, &score, CUDNN_POINTWISE_EXP, scores, nullptr);
    graph_reduce(graph, CUDNN_REDUCE_TENSOR_ADD, sum, exponentials);
    logarithm = compute(graph, &row, CUDNN_POINTWISE_LOG, sum, nullptr);
    graph_pointwise(graph, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT,
                    graph_tensor(graph, LSE, CUDNN_DATA_FLOAT, &lse_layout), maximum, logarithm);
    graph_pointwise(graph, CUDNN_POINTWISE_DIV, CUDNN_DATA_FLOAT, softmax, exponentials, sum);
    graph_matmul(graph, graph_tensor(graph, OUT, type, &out_layout), softmax,
                 graph_tensor(graph, V, type, &kv_layout));
}

/* Number `number` = a b, of as many heads as keys and values have: added up over the query heads
 * that share one. */
static void grouped_matmul(struct graph *graph, const struct problem *problem, int64_t number,
                           tensor a, tensor b)
{
    cudnnDataType_t type = type_of(problem);
    struct layout layout = heads_of_rows(problem, problem->kv_heads, columns_of_qkv(problem));
    struct layout every = contiguous(problem, problem->head_dim);
    tensor sum = graph_tensor(graph, number, type, &layout), product;

    if (problem->heads == problem->kv_heads) {
        graph_matmul(graph, sum, a, b);
        return;
    }
    product = graph_virtual(graph, type, &every);
    graph_matmul(graph, product, a, b);
    graph_reduce(graph, CUDNN_REDUCE_TENSOR_ADD, sum, product);
}

/* The scores' transpose, rounded to the type of the matrices. */
static tensor transpose(struct graph *graph, const struct problem *problem,
                        const struct layout *scores, tensor x)
{
    struct layout layout = transposed(scores);
    tensor y = graph_virtual(graph, type_of(problem), &layout);

    graph_view(graph, y, x);
    return y;
}

/* The sum over the columns of dout * out, for each row: that of dscores * softmax. */
static tensor sum_rows(struct graph *graph, const struct problem *problem, tensor dout, tensor out)
{
    struct layout row = contiguous(problem, 1);
    struct layout every = contiguous(problem, problem->head_dim);
    tensor product = compute(graph, &every, CUDNN_POINTWISE_MUL, dout, out);
    tensor sum = graph_virtual(graph, CUDNN_DATA_FLOAT, &row);
    tensor kept = graph_tensor(graph, ROW_SUMS, CUDNN_DATA_FLOAT, &row);

    graph_reduce(graph, CUDNN_REDUCE_TENSOR_ADD, sum, product);
    graph_pointwise(graph, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, kept, sum,
                    graph_scalar(graph, ONE));
    return kept;
}

static void describe_backward(struct graph *graph, const struct problem *problem)
{
    cudnnDataType_t type = type_of(problem);
    struct layout q_layout = heads_of_rows(problem, problem->heads, columns_of_qkv(problem));
    struct layout kv_layout = heads_of_rows(problem, problem->kv_heads, columns_of_qkv(problem));
    struct layout transposed_layout = transposed(&kv_layout);
    struct layout out_layout = heads_of_rows(problem, problem->heads, columns_of_out(problem));
    struct layout lse_layout = layout_of_lse(problem);
    struct layout score = contiguous(problem, problem->length);
    tensor q = graph_tensor(graph, Q, type, &q_layout);
    tensor k = graph_tensor(graph, K, type, &transposed_layout);
    tensor v = graph_tensor(graph, V, type, &transposed_layout);
    tensor dout = graph_tensor(graph, DOUT, type, &out_layout);
    tensor out = graph_tensor(graph, OUT, type, &out_layout);
    tensor lse = graph_tensor(graph, LSE, CUDNN_DATA_FLOAT, &lse_layout);
    tensor scale = graph_scalar(graph, SCALE);
    tensor sums = sum_rows(graph, problem, dout, out);
    tensor product = graph_virtual(graph, CUDNN_DATA_FLOAT, &score);
    tensor dproduct = graph_virtual(graph, CUDNN_DATA_FLOAT, &score);
    tensor rows_of_k = graph_virtual(graph, type, &kv_layout);
    tensor scores, softmax, dscores;

    graph_matmul(graph, product, q, k);
    scores = compute(graph, &score, CUDNN_POINTWISE_MUL, product, scale);
    scores = compute(graph, &score, CUDNN_POINTWISE_SUB, scores, lse);
    scores = mask(graph, &score, scores);
    softmax = compute(graph, &score, CUDNN_POINTWISE_EXP, scores, nullptr);
    grouped_matmul(graph, problem, DV, transpose(graph, problem, &score, softmax), dout);

    graph_matmul(graph, dproduct, dout, v);
    dscores = compute(graph, &score, CUDNN_POINTWISE_SUB, dproduct, sums);
    dscores = compute(graph, &score, CUDNN_POINTWISE_MUL, dscores, softmax);
    dscores = compute(graph, &score, CUDNN_POINTWISE_MUL, dscores, scale);
    grouped_matmul(graph, problem, DK, transpose(graph, problem, &score, dscores), q);

    graph_view(graph, rows_of_k, k);
    graph_matmul(graph, graph_tensor(graph, DQ, type, &q_layout), dscores, rows_of_k);
}

/* --- plans --------------------------------------------------------------------------------------
 */

/* Bytes that a plan may work in. */
static int64_t plan_bytes(const struct problem *problem)
{
    if (problem->pass == ATTENTION_FORWARD)
        return ATTENTION_CUDNN_COUNTERS;
    return attention_cudnn_plan_bytes(problem->sequences * problem->heads, problem->length,
                                      problem->head_dim);
}

static int64_t row_sums_bytes(const struct problem *problem)
{
    return attention_cudnn_sums_bytes(problem->sequences * problem->heads, problem->length);
}

/* Of sequences of one length. */
static struct problem problem_of(const struct attention_shape *shape, enum dtype dtype,
                                 enum attention_pass pass)
{
    int64_t length = shape->rows / shape->sequences, group = shape->heads / shape->kv_heads;
    struct problem problem = {pass,         dtype,           shape->sequences, length,
                              shape->heads, shape->kv_heads, shape->head_dim,  shape->rows,
                              shape->heads, shape->kv_heads};

    if (pass == ATTENTION_FORWARD)
        return problem;
    attention_cudnn_part(shape, &problem.sequences, &problem.kv_heads);
    problem.heads = problem.kv_heads * group;
    return problem;
}

enum { PLANS = 32 };
static struct {
    struct problem problem;
    struct plan plan; /* no descriptor: there is none for the problem */
} plans[PLANS];
static int plan_count;

/* NULL: there is none, or too many others. */
static const struct plan *plan_of(const struct problem *problem)
{
    struct graph graph = {};
    struct plan *plan;
    int i = 0;

    while (i < plan_count && memcmp(&plans[i].problem, problem, sizeof(*problem)) != 0)
        i++;
    if (i == PLANS)
        return nullptr;
    plan = &plans[i].plan;
    if (i == plan_count) {
        plans[plan_count++].problem = *problem;
        if (problem->pass == ATTENTION_FORWARD)
            describe_forward(&graph, problem);
        else
            describe_backward(&graph, problem);
        (void)graph_plan(&graph, plan, plan_bytes(problem));
    }
    return plan->descriptor ? plan : nullptr;
}

/* --- members of the table -----------------------------------------------------------------------
 */

/* Up to 9.15.0 the backward pass is wrong for lengths that are no multiple of 128, as
 * cudnn-frontend knows. Multiples of 4 keep lse aligned in every part. From compute capability 10
 * on, the same bits every time are another engine's business. */
static bool backward_supports(const struct attention_shape *shape)
{
    return cuda_device.major < 10 && shape->longest % (cudnn_version() > 91500 ? 4 : 128) == 0;
}

static bool supports(const struct attention_shape *shape, enum dtype dtype,
                     enum attention_pass pass)
{
    struct problem problem;

    /* A plan is made for one length, and takes its time. */
    if (shape->varying || dtype == DTYPE_F32 || shape->window > 0 || shape->head_dim % 8 != 0 ||
        shape->head_dim > 128 || shape->heads % shape->kv_heads != 0 || shape->longest < 2 ||
        shape->rows != shape->sequences * shape->longest || shape->dropout.rate > 0 ||
        !cudnn_version() || (pass == ATTENTION_BACKWARD && !backward_supports(shape)))
        return false;
    problem = problem_of(shape, dtype, pass);
    return plan_of(&problem);
}

static const float minus_infinity = -INFINITY, one = 1.0F;

static void forward(struct stream *stream, void *out, float *lse, const void *qkv,
                    const struct attention_shape *shape, enum dtype dtype)
{
    struct problem problem = problem_of(shape, dtype, ATTENTION_FORWARD);
    float scale = 1.0F / sqrtf((float)shape->head_dim);
    uint16_t *q = (uint16_t *)qkv, *k = q + problem.heads * problem.head_dim;
    uint16_t *v = k + problem.kv_heads * problem.head_dim;
    const int64_t numbers[] = {Q, K, V, OUT, LSE, SCALE, MINUS_INFINITY};
    void *memory[] = {q, k, v, out, lse, &scale, (void *)&minus_infinity};

    plan_run(plan_of(&problem), stream, 7, numbers, memory, cuda_device.workspace);
}

static size_t workspace(const struct attention_shape *shape)
{
    struct problem problem;

    if (shape->varying || shape->window > 0 || shape->head_dim > 128 ||
        shape->rows % shape->sequences != 0 || cuda_device.major >= 10 || !cudnn_version())
        return 0;
    problem = problem_of(shape, DTYPE_BF16, ATTENTION_BACKWARD);
    return (size_t)(row_sums_bytes(&problem) + plan_bytes(&problem));
}

static void backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                     const void *qkv, const float *lse, void *workspace,
                     const struct attention_shape *shape, enum dtype dtype)
{
    struct problem problem = problem_of(shape, dtype, ATTENTION_BACKWARD);
    const struct plan *plan = plan_of(&problem);
    float scale = 1.0F / sqrtf((float)shape->head_dim);
    int64_t group = shape->heads / shape->kv_heads, d = shape->head_dim;
    char *rest = (char *)workspace + row_sums_bytes(&problem);
    const int64_t numbers[] = {
        Q, K, V, OUT, LSE, DOUT, DQ, DK, DV, ROW_SUMS, SCALE, MINUS_INFINITY, ONE};

    for (int64_t row = 0; row < shape->rows; row += problem.sequences * problem.length)
        for (int64_t head = 0; head < shape->kv_heads; head += problem.kv_heads) {
            int64_t q = row * columns_of_qkv(&problem) + head * group * d;
            int64_t k = row * columns_of_qkv(&problem) + (shape->heads + head) * d;
            int64_t v = k + shape->kv_heads * d;
            int64_t o = row * columns_of_out(&problem) + head * group * d;
            uint16_t *in = (uint16_t *)qkv, *gradient = (uint16_t *)dqkv;
            void *memory[] = {in + q,
                              in + k,
                              in + v,
                              (uint16_t *)out + o,
                              (float *)lse + head * group * shape->rows + row,
                              (uint16_t *)dout + o,
                              gradient + q,
                              gradient + k,
                              gradient + v,
                              workspace,
                              &scale,
                              (void *)&minus_infinity,
                              (void *)&one};

            plan_run(plan, stream, 13, numbers, memory, rest);
        }
}

extern const struct attention_implementation attention_cudnn = {"cudnn", supports, forward,
                                                                workspace, backward};
