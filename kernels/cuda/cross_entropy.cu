/* Softmax cross-entropy over a vocabulary that several ranks share out by columns, one block a row.
 * kernels/cpu/cross_entropy.c says what becomes of NaN and infinity; the same here.
 *
 * Part one reads the logits once: each thread keeps a maximum and the sum of exponentials below it,
 * which it rescales when the maximum rises; threads are put together at the end, in a fixed order.
 * Where the first maximum is: each thread remembers in which step of its loop its maximum rose
 * last, and those whose maximum is the row's look again there.
 */
#include "kernels/cuda/memory.h"

enum { THREADS = 256, VECTORS = 4, BLOCKS = 4 /* a multiprocessor */, NOWHERE = INT32_MAX };

/* --- part one ----------------------------------------------------------------------------------
 */

/* What a sum of exponentials below maximum `from` is multiplied by to be one below `to`. With
 * nothing finite so far the sum is 0, or NaN, and stays. */
static __device__ inline float rescaling(float from, float to)
{
    return from == to ? 1 : exp_fast(from - to);
}

/* The vectors of one step, with -infinity in the place of columns that do not exist. */
template <class T, int N>
static __device__ inline void read_step(elements<T, N> (&vectors)[VECTORS], const T *logits,
                                        int64_t begin, int64_t count)
{
    if (begin + ((VECTORS - 1) * THREADS + 1) * N <= count) {
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
            vectors[k] = load<N>(logits + begin + k * THREADS * N);
        return;
    }
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        int64_t column = begin + k * THREADS * N;
        float x[N];

        if (column + N <= count) {
            vectors[k] = load<N>(logits + column);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++)
                x[i] = column + i < count ? to_float(logits[column + i]) : -INFINITY;
            vectors[k] = narrow<T>(x);
        }
    }
}

static __device__ inline uint32_t larger_of_pairs(uint32_t a, uint32_t b, bf16)
{
    __nv_bfloat162 larger =
        __hmax2(*reinterpret_cast<__nv_bfloat162 *>(&a), *reinterpret_cast<__nv_bfloat162 *>(&b));

    return *reinterpret_cast<uint32_t *>(&larger);
}

static __device__ inline uint32_t larger_of_pairs(uint32_t a, uint32_t b, __half)
{
    __half2 larger = __hmax2(*reinterpret_cast<__half2 *>(&a), *reinterpret_cast<__half2 *>(&b));

    return *reinterpret_cast<uint32_t *>(&larger);
}

/* Passes over NaN; -infinity where there is nothing else. */
template <class T, int N>
static __device__ inline float step_maximum(const elements<T, N> (&vectors)[VECTORS])
{
    float maximum = -INFINITY;

    if constexpr (sizeof(T) < sizeof(float) && N > 1) {
        uint32_t largest = vectors[0].at[0];
        float pair[2];

#pragma unroll
        for (int k = 0; k < VECTORS; k++)
#pragma unroll
            for (int i = 0; i < N / 2; i++)
                largest = larger_of_pairs(largest, vectors[k].at[i], T());
        widen_pair(pair, largest, T());
        maximum = fmaxf(maximum, fmaxf(pair[0], pair[1]));
    } else {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            float x[N];

            widen(x, vectors[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                maximum = fmaxf(maximum, x[i]);
        }
    }
    return maximum;
}

/* This thread's first column of the step that holds `value`. */
template <class T, int N>
static __device__ inline int find_in_step(const T *logits, int64_t begin, int64_t count,
                                          float value)
{
    elements<T, N> vectors[VECTORS];
    int column = NOWHERE;

    read_step(vectors, logits, begin, count);
#pragma unroll
    for (int k = VECTORS - 1; k >= 0; k--) {
        float x[N];

        widen(x, vectors[k]);
#pragma unroll
        for (int i = N - 1; i >= 0; i--)
            if (x[i] == value)
                column = (int)begin + k * THREADS * N + i;
    }
    return column;
}

/* The first column of the row that holds its maximum; 0 where that is nowhere (all are NaN). */
template <class T, int N>
static __device__ inline int find_best(const T *logits, int64_t count, float maximum, float own,
                                       int64_t own_begin)
{
    __shared__ int found;
    int column = NOWHERE;

    if (threadIdx.x == 0)
        found = NOWHERE;
    __syncthreads();
    if (maximum == -INFINITY) { /* never rose: there may be NaN in front */
        for (int64_t at = threadIdx.x; at < count && column == NOWHERE; at += THREADS)
            if (to_float(logits[at]) == maximum)
                column = (int)at;
    } else if (own == maximum) {
        column = find_in_step<T, N>(logits, own_begin, count, maximum);
    }
    if (column != NOWHERE)
        atomicMin(&found, column);
    __syncthreads();
    return found == NOWHERE ? 0 : found;
}

template <class T, int N>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    partial(float *maximum, float *sum, float *target, int32_t *best, const T *logits,
            const int32_t *targets, int64_t first, int64_t count, int64_t stride)
{
    __shared__ float maxima[THREADS / WARP], scratch[WARP];
    const T *x = logits + blockIdx.x * stride;
    int64_t own_begin = 0;
    float own = -INFINITY, total = 0, highest;
    int column;

    for (int64_t begin = threadIdx.x * N; begin < count; begin += VECTORS * THREADS * N) {
        elements<T, N> vectors[VECTORS];
        float step, base;

        read_step(vectors, x, begin, count);
        step = step_maximum(vectors);
        if (step > own) {
            total *= rescaling(own, step);
            own = step;
            own_begin = begin;
        }
        base = own == -INFINITY ? 0 : own;
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            float logit[N], part = 0;

            widen(logit, vectors[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                part += exp_fast(logit[i] - base);
            total += part;
        }
    }
    highest = own;
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, offset));
    if (threadIdx.x % WARP == 0)
        maxima[threadIdx.x / WARP] = highest;
    __syncthreads();
    highest = maxima[0];
    for (int warp = 1; warp < THREADS / WARP; warp++)
        highest = fmaxf(highest, maxima[warp]);
    total = block_sum(total * rescaling(own, highest), scratch);
    column = find_best<T, N>(x, count, highest, own, own_begin);
    if (threadIdx.x == 0) {
        int64_t here = targets[blockIdx.x] - first;

        maximum[blockIdx.x] = highest;
        sum[blockIdx.x] = total;
        best[blockIdx.x] = (int32_t)(first + column);
        target[blockIdx.x] =
            targets[blockIdx.x] >= 0 && here >= 0 && here < count ? to_float(x[here]) : 0;
    }
}

template <class T>
void cuda_cross_entropy_partial(struct stream *stream, float *maximum, float *sum, float *target,
                                int32_t *best, const void *logits, const int32_t *targets,
                                int64_t first, int64_t count, int64_t stride, int64_t rows)
{
    cudaStream_t handle = handle_of(stream);
    unsigned blocks = blocks_for(rows, 1, 1);

    assert(count >= 0 && count <= stride && stride < INT32_MAX);
    if (rows == 0)
        return;
    if (packs<T>(stride, logits))
        partial<T, pack<T>::size><<<blocks, THREADS, 0, handle>>>(
            maximum, sum, target, best, (const T *)logits, targets, first, count, stride);
    else
        partial<T, 1><<<blocks, THREADS, 0, handle>>>(maximum, sum, target, best, (const T *)logits,
                                                      targets, first, count, stride);
    LAUNCHED("cross-entropy, part one");
}

/* --- between the parts -------------------------------------------------------------------------
 */

static __global__ void rescale(float *sum, const float *local_maximum, const float *maximum,
                               int64_t rows)
{
    int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;

    if (row < rows)
        sum[row] *= expf(local_maximum[row] - maximum[row]);
}

void cuda_cross_entropy_rescale(struct stream *stream, float *sum, const float *local_maximum,
                                const float *maximum, int64_t rows)
{
    if (rows == 0)
        return;
    rescale<<<blocks_for(rows, THREADS, 1), THREADS, 0, handle_of(stream)>>>(sum, local_maximum,
                                                                             maximum, rows);
    LAUNCHED("cross-entropy, rescaling");
}

static __global__ void first_of_highest(int32_t *best, const float *maxima, const int32_t *bests,
                                        int ranks, int64_t rows)
{
    int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x, highest = row;

    if (row >= rows)
        return;
    for (int64_t at = row + rows; at < ranks * rows; at += rows)
        if (maxima[at] > maxima[highest])
            highest = at;
    best[row] = bests[highest];
}

void cuda_cross_entropy_best(struct stream *stream, int32_t *best, const float *maxima,
                             const int32_t *bests, int ranks, int64_t rows)
{
    if (rows == 0)
        return;
    first_of_highest<<<blocks_for(rows, THREADS, 1), THREADS, 0, handle_of(stream)>>>(
        best, maxima, bests, ranks, rows);
    LAUNCHED("cross-entropy, the greatest logit of all shares");
}

/* --- part two ----------------------------------------------------------------------------------
 */

static __global__ void losses(float *loss, const int32_t *targets, const float *maximum,
                              const float *sum, const float *target, int64_t count, int64_t rows)
{
    int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;

    if (row < rows)
        loss[row] =
            targets[row] >= 0 && count > 0 ? maximum[row] - target[row] + logf(sum[row]) : 0;
}

/* `one` is the target's column, of which `weight` is taken off; outside [0, count): none. */
template <class T, int N>
static __device__ inline void gradients(float (&x)[N], float maximum, float scale, float weight,
                                        int64_t column, int64_t one, int64_t count)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        x[i] = exp_fast(x[i] - maximum) * scale;
    if ((one >= column && one < column + N) || column + N > count)
#pragma unroll
        for (int i = 0; i < N; i++)
            x[i] = column + i >= count ? 0 : column + i == one ? x[i] - weight : x[i];
}

/* `chunks` blocks for each row, which take VECTORS * THREADS * N of its columns each. */
template <class T, int N>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    finish(T *logits, const int32_t *targets, const float *weights, const float *maxima,
           const float *sums, int64_t first, int64_t count, int64_t stride, unsigned chunks)
{
    unsigned row = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
    int64_t begin = ((int64_t)chunk * (VECTORS * THREADS) + threadIdx.x) * N;
    T *x = logits + row * stride + begin;
    elements<T, N> vectors[VECTORS] = {};
    bool live = targets[row] >= 0;
    int64_t one = live ? targets[row] - first : -1;
    float weight = weights[row], maximum = maxima[row], scale = weight / sums[row];

    /* whether the row is live or not: few are not, and to know takes as long as the loads */
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (begin + k * THREADS * N < count)
            vectors[k] = load<N>(x + k * THREADS * N);
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        int64_t column = begin + k * THREADS * N;
        float logit[N];

        if (column >= stride)
            continue;
        widen(logit, vectors[k]);
        gradients<T, N>(logit, maximum, scale, weight, column, one, live ? count : 0);
        store(x + k * THREADS * N, narrow<T>(logit));
    }
}

template <class T>
void cuda_cross_entropy_finish(struct stream *stream, float *loss, void *logits,
                               const int32_t *targets, const float *weight, const float *maximum,
                               const float *sum, const float *target, int64_t first, int64_t count,
                               int64_t stride, int64_t rows, bool backward)
{
    cudaStream_t handle = handle_of(stream);
    int N = packs<T>(stride, logits) ? pack<T>::size : 1;
    int64_t chunks = ceil_div(stride, VECTORS * THREADS * N);

    assert(count >= 0 && count <= stride);
    if (rows == 0)
        return;
    losses<<<blocks_for(rows, THREADS, 1), THREADS, 0, handle>>>(loss, targets, maximum, sum,
                                                                 target, count, rows);
    if (backward && N > 1)
        finish<T, pack<T>::size><<<blocks_for(rows * chunks, 1, 1), THREADS, 0, handle>>>(
            (T *)logits, targets, weight, maximum, sum, first, count, stride, (unsigned)chunks);
    else if (backward)
        finish<T, 1><<<blocks_for(rows * chunks, 1, 1), THREADS, 0, handle>>>(
            (T *)logits, targets, weight, maximum, sum, first, count, stride, (unsigned)chunks);
    LAUNCHED("cross-entropy, part two");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_cross_entropy_partial<T>(struct stream *, float *, float *, float *,        \
                                                int32_t *, const void *, const int32_t *, int64_t, \
                                                int64_t, int64_t, int64_t);                        \
    template void cuda_cross_entropy_finish<T>(                                                    \
        struct stream *, float *, void *, const int32_t *, const float *, const float *,           \
        const float *, const float *, int64_t, int64_t, int64_t, int64_t, bool);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
