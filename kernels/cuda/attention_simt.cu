/* Attention with plain fp32 arithmetic, whatever the elements are: for training in fp32, for
 * checking the others, and for the shapes that these do not take.
 *
 * A block of 256 threads works on a square of scores, ROWS queries by ROWS keys, in shared memory,
 * in two steps. For the scores a thread has a square of its own, SQUARE by SQUARE; for products
 * with the scores it has one row of the result and every LANES-th group of four columns.
 *
 * Backward takes two kernels (kernels/cpu/attention_backward.c has the formulas): one goes over the
 * queries for every block of keys and sums up dK and dV, the other over the keys for every block of
 * queries and sums up dQ. Each computes the probabilities again. All sums have one order.
 */
#include "kernels/cuda/attention.h"

#include <math.h>

#include "kernels/philox.h"

enum { THREADS = 256 };

/* DIM: head_dim rounded up; columns from head_dim on are zeros. */
template <class T_, int DIM_> struct simt_tiling {
    using T = T_;
    static constexpr int DIM = DIM_;
    static constexpr int ROWS = DIM <= 128 ? 32 : 16;
    static constexpr int STRIDE = DIM + 4; /* so that eight rows are in different banks */
    static constexpr int SQUARE = ROWS / 16;
    static constexpr int LANES = THREADS / ROWS; /* threads of a row */
    static constexpr int FOURS = DIM / 4 / LANES;
    static constexpr int TILE = ROWS * STRIDE, SCORES = ROWS * (ROWS + 1);
    static constexpr size_t SHARED_BYTES = sizeof(float) * (4 * TILE + 2 * SCORES + 2 * ROWS);
};

/* One row's part of a product: columns 4 (thread % LANES + LANES i) + 0..3. */
template <class S> using row_part = float4[S::FOURS];

struct simt_problem {
    const int32_t *starts;
    int64_t rows, stride, out_stride; /* strides of qkv and out: elements from row to row */
    int heads, kv_heads, head_dim, sequences;
    int window; /* the longest sequence when there is none */
    int blocks; /* of ROWS rows, of the longest sequence */
    float scale;
    struct attention_drops drops;
};

/* --- parts of kernels ---------------------------------------------------------------------------
 */

/* Rows [first, first + ROWS) of one head: zeros from `length` and head_dim on. */
template <class S>
static __device__ inline void load_rows(float *tile, const typename S::T *from, int64_t stride,
                                        int first, int length, int head_dim)
{
    using vector = pack<typename S::T>;

    if (head_dim % vector::size == 0) {
        for (int i = threadIdx.x; i < S::ROWS * S::DIM / vector::size; i += THREADS) {
            int row = i / (S::DIM / vector::size), column = i % (S::DIM / vector::size);
            vector x = {};

            column *= vector::size;
            if (first + row < length && column < head_dim)
                x = load_pack(from + (first + row) * stride + column);
#pragma unroll
            for (int j = 0; j < vector::size; j++)
                tile[row * S::STRIDE + column + j] = to_float(x.at[j]);
        }
        return;
    }
    for (int i = threadIdx.x; i < S::ROWS * S::DIM; i += THREADS) {
        int row = i / S::DIM, column = i % S::DIM;
        bool there = first + row < length && column < head_dim;

        tile[row * S::STRIDE + column] =
            there ? to_float(from[(first + row) * stride + column]) : 0;
    }
}

static __device__ inline float dot(float sum, float4 a, float4 b)
{
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/* scores[i, j] = a[i, .] b[j, .] */
template <class S>
static __device__ inline void score_product(float *scores, const float *a, const float *b)
{
    int row = threadIdx.x / 16, column = threadIdx.x % 16;
    float sum[S::SQUARE][S::SQUARE] = {};

#pragma unroll 4
    for (int k = 0; k < S::DIM; k += 4) {
        float4 left[S::SQUARE], right[S::SQUARE];

#pragma unroll
        for (int i = 0; i < S::SQUARE; i++) {
            left[i] = *reinterpret_cast<const float4 *>(a + (row + 16 * i) * S::STRIDE + k);
            right[i] = *reinterpret_cast<const float4 *>(b + (column + 16 * i) * S::STRIDE + k);
        }
#pragma unroll
        for (int i = 0; i < S::SQUARE; i++)
#pragma unroll
            for (int j = 0; j < S::SQUARE; j++)
                sum[i][j] = dot(sum[i][j], left[i], right[j]);
    }
#pragma unroll
    for (int i = 0; i < S::SQUARE; i++)
#pragma unroll
        for (int j = 0; j < S::SQUARE; j++)
            scores[(row + 16 * i) * (S::ROWS + 1) + column + 16 * j] = sum[i][j];
}

/* This thread's part of sum[row, .] += the sum over k of scores[k * step] b[k, .] */
template <class S>
static __device__ inline void row_product(row_part<S> &sum, const float *scores, int step,
                                          const float *b)
{
    b += threadIdx.x % S::LANES * 4;
#pragma unroll 2
    for (int k = 0; k < S::ROWS; k++) {
        float p = scores[k * step];

#pragma unroll
        for (int i = 0; i < S::FOURS; i++) {
            float4 x = *reinterpret_cast<const float4 *>(b + k * S::STRIDE + 4 * S::LANES * i);

            sum[i].x = fmaf(p, x.x, sum[i].x);
            sum[i].y = fmaf(p, x.y, sum[i].y);
            sum[i].z = fmaf(p, x.z, sum[i].z);
            sum[i].w = fmaf(p, x.w, sum[i].w);
        }
    }
}

template <class S> static __device__ inline void zero_part(row_part<S> &sum)
{
#pragma unroll
    for (int i = 0; i < S::FOURS; i++)
        sum[i] = make_float4(0, 0, 0, 0);
}

template <class S>
static __device__ inline void store_part(typename S::T *row, const row_part<S> &sum, float factor,
                                         int head_dim)
{
#pragma unroll
    for (int i = 0; i < S::FOURS; i++) {
        const float x[4] = {sum[i].x, sum[i].y, sum[i].z, sum[i].w};
        int column = 4 * (threadIdx.x % S::LANES + S::LANES * i);

#pragma unroll
        for (int j = 0; j < 4; j++)
            if (column + j < head_dim)
                row[column + j] = from_float<typename S::T>(x[j] * factor);
    }
}

/* What all threads of a row have to say. */
template <class S, class Combine> static __device__ inline float row_all(float x, Combine combine)
{
#pragma unroll
    for (int distance = S::LANES / 2; distance > 0; distance /= 2)
        x = combine(x, __shfl_xor_sync(~0u, x, distance));
    return x;
}

static __device__ inline bool sees(int query, int key, int window)
{
    return key <= query && key > query - window;
}

/* What dropout multiplies a probability by. `row` is the query's, in the batch. */
static __device__ inline float drop_factor(const struct attention_drops &drops, int64_t row,
                                           int head, int key)
{
    uint32_t numbers[4];

    if (drops.threshold == 0)
        return drops.kept;
    philox_attention(numbers, drops.seed, drops.place, drops.first_row + row,
                     drops.first_head + head, key);
    return numbers[key / 8 % 4] < drops.threshold ? 0 : drops.kept;
}

/* One block of rows of one head of one sequence; blockIdx counts blocks within heads within
 * sequences, the last blocks first. */
template <class T> struct simt_task {
    const T *base;    /* of qkv: row 0 of the sequence */
    int64_t start;    /* of the sequence */
    int length, head; /* `head` of as many as the kernel has */
    int first;        /* row of the block */
};

template <class S>
static __device__ inline struct simt_task<typename S::T>
task_of(const typename S::T *qkv, const struct simt_problem &problem, int heads) {
    int head = blockIdx.x / problem.blocks, sequence = head / heads;
    struct simt_task<typename S::T> task;

    task.head = head % heads;
    task.first = (problem.blocks - 1 - (int)(blockIdx.x % problem.blocks)) * S::ROWS;
    task.start = problem.starts[sequence];
    task.length = (int)(problem.starts[sequence + 1] - task.start);
    task.base = qkv + task.start * problem.stride;
    return task;
}

/* --- forward ------------------------------------------------------------------------------------
 */

template <class S>
static __global__ void __launch_bounds__(THREADS)
    forward_kernel(typename S::T *out, float *lse, const typename S::T *qkv,
                   const struct simt_problem problem)
{
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *k = q + S::TILE, *v = k + S::TILE, *scores = v + S::TILE;
    struct simt_task<typename S::T> task = task_of<S>(qkv, problem, problem.heads);
    int dim = problem.head_dim, row = threadIdx.x / S::LANES, lane = threadIdx.x % S::LANES;
    int kv_head = task.head / (problem.heads / problem.kv_heads), query = task.first + row;
    int64_t k_column = (int64_t)(problem.heads + kv_head) * dim;
    int64_t v_column = k_column + (int64_t)problem.kv_heads * dim;
    float *row_scores = scores + row * (S::ROWS + 1), maximum = -INFINITY, sum = 0;
    row_part<S> part;

    if (task.first >= task.length)
        return;
    zero_part<S>(part);
    load_rows<S>(q, task.base + task.head * dim, problem.stride, task.first, task.length, dim);
    for (int key = max(task.first - problem.window + 1, 0) / S::ROWS * S::ROWS;
         key < min(task.first + S::ROWS, task.length); key += S::ROWS) {
        float block_maximum = -INFINITY, factor, block_sum = 0;

        __syncthreads();
        load_rows<S>(k, task.base + k_column, problem.stride, key, task.length, dim);
        load_rows<S>(v, task.base + v_column, problem.stride, key, task.length, dim);
        __syncthreads();
        score_product<S>(scores, q, k);
        __syncthreads();
        for (int i = lane; i < S::ROWS; i += S::LANES) {
            bool seen = sees(query, key + i, problem.window);

            row_scores[i] = seen ? row_scores[i] * problem.scale : -INFINITY;
            block_maximum = fmaxf(block_maximum, row_scores[i]);
        }
        block_maximum = row_all<S>(block_maximum, fmaxf);
        block_maximum = fmaxf(block_maximum, maximum);
        /* -infinity as long as the query saw no key */
        factor = maximum == -INFINITY ? 0 : expf(maximum - block_maximum);
        maximum = block_maximum;
        for (int i = lane; i < S::ROWS; i += S::LANES) {
            row_scores[i] = row_scores[i] == -INFINITY ? 0 : expf(row_scores[i] - maximum);
            block_sum += row_scores[i];
            row_scores[i] *= drop_factor(problem.drops, task.start + query, task.head, key + i);
        }
        sum = fmaf(sum, factor, block_sum);
#pragma unroll
        for (int i = 0; i < S::FOURS; i++) {
            part[i].x *= factor;
            part[i].y *= factor;
            part[i].z *= factor;
            part[i].w *= factor;
        }
        __syncwarp(); /* a row's threads are in one warp */
        row_product<S>(part, row_scores, 1, v);
    }
    sum = row_all<S>(sum, [](float a, float b) { return a + b; });
    if (query >= task.length)
        return;
    store_part<S>(out + (task.start + query) * problem.out_stride + task.head * dim, part, 1 / sum,
                  dim);
    if (lane == 0)
        lse[task.head * problem.rows + task.start + query] = maximum + logf(sum);
}

/* --- backward -----------------------------------------------------------------------------------
 */

/* delta[heads, rows] = rowsum(dO o); a warp a row of a head */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    delta_kernel(float *delta, const T *dout, const T *out, const struct simt_problem problem)
{
    int64_t i = blockIdx.x * (int64_t)(THREADS / 32) + threadIdx.x / 32;
    int64_t row = i / problem.heads, head = i % problem.heads;
    float sum = 0;

    if (row >= problem.rows)
        return;
    for (int column = threadIdx.x % 32; column < problem.head_dim; column += 32) {
        int64_t at = row * problem.out_stride + head * problem.head_dim + column;

        sum = fmaf(to_float(dout[at]), to_float(out[at]), sum);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(~0u, sum, distance);
    if (threadIdx.x % 32 == 0)
        delta[head * problem.rows + row] = sum;
}

/* A square of scores: queries by keys of a head of a sequence. */
struct simt_square {
    int64_t start;    /* of the sequence */
    int length, head; /* the query's */
    int first_query, first_key;
};

/* p: q k^T in, what is left of P out; ds: dO v^T in, scale dS out; rows are queries. lse and delta
 * are the block's. */
template <class S>
static __device__ inline void gradient_scores(float *p, float *ds, const float *lse,
                                              const float *delta, const struct simt_square &square,
                                              const struct simt_problem &problem)
{
    for (int i = threadIdx.x; i < S::ROWS * S::ROWS; i += THREADS) {
        int row = i / S::ROWS, column = i % S::ROWS, at = row * (S::ROWS + 1) + column;
        int query = square.first_query + row, key = square.first_key + column;
        bool seen = query < square.length && sees(query, key, problem.window);
        float probability = seen ? expf(p[at] * problem.scale - lse[row]) : 0;
        float factor = drop_factor(problem.drops, square.start + query, square.head, key);

        p[at] = probability * factor;
        ds[at] = seen ? probability * (ds[at] * factor - delta[row]) * problem.scale : 0;
    }
}

/* lse and delta of a block of queries; `row` is where the sequence begins in its head's. */
template <class S>
static __device__ inline void load_sums(float *to_lse, float *to_delta, const float *lse,
                                        const float *delta, int64_t row, int first, int length)
{
    if (threadIdx.x < S::ROWS && first + (int)threadIdx.x < length) {
        to_lse[threadIdx.x] = lse[row + first + threadIdx.x];
        to_delta[threadIdx.x] = delta[row + first + threadIdx.x];
    }
}

template <class S>
static __global__ void __launch_bounds__(THREADS)
    backward_keys_kernel(typename S::T *dqkv, const typename S::T *dout, const typename S::T *qkv,
                         const float *lse, const float *delta, const struct simt_problem problem)
{
    extern __shared__ __align__(16) float shared[];
    float *k = shared, *v = k + S::TILE, *q = v + S::TILE, *o = q + S::TILE, *p = o + S::TILE;
    float *ds = p + S::SCORES, *block_lse = ds + S::SCORES, *block_delta = block_lse + S::ROWS;
    struct simt_task<typename S::T> task = task_of<S>(qkv, problem, problem.kv_heads);
    int dim = problem.head_dim, group = problem.heads / problem.kv_heads;
    int row = threadIdx.x / S::LANES;
    int64_t k_column = (int64_t)(problem.heads + task.head) * dim;
    int64_t v_column = k_column + (int64_t)problem.kv_heads * dim;
    typename S::T *to = dqkv + (task.start + task.first + row) * problem.stride;
    row_part<S> dk, dv;

    if (task.first >= task.length)
        return;
    zero_part<S>(dk);
    zero_part<S>(dv);
    load_rows<S>(k, task.base + k_column, problem.stride, task.first, task.length, dim);
    load_rows<S>(v, task.base + v_column, problem.stride, task.first, task.length, dim);
    for (int head = task.head * group; head < (task.head + 1) * group; head++)
        for (int query = task.first;
             query < min((int64_t)task.length, (int64_t)task.first + S::ROWS + problem.window - 1);
             query += S::ROWS) {
            const struct simt_square square = {task.start, task.length, head, query, task.first};

            __syncthreads();
            load_rows<S>(q, task.base + head * dim, problem.stride, query, task.length, dim);
            load_rows<S>(o, dout + task.start * problem.out_stride + head * dim, problem.out_stride,
                         query, task.length, dim);
            load_sums<S>(block_lse, block_delta, lse, delta, head * problem.rows + task.start,
                         query, task.length);
            __syncthreads();
            score_product<S>(p, q, k);
            score_product<S>(ds, o, v);
            __syncthreads();
            gradient_scores<S>(p, ds, block_lse, block_delta, square, problem);
            __syncthreads();
            row_product<S>(dv, p + row, S::ROWS + 1, o);
            row_product<S>(dk, ds + row, S::ROWS + 1, q);
        }
    if (task.first + row >= task.length)
        return;
    store_part<S>(to + k_column, dk, 1, dim);
    store_part<S>(to + v_column, dv, 1, dim);
}

template <class S>
static __global__ void __launch_bounds__(THREADS)
    backward_queries_kernel(typename S::T *dqkv, const typename S::T *dout,
                            const typename S::T *qkv, const float *lse, const float *delta,
                            const struct simt_problem problem)
{
    extern __shared__ __align__(16) float shared[];
    float *k = shared, *v = k + S::TILE, *q = v + S::TILE, *o = q + S::TILE, *p = o + S::TILE;
    float *ds = p + S::SCORES, *block_lse = ds + S::SCORES, *block_delta = block_lse + S::ROWS;
    struct simt_task<typename S::T> task = task_of<S>(qkv, problem, problem.heads);
    int dim = problem.head_dim, row = threadIdx.x / S::LANES;
    int kv_head = task.head / (problem.heads / problem.kv_heads);
    int64_t k_column = (int64_t)(problem.heads + kv_head) * dim;
    int64_t v_column = k_column + (int64_t)problem.kv_heads * dim;
    row_part<S> dq;

    if (task.first >= task.length)
        return;
    zero_part<S>(dq);
    load_rows<S>(q, task.base + task.head * dim, problem.stride, task.first, task.length, dim);
    load_rows<S>(o, dout + task.start * problem.out_stride + task.head * dim, problem.out_stride,
                 task.first, task.length, dim);
    load_sums<S>(block_lse, block_delta, lse, delta, task.head * problem.rows + task.start,
                 task.first, task.length);
    for (int key = max(task.first - problem.window + 1, 0) / S::ROWS * S::ROWS;
         key < min(task.first + S::ROWS, task.length); key += S::ROWS) {
        const struct simt_square square = {task.start, task.length, task.head, task.first, key};

        __syncthreads();
        load_rows<S>(k, task.base + k_column, problem.stride, key, task.length, dim);
        load_rows<S>(v, task.base + v_column, problem.stride, key, task.length, dim);
        __syncthreads();
        score_product<S>(p, q, k);
        score_product<S>(ds, o, v);
        __syncthreads();
        gradient_scores<S>(p, ds, block_lse, block_delta, square, problem);
        __syncthreads();
        row_product<S>(dq, ds + row * (S::ROWS + 1), 1, k);
    }
    if (task.first + row < task.length)
        store_part<S>(dqkv + (task.start + task.first + row) * problem.stride + task.head * dim, dq,
                      1, dim);
}

/* --- on the host --------------------------------------------------------------------------------
 */

static struct simt_problem problem_of(const struct attention_shape *shape, int rows_of_block)
{
    struct simt_problem problem = {};

    problem.starts = shape->device_starts;
    problem.rows = shape->rows;
    problem.stride = (int64_t)(shape->heads + 2 * shape->kv_heads) * shape->head_dim;
    problem.out_stride = (int64_t)shape->heads * shape->head_dim;
    problem.heads = shape->heads;
    problem.kv_heads = shape->kv_heads;
    problem.head_dim = shape->head_dim;
    problem.sequences = shape->sequences;
    problem.window = (int)shape->longest;
    if (shape->window > 0 && shape->window < problem.window)
        problem.window = shape->window;
    problem.blocks = (int)ceil_div(shape->longest, rows_of_block);
    problem.scale = (float)(1 / sqrt(shape->head_dim));
    problem.drops = attention_drops_of(shape);
    return problem;
}

static unsigned grid_of(const struct simt_problem *problem, int heads)
{
    int64_t blocks = (int64_t)problem->blocks * heads * problem->sequences;

    assert(blocks <= INT32_MAX);
    return (unsigned)blocks;
}

template <class S, class Kernel> static void allow_shared(Kernel *kernel)
{
    cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   (int)S::SHARED_BYTES),
              "shared memory for attention");
}

/* The arguments of one call; dout is NULL in the forward pass. */
struct simt_call {
    struct stream *stream;
    void *out;  /* dqkv in the backward pass */
    float *lse; /* read in the backward pass */
    const void *qkv, *dout, *forward_out;
    float *delta;
    const struct attention_shape *shape;
};

template <class S> static void launch(const struct simt_call *call)
{
    using T = typename S::T;
    const struct attention_shape *shape = call->shape;
    struct simt_problem problem = problem_of(shape, S::ROWS);
    int64_t rows = shape->rows * shape->heads;
    cudaStream_t stream = handle_of(call->stream);
    unsigned blocks = grid_of(&problem, shape->heads);
    unsigned kv_blocks = grid_of(&problem, shape->kv_heads);

    if (blocks == 0)
        return;
    if (!call->dout) {
        allow_shared<S>(forward_kernel<S>);
        forward_kernel<S><<<blocks, THREADS, S::SHARED_BYTES, stream>>>(
            (T *)call->out, call->lse, (const T *)call->qkv, problem);
        LAUNCHED("attention forward");
        return;
    }
    allow_shared<S>(backward_keys_kernel<S>);
    allow_shared<S>(backward_queries_kernel<S>);
    delta_kernel<T><<<(unsigned)ceil_div(rows, THREADS / 32), THREADS, 0, stream>>>(
        call->delta, (const T *)call->dout, (const T *)call->forward_out, problem);
    LAUNCHED("attention backward: sums of rows");
    backward_keys_kernel<S><<<kv_blocks, THREADS, S::SHARED_BYTES, stream>>>(
        (T *)call->out, (const T *)call->dout, (const T *)call->qkv, call->lse, call->delta,
        problem);
    LAUNCHED("attention backward: keys and values");
    backward_queries_kernel<S><<<blocks, THREADS, S::SHARED_BYTES, stream>>>(
        (T *)call->out, (const T *)call->dout, (const T *)call->qkv, call->lse, call->delta,
        problem);
    LAUNCHED("attention backward: queries");
}

template <class T> static void launch_for_dim(const struct simt_call *call)
{
    int dim = call->shape->head_dim;

    if (dim <= 32)
        launch<simt_tiling<T, 32>>(call);
    else if (dim <= 64)
        launch<simt_tiling<T, 64>>(call);
    else if (dim <= 128)
        launch<simt_tiling<T, 128>>(call);
    else
        launch<simt_tiling<T, 256>>(call);
}

static void launch_for_type(const struct simt_call *call, enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32:
        launch_for_dim<float>(call);
        break;
    case DTYPE_BF16:
        launch_for_dim<bf16>(call);
        break;
    case DTYPE_F16:
        launch_for_dim<__half>(call);
        break;
    }
}

static bool supports(const struct attention_shape *shape, enum dtype dtype,
                     enum attention_pass pass)
{
    (void)dtype;
    (void)pass;
    return shape->head_dim <= 256;
}

static void forward(struct stream *stream, void *out, float *lse, const void *qkv,
                    const struct attention_shape *shape, enum dtype dtype)
{
    struct simt_call call = {stream, out, lse, qkv, nullptr, nullptr, nullptr, shape};

    launch_for_type(&call, dtype);
}

/* delta: [heads, rows] */
static size_t workspace_bytes(const struct attention_shape *shape)
{
    return attention_simt_bytes(shape);
}

static void backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                     const void *qkv, const float *lse, void *workspace,
                     const struct attention_shape *shape, enum dtype dtype)
{
    struct simt_call call = {stream, dqkv, (float *)lse, qkv, dout, out, (float *)workspace, shape};

    launch_for_type(&call, dtype);
}

const struct attention_implementation attention_simt = {"simt", supports, forward, workspace_bytes,
                                                        backward};
