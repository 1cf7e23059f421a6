/* Attention on Hopper: the backward pass. attention_wgmma.cu has the forward pass.
 *
 *   P = exp(scale q k^T - lse)     dV = P^T dO      dP = dO V^T      D = rowsum(dO o)
 *   dS = P (dP - D)                dK = scale dS^T q                 dQ = scale dS k
 *
 * A tile is a block of 128 keys of one head of keys. Its two warpgroups, 64 keys each, go over all
 * queries that see it, of all heads that share it, and keep dK and dV in registers. Scores are
 * computed transposed (keys by queries), so that P^T and dS^T come out in the registers where the
 * products for dV and dK want them; dS also goes through shared memory, for dQ.
 *
 * dQ has parts from many tiles. They are added up in fp32 in device memory by the copy engine, one
 * tile after the other: a counter for every block of queries says how many have added, and a tile
 * waits for the one with the keys before its own. So the order, and with it every bit, is fixed.
 * Nobody waits for long, and never for something that has not begun: blocks take tiles in order of
 * their keys from a counter.
 *
 * Three kernels: `prepare` computes D and sets the counters, `multiply` is the above, `finish`
 * rounds dQ. Inside, every sequence begins at a multiple of 128 rows (attention_padded), and rows
 * behind its end have lse = infinity, hence P = 0.
 */
#include "kernels/cuda/attention_wgmma.h"

enum {
    KEYS = ATTENTION_WGMMA_KEYS,
    STAGES = 2,     /* of queries and dO */
    PART = 64 * 64, /* elements of dQ that a warpgroup makes at a time */
};
/* Queries of a block. */
template <int D> constexpr int queries_of = D == 64 ? 128 : 64;

/* Where sequence number `sequence`, which begins at row `start`, begins in the workspace, where
 * each has whole tiles. */
static __host__ __device__ inline int padded_start(int start, int sequence)
{
    return (start + KEYS * sequence) / KEYS * KEYS;
}

struct backward_arguments {
    void *dqkv;
    const void *dout, *out;
    const float *lse;
    const int32_t *starts;
    int64_t rows, padded;
    int heads, kv_heads, sequences, window;
    int tiles;   /* of the longest sequence */
    int splits;  /* parts that the heads of one kv head are split into, each with its own tiles */
    int section; /* how many of (sequence, kv head, part) have their tiles follow each other */
    float scale;
    /* workspace */
    float *statistics; /* [heads, blocks of queries, 2, queries of a block]: lse in base 2; D */
    float *dq;         /* [heads, padded / 64, D / 64, PART], in the order of threads' sums */
    float *dkv;        /* [2, splits, kv_heads, padded / 64, D / 64, PART], if splits > 1 */
    uint32_t *added;   /* [heads, padded / 64, D / 64]: tiles whose parts are in dq */
    uint32_t *next;    /* tile */
};

/* --- prepare -----------------------------------------------------------------------------------
 */

enum { PREPARE_ROWS = 32, PREPARE_HEADS = 8 };

/* The sequence that a padded row belongs to. */
static __device__ inline int padded_sequence(int row, const struct backward_arguments &arguments)
{
    int low = 0, high = arguments.sequences - 1;

    while (low < high) {
        int middle = (low + high + 1) / 2;

        if (padded_start(arguments.starts[middle], middle) <= row)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

template <class T, int D>
__global__ __launch_bounds__(256) void attention_backward_prepare_kernel(
    const __grid_constant__ struct backward_arguments arguments)
{
    constexpr int lanes = D / 8, groups = 256 / lanes; /* threads of a row of a head */
    __shared__ float sums[PREPARE_HEADS][PREPARE_ROWS + 1];
    int row = blockIdx.x * PREPARE_ROWS, head = blockIdx.y * PREPARE_HEADS;
    int sequence = padded_sequence(row, arguments);
    int start = arguments.starts[sequence], length = arguments.starts[sequence + 1] - start;
    int64_t first = blockIdx.x + (int64_t)blockIdx.y * gridDim.x;
    int64_t counters = arguments.padded / 64 * arguments.heads * 2;

    for (int64_t i = first * 256 + threadIdx.x; i < counters;
         i += (int64_t)gridDim.x * gridDim.y * 256)
        arguments.added[i] = 0;
    if (first == 0 && threadIdx.x == 0)
        *arguments.next = 0;

    row -= padded_start(start, sequence);
    for (int i = threadIdx.x / lanes; i < PREPARE_ROWS * PREPARE_HEADS; i += groups) {
        int own_row = row + i / PREPARE_HEADS, own_head = head + i % PREPARE_HEADS;
        float sum = 0;

        if (own_row < length && own_head < arguments.heads) {
            int64_t from = ((int64_t)(start + own_row) * arguments.heads + own_head) * D +
                           threadIdx.x % lanes * 8;
            pack<T> a = load_pack((const T *)arguments.dout + from);
            pack<T> b = load_pack((const T *)arguments.out + from);

#pragma unroll
            for (int k = 0; k < 8; k++)
                sum += to_float(a.at[k]) * to_float(b.at[k]);
        }
#pragma unroll
        for (int step = lanes / 2; step > 0; step /= 2)
            sum += __shfl_xor_sync(~0u, sum, step);
        if (threadIdx.x % lanes == 0)
            sums[i % PREPARE_HEADS][i / PREPARE_HEADS] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < PREPARE_ROWS * PREPARE_HEADS; i += 256) {
        int own_row = row + i % PREPARE_ROWS, own_head = head + i / PREPARE_ROWS;
        int place = blockIdx.x * PREPARE_ROWS + i % PREPARE_ROWS, in_block = place % queries_of<D>;
        float *to =
            arguments.statistics + 2 * (own_head * arguments.padded + place - in_block) + in_block;

        if (own_head >= arguments.heads)
            continue;
        to[0] = own_row < length ? arguments.lse[own_head * arguments.rows + start + own_row] *
                                       1.4426950408889634f
                                 : INFINITY;
        to[queries_of<D>] = sums[i / PREPARE_ROWS][i % PREPARE_ROWS];
    }
}

/* --- multiply ----------------------------------------------------------------------------------
 */

/* Keys of one head of one sequence, and what sees them: heads of queries, blocks of queries. */
struct backward_tile {
    int start, length, padded; /* of the sequence; its first row in the workspace */
    int block, kv_head, split;
    int head, end_head;
    int first, last;
    int end; /* no tile: there are no more */
};

/* What a block has in shared memory, and where. */
template <int D, int QUERIES> struct backward_shared {
    static constexpr uint32_t key_bytes = KEYS * D * 2;
    static constexpr uint32_t query_bytes = QUERIES * D * 2;
    static constexpr uint32_t score_bytes = KEYS * QUERIES * 2;
    static constexpr uint32_t part_bytes = PART * 4;
    static constexpr uint32_t keys = 0;
    static constexpr uint32_t values = keys + key_bytes;
    static constexpr uint32_t queries = values + key_bytes;
    static constexpr uint32_t douts = queries + STAGES * query_bytes;
    static constexpr uint32_t scores = douts + STAGES * query_bytes; /* dS, twice */
    static constexpr uint32_t parts = scores + 2 * score_bytes;      /* dQ, of each warpgroup */
    static constexpr uint32_t statistics = parts + 2 * part_bytes;
    static constexpr uint32_t tile = statistics + STAGES * 2 * QUERIES * 4;
    /* barriers, full and empty */
    static constexpr uint32_t keys_full = tile + 64;
    static constexpr uint32_t keys_empty = keys_full + 8;
    static constexpr uint32_t queries_full = keys_empty + 8;
    static constexpr uint32_t queries_empty = queries_full + 8 * STAGES;
    static constexpr uint32_t douts_full = queries_empty + 8 * STAGES;
    static constexpr uint32_t douts_empty = douts_full + 8 * STAGES;
    static constexpr uint32_t parts_full = douts_empty + 8 * STAGES;
    static constexpr uint32_t parts_empty = parts_full + 8 * 2;
    static constexpr uint32_t bytes = parts_empty + 8 * 2;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* False when that sequence has no such tile. */
template <int QUERIES>
static __device__ inline bool backward_tile_find(struct backward_tile *tile, int number,
                                                 const struct backward_arguments &arguments)
{
    int parts = arguments.kv_heads * arguments.splits, pairs = arguments.sequences * parts;
    int group = arguments.heads / parts;
    int section = number / (arguments.tiles * arguments.section);
    int rest = number - section * arguments.tiles * arguments.section;
    int count = min(arguments.section, pairs - section * arguments.section);
    int pair = section * arguments.section + rest % count;
    int sequence = pair / parts, part = pair - sequence * parts;

    tile->block = rest / count;
    tile->kv_head = part / arguments.splits;
    tile->split = part % arguments.splits;
    tile->head = part * group;
    tile->end_head = tile->head + group;
    tile->start = arguments.starts[sequence];
    tile->length = arguments.starts[sequence + 1] - tile->start;
    tile->padded = padded_start(tile->start, sequence);
    tile->first = tile->block * KEYS / QUERIES;
    tile->last = (tile->length - 1) / QUERIES;
    if (arguments.window > 0)
        tile->last =
            min(tile->last, (tile->block * KEYS + KEYS - 1 + arguments.window - 1) / QUERIES);
    return tile->block * KEYS < tile->length;
}

/* How many tiles add to a block of queries before the one with that block of keys. */
template <int QUERIES>
static __device__ inline uint32_t backward_order(int block, int query_block, int window)
{
    int earliest = window > 0 ? query_block * QUERIES - window + 1 : 0;

    return block - max(earliest, 0) / KEYS;
}

template <int D, int QUERIES>
static __device__ inline void backward_load(uint32_t shared, struct backward_tile *shared_tile,
                                            const CUtensorMap *queries, const CUtensorMap *keys,
                                            const CUtensorMap *douts,
                                            const struct backward_arguments &arguments)
{
    using at = backward_shared<D, QUERIES>;
    constexpr int panels = D / 64;
    int total = arguments.tiles * arguments.sequences * arguments.kv_heads * arguments.splits;
    uint32_t keys_phase = 0;
    struct ring<STAGES> ring;
    struct backward_tile tile;

    for (;;) {
        int number = atomicAdd(arguments.next, 1);

        tile.end = number >= total;
        if (!tile.end && !backward_tile_find<QUERIES>(&tile, number, arguments))
            continue;
        mbarrier_wait(shared + at::keys_empty, keys_phase ^ 1);
        keys_phase ^= 1;
        *shared_tile = tile;
        if (tile.end) {
            mbarrier_arrive(shared + at::keys_full);
            return;
        }
        mbarrier_expect(shared + at::keys_full, 2 * at::key_bytes);
        copy_box(shared + at::keys, keys, tile.start + tile.block * KEYS,
                 (arguments.heads + tile.kv_head) * panels, shared + at::keys_full);
        copy_box(shared + at::values, keys, tile.start + tile.block * KEYS,
                 (arguments.heads + arguments.kv_heads + tile.kv_head) * panels,
                 shared + at::keys_full);
        for (int head = tile.head; head < tile.end_head; head++) {
            int row = tile.start + tile.first * QUERIES;
            const float *statistics =
                arguments.statistics +
                2 * (head * arguments.padded + tile.padded + tile.first * QUERIES);

            for (int block = tile.first; block <= tile.last; block++) {
                uint32_t full = shared + at::queries_full + 8 * ring.stage;

                mbarrier_wait(shared + at::queries_empty + 8 * ring.stage, ring.phase ^ 1);
                mbarrier_expect(full, at::query_bytes + 2 * QUERIES * 4);
                copy_box(shared + at::queries + ring.stage * at::query_bytes, queries, row,
                         head * panels, full);
                copy_bytes(shared + at::statistics + ring.stage * 2 * QUERIES * 4, statistics,
                           2 * QUERIES * 4, full);
                full = shared + at::douts_full + 8 * ring.stage;
                mbarrier_wait(shared + at::douts_empty + 8 * ring.stage, ring.phase ^ 1);
                mbarrier_expect(full, at::query_bytes);
                copy_box(shared + at::douts + ring.stage * at::query_bytes, douts, row,
                         head * panels, full);
                ring.next();
                row += QUERIES;
                statistics += 2 * QUERIES;
            }
        }
    }
}

/* One thread: add what a warpgroup makes of dQ to what is there, when its turn has come. */
template <int D, int QUERIES>
static __device__ inline void backward_add(uint32_t shared, const struct backward_tile *shared_tile,
                                           int half, const struct backward_arguments &arguments)
{
    using at = backward_shared<D, QUERIES>;
    uint32_t keys_phase = 0, parts_phase = 0;
    uint32_t from = shared + at::parts + half * at::part_bytes;
    struct backward_tile tile;

    for (;;) {
        mbarrier_wait(shared + at::keys_full, keys_phase);
        keys_phase ^= 1;
        tile = *shared_tile;
        mbarrier_arrive(shared + at::keys_empty);
        if (tile.end)
            return;
        for (int head = tile.head; head < tile.end_head; head++) {
            int64_t place =
                (head * (arguments.padded / QUERIES) + tile.padded / QUERIES + tile.first) * 2 +
                half;
            uint32_t *added = arguments.added + place;
            float *to = arguments.dq + place * PART;

            for (int block = tile.first; block <= tile.last; block++) {
                uint32_t order = backward_order<QUERIES>(tile.block, block, arguments.window);

                mbarrier_wait(shared + at::parts_full + 8 * half, parts_phase);
                parts_phase ^= 1;
                if (order) {
                    flag_wait(added, order);
                    fence_async();
                    bulk_add(to, from, at::part_bytes);
                } else {
                    bulk_store(to, from, at::part_bytes);
                }
                bulk_commit();
                bulk_wait_read();
                mbarrier_arrive(shared + at::parts_empty + 8 * half);
                bulk_wait();
                fence_async();
                flag_set(added, order + 1);
                added += 2;
                to += 2 * PART;
            }
        }
    }
}

/* sums[64 keys of this warpgroup, QUERIES] = a b^T, both tiles [rows, D] */
template <class T, int D, int QUERIES>
static __device__ inline void backward_scores(float (&sums)[QUERIES / 2], uint32_t keys,
                                              uint32_t queries)
{
    uint64_t a = operand_k_major(keys), b = operand_k_major(queries);

#pragma unroll
    for (int k = 0; k < D / 16; k++)
        wgmma<T, 0, 0>(sums, operand_plus(a, k / 4 * KEYS * 128 + k % 4 * 32),
                       operand_plus(b, k / 4 * QUERIES * 128 + k % 4 * 32), k > 0);
    wgmma_commit();
}

/* sums[64 keys, D] += scores[64 keys, QUERIES] b[QUERIES, D] */
template <class T, int D, int QUERIES>
static __device__ inline void
backward_gradient(float (&sums)[D / 2], const uint32_t (&scores)[QUERIES / 4], uint32_t queries)
{
    uint64_t b = operand_mn_major(queries, QUERIES * 128);

#pragma unroll
    for (int k = 0; k < QUERIES / 16; k++)
        wgmma<T, 1>(sums, scores + 4 * k, operand_plus(b, k * 16 * 128), 1);
    wgmma_commit();
}

/* A quarter of dQ: 64 queries of 64 elements. */
template <class T, int D, int QUERIES>
static __device__ inline void backward_part(float (&sums)[32], uint32_t scores, uint32_t keys,
                                            int half)
{
    uint64_t a = operand_mn_major(scores + (QUERIES == 128 ? half * KEYS * 128 : 0), KEYS * 128);
    uint64_t b = operand_mn_major(keys + (D == 128 ? half * KEYS * 128 : 0), KEYS * 128);

#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
        wgmma<T, 1, 1>(sums, operand_plus(a, k * 16 * 128), operand_plus(b, k * 16 * 128), k > 0);
    wgmma_commit();
}

/* The same in all threads of a warp, and the compiler is to know. Read by the lane that release()
 * has tell the loading warp. */
static __device__ inline struct backward_tile uniform(const struct backward_tile *shared_tile)
{
    struct backward_tile tile = {};

    if (threadIdx.x % 32 == 0)
        tile = *shared_tile;
    return {__shfl_sync(~0u, tile.start, 0),   __shfl_sync(~0u, tile.length, 0),
            __shfl_sync(~0u, tile.padded, 0),  __shfl_sync(~0u, tile.block, 0),
            __shfl_sync(~0u, tile.kv_head, 0), __shfl_sync(~0u, tile.split, 0),
            __shfl_sync(~0u, tile.head, 0),    __shfl_sync(~0u, tile.end_head, 0),
            __shfl_sync(~0u, tile.first, 0),   __shfl_sync(~0u, tile.last, 0),
            __shfl_sync(~0u, tile.end, 0)};
}

/* Sums of 64 rows to the workspace. */
template <int D> static __device__ inline void store_part(float *to, const float (&sums)[D / 2])
{
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        *(float4 *)(to + (i * 128 + threadIdx.x % 128) * 4) =
            make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
}

template <class T, int D, int QUERIES>
static __device__ inline void backward_multiply(uint32_t shared,
                                                const struct backward_tile *shared_tile, int half,
                                                const struct backward_arguments &arguments)
{
    using at = backward_shared<D, QUERIES>;
    constexpr int both_barrier = 1; /* the two warpgroups */
    int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    int thread_key = thread / 32 * 16 + lane / 4, thread_query = lane % 4 * 2;
    float scale = arguments.scale * 1.4426950408889634f;
    uint32_t own_keys = shared + at::keys + half * 64 * 128;
    uint32_t own_values = shared + at::values + half * 64 * 128;
    uint32_t own_part = shared + at::parts + half * at::part_bytes + thread * 16;
    /* Where this lane's row of four 8 by 8 matrices goes in dS, but for the column. */
    uint32_t own_scores = shared + at::scores + (half * 64 + thread / 32 * 16 + lane % 16) * 128;
    uint32_t keys_phase = 0, parts_phase = 0, buffer = 0;
    struct ring<STAGES> ring;
    struct backward_tile tile;

    for (;;) {
        int head, block, key;
        float dk[D / 2], dv[D / 2], scores[QUERIES / 2];
        uint32_t probabilities[QUERIES / 4], dscores[QUERIES / 4];

        mbarrier_wait(shared + at::keys_full, keys_phase);
        keys_phase ^= 1;
        tile = uniform(shared_tile);
        if (tile.end)
            return;
        key = tile.block * KEYS + half * 64;
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            dk[i] = dv[i] = 0;
        head = tile.head;
        block = tile.first;

        mbarrier_wait(shared + at::queries_full + 8 * ring.stage, ring.phase);
        wgmma_fence();
        backward_scores<T, D, QUERIES>(scores, own_keys,
                                       shared + at::queries + ring.stage * at::query_bytes);
        wgmma_wait<0>();
        keep(scores);
        for (bool more = true; more;) {
            float dp[QUERIES / 2], dq[32];
            uint32_t queries = shared + at::queries + ring.stage * at::query_bytes;
            uint32_t douts = shared + at::douts + ring.stage * at::query_bytes;
            uint32_t lse =
                shared + at::statistics + ring.stage * 2 * QUERIES * 4 + thread_query * 4;
            uint32_t delta = lse + QUERIES * 4;
            uint32_t stage = ring.stage;
            int query = block * QUERIES;

            mbarrier_wait(shared + at::douts_full + 8 * ring.stage, ring.phase);
            ring.next();
            keep(dp);
            wgmma_fence();
            backward_scores<T, D, QUERIES>(dp, own_values, douts);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++) {
                float2 l = shared_load2(lse + n * 32);

                scores[4 * n] = exp2_fast(fmaf(scores[4 * n], scale, -l.x));
                scores[4 * n + 1] = exp2_fast(fmaf(scores[4 * n + 1], scale, -l.y));
                scores[4 * n + 2] = exp2_fast(fmaf(scores[4 * n + 2], scale, -l.x));
                scores[4 * n + 3] = exp2_fast(fmaf(scores[4 * n + 3], scale, -l.y));
            }
            if (key + 63 > query ||
                (arguments.window > 0 && key <= query + QUERIES - 1 - arguments.window)) {
                /* The query less the key is at least 0 and less than the window. */
                int distance = query + thread_query - key - thread_key;
                int window = arguments.window > 0 ? arguments.window : INT32_MAX;

#pragma unroll
                for (int i = 0; i < QUERIES / 2; i++) {
                    int own = distance + i / 4 * 8 + i % 2 - i / 2 % 2 * 8;

                    if (own < 0 || own >= window)
                        scores[i] = 0;
                }
            }
#pragma unroll
            for (int i = 0; i < QUERIES / 4; i++)
                probabilities[i] = pack_two<T>(scores[2 * i], scores[2 * i + 1]);
            keep(probabilities);
            keep(dv);
            wgmma_fence();
            backward_gradient<T, D, QUERIES>(dv, probabilities, douts);
            wgmma_wait<1>();
            keep(dp);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++) {
                float2 d = shared_load2(delta + n * 32);

#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float2 p = D == 64
                                   ? unpack_two<T>(probabilities[2 * n + h])
                                   : make_float2(scores[4 * n + 2 * h], scores[4 * n + 2 * h + 1]);

                    dscores[2 * n + h] = pack_two<T>(p.x * (dp[4 * n + 2 * h] - d.x),
                                                     p.y * (dp[4 * n + 2 * h + 1] - d.y));
                }
            }
            keep(dscores);
            keep(dk);
            wgmma_fence();
            backward_gradient<T, D, QUERIES>(dk, dscores, queries);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n += 2) {
                int column = n + lane / 16;

                shared_store_matrices(own_scores + buffer * at::score_bytes + n / 8 * KEYS * 128 +
                                          ((column & 7) ^ (lane & 7)) * 16,
                                      dscores + 2 * n);
            }
            fence_async_shared();
            named_sync(both_barrier, 256);
            keep(dq);
            wgmma_fence();
            backward_part<T, D, QUERIES>(dq, shared + at::scores + buffer * at::score_bytes,
                                         shared + at::keys, half);
            buffer ^= 1;
            wgmma_wait<1>();
            keep(dv);
            keep(dk);
            keep(probabilities);
            keep(dscores);
            release(shared + at::douts_empty + 8 * stage);
            release(shared + at::queries_empty + 8 * stage);

            if (block == tile.last) {
                block = tile.first - 1;
                head++;
            }
            block++;
            more = head < tile.end_head;
            if (more)
                mbarrier_wait(shared + at::queries_full + 8 * ring.stage, ring.phase);
            keep(scores);
            wgmma_fence();
            backward_scores<T, D, QUERIES>(scores, own_keys,
                                           shared + at::queries + ring.stage * at::query_bytes);
            wgmma_wait<1>();
            keep(dq);
            mbarrier_wait(shared + at::parts_empty + 8 * half, parts_phase ^ 1);
            parts_phase ^= 1;
#pragma unroll
            for (int i = 0; i < 8; i++)
                shared_store4(own_part + i * 128 * 16, dq + 4 * i);
            fence_async_shared();
            __syncwarp();
            release(shared + at::parts_full + 8 * half);
            wgmma_wait<0>();
            keep(scores);
        }
        release(shared + at::keys_empty);

        if (arguments.splits == 1) {
            int64_t stride = (int64_t)(arguments.heads + 2 * arguments.kv_heads) * D;
            T *to = (T *)arguments.dqkv + (int64_t)(tile.start + key + thread_key) * stride +
                    (arguments.heads + tile.kv_head) * D;
            int rows = tile.length - key - thread_key;

#pragma unroll
            for (int i = 0; i < D / 2; i++)
                dk[i] *= arguments.scale;
            store_rows<T, D>(to, stride, dk, rows);
            store_rows<T, D>(to + arguments.kv_heads * D, stride, dv, rows);
        } else {
            int64_t blocks = arguments.padded / 64;
            int64_t place = (tile.split * arguments.kv_heads + tile.kv_head) * blocks +
                            (tile.padded + key) / 64;
            int64_t values = arguments.splits * arguments.kv_heads * blocks;

            store_part<D>(arguments.dkv + place * (D / 64) * PART, dk);
            store_part<D>(arguments.dkv + (values + place) * (D / 64) * PART, dv);
        }
    }
}

#endif

template <class T, int D, int QUERIES>
__global__ __launch_bounds__(384, 1) void attention_backward_kernel(
    const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap keys,
    const __grid_constant__ CUtensorMap douts,
    const __grid_constant__ struct backward_arguments arguments)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) unsigned char memory[];
    using at = backward_shared<D, QUERIES>;
    uint32_t shared = shared_address(memory);
    struct backward_tile *shared_tile = (struct backward_tile *)(memory + at::tile);
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0);

    if (threadIdx.x == 0) {
        prefetch_map(&queries);
        prefetch_map(&keys);
        prefetch_map(&douts);
        mbarrier_init(shared + at::keys_full, 1);
        mbarrier_init(shared + at::keys_empty, 8 + 2);
        for (int stage = 0; stage < STAGES; stage++) {
            mbarrier_init(shared + at::queries_full + 8 * stage, 1);
            mbarrier_init(shared + at::queries_empty + 8 * stage, 8);
            mbarrier_init(shared + at::douts_full + 8 * stage, 1);
            mbarrier_init(shared + at::douts_empty + 8 * stage, 8);
        }
        for (int half = 0; half < 2; half++) {
            mbarrier_init(shared + at::parts_full + 8 * half, 4);
            mbarrier_init(shared + at::parts_empty + 8 * half, 1);
        }
        mbarrier_init_done();
    }
    __syncthreads();
    if (group == 0) {
        registers_lower<D == 64 ? 40 : 24>();
        if (threadIdx.x == 0)
            backward_load<D, QUERIES>(shared, shared_tile, &queries, &keys, &douts, arguments);
        else if (threadIdx.x == 32 || threadIdx.x == 64)
            backward_add<D, QUERIES>(shared, shared_tile, threadIdx.x / 32 - 1, arguments);
    } else {
        registers_raise<D == 64 ? 232 : 240>();
        backward_multiply<T, D, QUERIES>(shared, shared_tile, group - 1, arguments);
    }
#endif
}

/* --- finish ------------------------------------------------------------------------------------
 */

/* A block rounds 64 rows of 64 columns of dQ or, where they are in parts, of dK or dV. */
template <class T, int D>
__global__ __launch_bounds__(128) void attention_backward_finish_kernel(
    const __grid_constant__ struct backward_arguments arguments)
{
    constexpr int panels = D / 64;
    int row = blockIdx.x * 64, head = blockIdx.y / panels, panel = blockIdx.y % panels;
    int sequence = padded_sequence(row, arguments);
    int start = arguments.starts[sequence], length = arguments.starts[sequence + 1] - start;
    int64_t stride = (int64_t)(arguments.heads + 2 * arguments.kv_heads) * D;
    int64_t plane = arguments.padded / 64 * panels * PART; /* of a head */
    int64_t place = ((int64_t)blockIdx.x * panels + panel) * PART + threadIdx.x * 4;
    const float *from = arguments.dq + head * plane + place;
    int parts = 1;
    float scale = arguments.scale, sums[32] = {0};

    row -= padded_start(start, sequence);
    if (row >= length)
        return;
    if (head >= arguments.heads) {
        int which = (head - arguments.heads) / arguments.kv_heads;
        int kv_head = (head - arguments.heads) % arguments.kv_heads;

        parts = arguments.splits;
        if (which == 1)
            scale = 1;
        plane *= arguments.kv_heads;
        from = arguments.dkv + which * parts * plane + kv_head * plane / arguments.kv_heads + place;
    }
    for (int part = 0; part < parts; part++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float4 x = *(const float4 *)(from + part * plane + i * 128 * 4);

            sums[4 * i] += x.x;
            sums[4 * i + 1] += x.y;
            sums[4 * i + 2] += x.z;
            sums[4 * i + 3] += x.w;
        }
#pragma unroll
    for (int i = 0; i < 32; i++)
        sums[i] *= scale;
    row += threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    store_rows<T, 64>((T *)arguments.dqkv + (int64_t)(start + row) * stride + head * D + panel * 64,
                      stride, sums, length - row);
}

/* --- host --------------------------------------------------------------------------------------
 */

/* Bytes of the workspace; the arguments' pointers into it, when there is one. */
static size_t backward_memory(struct backward_arguments *arguments, void *workspace,
                              const struct attention_shape *shape)
{
    int64_t padded = attention_wgmma_rows(shape->rows, shape->sequences);
    size_t rows = (size_t)padded * shape->heads, sums = rows * shape->head_dim;
    int splits = attention_wgmma_splits(shape, cuda_device.multiprocessors);
    size_t parts = splits > 1 ? 2 * sums / (shape->heads / shape->kv_heads) * splits : 0;

    if (arguments) {
        arguments->padded = padded;
        arguments->splits = splits;
        arguments->dq = (float *)workspace;
        arguments->dkv = arguments->dq + sums;
        arguments->statistics = arguments->dkv + parts;
        arguments->added = (uint32_t *)(arguments->statistics + 2 * rows);
        arguments->next = arguments->added + rows / 32;
    }
    return attention_wgmma_bytes(shape, cuda_device.multiprocessors);
}

size_t attention_wgmma_workspace(const struct attention_shape *shape)
{
    return backward_memory(nullptr, nullptr, shape);
}

template <class T, int D>
static void backward_launch(struct stream *stream, const struct backward_arguments *arguments,
                            const void *qkv, enum dtype dtype)
{
    constexpr int queries_of_block = queries_of<D>;
    auto kernel = attention_backward_kernel<T, D, queries_of_block>;
    int columns = (arguments->heads + 2 * arguments->kv_heads) * D;
    CUtensorMap queries =
        attention_map(qkv, arguments->rows, columns, queries_of_block, D / 64, dtype);
    CUtensorMap keys = attention_map(qkv, arguments->rows, columns, KEYS, D / 64, dtype);
    CUtensorMap douts = attention_map(arguments->dout, arguments->rows, arguments->heads * D,
                                      queries_of_block, D / 64, dtype);
    int bytes = backward_shared<D, queries_of_block>::bytes;
    int heads = arguments->heads, kv_heads = arguments->kv_heads;
    int64_t tiles = (int64_t)arguments->tiles * arguments->sequences * kv_heads * arguments->splits;
    int blocks = tiles < cuda_device.multiprocessors ? (int)tiles : cuda_device.multiprocessors;

    attention_backward_prepare_kernel<T, D>
        <<<dim3(arguments->padded / PREPARE_ROWS, ceil_div(arguments->heads, PREPARE_HEADS)), 256,
           0, handle_of(stream)>>>(*arguments);
    LAUNCHED("attention backward, preparation");
    cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
              "shared memory for attention");
    kernel<<<blocks, 384, bytes, handle_of(stream)>>>(queries, keys, douts, *arguments);
    LAUNCHED("attention backward");
    attention_backward_finish_kernel<T, D>
        <<<dim3(arguments->padded / 64,
                (heads + (arguments->splits > 1 ? 2 * kv_heads : 0)) * (D / 64)),
           128, 0, handle_of(stream)>>>(*arguments);
    LAUNCHED("attention backward, dQ");
}

template <class T>
static void backward_of_type(struct stream *stream, const struct backward_arguments *arguments,
                             const void *qkv, int head_dim, enum dtype dtype)
{
    if (head_dim == 64)
        backward_launch<T, 64>(stream, arguments, qkv, dtype);
    else
        backward_launch<T, 128>(stream, arguments, qkv, dtype);
}

static void backward_fill(struct backward_arguments *arguments, void *dqkv, const void *dout,
                          const void *out, const float *lse, void *workspace,
                          const struct attention_shape *shape)
{
    arguments->dqkv = dqkv;
    arguments->dout = dout;
    arguments->out = out;
    arguments->lse = lse;
    arguments->starts = shape->device_starts;
    arguments->rows = shape->rows;
    arguments->heads = shape->heads;
    arguments->kv_heads = shape->kv_heads;
    arguments->sequences = shape->sequences;
    arguments->window = shape->window;
    arguments->tiles = (int)ceil_div(shape->longest, KEYS);
    arguments->scale = 1 / sqrtf((float)shape->head_dim);
    backward_memory(arguments, workspace, shape);
    arguments->section = shape->sequences * shape->kv_heads * arguments->splits;
}

void attention_wgmma_backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                              const void *qkv, const float *lse, void *workspace,
                              const struct attention_shape *shape, enum dtype dtype)
{
    struct backward_arguments arguments;

    backward_fill(&arguments, dqkv, dout, out, lse, workspace, shape);
    if (dtype == DTYPE_BF16)
        backward_of_type<bf16>(stream, &arguments, qkv, shape->head_dim, dtype);
    else
        backward_of_type<__half>(stream, &arguments, qkv, shape->head_dim, dtype);
}
