/* Attention in 16 bits on the tensor cores of sm_80 and newer: forward (Dao, "FlashAttention-2",
 * 2023).
 *
 * A block of threads has QUERIES queries of one head and goes over the keys that they see, KEYS at
 * a time, from the diagonal down; the next keys and values come while these are worked on. A warp
 * has 16 or 32 rows of queries alone, so that maxima and sums never leave it, and the probabilities
 * it computes are in the right registers for their product with the values.
 *
 * Dropout comes between the sums and the product with the values: of the keys of a counter (see
 * philox.h) a lane has all four. Without it the kernels are others.
 *
 * The maximum that exponentials are taken relative to need not be the true one: it follows only
 * when it has been outgrown by a factor of 2^8, so that the output so far is seldom rescaled.
 */
#include "kernels/cuda/attention_mma.h"

#include <math.h>

#include "kernels/philox.h"

static constexpr float OUTGROWN_LOG2 = 8;

template <class T_, int DIM_, int WARPS_, int ROW_TILES_, int KEYS_, int BLOCKS_>
struct forward_tiling {
    using T = T_;
    static constexpr int DIM = DIM_, WARPS = WARPS_, ROW_TILES = ROW_TILES_, KEYS = KEYS_;
    static constexpr int BLOCKS = BLOCKS_; /* that registers are shared out for */
    static constexpr int THREADS = WARPS * WARP, ROWS = 16 * ROW_TILES, QUERIES = WARPS * ROWS;
    static constexpr int STAGES = 2;
    static constexpr bool QUERIES_STAY = DIM <= 64; /* in registers */
    static constexpr int ROW_BYTES = DIM * (int)sizeof(T);
    static constexpr size_t SHARED_BYTES = ROW_BYTES * (size_t)(QUERIES + 2 * STAGES * KEYS);
};

/* Of one warp; c[i][..][2 h + ..] belongs to row 16 i + 8 h + lane / 4. */
template <class B> struct running_rows {
    float out[B::ROW_TILES][B::DIM / 8][4];
    float maximum[B::ROW_TILES][2]; /* of the scores, before scaling */
    float sum[B::ROW_TILES][2];     /* of this lane's columns */
};

template <class B> using score_tiles = float[B::ROW_TILES][B::KEYS / 8][4];

/* scores = q k^T */
template <class B>
static __device__ inline void score_product(score_tiles<B> &scores,
                                            const uint32_t (&kept)[B::DIM / 16][B::ROW_TILES][4],
                                            uint32_t q_address, uint32_t k_address)
{
#pragma unroll
    for (int i = 0; i < B::ROW_TILES; i++)
#pragma unroll
        for (int j = 0; j < B::KEYS / 8; j++)
            scores[i][j][0] = scores[i][j][1] = scores[i][j][2] = scores[i][j][3] = 0;
#pragma unroll
    for (int k = 0; k < B::DIM / 16; k++) {
        uint32_t q[B::ROW_TILES][4];

#pragma unroll
        for (int i = 0; i < B::ROW_TILES; i++)
            if (B::QUERIES_STAY)
                memcpy(q[i], kept[k][i], sizeof(q[i]));
            else
                load_matrices(q[i], column_step(q_address, k) + 16 * i * B::ROW_BYTES);
#pragma unroll
        for (int j = 0; j < B::KEYS / 16; j++) {
            uint32_t keys[4];

            load_matrices(keys, column_step(k_address, k) + 16 * j * B::ROW_BYTES);
#pragma unroll
            for (int i = 0; i < B::ROW_TILES; i++) {
                mma<typename B::T>(scores[i][2 * j], q[i], keys[0], keys[1]);
                mma<typename B::T>(scores[i][2 * j + 1], q[i], keys[2], keys[3]);
            }
        }
    }
}

/* Scores of keys that a query does not see become -infinity. first_row is this lane's first. */
template <class B>
static __device__ inline void mask_scores(score_tiles<B> &scores, int first_row, int first_key,
                                          int window)
{
    int lane_key = first_key + threadIdx.x % 4 * 2;

#pragma unroll
    for (int i = 0; i < B::ROW_TILES; i++)
#pragma unroll
        for (int j = 0; j < B::KEYS / 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int query = first_row + 16 * i + c / 2 * 8, key = lane_key + 8 * j + c % 2;

                if (key > query || key <= query - window)
                    scores[i][j][c] = -INFINITY;
            }
}

/* Scores become exponentials; the sums, and if need be the output, follow. */
template <class B>
static __device__ inline void softmax_scores(struct running_rows<B> &rows, score_tiles<B> &scores,
                                             float scale_log2)
{
    float factor[B::ROW_TILES][2];
    bool outgrown = false;

#pragma unroll
    for (int i = 0; i < B::ROW_TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float maximum = scores[i][0][2 * half], before = rows.maximum[i][half];

#pragma unroll
            for (int j = 0; j < B::KEYS / 8; j++)
                maximum = fmaxf(maximum, fmaxf(scores[i][j][2 * half], scores[i][j][2 * half + 1]));
            maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 1));
            maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 2));
            factor[i][half] = 1;
            if ((maximum - before) * scale_log2 > OUTGROWN_LOG2) {
                factor[i][half] = power_of_2((before - maximum) * scale_log2);
                rows.maximum[i][half] = maximum;
                rows.sum[i][half] *= factor[i][half];
                outgrown = true;
            }
        }
    if (__any_sync(~0u, outgrown)) {
#pragma unroll
        for (int i = 0; i < B::ROW_TILES; i++)
#pragma unroll
            for (int j = 0; j < B::DIM / 8; j++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    rows.out[i][j][c] *= factor[i][c / 2];
    }
#pragma unroll
    for (int i = 0; i < B::ROW_TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float maximum = rows.maximum[i][half], sum = 0;
            /* a row that saw no key yet: exponentials of -infinity, not of a NaN */
            float shift = maximum == -INFINITY ? 0 : -maximum * scale_log2;

#pragma unroll
            for (int j = 0; j < B::KEYS / 8; j++)
#pragma unroll
                for (int c = 2 * half; c < 2 * half + 2; c++) {
                    scores[i][j][c] = power_of_2(fmaf(scores[i][j][c], scale_log2, shift));
                    sum += scores[i][j][c];
                }
            rows.sum[i][half] += sum;
        }
}

/* What is dropped becomes 0; head and first_row, this lane's first, are of the whole run. */
template <class B>
static __device__ inline void drop_scores(score_tiles<B> &scores,
                                          const struct attention_drops &drops, int head,
                                          int64_t first_row, int first_key)
{
    int lane_key = first_key + threadIdx.x % 4 * 2;

    static_assert(B::KEYS % 32 == 0, "all keys of a counter");
#pragma unroll
    for (int i = 0; i < B::ROW_TILES; i++)
#pragma unroll
        for (int c = 0; c < 4; c++)
#pragma unroll
            for (int j = 0; j < B::KEYS / 8; j += 4) {
                uint32_t numbers[4];

                philox_attention(numbers, drops.seed, drops.place, first_row + 16 * i + c / 2 * 8,
                                 head, lane_key + 8 * j + c % 2);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    if (numbers[k] < drops.threshold)
                        scores[i][j + k][c] = 0;
            }
}

/* out += probabilities v */
template <class B>
static __device__ inline void value_product(struct running_rows<B> &rows,
                                            const score_tiles<B> &scores, uint32_t v_address)
{
#pragma unroll
    for (int k = 0; k < B::KEYS / 16; k++) {
        uint32_t p[B::ROW_TILES][4];

#pragma unroll
        for (int i = 0; i < B::ROW_TILES; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float *pair = scores[i][2 * k + j / 2] + j % 2 * 2;

                p[i][j] = pack_pair<typename B::T>(pair[0], pair[1]);
            }
#pragma unroll
        for (int j = 0; j < B::DIM / 16; j++) {
            uint32_t values[4];

            load_matrices_transposed(values, column_step(v_address, j) + 16 * k * B::ROW_BYTES);
#pragma unroll
            for (int i = 0; i < B::ROW_TILES; i++) {
                mma<typename B::T>(rows.out[i][2 * j], p[i], values[0], values[1]);
                mma<typename B::T>(rows.out[i][2 * j + 1], p[i], values[2], values[3]);
            }
        }
    }
}

/* Divide by the sums, which were of `kept` times as much, and write; lse points to the warp's first
 * row. */
template <class B>
static __device__ inline void finish_rows(typename B::T *out, float *lse, int64_t out_stride,
                                          int left, int head_dim, float scale_log2, float kept,
                                          typename B::T *tile, struct running_rows<B> &rows)
{
    constexpr float ln2 = 0.693147180559945f;
    int lane = threadIdx.x % WARP;

#pragma unroll
    for (int i = 0; i < B::ROW_TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = rows.sum[i][half];
            int row = 16 * i + 8 * half + lane / 4;

            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            if (lane % 4 == 0 && row < left)
                lse[row] = fmaf(rows.maximum[i][half], scale_log2, log2f(sum)) * ln2;
#pragma unroll
            for (int j = 0; j < B::DIM / 8; j++)
#pragma unroll
                for (int c = 2 * half; c < 2 * half + 2; c++)
                    rows.out[i][j][c] *= kept / sum;
        }
    store_rows<typename B::T, B::ROW_TILES, B::DIM>(out, out_stride, left, head_dim, tile,
                                                    rows.out);
}

/* What a block of threads works on. */
template <class T> struct forward_task {
    const T *q, *k, *v; /* row 0 of the sequence */
    int length, head;   /* of the sequence; of the queries */
    int64_t start;      /* of the sequence in the batch */
    int first_query, first_key, steps;
};

/* Keys and values of the step: the last ones first. */
template <class B>
static __device__ inline void copy_step(const struct forward_task<typename B::T> &task,
                                        const struct mma_problem &problem, typename B::T *k_tiles,
                                        typename B::T *v_tiles, int step)
{
    int first = task.first_key + (task.steps - 1 - step) * B::KEYS;
    int place = step % B::STAGES * B::KEYS * B::DIM;

    copy_rows<B::KEYS, B::DIM, B::THREADS>(k_tiles + place, task.k, problem.stride, first,
                                           task.length, problem.head_dim, threadIdx.x);
    copy_rows<B::KEYS, B::DIM, B::THREADS>(v_tiles + place, task.v, problem.stride, first,
                                           task.length, problem.head_dim, threadIdx.x);
}

/* The warp's rows, which begin with warp_query and have their queries in q_tile. */
template <class B, bool DROPS>
static __device__ inline void attend(struct running_rows<B> &rows,
                                     const struct forward_task<typename B::T> &task,
                                     const struct mma_problem &problem, typename B::T *q_tile,
                                     typename B::T *k_tiles, typename B::T *v_tiles, int warp_query)
{
    uint32_t q_address = rows_first<B::DIM>(q_tile), k_address = columns_first<B::DIM>(k_tiles);
    uint32_t v_address = rows_first<B::DIM>(v_tiles), kept[B::DIM / 16][B::ROW_TILES][4];
    score_tiles<B> scores;

    for (int step = 0; step < task.steps; step++) {
        int first_key = task.first_key + (task.steps - 1 - step) * B::KEYS;
        uint32_t place = step % B::STAGES * B::KEYS * B::DIM * sizeof(typename B::T);

        copies_wait<0>();
        __syncthreads(); /* this step's have come; the last one's nobody needs any more */
        if (step + 1 < task.steps)
            copy_step<B>(task, problem, k_tiles, v_tiles, step + 1);
        copies_commit();
        if (B::QUERIES_STAY && step == 0) {
#pragma unroll
            for (int k = 0; k < B::DIM / 16; k++)
#pragma unroll
                for (int i = 0; i < B::ROW_TILES; i++)
                    load_matrices(kept[k][i], column_step(q_address, k) + 16 * i * B::ROW_BYTES);
        }
        if (first_key > warp_query + B::ROWS - 1 ||
            first_key + B::KEYS - 1 <= warp_query - problem.window)
            continue; /* none that these rows see */
        score_product<B>(scores, kept, q_address, k_address + place);
        if (first_key + B::KEYS - 1 > warp_query ||
            first_key <= warp_query + B::ROWS - 1 - problem.window)
            mask_scores<B>(scores, warp_query + threadIdx.x % WARP / 4, first_key, problem.window);
        softmax_scores<B>(rows, scores, problem.scale_log2);
        if (DROPS)
            drop_scores<B>(scores, problem.drops, problem.drops.first_head + task.head,
                           problem.drops.first_row + task.start + warp_query +
                               threadIdx.x % WARP / 4,
                           first_key);
        value_product<B>(rows, scores, v_address + place);
    }
}

/* `blocks` blocks for each head of each sequence, those with the most keys first. */
template <class B, bool DROPS>
static __global__ void __launch_bounds__(B::THREADS, B::BLOCKS)
    forward_kernel(typename B::T *out, float *lse, const typename B::T *qkv,
                   const struct mma_problem problem, int blocks)
{
    using T = typename B::T;
    extern __shared__ __align__(1024) unsigned char shared[];
    T *q_tile = reinterpret_cast<T *>(shared), *k_tiles = q_tile + B::QUERIES * B::DIM;
    T *v_tiles = k_tiles + B::STAGES * B::KEYS * B::DIM;
    int head = blockIdx.x / blocks % problem.heads, sequence = blockIdx.x / blocks / problem.heads;
    int kv_head = head / (problem.heads / problem.kv_heads);
    int64_t start = problem.starts[sequence], dim = problem.head_dim;
    int64_t out_stride = problem.heads * dim;
    int warp_row = threadIdx.x / WARP * B::ROWS, end_key;
    struct forward_task<T> task;
    struct running_rows<B> rows;

    task.length = (int)(problem.starts[sequence + 1] - start);
    task.head = head;
    task.start = start;
    task.first_query = (blocks - 1 - (int)(blockIdx.x % blocks)) * B::QUERIES;
    if (task.first_query >= task.length)
        return;
    end_key = min(task.first_query + B::QUERIES, task.length);
    task.first_key = max(task.first_query - problem.window + 1, 0) / B::KEYS * B::KEYS;
    task.steps = (end_key - task.first_key + B::KEYS - 1) / B::KEYS;
    task.q = qkv + start * problem.stride + head * dim;
    task.k = qkv + start * problem.stride + (problem.heads + kv_head) * dim;
    task.v = task.k + problem.kv_heads * dim;
    copy_rows<B::QUERIES, B::DIM, B::THREADS>(q_tile, task.q, problem.stride, task.first_query,
                                              task.length, problem.head_dim, threadIdx.x);
    copy_step<B>(task, problem, k_tiles, v_tiles, 0);
    copies_commit();
#pragma unroll
    for (int i = 0; i < B::ROW_TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            rows.maximum[i][half] = -INFINITY;
            rows.sum[i][half] = 0;
#pragma unroll
            for (int j = 0; j < B::DIM / 8; j++)
                rows.out[i][j][2 * half] = rows.out[i][j][2 * half + 1] = 0;
        }
    attend<B, DROPS>(rows, task, problem, q_tile + warp_row * B::DIM, k_tiles, v_tiles,
                     task.first_query + warp_row);
    finish_rows<B>(out + (start + task.first_query + warp_row) * out_stride + head * dim,
                   lse + head * problem.rows + start + task.first_query + warp_row, out_stride,
                   task.length - task.first_query - warp_row, problem.head_dim, problem.scale_log2,
                   DROPS ? problem.drops.kept : 1, q_tile + warp_row * B::DIM, rows);
}

template <class B, bool DROPS>
static void launch_forward_as(struct stream *stream, void *out, float *lse, const void *qkv,
                              const struct mma_problem *problem)
{
    using T = typename B::T;
    static const cudaError_t enough =
        cudaFuncSetAttribute(forward_kernel<B, DROPS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)B::SHARED_BYTES);
    int64_t blocks = ceil_div(problem->longest, B::QUERIES);
    int64_t grid = blocks * problem->heads * problem->sequences;

    cuda_note(enough, "shared memory for attention");
    if (grid == 0)
        return;
    assert(grid <= INT32_MAX);
    forward_kernel<B, DROPS><<<(unsigned)grid, B::THREADS, B::SHARED_BYTES, handle_of(stream)>>>(
        (T *)out, lse, (const T *)qkv, *problem, (int)blocks);
    LAUNCHED("attention forward");
}

template <class B>
static void launch_forward(struct stream *stream, void *out, float *lse, const void *qkv,
                           const struct mma_problem *problem)
{
    if (problem->drops.threshold)
        launch_forward_as<B, true>(stream, out, lse, qkv, problem);
    else
        launch_forward_as<B, false>(stream, out, lse, qkv, problem);
}

/* Where there is less shared memory than Hopper's, smaller blocks. */
template <class T>
static void forward(struct stream *stream, void *out, float *lse, const void *qkv,
                    const struct mma_problem *problem)
{
    bool large = cuda_device.shared_bytes >= 200 << 10;

    switch (mma_padded_dim(problem->head_dim)) {
    case 32:
        launch_forward<forward_tiling<T, 32, 4, 2, 64, 3>>(stream, out, lse, qkv, problem);
        break;
    case 64:
        launch_forward<forward_tiling<T, 64, 4, 2, 64, 2>>(stream, out, lse, qkv, problem);
        break;
    case 128:
        launch_forward<forward_tiling<T, 128, 4, 2, 32, 2>>(stream, out, lse, qkv, problem);
        break;
    default:
        if (large)
            launch_forward<forward_tiling<T, 256, 8, 1, 64, 1>>(stream, out, lse, qkv, problem);
        else
            launch_forward<forward_tiling<T, 256, 4, 1, 32, 1>>(stream, out, lse, qkv, problem);
    }
}

void attention_mma_forward(struct stream *stream, void *out, float *lse, const void *qkv,
                           const struct attention_shape *shape, enum dtype dtype)
{
    struct mma_problem problem = mma_problem_of(shape);

    if (dtype == DTYPE_BF16)
        forward<bf16>(stream, out, lse, qkv, &problem);
    else
        forward<__half>(stream, out, lse, qkv, &problem);
}

int mma_padded_dim(int head_dim)
{
    return head_dim <= 32 ? 32 : head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

struct mma_problem mma_problem_of(const struct attention_shape *shape)
{
    struct mma_problem problem = {};

    problem.starts = shape->device_starts;
    problem.rows = shape->rows;
    problem.stride = (int64_t)(shape->heads + 2 * shape->kv_heads) * shape->head_dim;
    problem.heads = shape->heads;
    problem.kv_heads = shape->kv_heads;
    problem.head_dim = shape->head_dim;
    problem.sequences = shape->sequences;
    problem.longest = (int)shape->longest;
    problem.window = problem.longest;
    if (shape->window > 0 && shape->window < problem.window)
        problem.window = shape->window;
    problem.scale = (float)(1 / sqrt(shape->head_dim));
    problem.scale_log2 = (float)(M_LOG2E / sqrt(shape->head_dim));
    problem.drops = attention_drops_of(shape);
    return problem;
}

static bool supports(const struct attention_shape *shape, enum dtype dtype,
                     enum attention_pass pass)
{
    (void)pass;
    return dtype != DTYPE_F32 && shape->head_dim % CHUNK == 0 && shape->head_dim <= 256;
}

const struct attention_implementation attention_mma = {
    "mma", supports, attention_mma_forward, attention_mma_workspace, attention_mma_backward,
};
