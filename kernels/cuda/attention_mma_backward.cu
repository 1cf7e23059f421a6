/* Attention backward in 16 bits on the tensor cores of sm_80 and newer. With one row a key and one
 * column a query,
 *
 *   P = exp(scale K Q^T - lse)     dV = P dO        dP = V dO^T      D = rowsum(dO o)
 *   dS = P (dP - D)                dK = scale dS Q                   dQ = scale dS^T K
 *
 * A block of threads has KEYS keys of one key/value head and goes over the queries that see them,
 * of all query heads that it serves, QUERIES at a time. Its warps have one of two parts: the
 * probability warps compute P and add to dV, the gradient warps dP, dS and dK, each for 16 or 32
 * keys alone, and so with only one large sum in its registers. P goes from the former to the latter
 * through shared memory as the registers they are (both hold the same fragments); dS goes to all,
 * each of which has a part of dQ.
 *
 * With dropout, whose factors M are 0 or 1 / (1 - rate), dV = (P M) dO and dP = (V dO^T) M. The
 * probability warps find out what drops, and tell the gradient warps by the sign of P.
 *
 * dQ is summed over blocks of keys, so by different blocks of threads, in the order of the keys:
 * each adds to the sum in fp32, warp by warp, when its predecessor's same warp has left its turn's
 * number there, and the last one rounds it. The predecessor began before (blocks of threads take
 * their tasks in order from a counter) and goes over the same queries in the same order, from the
 * last ones down, so that waiting is one step at the beginning. The heads of a group take turns
 * within a block of queries, not the other way around: a task would wait, at every new head, for
 * its predecessor, which has more blocks. Tasks with the most queries come first.
 */
#include "kernels/cuda/attention_mma.h"

#include <math.h>

#include "kernels/philox.h"

template <class T_, int DIM_, int WARPS_, int KEY_TILES_, int QUERIES_, int DQ_ROWS_>
struct backward_tiling {
    using T = T_;
    static constexpr int DIM = DIM_, QUERIES = QUERIES_;
    static constexpr int WARPS = WARPS_; /* of each of the two parts */
    static constexpr int THREADS = 2 * WARPS * WARP, PART_THREADS = WARPS * WARP;
    static constexpr int KEY_TILES = KEY_TILES_; /* of 16, of a warp */
    static constexpr int WARP_KEYS = 16 * KEY_TILES, KEYS = WARPS * WARP_KEYS;
    /* Warps share out dQ as DQ_ROWS by DQ_COLUMNS rectangles, of that many tiles of 16 by 8. */
    static constexpr int DQ_ROWS = DQ_ROWS_, DQ_COLUMNS = 2 * WARPS / DQ_ROWS;
    static constexpr int DQ_ROW_TILES = QUERIES / DQ_ROWS / 16, DQ_TILES = DIM / DQ_COLUMNS / 8;
    static constexpr int ROW_BYTES = DIM * (int)sizeof(T);
    static_assert(KEYS % QUERIES == 0, "a block of queries lies in one block of keys");
    static_assert(DQ_ROW_TILES * 16 * DQ_ROWS == QUERIES, "whole tiles");
    static_assert(DQ_TILES % 2 == 0 && DQ_TILES * 8 * DQ_COLUMNS == DIM, "whole pairs of tiles");
};

template <class B> struct backward_shared {
    using T = typename B::T;
    T k[B::KEYS * B::DIM], v[B::KEYS * B::DIM];
    T q[2][B::QUERIES * B::DIM], dout[2][B::QUERIES * B::DIM];
    T ds[B::KEYS * B::QUERIES];
    /* fragments of P, as one thread of each part has them */
    uint4 p[B::KEY_TILES * B::QUERIES / 16][B::PART_THREADS];
    float lse[2][B::QUERIES], delta[2][B::QUERIES];
    uint64_t arrived[2]; /* barriers: the queries of a step are there */
    int task;
};

/* What the backward pass keeps in its workspace. Every sequence's queries begin a block of their
 * own there: block m of sequence s is number starts[s] / QUERIES + s + m of `blocks`. */
struct backward_workspace {
    int64_t blocks;
    float *lse;   /* [heads, blocks, QUERIES], times log2(e); infinity beyond the sequence */
    float *delta; /* D, likewise; 0 beyond */
    float *dq;    /* [heads, blocks][2 WARPS][a warp's fragments] */
    int *turn;    /* [heads, blocks][2 WARPS]: how many blocks of keys have added to it */
    int *tasks;   /* how many were begun */
};

struct backward_arguments {
    struct mma_problem problem;
    struct backward_workspace workspace;
};

/* What a block of threads works on. */
template <class T> struct backward_task {
    const T *q, *dout; /* row 0 of the sequence, head 0 of the group */
    T *dq;             /* likewise */
    int length, head, group;
    int64_t start;  /* of the sequence in the batch */
    int64_t blocks; /* number of the sequence's first block of queries in the workspace */
    int key_block, first_key;
    int last_block, steps; /* blocks of queries are taken from the last one down */
};

/* One step: a block of queries of one head of the group. */
struct backward_step {
    int number, head, block;
};

/* To the next head of the group, and after the last one to the block before. */
static __device__ inline void advance(struct backward_step &step, int group)
{
    step.number++;
    if (++step.head == group) {
        step.head = 0;
        step.block--;
    }
}

enum { P_READY = 1, DS_READY, DS_WRITTEN }; /* barriers */

static __device__ inline void barrier_sync(int barrier, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

#ifndef BARRIERS_ARE_WAITED_AT
#define BARRIERS_ARE_WAITED_AT false
#endif

/* What this thread has written or read is done for those who wait at the barrier; it goes on. The
 * race checker does not follow that (see check.sh), so for it all threads wait at the same
 * barriers. */
static __device__ inline void barrier_arrive(int barrier, int threads)
{
    if (BARRIERS_ARE_WAITED_AT)
        barrier_sync(barrier, threads);
    else
        asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

static __device__ inline void arrivals_expect(uint64_t *barrier, int threads)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(threads)
                 : "memory");
}

/* Once this thread's copies so far have come. */
static __device__ inline void arrive_after_copies(uint64_t *barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier))
                 : "memory");
}

static __device__ inline void arrivals_wait(uint64_t *barrier, int parity)
{
    asm volatile("{\n"
                 ".reg .pred there;\n"
                 "again: mbarrier.test_wait.parity.shared.b64 there, [%0], %1;\n"
                 "@!there bra again;\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* Everything of a step that comes by copies, by the threads of one part. */
template <class B>
static __device__ inline void copy_queries(struct backward_shared<B> &shared,
                                           const struct backward_arguments &arguments,
                                           const struct backward_task<typename B::T> &task,
                                           const struct backward_step &step, int thread)
{
    const struct mma_problem &problem = arguments.problem;
    const struct backward_workspace &workspace = arguments.workspace;
    int place = step.number % 2, first = step.block * B::QUERIES, dim = problem.head_dim;
    int64_t row =
        ((task.head + step.head) * workspace.blocks + task.blocks + step.block) * B::QUERIES;

    copy_rows<B::QUERIES, B::DIM, B::PART_THREADS>(shared.q[place], task.q + step.head * dim,
                                                   problem.stride, first, task.length, dim, thread);
    copy_rows<B::QUERIES, B::DIM, B::PART_THREADS>(shared.dout[place], task.dout + step.head * dim,
                                                   (int64_t)problem.heads * dim, first, task.length,
                                                   dim, thread);
    if (thread < B::QUERIES / 4) {
        copy_chunk(shared_address(shared.lse[place] + 4 * thread), workspace.lse + row + 4 * thread,
                   true);
        copy_chunk(shared_address(shared.delta[place] + 4 * thread),
                   workspace.delta + row + 4 * thread, true);
    }
    arrive_after_copies(&shared.arrived[place]);
}

template <class B> using score_tiles = float[B::KEY_TILES][B::QUERIES / 8][4];
template <class B> using score_fragments = uint32_t[B::KEY_TILES][B::QUERIES / 16][4];
template <class B> using gradient_tiles = float[B::KEY_TILES][B::DIM / 8][4];
template <class B> using dq_tiles = float[B::DQ_ROW_TILES][B::DQ_TILES][4];

template <int TILES, int COLUMNS>
static __device__ inline void zero_tiles(float (&c)[TILES][COLUMNS][4])
{
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            c[i][j][0] = c[i][j][1] = c[i][j][2] = c[i][j][3] = 0;
}

template <int TILES, int COLUMNS>
static __device__ inline void scale_tiles(float (&c)[TILES][COLUMNS][4], float factor)
{
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                c[i][j][k] *= factor;
}

/* scores[keys, queries] = key_rows query_rows^T */
template <class B>
static __device__ inline void score_product(score_tiles<B> &scores, uint32_t key_rows,
                                            uint32_t query_rows)
{
    zero_tiles(scores);
#pragma unroll
    for (int k = 0; k < B::DIM / 16; k++) {
        uint32_t keys[B::KEY_TILES][4];

#pragma unroll
        for (int i = 0; i < B::KEY_TILES; i++)
            load_matrices(keys[i], column_step(key_rows, k) + 16 * i * B::ROW_BYTES);
#pragma unroll
        for (int j = 0; j < B::QUERIES / 16; j++) {
            uint32_t queries[4];

            load_matrices(queries, column_step(query_rows, k) + 16 * j * B::ROW_BYTES);
#pragma unroll
            for (int i = 0; i < B::KEY_TILES; i++) {
                mma<typename B::T>(scores[i][2 * j], keys[i], queries[0], queries[1]);
                mma<typename B::T>(scores[i][2 * j + 1], keys[i], queries[2], queries[3]);
            }
        }
    }
}

/* sum[keys, dim] += left[keys, queries] query_rows */
template <class B>
static __device__ inline void gradient_product(gradient_tiles<B> &sum,
                                               const score_fragments<B> &left, uint32_t query_rows)
{
#pragma unroll
    for (int k = 0; k < B::QUERIES / 16; k++)
#pragma unroll
        for (int j = 0; j < B::DIM / 16; j++) {
            uint32_t queries[4];

            load_matrices_transposed(queries, column_step(query_rows, j) + 16 * k * B::ROW_BYTES);
#pragma unroll
            for (int i = 0; i < B::KEY_TILES; i++) {
                mma<typename B::T>(sum[i][2 * j], left[i][k], queries[0], queries[1]);
                mma<typename B::T>(sum[i][2 * j + 1], left[i][k], queries[2], queries[3]);
            }
        }
}

/* What keys do not see has probability 0. This lane's first key and query. */
template <class B>
static __device__ inline void mask_probabilities(score_tiles<B> &p, int lane_key, int lane_query,
                                                 int window)
{
#pragma unroll
    for (int i = 0; i < B::KEY_TILES; i++)
#pragma unroll
        for (int j = 0; j < B::QUERIES / 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int key = lane_key + 16 * i + c / 2 * 8, query = lane_query + 8 * j + c % 2;

                if (key > query || key <= query - window)
                    p[i][j][c] = 0;
            }
}

/* Probabilities that are dropped become negative, or -0. This lane's first query is of the batch,
 * the head of the model. */
template <class B>
static __device__ inline void drop_probabilities(score_tiles<B> &p,
                                                 const struct attention_drops &drops, int head,
                                                 int64_t lane_query, int lane_key)
{
    /* a warp's 32 keys are those of whole counters; 16 are the first or the second halves */
    bool second = B::WARP_KEYS == 16 && lane_key / 16 % 2;

    static_assert(B::WARP_KEYS == 16 || B::WARP_KEYS == 32, "half or all keys of a counter");
#pragma unroll
    for (int j = 0; j < B::QUERIES / 8; j++)
#pragma unroll
        for (int column = 0; column < 2; column++) {
            uint32_t numbers[4];

            philox_attention(numbers, drops.seed, drops.place,
                             drops.first_row + lane_query + 8 * j + column, head, lane_key);
#pragma unroll
            for (int i = 0; i < B::KEY_TILES; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint32_t number = second ? numbers[2 + half] : numbers[2 * i + half];

                    if (number < drops.threshold)
                        p[i][j][2 * half + column] = -p[i][j][2 * half + column];
                }
        }
}

/* A pair of probabilities with 0 for what is dropped. */
static __device__ inline uint32_t kept_pair(uint32_t pair)
{
    return pair & ~((pair >> 15 & 0x00010001) * 0xffff);
}

/* dS from a probability that is negative where it is dropped, and from V dO^T. */
template <bool DROPS>
static __device__ inline float score_gradient(float p, float dp, float delta, float kept)
{
    if (!DROPS)
        return p * (dp - delta);
    return p < 0 ? p * delta : p * (dp * kept - delta);
}

/* --- dQ -----------------------------------------------------------------------------------------
 */

/* One warp's rectangle of dQ of one block of queries. */
template <class B> struct dq_part {
    float4 *sum; /* in the workspace, this lane's */
    int *turn;
    int position; /* how many blocks of keys come before this one */
    bool last;    /* none comes behind it */
};

template <class B>
static __device__ inline struct dq_part<B>
dq_part_of(const struct backward_arguments &arguments,
           const struct backward_task<typename B::T> &task, const struct backward_step &step) {
    int first_query = step.block * B::QUERIES, warp = threadIdx.x / WARP;
    int first_key = max(first_query - arguments.problem.window + 1, 0);
    int64_t block = (task.head + step.head) * arguments.workspace.blocks + task.blocks + step.block;
    int64_t part = block * 2 * B::WARPS + warp;
    struct dq_part<B> at;

    at.sum = reinterpret_cast<float4 *>(arguments.workspace.dq) +
             part * (B::DQ_ROW_TILES * B::DQ_TILES * WARP) + threadIdx.x % WARP;
    at.turn = arguments.workspace.turn + part;
    at.position = task.key_block - first_key / B::KEYS;
    at.last = first_query / B::KEYS == task.key_block;
    return at;
}

/* What the blocks of keys before this one have summed up. */
template <class B>
static __device__ inline void dq_take(dq_tiles<B> &dq, const struct dq_part<B> &part)
{
    if (part.position == 0) {
        zero_tiles(dq);
        return;
    }
    if (threadIdx.x % WARP == 0) {
        int turn;

        do
            asm volatile("ld.acquire.gpu.global.b32 %0, [%1];"
                         : "=r"(turn)
                         : "l"(part.turn)
                         : "memory");
        while (turn < part.position);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < B::DQ_ROW_TILES; i++)
#pragma unroll
        for (int j = 0; j < B::DQ_TILES; j++) {
            float4 sum = __ldcg(part.sum + (i * B::DQ_TILES + j) * WARP);

            dq[i][j][0] = sum.x;
            dq[i][j][1] = sum.y;
            dq[i][j][2] = sum.z;
            dq[i][j][3] = sum.w;
        }
}

/* dq += dS^T K, this warp's rectangle */
template <class B>
static __device__ inline void dq_product(dq_tiles<B> &dq, struct backward_shared<B> &shared)
{
    int row = threadIdx.x / WARP % B::DQ_ROWS, column = threadIdx.x / WARP / B::DQ_ROWS;
    uint32_t ds = column_step(columns_first<B::QUERIES>(shared.ds), row * B::DQ_ROW_TILES);
    uint32_t keys = column_step(rows_first<B::DIM>(shared.k), column * B::DQ_TILES / 2);

#pragma unroll
    for (int k = 0; k < B::KEYS / 16; k++) {
        uint32_t left[B::DQ_ROW_TILES][4];

#pragma unroll
        for (int i = 0; i < B::DQ_ROW_TILES; i++)
            load_matrices_transposed(left[i], column_step(ds, i) +
                                                  16 * k * B::QUERIES * (int)sizeof(typename B::T));
#pragma unroll
        for (int j = 0; j < B::DQ_TILES / 2; j++) {
            uint32_t right[4];

            load_matrices_transposed(right, column_step(keys, j) + 16 * k * B::ROW_BYTES);
#pragma unroll
            for (int i = 0; i < B::DQ_ROW_TILES; i++) {
                mma<typename B::T>(dq[i][2 * j], left[i], right[0], right[1]);
                mma<typename B::T>(dq[i][2 * j + 1], left[i], right[2], right[3]);
            }
        }
    }
}

/* A sum that was left for those that come behind, and not yet said so. */
struct dq_turn {
    int *turn; /* NULL: nothing to say */
    int position;
};

/* Called some time after the sum was stored, when waiting for that takes no time any more. */
static __device__ inline void dq_pass_on(struct dq_turn &turn)
{
    if (turn.turn && threadIdx.x % WARP == 0)
        asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(turn.turn), "r"(turn.position)
                     : "memory");
    turn.turn = nullptr;
}

/* The sum to those that come behind, or, the last one, what it is for to dqkv. */
template <class B>
static __device__ inline struct dq_turn
dq_leave(const dq_tiles<B> &dq, const struct dq_part<B> &part, const struct mma_problem &problem,
         const struct backward_task<typename B::T> &task, const struct backward_step &step)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;

    if (!part.last) {
#pragma unroll
        for (int i = 0; i < B::DQ_ROW_TILES; i++)
#pragma unroll
            for (int j = 0; j < B::DQ_TILES; j++)
                __stcg(part.sum + (i * B::DQ_TILES + j) * WARP,
                       make_float4(dq[i][j][0], dq[i][j][1], dq[i][j][2], dq[i][j][3]));
        __syncwarp();
        return {part.turn, part.position + 1};
    }
#pragma unroll
    for (int i = 0; i < B::DQ_ROW_TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = step.block * B::QUERIES + (warp % B::DQ_ROWS * B::DQ_ROW_TILES + i) * 16 +
                      8 * half + lane / 4;
            typename B::T *to = task.dq + row * problem.stride + step.head * problem.head_dim;

#pragma unroll
            for (int j = 0; j < B::DQ_TILES; j++) {
                int column = (warp / B::DQ_ROWS * B::DQ_TILES + j) * 8 + lane % 4 * 2;

                if (row < task.length && column < problem.head_dim)
                    *reinterpret_cast<uint32_t *>(to + column) = pack_pair<typename B::T>(
                        dq[i][j][2 * half] * problem.scale, dq[i][j][2 * half + 1] * problem.scale);
            }
        }
    return {nullptr, 0};
}

/* --- the two parts ------------------------------------------------------------------------------
 */

/* dv = the sum over all steps of P dO, for this warp's keys */
template <class B, bool DROPS>
static __device__ inline void probability_part(gradient_tiles<B> &dv,
                                               struct backward_shared<B> &shared,
                                               const struct backward_arguments &arguments,
                                               const struct backward_task<typename B::T> &task)
{
    const struct mma_problem &problem = arguments.problem;
    int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    int warp_key = task.first_key + warp * B::WARP_KEYS;
    uint32_t k_rows = rows_first<B::DIM>(shared.k + warp * B::WARP_KEYS * B::DIM);
    uint32_t q_rows = columns_first<B::DIM>(shared.q[0]);
    uint32_t dout_rows = rows_first<B::DIM>(shared.dout[0]);
    struct backward_step step = {0, 0, task.last_block};
    struct dq_turn turn = {};

    for (; step.number < task.steps; advance(step, task.group)) {
        int place = step.number % 2, first_query = step.block * B::QUERIES;
        uint32_t offset = place * B::QUERIES * B::ROW_BYTES;
        struct dq_part<B> part;
        score_tiles<B> p;
        score_fragments<B> fragments;
        dq_tiles<B> dq;

        arrivals_wait(&shared.arrived[place], step.number / 2 % 2);
        score_product<B>(p, k_rows, q_rows + offset);
        dq_pass_on(turn);
#pragma unroll
        for (int j = 0; j < B::QUERIES / 8; j++) {
            float2 lse =
                *reinterpret_cast<const float2 *>(shared.lse[place] + 8 * j + lane % 4 * 2);

#pragma unroll
            for (int i = 0; i < B::KEY_TILES; i++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    p[i][j][c] =
                        power_of_2(fmaf(p[i][j][c], problem.scale_log2, c % 2 ? -lse.y : -lse.x));
        }
        if (warp_key + B::WARP_KEYS - 1 > first_query ||
            warp_key <= first_query + B::QUERIES - 1 - problem.window)
            mask_probabilities<B>(p, warp_key + lane / 4, first_query + lane % 4 * 2,
                                  problem.window);
        if (DROPS)
            drop_probabilities<B>(p, problem.drops,
                                  problem.drops.first_head + task.head + step.head,
                                  task.start + first_query + lane % 4 * 2, warp_key + lane / 4);
#pragma unroll
        for (int i = 0; i < B::KEY_TILES; i++)
#pragma unroll
            for (int k = 0; k < B::QUERIES / 16; k++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float *pair = p[i][2 * k + j / 2] + j % 2 * 2;

                    fragments[i][k][j] = pack_pair<typename B::T>(pair[0], pair[1]);
                }
                shared.p[i * (B::QUERIES / 16) + k][thread] = make_uint4(
                    fragments[i][k][0], fragments[i][k][1], fragments[i][k][2], fragments[i][k][3]);
                if (DROPS)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        fragments[i][k][j] = kept_pair(fragments[i][k][j]);
            }
        barrier_arrive(P_READY, B::THREADS);
        part = dq_part_of<B>(arguments, task, step);
        dq_take<B>(dq, part);
        gradient_product<B>(dv, fragments, dout_rows + offset);
        barrier_sync(DS_READY, B::THREADS);
        dq_product<B>(dq, shared);
        turn = dq_leave<B>(dq, part, problem, task, step);
    }
    dq_pass_on(turn);
    if (DROPS)
        scale_tiles(dv, problem.drops.kept);
}

/* dk = the sum over all steps of dS Q, for this warp's keys */
template <class B, bool DROPS>
static __device__ inline void gradient_part(gradient_tiles<B> &dk,
                                            struct backward_shared<B> &shared,
                                            const struct backward_arguments &arguments,
                                            const struct backward_task<typename B::T> &task)
{
    using T = typename B::T;
    const struct mma_problem &problem = arguments.problem;
    int thread = threadIdx.x - B::PART_THREADS, lane = thread % WARP;
    int warp_row = thread / WARP * B::WARP_KEYS;
    uint32_t v_rows = rows_first<B::DIM>(shared.v + warp_row * B::DIM);
    uint32_t dout_rows = columns_first<B::DIM>(shared.dout[0]);
    uint32_t q_rows = rows_first<B::DIM>(shared.q[0]);
    /* where this lane's pairs of dS go */
    constexpr int ds_row_bytes = B::QUERIES * (int)sizeof(T);
    uint32_t ds = pair_address<B::QUERIES>(shared.ds + warp_row * B::QUERIES);
    struct backward_step step = {0, 0, task.last_block}, next = step;
    struct dq_turn turn = {};

    copy_queries<B>(shared, arguments, task, step, thread);
    for (; step.number < task.steps; advance(step, task.group)) {
        int place = step.number % 2;
        uint32_t offset = place * B::QUERIES * B::ROW_BYTES;
        struct dq_part<B> part;
        score_tiles<B> dp;
        score_fragments<B> fragments;
        dq_tiles<B> dq;

        arrivals_wait(&shared.arrived[place], step.number / 2 % 2);
        score_product<B>(dp, v_rows, dout_rows + offset);
        dq_pass_on(turn);
        /* Here all warps have left the step before behind them. */
        barrier_sync(P_READY, B::THREADS);
        advance(next, task.group);
        if (next.number < task.steps)
            copy_queries<B>(shared, arguments, task, next, thread);
#pragma unroll
        for (int k = 0; k < B::QUERIES / 16; k++) {
            float2 delta[2];

#pragma unroll
            for (int j = 0; j < 2; j++)
                delta[j] = *reinterpret_cast<const float2 *>(shared.delta[place] + 16 * k + 8 * j +
                                                             lane % 4 * 2);
#pragma unroll
            for (int i = 0; i < B::KEY_TILES; i++) {
                uint4 four = shared.p[i * (B::QUERIES / 16) + k][thread];
                uint32_t pairs[4] = {four.x, four.y, four.z, four.w};

#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float *pair = dp[i][2 * k + j / 2] + j % 2 * 2;
                    float2 p = unpack_pair(pairs[j], T());

                    fragments[i][k][j] = pack_pair<T>(
                        score_gradient<DROPS>(p.x, pair[0], delta[j / 2].x, problem.drops.kept),
                        score_gradient<DROPS>(p.y, pair[1], delta[j / 2].y, problem.drops.kept));
                    store_pair(chunk_step(ds, 2 * k + j / 2) + (16 * i + j % 2 * 8) * ds_row_bytes,
                               fragments[i][k][j]);
                }
            }
        }
        barrier_arrive(DS_READY, B::THREADS);
        part = dq_part_of<B>(arguments, task, step);
        dq_take<B>(dq, part);
        gradient_product<B>(dk, fragments, q_rows + offset);
        if (!BARRIERS_ARE_WAITED_AT)
            barrier_sync(DS_WRITTEN, B::PART_THREADS);
        dq_product<B>(dq, shared);
        turn = dq_leave<B>(dq, part, problem, task, step);
    }
    dq_pass_on(turn);
    scale_tiles(dk, problem.scale);
}

/* As many blocks as there may be tasks: blocks of keys of each key/value head of each sequence. */
template <class B, bool DROPS>
static __global__ void __launch_bounds__(B::THREADS, 1)
    backward_kernel(typename B::T *dqkv, const typename B::T *dout, const typename B::T *qkv,
                    const struct backward_arguments arguments)
{
    using T = typename B::T;
    extern __shared__ __align__(1024) unsigned char bytes[];
    struct backward_shared<B> &shared = *reinterpret_cast<struct backward_shared<B> *>(bytes);
    const struct mma_problem &problem = arguments.problem;
    int heads = problem.heads, kv_heads = problem.kv_heads, kv_head, sequence, warp_row;
    int64_t start, dim = problem.head_dim, k_column, v_column;
    struct backward_task<T> task;
    gradient_tiles<B> sum;
    bool gradient = threadIdx.x >= B::PART_THREADS;

    if (threadIdx.x == 0) {
        shared.task = atomicAdd(arguments.workspace.tasks, 1);
        arrivals_expect(&shared.arrived[0], B::PART_THREADS);
        arrivals_expect(&shared.arrived[1], B::PART_THREADS);
    }
    __syncthreads();
    kv_head = shared.task % kv_heads;
    sequence = shared.task / kv_heads % problem.sequences;
    start = problem.starts[sequence];
    task.key_block = shared.task / kv_heads / problem.sequences;
    task.first_key = task.key_block * B::KEYS;
    task.length = (int)(problem.starts[sequence + 1] - start);
    if (task.first_key >= task.length)
        return;
    task.group = heads / kv_heads;
    task.start = start;
    task.head = kv_head * task.group;
    task.q = qkv + start * problem.stride + task.head * dim;
    task.dq = dqkv + start * problem.stride + task.head * dim;
    task.dout = dout + (start * heads + task.head) * dim;
    task.blocks = start / B::QUERIES + sequence;
    /* the last query that sees the last key, or that there is */
    task.last_block =
        (int)min((int64_t)task.first_key + B::KEYS + problem.window - 2, (int64_t)task.length - 1) /
        B::QUERIES;
    task.steps = (task.last_block - task.first_key / B::QUERIES + 1) * task.group;
    k_column = (heads + kv_head) * dim;
    v_column = k_column + kv_heads * dim;
    copy_rows<B::KEYS, B::DIM, B::THREADS>(shared.k, qkv + start * problem.stride + k_column,
                                           problem.stride, task.first_key, task.length,
                                           problem.head_dim, threadIdx.x);
    copy_rows<B::KEYS, B::DIM, B::THREADS>(shared.v, qkv + start * problem.stride + v_column,
                                           problem.stride, task.first_key, task.length,
                                           problem.head_dim, threadIdx.x);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    zero_tiles(sum);
    if (gradient)
        gradient_part<B, DROPS>(sum, shared, arguments, task);
    else
        probability_part<B, DROPS>(sum, shared, arguments, task);
    __syncthreads(); /* nobody needs k and v any more */
    warp_row = threadIdx.x % B::PART_THREADS / WARP * B::WARP_KEYS;
    store_rows<T, B::KEY_TILES, B::DIM>(
        dqkv + (start + task.first_key + warp_row) * problem.stride +
            (gradient ? k_column : v_column),
        problem.stride, task.length - task.first_key - warp_row, problem.head_dim,
        (gradient ? shared.k : shared.v) + warp_row * B::DIM, sum);
}

/* --- before it ----------------------------------------------------------------------------------
 */

enum { PREPARE_THREADS = 128 };

/* lse and delta of one block of queries of one head, and its turns. */
template <class B>
static __global__ void __launch_bounds__(PREPARE_THREADS)
    prepare_kernel(const typename B::T *dout, const typename B::T *out, const float *lse,
                   const struct backward_arguments arguments, int blocks)
{
    constexpr int lanes = B::DIM / CHUNK, rows_at_once = PREPARE_THREADS / lanes;
    const struct mma_problem &problem = arguments.problem;
    const struct backward_workspace &workspace = arguments.workspace;
    int head = blockIdx.x % problem.heads, block = blockIdx.x / problem.heads % blocks;
    int sequence = blockIdx.x / problem.heads / blocks;
    int start = problem.starts[sequence], length = problem.starts[sequence + 1] - start;
    int column = threadIdx.x % lanes * CHUNK;
    int64_t stored = head * workspace.blocks + start / B::QUERIES + sequence + block;

    if (blockIdx.x == 0 && threadIdx.x == 0)
        *workspace.tasks = 0;
    if (block * B::QUERIES >= length)
        return;
    if (threadIdx.x < 2 * B::WARPS)
        workspace.turn[stored * 2 * B::WARPS + threadIdx.x] = 0;
    for (int i = threadIdx.x / lanes; i < B::QUERIES; i += rows_at_once) {
        int row = block * B::QUERIES + i;
        int64_t at = ((int64_t)(start + row) * problem.heads + head) * problem.head_dim + column;
        float sum = 0;

        if (row < length && column < problem.head_dim) {
            pack<typename B::T> a = load_pack(dout + at), b = load_pack(out + at);

#pragma unroll
            for (int j = 0; j < CHUNK; j++)
                sum = fmaf(to_float(a.at[j]), to_float(b.at[j]), sum);
        }
#pragma unroll
        for (int distance = lanes / 2; distance > 0; distance /= 2)
            sum += __shfl_xor_sync(~0u, sum, distance);
        if (threadIdx.x % lanes == 0) {
            workspace.delta[stored * B::QUERIES + i] = sum;
            workspace.lse[stored * B::QUERIES + i] =
                row < length ? lse[head * problem.rows + start + row] * 1.44269504088896f
                             : INFINITY;
        }
    }
}

/* --- on the host --------------------------------------------------------------------------------
 */

template <class B>
static struct backward_workspace workspace_at(unsigned char *memory, size_t *bytes,
                                              const struct attention_shape *shape)
{
    struct backward_workspace workspace = {};
    int64_t parts;

    workspace.blocks = shape->rows / B::QUERIES + shape->sequences;
    parts = shape->heads * workspace.blocks;
    workspace.dq = (float *)memory;
    workspace.lse = workspace.dq + parts * B::QUERIES * B::DIM;
    workspace.delta = workspace.lse + parts * B::QUERIES;
    workspace.turn = (int *)(workspace.delta + parts * B::QUERIES);
    workspace.tasks = workspace.turn + parts * 2 * B::WARPS;
    *bytes = (unsigned char *)(workspace.tasks + 1) - memory;
    return workspace;
}

/* Launches when there is something to launch; `bytes` is what the workspace must have. */
struct backward_call {
    struct stream *stream;
    void *dqkv;
    const void *dout, *out, *qkv;
    const float *lse;
    void *memory; /* NULL: only look how much it must be */
    const struct attention_shape *shape;
    size_t bytes;
};

template <class B, bool DROPS>
static void launch_backward(const struct backward_call *call,
                            const struct backward_arguments &arguments, unsigned tasks)
{
    using T = typename B::T;
    static const cudaError_t enough =
        cudaFuncSetAttribute(backward_kernel<B, DROPS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)sizeof(struct backward_shared<B>));

    cuda_note(enough, "shared memory for attention");
    backward_kernel<B, DROPS>
        <<<tasks, B::THREADS, sizeof(struct backward_shared<B>), handle_of(call->stream)>>>(
            (T *)call->dqkv, (const T *)call->dout, (const T *)call->qkv, arguments);
    LAUNCHED("attention backward");
}

template <class B> static void backward_as(struct backward_call *call)
{
    using T = typename B::T;
    struct backward_arguments arguments = {};
    cudaStream_t stream;
    int64_t blocks, grid, tasks; /* blocks: of queries, of the longest sequence */

    arguments.workspace = workspace_at<B>((unsigned char *)call->memory, &call->bytes, call->shape);
    if (!call->memory)
        return;
    stream = handle_of(call->stream);
    arguments.problem = mma_problem_of(call->shape);
    blocks = ceil_div(call->shape->longest, B::QUERIES);
    grid = blocks * call->shape->heads * call->shape->sequences;
    tasks =
        ceil_div(call->shape->longest, B::KEYS) * call->shape->kv_heads * call->shape->sequences;
    if (grid == 0)
        return;
    assert(grid <= INT32_MAX);
    prepare_kernel<B><<<(unsigned)grid, PREPARE_THREADS, 0, stream>>>(
        (const T *)call->dout, (const T *)call->out, call->lse, arguments, (int)blocks);
    LAUNCHED("attention backward: sums of rows");
    if (arguments.problem.drops.threshold)
        launch_backward<B, true>(call, arguments, (unsigned)tasks);
    else
        launch_backward<B, false>(call, arguments, (unsigned)tasks);
}

/* The largest blocks for which there is shared memory: Hopper's, A100's, or what others have. */
template <class T> static void backward(struct backward_call *call)
{
    bool largest = cuda_device.shared_bytes >= 200 << 10;
    bool large = cuda_device.shared_bytes >= 163 << 10;

    switch (mma_padded_dim(call->shape->head_dim)) {
    case 32:
        backward_as<backward_tiling<T, 32, 4, 2, 64, 4>>(call);
        break;
    case 64:
        if (large)
            backward_as<backward_tiling<T, 64, 4, 2, 128, 4>>(call);
        else
            backward_as<backward_tiling<T, 64, 4, 2, 32, 2>>(call);
        break;
    case 128:
        if (large)
            backward_as<backward_tiling<T, 128, 4, 2, 64, 2>>(call);
        else
            backward_as<backward_tiling<T, 128, 4, 1, 32, 2>>(call);
        break;
    default:
        if (largest)
            backward_as<backward_tiling<T, 256, 4, 1, 64, 2>>(call);
        else
            backward_as<backward_tiling<T, 256, 2, 1, 16, 1>>(call);
    }
}

size_t attention_mma_workspace(const struct attention_shape *shape)
{
    struct backward_call call = {};
    size_t bytes = attention_mma_bytes(shape, cuda_device.shared_bytes);

    call.shape = shape;
    backward<bf16>(&call);
    assert(call.bytes == bytes);
    return bytes;
}

void attention_mma_backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                            const void *qkv, const float *lse, void *workspace,
                            const struct attention_shape *shape, enum dtype dtype)
{
    struct backward_call call = {stream, dqkv, dout, out, qkv, lse, workspace, shape, 0};

    if (dtype == DTYPE_BF16)
        backward<bf16>(&call);
    else
        backward<__half>(&call);
}
