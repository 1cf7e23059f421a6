/* The embedding of a vocabulary of which rows [first, first + count) are here.
 *
 * Backward adds the rows of a token up in their order, whichever block comes first. The rows whose
 * tokens are here are sorted by token (a stable radix sort: two kernels for each digit). The sorted
 * list is cut into runs of one token, and runs at every multiple of `cut`, so that a token that
 * every other row has does not make one thread work for all. The first piece of a run is added to
 * dw row by row; the later ones go to the workspace and are added, in their order, by a last
 * kernel. The result depends on nothing but the arguments.
 */
#include "kernels/cuda/memory.h"

enum {
    FORWARD_THREADS = 256,
    FORWARD_VECTORS = 4, /* a thread */
    ADD_THREADS = 256,
    ADD_BLOCKS = 4,     /* a multiprocessor */
    ADD_ROWS = 4,       /* of a run, loaded together */
    ADD_PIECES = 8,     /* the same */
    SLICE_ROWS = 65536, /* sorted at one time */
    DIGIT_BITS = 9,
    DIGITS = 1 << DIGIT_BITS,
    TILE = 1024, /* rows of a block of the sort, one for each thread */
    TILES = SLICE_ROWS / TILE,
    WARPS = TILE / WARP,
    PIECES_BYTES = 6 << 20,
    SHORTEST_CUT = 128,
};

/* --- forward -----------------------------------------------------------------------------------
 */

template <class T, int N>
static __global__ void gather(T *y, const int32_t *tokens, const T *w, int64_t first, int64_t count,
                              int64_t items, uint32_t vectors)
{
    int64_t item = (int64_t)blockIdx.x * (FORWARD_THREADS * FORWARD_VECTORS) + threadIdx.x;
    elements<T, N> value[FORWARD_VECTORS];

#pragma unroll
    for (int k = 0; k < FORWARD_VECTORS; k++) {
        int64_t at = item + k * FORWARD_THREADS;

        if (at < items) {
            int64_t row = N == 1 ? (uint64_t)at / vectors : (uint32_t)at / vectors;
            int64_t token = tokens[row] - first;

            value[k] = elements<T, N>();
            if (token >= 0 && token < count)
                value[k] = load<N>(w + (token * vectors + (at - row * vectors)) * N);
        }
    }
#pragma unroll
    for (int k = 0; k < FORWARD_VECTORS; k++)
        if (item + k * FORWARD_THREADS < items)
            store(y + (item + k * FORWARD_THREADS) * N, value[k]);
}

template <class T, int N>
static void launch_gather(cudaStream_t handle, T *y, const int32_t *tokens, const T *w,
                          int64_t first, int64_t count, int64_t rows, int64_t columns)
{
    int64_t items = rows * (columns / N);

    assert(columns / N <= INT32_MAX && (N == 1 || items <= INT32_MAX));
    gather<T, N>
        <<<blocks_for(items, FORWARD_THREADS, FORWARD_VECTORS), FORWARD_THREADS, 0, handle>>>(
            y, tokens, w, first, count, items, (uint32_t)(columns / N));
}

template <class T>
void cuda_embedding_forward(struct stream *stream, void *y, const int32_t *tokens, const void *w,
                            int64_t first, int64_t count, int64_t rows, int64_t columns)
{
    cudaStream_t handle = handle_of(stream);

    if (rows * columns == 0)
        return;
    if (packs<T>(columns, y, w))
        launch_gather<T, pack<T>::size>(handle, (T *)y, tokens, (const T *)w, first, count, rows,
                                        columns);
    else
        launch_gather<T, 1>(handle, (T *)y, tokens, (const T *)w, first, count, rows, columns);
    LAUNCHED("embedding");
}

/* --- the sort of rows by token ------------------------------------------------------------------
 */

/* A row of the slice whose token is here: token - first, and the row. */
struct alignas(8) entry {
    uint32_t key, row;
};

/* In the workspace. */
struct sorting {
    struct entry entries[2][SLICE_ROWS + ADD_ROWS]; /* what is behind the last may be read */
    uint32_t counts[TILES][DIGITS];                 /* of the digits in each tile */
    uint32_t kept;                                  /* entries there are */
};
static_assert(sizeof(struct sorting) + PIECES_BYTES <= 8 << 20, "half of the workspace");

/* What one pass sorts: the tokens themselves in the first, else entries[from], both by the digit at
 * `shift`, to entries[to]. */
struct pass {
    const int32_t *tokens; /* NULL after the first pass */
    int64_t first, count;
    uint32_t rows; /* of this slice */
    int from, to, shift;
};

/* This thread's entry. False where there is none. */
static __device__ inline bool read_entry(struct entry *entry, const struct sorting *sorting,
                                         const struct pass &pass)
{
    uint32_t at = blockIdx.x * TILE + threadIdx.x;
    int64_t token;

    if (!pass.tokens) {
        if (at >= sorting->kept)
            return false;
        *entry = sorting->entries[pass.from][at];
        return true;
    }
    if (at >= pass.rows)
        return false;
    token = pass.tokens[at] - pass.first;
    entry->key = (uint32_t)token;
    entry->row = at;
    return token >= 0 && token < pass.count;
}

/* The lanes of the warp that have the same digit; lanes without an entry are by themselves. */
static __device__ inline unsigned same_digit(bool here, uint32_t digit)
{
    return __match_any_sync(~0u, here ? digit : DIGITS);
}

static __global__ void __launch_bounds__(TILE)
    count_digits(struct sorting *sorting, const struct pass pass)
{
    __shared__ uint32_t counts[DIGITS];
    struct entry entry = {};
    bool here = read_entry(&entry, sorting, pass);
    uint32_t digit = entry.key >> pass.shift & (DIGITS - 1);
    unsigned same = same_digit(here, digit);

    if (threadIdx.x < DIGITS)
        counts[threadIdx.x] = 0;
    __syncthreads();
    if (here && __ffs(same) - 1 == threadIdx.x % WARP)
        atomicAdd(&counts[digit], __popc(same)); /* integers: any order gives the same */
    __syncthreads();
    if (threadIdx.x < DIGITS)
        sorting->counts[blockIdx.x][threadIdx.x] = counts[threadIdx.x];
}

/* The sum of what the threads in front of this one hold, among the first DIGITS threads of the
 * block. All threads call. */
static __device__ inline uint32_t sum_before(uint32_t x, uint32_t *scratch)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint32_t sum = x, before = 0;

#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
        uint32_t other = __shfl_up_sync(~0u, sum, offset);

        if (lane >= offset)
            sum += other;
    }
    if (lane == WARP - 1)
        scratch[warp] = sum;
    __syncthreads();
    for (int i = 0; i < warp && i < DIGITS / WARP; i++)
        before += scratch[i];
    return before + sum - x;
}

/* Every entry goes behind those with smaller digits, those with the same digit in earlier tiles, in
 * earlier warps and in earlier lanes. */
static __global__ void __launch_bounds__(TILE)
    place_entries(struct sorting *sorting, const struct pass pass)
{
    __shared__ uint16_t warps[WARPS][DIGITS]; /* counts; then, of the same digit in warps before */
    __shared__ uint32_t starts[DIGITS], scratch[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint32_t all = 0, earlier = 0, before;
    struct entry entry = {};
    bool here = read_entry(&entry, sorting, pass);
    uint32_t digit = entry.key >> pass.shift & (DIGITS - 1);
    unsigned same = same_digit(here, digit);

    for (int i = threadIdx.x; i < WARPS * DIGITS; i += TILE)
        (&warps[0][0])[i] = 0;
    if (threadIdx.x < DIGITS)
#pragma unroll 8
        for (unsigned tile = 0; tile < gridDim.x; tile++) {
            uint32_t count = sorting->counts[tile][threadIdx.x];

            all += count;
            earlier += tile < blockIdx.x ? count : 0;
        }
    before = sum_before(all, scratch); /* with a barrier: `warps` is all zero */
    if (here && __ffs(same) - 1 == lane)
        warps[warp][digit] = (uint16_t)__popc(same);
    __syncthreads();
    if (threadIdx.x < DIGITS) {
        uint32_t sum = 0;

        starts[threadIdx.x] = before + earlier;
        for (int i = 0; i < WARPS; i++) {
            uint16_t count = warps[i][threadIdx.x];

            warps[i][threadIdx.x] = (uint16_t)sum;
            sum += count;
        }
    }
    __syncthreads();
    if (here) {
        uint32_t at = starts[digit] + warps[warp][digit] + __popc(same & ((1u << lane) - 1));

        sorting->entries[pass.to][at] = entry;
    }
    if (pass.tokens && blockIdx.x == 0 && threadIdx.x == DIGITS - 1)
        sorting->kept = before + all;
}

/* --- backward ----------------------------------------------------------------------------------
 */

/* Block x adds up the piece of a run that begins at position x, if one does. What it needs to know
 * of the first few rows it loads before it knows whether it needs it. */
template <class T, int N>
static __global__ void __launch_bounds__(ADD_THREADS, ADD_BLOCKS)
    add_rows(float *dw, float *pieces, const struct sorting *sorting, int sorted, const T *dy,
             uint32_t cut, int64_t columns)
{
    const struct entry *entries = sorting->entries[sorted];
    uint32_t begin = blockIdx.x, kept = sorting->kept, end = begin / cut * cut + cut;
    int64_t column = ((int64_t)blockIdx.y * ADD_THREADS + threadIdx.x) * N;
    uint32_t before = begin > 0 ? entries[begin - 1].key : 0, token;
    struct entry next[ADD_ROWS];
    float sum[N] = {}, *to;
    bool later, more = true;

#pragma unroll
    for (int i = 0; i < ADD_ROWS; i++)
        next[i] = entries[begin + i];
    token = next[0].key;
    later = begin > 0 && before == token;
    if (begin >= kept || column >= columns || (later && begin % cut != 0))
        return;
    end = end < kept ? end : kept;
    to = later ? pieces + (begin / cut - 1) * columns + column : dw + token * columns + column;
    if (!later)
        widen(sum, load<N>(to));
    for (uint32_t at = begin; more;) {
        elements<T, N> vectors[ADD_ROWS];
        bool here[ADD_ROWS];

#pragma unroll
        for (int i = 0; i < ADD_ROWS; i++) {
            here[i] = at + i < end && next[i].key == token;
            if (here[i])
                vectors[i] = load<N>(dy + next[i].row * columns + column);
        }
        at += ADD_ROWS;
        more = here[ADD_ROWS - 1];
        if (more)
#pragma unroll
            for (int i = 0; i < ADD_ROWS; i++)
                next[i] = entries[at + i];
#pragma unroll
        for (int i = 0; i < ADD_ROWS; i++)
            if (here[i]) {
                float x[N];

                widen(x, vectors[i]);
#pragma unroll
                for (int j = 0; j < N; j++)
                    sum[j] += x[j];
            }
    }
    store(to, narrow<float>(sum));
}

/* Block x adds the later pieces of the run whose second piece begins at position (x + 1) cut, if
 * one does. */
static __global__ void add_pieces(float *dw, const float *pieces, const struct sorting *sorting,
                                  int sorted, uint32_t cut, int64_t columns)
{
    const struct entry *entries = sorting->entries[sorted];
    uint32_t begin = (blockIdx.x + 1) * cut, kept = sorting->kept, key;
    int64_t column = (int64_t)blockIdx.y * ADD_THREADS + threadIdx.x;
    float sum;

    if (begin >= kept || column >= columns)
        return;
    key = entries[begin].key;
    if (entries[begin - 1].key != key || (begin > cut && entries[begin - cut - 1].key == key))
        return;
    sum = dw[key * columns + column];
    for (uint32_t at = begin;; at += ADD_PIECES * cut) {
        float x[ADD_PIECES];
        bool here[ADD_PIECES];

#pragma unroll
        for (int i = 0; i < ADD_PIECES; i++) {
            here[i] = at + i * cut < kept && entries[at + i * cut].key == key;
            if (here[i])
                x[i] = pieces[((at / cut) - 1 + i) * columns + column];
        }
#pragma unroll
        for (int i = 0; i < ADD_PIECES; i++)
            if (here[i])
                sum += x[i];
        if (!here[ADD_PIECES - 1])
            break;
    }
    dw[key * columns + column] = sum;
}

/* Sorts a slice of at most SLICE_ROWS tokens; returns which of entries[2] is the result.
 */
static int sort_rows(cudaStream_t handle, struct sorting *sorting, const int32_t *tokens,
                     int64_t rows, int64_t first, int64_t count)
{
    struct pass pass = {tokens, first, count, (uint32_t)rows, 0, 0, 0};
    unsigned tiles = blocks_for(rows, TILE, 1);

    do {
        count_digits<<<tiles, TILE, 0, handle>>>(sorting, pass);
        place_entries<<<tiles, TILE, 0, handle>>>(sorting, pass);
        pass.tokens = nullptr;
        pass.from = pass.to;
        pass.to ^= 1;
        pass.shift += DIGIT_BITS;
    } while ((count - 1) >> pass.shift > 0);
    return pass.from;
}

template <class T, int N>
static void add_slice(cudaStream_t handle, float *dw, const int32_t *tokens, const T *dy,
                      int64_t first, int64_t count, int64_t rows, int64_t columns)
{
    struct sorting *sorting = (struct sorting *)cuda_device.workspace;
    float *pieces = (float *)((char *)cuda_device.workspace + WORKSPACE_BYTES / 2 - PIECES_BYTES);
    int sorted = sort_rows(handle, sorting, tokens, rows, first, count);
    int64_t cut = SHORTEST_CUT;

    while ((rows - 1) / cut * columns * (int64_t)sizeof(float) > PIECES_BYTES)
        cut *= 2;
    add_rows<T, N>
        <<<dim3((unsigned)rows, blocks_for(columns / N, ADD_THREADS, 1)), ADD_THREADS, 0, handle>>>(
            dw, pieces, sorting, sorted, dy, (uint32_t)cut, columns);
    if (rows > cut)
        add_pieces<<<dim3((unsigned)((rows - 1) / cut), blocks_for(columns, ADD_THREADS, 1)),
                     ADD_THREADS, 0, handle>>>(dw, pieces, sorting, sorted, (uint32_t)cut, columns);
}

template <class T>
void cuda_embedding_backward(struct stream *stream, float *dw, const int32_t *tokens,
                             const void *dy, int64_t first, int64_t count, int64_t rows,
                             int64_t columns)
{
    cudaStream_t handle = handle_of(stream);

    assert(handle == cuda_device.compute.handle && count <= INT32_MAX);
    if (columns == 0 || count == 0)
        return;
    for (int64_t row = 0; row < rows; row += SLICE_ROWS) {
        int64_t here = rows - row < SLICE_ROWS ? rows - row : (int64_t)SLICE_ROWS;
        const T *dy_slice = (const T *)dy + row * columns;

        if (packs<T>(columns, dw, dy))
            add_slice<T, pack<T>::size>(handle, dw, tokens + row, dy_slice, first, count, here,
                                        columns);
        else
            add_slice<T, 1>(handle, dw, tokens + row, dy_slice, first, count, here, columns);
    }
    LAUNCHED("embedding's backward");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_embedding_forward<T>(struct stream *, void *, const int32_t *,              \
                                            const void *, int64_t, int64_t, int64_t, int64_t);     \
    template void cuda_embedding_backward<T>(struct stream *, float *, const int32_t *,            \
                                             const void *, int64_t, int64_t, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
