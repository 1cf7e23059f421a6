/* Attention on Hopper: the forward pass with the copy engine and warpgroup products (Dao et al.,
 * "FlashAttention", 2022; Shah et al., "FlashAttention-3", 2024), and what attention.cu calls. The
 * backward pass is in attention_wgmma_backward.cu.
 *
 * A block stays on its multiprocessor and takes tiles of queries from a counter, the ones with the
 * most keys first. One warp has the copy engine load queries, keys and values; two or three
 * warpgroups of 64 queries each multiply. A warpgroup starts the scores of the next keys before the
 * values of the last ones, so that exponentials run beside a product; the warpgroups take turns at
 * starting products, so that one's exponentials run beside another's products.
 *
 * Where a tile runs over its sequence's end it reads what comes behind (the next sequence's rows,
 * or zeros beyond the last one): keys there are later than any query that counts, so the causal
 * mask hides them, and queries there are not stored.
 */
#include "kernels/cuda/attention_wgmma.h"

#include <cudaTypedefs.h>

enum { KEYS = 128 }; /* of a block */

struct forward_arguments {
    void *out;
    float *lse;
    const int32_t *starts;
    int64_t rows;
    int heads, kv_heads, sequences, window;
    int tiles;   /* of the longest sequence */
    int section; /* pairs of sequence and head whose tiles follow each other (in L2 together) */
    int counter; /* of tiles */
    float scale;
};

/* Tiles that were taken; 0 between launches. Launches that may overlap have different ones. */
enum { COUNTERS = 64 };
[[maybe_unused]] static __device__ unsigned forward_taken[COUNTERS];
static unsigned launches;

/* Some queries of one head of one sequence, and the blocks of keys they see. */
struct forward_tile {
    int start, length; /* of the sequence */
    int query, head;   /* first query, in the sequence */
    int first, last;   /* blocks of keys */
    int end;           /* no tile: there are no more */
};

/* What a block has in shared memory, and where. */
template <int D, int GROUPS, int STAGES> struct forward_shared {
    static constexpr uint32_t query_bytes = 64 * D * 2; /* of a warpgroup */
    static constexpr uint32_t key_bytes = KEYS * D * 2;
    static constexpr uint32_t queries = 0;
    static constexpr uint32_t keys = queries + 2 * GROUPS * query_bytes;
    static constexpr uint32_t values = keys + STAGES * key_bytes;
    static constexpr uint32_t tiles = values + STAGES * key_bytes; /* this one and the next */
    /* Barriers: full, empty */
    static constexpr uint32_t tiles_full = tiles + 64;
    static constexpr uint32_t tiles_empty = tiles_full + 8 * 2;
    static constexpr uint32_t tiles_ready = tiles_empty + 8 * 2; /* for the next number */
    static constexpr uint32_t queries_full = tiles_ready + 8;
    static constexpr uint32_t queries_empty = queries_full + 8 * 2;
    static constexpr uint32_t keys_full = queries_empty + 8 * 2;
    static constexpr uint32_t keys_empty = keys_full + 8 * STAGES;
    static constexpr uint32_t values_full = keys_empty + 8 * STAGES;
    static constexpr uint32_t values_empty = values_full + 8 * STAGES;
    static constexpr uint32_t bytes = values_empty + 8 * STAGES;
};

/* --- in the kernel -----------------------------------------------------------------------------
 */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* False when that sequence has no such tile. */
static __device__ inline bool forward_tile_find(struct forward_tile *tile, int number, int queries,
                                                const struct forward_arguments &arguments)
{
    int pairs = arguments.sequences * arguments.heads;
    int section = number / (arguments.tiles * arguments.section);
    int rest = number - section * arguments.tiles * arguments.section;
    int count = min(arguments.section, pairs - section * arguments.section);
    int pair = section * arguments.section + rest % count;
    int sequence = pair / arguments.heads;

    tile->query = (arguments.tiles - 1 - rest / count) * queries;
    tile->head = pair - sequence * arguments.heads;
    tile->start = arguments.starts[sequence];
    tile->length = arguments.starts[sequence + 1] - tile->start;
    tile->first = 0;
    if (arguments.window > 0 && tile->query >= arguments.window)
        tile->first = (tile->query - arguments.window + 1) / KEYS;
    tile->last = (min(tile->query + queries, tile->length) - 1) / KEYS;
    return tile->query < tile->length;
}

/* One thread: the numbers of tiles. The first is the block's own, the others come from the counter,
 * and late, so that the last ones go to the blocks that are ready first. */
template <int D, int GROUPS, int STAGES>
static __device__ inline void forward_take(uint32_t shared, struct forward_tile *shared_tiles,
                                           const struct forward_arguments &arguments)
{
    using at = forward_shared<D, GROUPS, STAGES>;
    unsigned total = arguments.tiles * arguments.sequences * arguments.heads;
    unsigned number = blockIdx.x;
    uint32_t ready_phase = 0;
    struct ring<2> turn;
    struct forward_tile tile;

    do {
        tile.end = number >= total;
        if (tile.end || forward_tile_find(&tile, number, 64 * GROUPS, arguments)) {
            mbarrier_wait(shared + at::tiles_empty + 8 * turn.stage, turn.phase ^ 1);
            shared_tiles[turn.stage] = tile;
            mbarrier_arrive(shared + at::tiles_full + 8 * turn.stage);
            turn.next();
            if (tile.end)
                return;
            mbarrier_wait(shared + at::tiles_ready, ready_phase);
            ready_phase ^= 1;
        }
        number = atomicAdd(forward_taken + arguments.counter, 1);
        if (number == total - 1) /* the last that any block takes */
            forward_taken[arguments.counter] = 0;
        number += gridDim.x;
    } while (true);
}

/* One thread: queries, keys and values. */
template <int D, int GROUPS, int STAGES>
static __device__ inline void forward_load(uint32_t shared, const struct forward_tile *shared_tiles,
                                           const CUtensorMap *queries, const CUtensorMap *keys,
                                           const struct forward_arguments &arguments)
{
    using at = forward_shared<D, GROUPS, STAGES>;
    constexpr int panels = D / 64;
    struct ring<2> turn;
    struct ring<STAGES> ring;

    for (;; turn.next()) {
        uint32_t full = shared + at::queries_full + 8 * turn.stage;
        struct forward_tile tile;
        int kv_head;

        mbarrier_wait(shared + at::tiles_full + 8 * turn.stage, turn.phase);
        tile = shared_tiles[turn.stage];
        mbarrier_arrive(shared + at::tiles_empty + 8 * turn.stage);
        if (tile.end)
            return;
        kv_head = tile.head / (arguments.heads / arguments.kv_heads);
        mbarrier_wait(shared + at::queries_empty + 8 * turn.stage, turn.phase ^ 1);
        mbarrier_expect(full, GROUPS * at::query_bytes);
        for (int group = 0; group < GROUPS; group++)
            copy_box(shared + at::queries + (turn.stage * GROUPS + group) * at::query_bytes,
                     queries, tile.start + tile.query + 64 * group, tile.head * panels, full);
        for (int block = tile.last; block >= tile.first; block--) {
            int row = tile.start + block * KEYS;

            full = shared + at::keys_full + 8 * ring.stage;
            mbarrier_wait(shared + at::keys_empty + 8 * ring.stage, ring.phase ^ 1);
            mbarrier_expect(full, at::key_bytes);
            copy_box(shared + at::keys + ring.stage * at::key_bytes, keys, row,
                     (arguments.heads + kv_head) * panels, full);
            full = shared + at::values_full + 8 * ring.stage;
            mbarrier_wait(shared + at::values_empty + 8 * ring.stage, ring.phase ^ 1);
            mbarrier_expect(full, at::key_bytes);
            copy_box(shared + at::values + ring.stage * at::key_bytes, keys, row,
                     (arguments.heads + arguments.kv_heads + kv_head) * panels, full);
            ring.next();
            if (block == max(tile.first, min(tile.last, tile.first + 4 - STAGES)))
                mbarrier_arrive(shared + at::tiles_ready);
        }
    }
}

/* Scores of keys that the query does not see become -infinity. `limit` is the query less the
 * first key of this thread: keys up to there are seen. */
template <bool WINDOW>
static __device__ inline void forward_mask(float (&scores)[KEYS / 2], int limit, int window)
{
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        int key = i / 4 * 8 + i % 2, query = limit + i / 2 % 2 * 8;

        if (key > query || (WINDOW && key <= query - window))
            scores[i] = -INFINITY;
    }
}

/* The same in all threads of a warp, and the compiler is to know. */
static __device__ inline struct forward_tile uniform(const struct forward_tile &tile)
{
    return {__shfl_sync(~0u, tile.start, 0), __shfl_sync(~0u, tile.length, 0),
            __shfl_sync(~0u, tile.query, 0), __shfl_sync(~0u, tile.head, 0),
            __shfl_sync(~0u, tile.first, 0), __shfl_sync(~0u, tile.last, 0),
            __shfl_sync(~0u, tile.end, 0)};
}

/* The two queries of a thread: what is subtracted from scores, and this thread's part of the sum.
 * It is the largest score so far, or up to LEEWAY powers of 2 less: sums are rescaled only when
 * they might grow out of range. */
constexpr float LEEWAY = 8;
struct forward_row {
    float maximum[2], sum[2];
};

/* Scores become exponentials. Returns whether the sums so far are to be multiplied by factor[]. */
static __device__ inline bool forward_softmax(struct forward_row &row, float (&factor)[2],
                                              float (&scores)[KEYS / 2], float scale)
{
    float maximum[2];
    bool rescale;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        maximum[h] = row.maximum[h];
#pragma unroll
        for (int i = 0; i < KEYS / 2; i += 4)
            maximum[h] = fmaxf(maximum[h], fmaxf(scores[i + 2 * h], scores[i + 2 * h + 1]));
        maximum[h] = fmaxf(maximum[h], __shfl_xor_sync(~0u, maximum[h], 1));
        maximum[h] = fmaxf(maximum[h], __shfl_xor_sync(~0u, maximum[h], 2));
    }
    rescale = __any_sync(~0u, (maximum[0] - row.maximum[0]) * scale > LEEWAY ||
                                  (maximum[1] - row.maximum[1]) * scale > LEEWAY);
    if (rescale) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            factor[h] = exp2_fast((row.maximum[h] - maximum[h]) * scale);
            row.maximum[h] = maximum[h];
            row.sum[h] *= factor[h];
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float offset = row.maximum[h] * scale;

#pragma unroll
        for (int i = 0; i < KEYS / 2; i += 4)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float p = exp2_fast(fmaf(scores[i + 2 * h + c], scale, -offset));

                scores[i + 2 * h + c] = p;
                row.sum[h] += p;
            }
    }
    return rescale;
}

template <class T>
static __device__ inline void forward_pack(uint32_t (&packed)[KEYS / 4],
                                           const float (&scores)[KEYS / 2])
{
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++)
        packed[i] = pack_two<T>(scores[2 * i], scores[2 * i + 1]);
}

template <class T, int D>
static __device__ inline void forward_scores(float (&scores)[KEYS / 2], uint32_t queries,
                                             uint32_t keys)
{
    uint64_t a = operand_k_major(queries), b = operand_k_major(keys);

#pragma unroll
    for (int k = 0; k < D / 16; k++)
        wgmma<T, 0, 0>(scores, operand_plus(a, k / 4 * 64 * 128 + k % 4 * 32),
                       operand_plus(b, k / 4 * KEYS * 128 + k % 4 * 32), k > 0);
}

template <class T, int D>
static __device__ inline void
forward_values(float (&sums)[D / 2], const uint32_t (&exponentials)[KEYS / 4], uint32_t values)
{
    uint64_t b = operand_mn_major(values, KEYS * 128);

#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
        wgmma<T, 1>(sums, exponentials + 4 * k, operand_plus(b, k * 16 * 128), 1);
}

template <class T, int D, int GROUPS, int STAGES, bool WINDOW, bool TURNS>
static __device__ inline void forward_multiply(uint32_t shared,
                                               const struct forward_tile *shared_tiles, int group,
                                               const struct forward_arguments &arguments)
{
    using at = forward_shared<D, GROUPS, STAGES>;
    constexpr int turn_barrier = 1; /* and the following: a warpgroup may start products */
    int lane = threadIdx.x % 32;
    int own_turn = turn_barrier + group, next_turn = turn_barrier + (group + 1) % GROUPS;
    int thread_row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    float scale = arguments.scale * 1.4426950408889634f;
    struct ring<2> turn;
    struct ring<STAGES> ring;
    struct forward_tile tile;

    if (TURNS && group == GROUPS - 1)
        named_arrive(next_turn, 256);
    for (;; turn.next()) {
        int query, last, block;
        float sums[D / 2], scores[KEYS / 2], factor[2];
        uint32_t exponentials[KEYS / 4];
        struct forward_row row = {{-INFINITY, -INFINITY}, {0, 0}};
        uint32_t value_stage;
        uint32_t queries = shared + at::queries + (turn.stage * GROUPS + group) * at::query_bytes;
        uint32_t queries_empty = shared + at::queries_empty + 8 * turn.stage;

        mbarrier_wait(shared + at::tiles_full + 8 * turn.stage, turn.phase);
        tile = uniform(shared_tiles[turn.stage]);
        release(shared + at::tiles_empty + 8 * turn.stage);
        if (tile.end)
            break;
        query = tile.query + 64 * group;
        last = query < tile.length ? min((query + 63) / KEYS, tile.last) : tile.first - 1;
        mbarrier_wait(shared + at::queries_full + 8 * turn.stage, turn.phase);
        for (block = tile.last; block > last; block--) {
            mbarrier_wait(shared + at::keys_full + 8 * ring.stage, ring.phase);
            release(shared + at::keys_empty + 8 * ring.stage);
            mbarrier_wait(shared + at::values_full + 8 * ring.stage, ring.phase);
            release(shared + at::values_empty + 8 * ring.stage);
            ring.next();
            if (TURNS) {
                named_sync(own_turn, 256);
                named_arrive(next_turn, 256);
            }
        }
        if (last < tile.first) {
            release(queries_empty);
            continue;
        }

        /* The block with the diagonal: every query sees a key of it. */
        mbarrier_wait(shared + at::keys_full + 8 * ring.stage, ring.phase);
        if (TURNS)
            named_sync(own_turn, 256);
        wgmma_fence();
        forward_scores<T, D>(scores, queries, shared + at::keys + ring.stage * at::key_bytes);
        wgmma_commit();
        if (TURNS)
            named_arrive(next_turn, 256);
        wgmma_wait<0>();
        keep(scores);
        release(shared + at::keys_empty + 8 * ring.stage);
        forward_mask<WINDOW>(scores, query + thread_row - block * KEYS - lane % 4 * 2,
                             arguments.window);
        forward_softmax(row, factor, scores, scale);
        forward_pack<T>(exponentials, scores);
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            sums[i] = 0;
        value_stage = ring.stage;

        for (block--; block >= tile.first; block--) {
            uint32_t value_phase = ring.phase;
            bool rescale;

            ring.next();
            mbarrier_wait(shared + at::keys_full + 8 * ring.stage, ring.phase);
            if (TURNS)
                named_sync(own_turn, 256);
            keep(exponentials);
            keep(sums);
            wgmma_fence();
            forward_scores<T, D>(scores, queries, shared + at::keys + ring.stage * at::key_bytes);
            wgmma_commit();
            mbarrier_wait(shared + at::values_full + 8 * value_stage, value_phase);
            forward_values<T, D>(sums, exponentials,
                                 shared + at::values + value_stage * at::key_bytes);
            wgmma_commit();
            if (TURNS)
                named_arrive(next_turn, 256);
            wgmma_wait<1>();
            keep(scores);
            release(shared + at::keys_empty + 8 * ring.stage);
            if (WINDOW)
                forward_mask<WINDOW>(scores, query + thread_row - block * KEYS - lane % 4 * 2,
                                     arguments.window);
            rescale = forward_softmax(row, factor, scores, scale);
            wgmma_wait<0>();
            keep(sums);
            keep(exponentials);
            release(shared + at::values_empty + 8 * value_stage);
            if (rescale)
#pragma unroll
                for (int i = 0; i < D / 2; i++)
                    sums[i] *= factor[i / 2 % 2];
            forward_pack<T>(exponentials, scores);
            value_stage = ring.stage;
        }
        release(queries_empty);
        mbarrier_wait(shared + at::values_full + 8 * ring.stage, ring.phase);
        keep(exponentials);
        keep(sums);
        wgmma_fence();
        forward_values<T, D>(sums, exponentials, shared + at::values + ring.stage * at::key_bytes);
        wgmma_commit();
#pragma unroll
        for (int h = 0; h < 2; h++) {
            row.sum[h] += __shfl_xor_sync(~0u, row.sum[h], 1);
            row.sum[h] += __shfl_xor_sync(~0u, row.sum[h], 2);
            factor[h] = 1 / row.sum[h];
        }
        wgmma_wait<0>();
        keep(sums);
        release(shared + at::values_empty + 8 * ring.stage);
        ring.next();

#pragma unroll
        for (int i = 0; i < D / 2; i++)
            sums[i] *= factor[i / 2 % 2];
        for (int h = 0; h < 2; h++) {
            int own = query + thread_row + 8 * h;
            int64_t to = (int64_t)tile.start + own;

            if (own >= tile.length)
                continue;
            if (lane % 4 == 0)
                arguments.lse[tile.head * arguments.rows + to] =
                    row.maximum[h] * arguments.scale + logf(row.sum[h]);
        }
        store_rows<T, D>((T *)arguments.out +
                             ((int64_t)tile.start + query + thread_row) * arguments.heads * D +
                             tile.head * D,
                         (int64_t)arguments.heads * D, sums, tile.length - query - thread_row);
    }
    /* The last turn is taken: nobody may leave the barrier half full for nothing. */
    if (TURNS && group == 0)
        named_sync(own_turn, 256);
}

#endif

template <class T, int D, int GROUPS, int STAGES, bool WINDOW, bool TURNS>
__global__ __launch_bounds__(128 * (GROUPS + 1), 1) void attention_forward_kernel(
    const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap keys,
    const __grid_constant__ struct forward_arguments arguments)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) unsigned char memory[];
    using at = forward_shared<D, GROUPS, STAGES>;
    uint32_t shared = shared_address(memory);
    struct forward_tile *shared_tiles = (struct forward_tile *)(memory + at::tiles);
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0);

    if (threadIdx.x == 0) {
        prefetch_map(&queries);
        prefetch_map(&keys);
        mbarrier_init(shared + at::tiles_ready, 1);
        for (int turn = 0; turn < 2; turn++) {
            mbarrier_init(shared + at::tiles_full + 8 * turn, 1);
            mbarrier_init(shared + at::tiles_empty + 8 * turn, 4 * GROUPS + 1);
            mbarrier_init(shared + at::queries_full + 8 * turn, 1);
            mbarrier_init(shared + at::queries_empty + 8 * turn, 4 * GROUPS);
        }
        for (int stage = 0; stage < STAGES; stage++) {
            mbarrier_init(shared + at::keys_full + 8 * stage, 1);
            mbarrier_init(shared + at::keys_empty + 8 * stage, 4 * GROUPS);
            mbarrier_init(shared + at::values_full + 8 * stage, 1);
            mbarrier_init(shared + at::values_empty + 8 * stage, 4 * GROUPS);
        }
        mbarrier_init_done();
    }
    __syncthreads();
    if (group == 0) {
        registers_lower<GROUPS == 2 ? 24 : 32>();
        if (threadIdx.x == 0)
            forward_load<D, GROUPS, STAGES>(shared, shared_tiles, &queries, &keys, arguments);
        else if (threadIdx.x == 32)
            forward_take<D, GROUPS, STAGES>(shared, shared_tiles, arguments);
    } else {
        registers_raise<GROUPS == 2 ? 240 : 160>();
        forward_multiply<T, D, GROUPS, STAGES, WINDOW, TURNS>(shared, shared_tiles, group - 1,
                                                              arguments);
    }
#endif
}

/* --- host --------------------------------------------------------------------------------------
 */

template <class T, int D, int GROUPS, int STAGES, bool WINDOW, bool TURNS>
static void forward_launch(struct stream *stream, void *out, float *lse, const void *qkv,
                           const struct attention_shape *shape, enum dtype dtype)
{
    auto kernel = attention_forward_kernel<T, D, GROUPS, STAGES, WINDOW, TURNS>;
    int columns = (shape->heads + 2 * shape->kv_heads) * D;
    CUtensorMap queries = attention_map(qkv, shape->rows, columns, 64, D / 64, dtype);
    CUtensorMap keys = attention_map(qkv, shape->rows, columns, KEYS, D / 64, dtype);
    int bytes = forward_shared<D, GROUPS, STAGES>::bytes;
    int pairs = shape->sequences * shape->heads;
    int64_t per_head = shape->longest * D * 4; /* bytes of keys and values */
    struct forward_arguments arguments;
    int tiles = (int)ceil_div(shape->longest, 64 * GROUPS);
    int group = shape->heads / shape->kv_heads;
    int64_t section = ATTENTION_SECTION_BYTES / per_head * group;
    int blocks = min(cuda_device.multiprocessors, tiles * pairs);

    arguments.out = out;
    arguments.lse = lse;
    arguments.starts = shape->device_starts;
    arguments.rows = shape->rows;
    arguments.heads = shape->heads;
    arguments.kv_heads = shape->kv_heads;
    arguments.sequences = shape->sequences;
    arguments.window = shape->window;
    arguments.tiles = tiles;
    arguments.section = section < group ? group : section > pairs ? pairs : (int)section;
    arguments.counter = launches++ % COUNTERS;
    arguments.scale = 1 / sqrtf((float)D);
    cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
              "shared memory for attention");
    kernel<<<blocks, 128 * (GROUPS + 1), bytes, handle_of(stream)>>>(queries, keys, arguments);
    LAUNCHED("attention forward");
}

/* The driver's function, without linking the driver's library. */
static PFN_cuTensorMapEncodeTiled_v12000 encode_function()
{
    static PFN_cuTensorMapEncodeTiled_v12000 function;
    enum cudaDriverEntryPointQueryResult found;
    void *entry = nullptr;

    if (function)
        return function;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                         &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
        (void)cudaGetLastError();
        return nullptr;
    }
    function = (PFN_cuTensorMapEncodeTiled_v12000)entry;
    return function;
}

CUtensorMap attention_map(const void *matrix, int64_t rows, int64_t columns, int box_rows,
                          int panels, enum dtype dtype)
{
    CUtensorMap map;
    cuuint64_t sizes[3] = {64, (cuuint64_t)rows, (cuuint64_t)columns / 64};
    cuuint64_t strides[2] = {(cuuint64_t)columns * 2, 128};
    cuuint32_t box[3] = {64, (cuuint32_t)box_rows, (cuuint32_t)panels};
    cuuint32_t steps[3] = {1, 1, 1};
    CUresult status = encode_function()(
        &map,
        dtype == DTYPE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
        const_cast<void *>(matrix), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    cuda_note(status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue, "a tensor map");
    return map;
}

/* Whether the code that this device runs is that of sm_90a: that of other targets does nothing. */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ int attention_wgmma_code = 1;
#else
__device__ int attention_wgmma_code = 0;
#endif

static bool built()
{
    static int code = -1;

    if (code < 0 &&
        cudaMemcpyFromSymbol(&code, attention_wgmma_code, sizeof(code)) != cudaSuccess) {
        (void)cudaGetLastError();
        code = 0;
    }
    return code == 1;
}

static bool supports(const struct attention_shape *shape, enum dtype dtype,
                     enum attention_pass pass)
{
    (void)pass;
    return cuda_device.major == 9 && cuda_device.minor == 0 && encode_function() && built() &&
           (dtype == DTYPE_BF16 || dtype == DTYPE_F16) &&
           (shape->head_dim == 64 || shape->head_dim == 128) && shape->dropout.rate == 0;
}

template <class T>
static void forward_of_type(struct stream *stream, void *out, float *lse, const void *qkv,
                            const struct attention_shape *shape, enum dtype dtype)
{
    if (shape->head_dim == 64 && shape->window)
        forward_launch<T, 64, 3, 4, true, true>(stream, out, lse, qkv, shape, dtype);
    else if (shape->head_dim == 64)
        forward_launch<T, 64, 3, 4, false, true>(stream, out, lse, qkv, shape, dtype);
    else if (shape->window)
        forward_launch<T, 128, 2, 2, true, true>(stream, out, lse, qkv, shape, dtype);
    else
        forward_launch<T, 128, 2, 2, false, true>(stream, out, lse, qkv, shape, dtype);
}

static void forward(struct stream *stream, void *out, float *lse, const void *qkv,
                    const struct attention_shape *shape, enum dtype dtype)
{
    if (dtype == DTYPE_BF16)
        forward_of_type<bf16>(stream, out, lse, qkv, shape, dtype);
    else
        forward_of_type<__half>(stream, out, lse, qkv, shape, dtype);
}

const struct attention_implementation attention_wgmma = {
    "wgmma", supports, forward, attention_wgmma_workspace, attention_wgmma_backward};
