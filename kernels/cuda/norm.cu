/* RMSNorm (Zhang and Sennrich, 2019) with the residual addition in front of it; kernels/cpu/norm.c
 * has the formulas.
 *
 * Forward: one block a row, the row in registers between the sum and the scaling. Backward: a block
 * takes every gridDim-th row, each thread the same columns of all of them, so that the sums over
 * rows (dw) stay in registers; the loads of a row begin before the row in front of it is worked on.
 * Blocks leave their part of dw in the workspace and a second kernel adds the parts up in their
 * order. Rows that do not divide into vectors of 16 bytes, or are too long for a block's registers,
 * take kernels that go over them element by element, twice.
 *
 * The statistics are those of the sum as it is stored, rounded: backward sees nothing else.
 */
#include "kernels/cuda/memory.h"

enum {
    FORWARD_VECTORS = 4, /* a thread */
    FORWARD_THREADS = 512,
    BACKWARD_THREADS = 1024, /* of a multiprocessor: the bound that leaves 64 registers each */
    ANY_THREADS = 256,
    SLICE_COLUMNS = 32,
    SLICE_ROWS = 32, /* rows, or parts, that a block adds up side by side */
};

/* --- forward -----------------------------------------------------------------------------------
 */

static __device__ inline float reciprocal_rms(float squares, float eps, int64_t columns)
{
    return 1 / sqrtf(squares / (float)columns + eps);
}

template <class T, bool RESIDUAL>
static __global__ void __launch_bounds__(FORWARD_THREADS)
    forward(T *y, float *rstd, T *sum, const T *x, const T *residual, const T *w, float eps,
            int64_t columns)
{
    constexpr int N = pack<T>::size;
    __shared__ float scratch[WARP];
    int64_t row = blockIdx.x * columns;
    elements<T, N> s[FORWARD_VECTORS], r[FORWARD_VECTORS], weight[FORWARD_VECTORS];
    float squares = 0, scale;

#pragma unroll
    for (int k = 0; k < FORWARD_VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        if (column < columns) {
            s[k] = load<N>(x + row + column);
            if (RESIDUAL)
                r[k] = load<N>(residual + row + column);
        }
    }
#pragma unroll
    for (int k = 0; k < FORWARD_VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        if (column < columns)
            weight[k] = load<N>(w + column);
    }
#pragma unroll
    for (int k = 0; k < FORWARD_VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        float in[N], added[N];

        if (column >= columns)
            continue;
        widen(in, s[k]);
        if (RESIDUAL) {
            widen(added, r[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                added[i] += in[i];
            s[k] = narrow<T>(added);
            store(sum + row + column, s[k]);
            widen(in, s[k]);
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            squares += in[i] * in[i];
    }
    scale = reciprocal_rms(block_sum(squares, scratch), eps, columns);
    if (threadIdx.x == 0)
        rstd[blockIdx.x] = scale;
#pragma unroll
    for (int k = 0; k < FORWARD_VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        float out[N], factor[N];

        if (column >= columns)
            continue;
        widen(out, s[k]);
        widen(factor, weight[k]);
#pragma unroll
        for (int i = 0; i < N; i++)
            out[i] *= scale * factor[i];
        store(y + row + column, narrow<T>(out));
    }
}

template <class T>
static __global__ void forward_any(T *y, float *rstd, T *sum, const T *x, const T *residual,
                                   const T *w, float eps, int64_t columns)
{
    __shared__ float scratch[WARP];
    int64_t row = blockIdx.x * columns;
    float squares = 0, scale;

    for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) {
        T s = x[row + column];

        if (residual) {
            s = from_float<T>(to_float(s) + to_float(residual[row + column]));
            sum[row + column] = s;
        }
        squares += to_float(s) * to_float(s);
    }
    scale = reciprocal_rms(block_sum(squares, scratch), eps, columns);
    if (threadIdx.x == 0)
        rstd[blockIdx.x] = scale;
    for (int64_t column = threadIdx.x; column < columns; column += blockDim.x)
        y[row + column] = from_float<T>(to_float((residual ? sum : x)[row + column]) *
                                        (scale * to_float(w[column])));
}

template <class T>
void cuda_rmsnorm_forward(struct stream *stream, void *y, float *rstd, void *sum, const void *x,
                          const void *residual, const void *w, double eps, int64_t rows,
                          int64_t columns)
{
    cudaStream_t handle = handle_of(stream);
    int64_t vectors = columns / pack<T>::size;
    int threads = round_up_to_warps(ceil_div(vectors, FORWARD_VECTORS));

    assert(columns > 0 && (!residual || sum));
    if (rows == 0)
        return;
    if (!packs<T>(columns, y, x, w, residual) || !packs<T>(columns, sum) ||
        threads > FORWARD_THREADS)
        forward_any<<<blocks_for(rows, 1, 1), ANY_THREADS, 0, handle>>>(
            (T *)y, rstd, (T *)sum, (const T *)x, (const T *)residual, (const T *)w, (float)eps,
            columns);
    else if (residual)
        forward<T, true><<<blocks_for(rows, 1, 1), threads, 0, handle>>>(
            (T *)y, rstd, (T *)sum, (const T *)x, (const T *)residual, (const T *)w, (float)eps,
            columns);
    else
        forward<T, false><<<blocks_for(rows, 1, 1), threads, 0, handle>>>(
            (T *)y, rstd, (T *)nullptr, (const T *)x, (const T *)nullptr, (const T *)w, (float)eps,
            columns);
    LAUNCHED("RMSNorm");
}

/* --- backward ----------------------------------------------------------------------------------
 */

/* What one thread reads of a row. */
template <class T, int VECTORS> struct row_part {
    elements<T, pack<T>::size> dy[VECTORS], s[VECTORS], dresidual[VECTORS];
    float rstd;
};

template <class T, int VECTORS>
static __device__ inline void read_part(row_part<T, VECTORS> *part, const T *dy, const T *s,
                                        const float *rstd, const T *dresidual, int64_t row,
                                        int64_t columns)
{
    constexpr int N = pack<T>::size;

    part->rstd = rstd[row];
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        if (column < columns) {
            part->dy[k] = load<N>(dy + row * columns + column);
            part->s[k] = load<N>(s + row * columns + column);
            if (dresidual)
                part->dresidual[k] = load<N>(dresidual + row * columns + column);
        }
    }
}

/* parts[gridDim.x][columns]: this block's sums over its rows. */
template <class T, int VECTORS>
static __global__ void __launch_bounds__(BACKWARD_THREADS)
    backward(T *dx, float *parts, T *y, const T *dy, const T *s, const T *w, const float *rstd,
             const T *dresidual, int64_t rows, int64_t columns)
{
    constexpr int N = pack<T>::size;
    constexpr bool AHEAD = VECTORS == 1; /* of two there is no room for two rows */
    __shared__ float scratch[2][WARP];
    elements<T, N> weight[VECTORS];
    float dw[VECTORS][N] = {};
    row_part<T, VECTORS> part, next;

#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        if (column < columns)
            weight[k] = load<N>(w + column);
    }
    if (AHEAD)
        read_part(&next, dy, s, rstd, dresidual, blockIdx.x, columns);
    for (int64_t row = blockIdx.x, turn = 0; row < rows; row += gridDim.x, turn ^= 1) {
        float dot = 0, shift;

        if (!AHEAD) {
            read_part(&part, dy, s, rstd, dresidual, row, columns);
        } else {
            part = next;
            if (row + gridDim.x < rows)
                read_part(&next, dy, s, rstd, dresidual, row + gridDim.x, columns);
        }
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            int64_t column = (threadIdx.x + k * blockDim.x) * N;

            float gradient[N], in[N], factor[N];

            if (column >= columns)
                continue;
            widen(gradient, part.dy[k]);
            widen(in, part.s[k]);
            widen(factor, weight[k]);
#pragma unroll
            for (int i = 0; i < N; i++) {
                dot += gradient[i] * factor[i] * in[i];
                dw[k][i] += gradient[i] * (in[i] * part.rstd);
            }
        }
        dot = block_sum(dot, scratch[turn]);
        shift = dot * part.rstd * part.rstd * part.rstd / (float)columns;
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            int64_t column = (threadIdx.x + k * blockDim.x) * N;
            float gradient[N], in[N], factor[N], out[N] = {};

            if (column >= columns)
                continue;
            widen(gradient, part.dy[k]);
            widen(in, part.s[k]);
            widen(factor, weight[k]);
            if (dresidual)
                widen(out, part.dresidual[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                out[i] += gradient[i] * factor[i] * part.rstd - in[i] * shift;
            store(dx + row * columns + column, narrow<T>(out));
            if (!y)
                continue;
#pragma unroll
            for (int i = 0; i < N; i++)
                in[i] *= part.rstd * factor[i];
            store(y + row * columns + column, narrow<T>(in));
        }
    }
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        if (column < columns)
            store(parts + blockIdx.x * columns + column, narrow<float>(dw[k]));
    }
}

/* Blocks of SLICE_COLUMNS x SLICE_ROWS threads. dw += the sum over parts[count][columns]. */
static __global__ void add_parts(float *dw, const float *parts, int count, int64_t columns)
{
    __shared__ double sums[SLICE_ROWS][SLICE_COLUMNS + 1];
    int64_t column = (int64_t)blockIdx.x * SLICE_COLUMNS + threadIdx.x;
    double sum = 0;

    if (column < columns)
#pragma unroll 8
        for (int part = threadIdx.y; part < count; part += SLICE_ROWS)
            sum += (double)parts[part * columns + column];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns)
        return;
    sum = 0;
    for (int slice = 0; slice < SLICE_ROWS; slice++)
        sum += sums[slice][threadIdx.x];
    dw[column] = (float)((double)dw[column] + sum);
}

template <class T>
static __global__ void backward_any(T *dx, T *y, const T *dy, const T *s, const T *w,
                                    const float *rstd, const T *dresidual, int64_t columns)
{
    __shared__ float scratch[WARP];
    int64_t row = blockIdx.x * columns;
    float r = rstd[blockIdx.x], dot = 0, shift;

    for (int64_t column = threadIdx.x; column < columns; column += blockDim.x)
        dot += to_float(dy[row + column]) * to_float(w[column]) * to_float(s[row + column]);
    shift = block_sum(dot, scratch) * r * r * r / (float)columns;
    for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) {
        float value = to_float(dy[row + column]) * to_float(w[column]) * r -
                      to_float(s[row + column]) * shift;

        if (dresidual)
            value += to_float(dresidual[row + column]);
        dx[row + column] = from_float<T>(value);
        if (y)
            y[row + column] = from_float<T>(to_float(s[row + column]) * (r * to_float(w[column])));
    }
}

/* Blocks of SLICE_COLUMNS x SLICE_ROWS threads, gridDim.y of them side by side over the rows.
 * parts[gridDim.y][columns]. */
template <class T>
static __global__ void backward_weight_any(float *parts, const T *dy, const T *s, const float *rstd,
                                           int64_t rows, int64_t columns)
{
    __shared__ float sums[SLICE_ROWS][SLICE_COLUMNS + 1];
    int64_t column = (int64_t)blockIdx.x * SLICE_COLUMNS + threadIdx.x;
    float sum = 0;

    if (column < columns)
        for (int64_t row = (int64_t)blockIdx.y * SLICE_ROWS + threadIdx.y; row < rows;
             row += (int64_t)gridDim.y * SLICE_ROWS) {
            int64_t at = row * columns + column;

            sum += to_float(dy[at]) * (to_float(s[at]) * rstd[row]);
        }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns)
        return;
    sum = 0;
    for (int slice = 0; slice < SLICE_ROWS; slice++)
        sum += sums[slice][threadIdx.x];
    parts[blockIdx.y * columns + column] = sum;
}

/* Parts of dw that `blocks` would leave, as far as the workspace has room for them. */
static int parts_in_workspace(int64_t blocks, int64_t columns)
{
    int64_t room = WORKSPACE_BYTES / (columns * (int64_t)sizeof(float));

    assert(room > 0);
    return (int)(blocks < room ? blocks : room);
}

template <class T>
void cuda_rmsnorm_backward(struct stream *stream, void *dx, float *dw, void *y, const void *dy,
                           const void *s, const void *w, const float *rstd, const void *dresidual,
                           int64_t rows, int64_t columns)
{
    cudaStream_t handle = handle_of(stream);
    int64_t vectors = columns / pack<T>::size;
    float *parts = (float *)cuda_device.workspace;
    dim3 slice(SLICE_COLUMNS, SLICE_ROWS);
    unsigned slices = blocks_for(columns, SLICE_COLUMNS, 1);
    int blocks;

    assert(columns > 0 && handle == cuda_device.compute.handle);
    if (rows == 0)
        return;
    if (packs<T>(columns, dx, dy, s, w) && packs<T>(columns, dresidual, y) &&
        vectors <= 2 * BACKWARD_THREADS) {
        bool two = vectors > BACKWARD_THREADS;
        int threads = round_up_to_warps(two ? ceil_div(vectors, 2) : vectors);
        int64_t fitting = (int64_t)cuda_device.multiprocessors * (BACKWARD_THREADS / threads);

        blocks = parts_in_workspace(rows < fitting ? rows : fitting, columns);
        if (two)
            backward<T, 2><<<blocks, threads, 0, handle>>>((T *)dx, parts, (T *)y, (const T *)dy,
                                                           (const T *)s, (const T *)w, rstd,
                                                           (const T *)dresidual, rows, columns);
        else
            backward<T, 1><<<blocks, threads, 0, handle>>>((T *)dx, parts, (T *)y, (const T *)dy,
                                                           (const T *)s, (const T *)w, rstd,
                                                           (const T *)dresidual, rows, columns);
    } else {
        int64_t fitting = ceil_div(rows, 2 * SLICE_ROWS);

        blocks = parts_in_workspace(fitting < 64 ? fitting : 64, columns);
        backward_weight_any<<<dim3(slices, (unsigned)blocks), slice, 0, handle>>>(
            parts, (const T *)dy, (const T *)s, rstd, rows, columns);
        backward_any<<<blocks_for(rows, 1, 1), ANY_THREADS, 0, handle>>>(
            (T *)dx, (T *)y, (const T *)dy, (const T *)s, (const T *)w, rstd, (const T *)dresidual,
            columns);
    }
    add_parts<<<slices, slice, 0, handle>>>(dw, parts, blocks, columns);
    LAUNCHED("RMSNorm's backward");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_rmsnorm_forward<T>(struct stream *, void *, float *, void *, const void *,  \
                                          const void *, const void *, double, int64_t, int64_t);   \
    template void cuda_rmsnorm_backward<T>(struct stream *, void *, float *, void *, const void *, \
                                           const void *, const void *, const float *,              \
                                           const void *, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
