/* RMSNorm (Zhang and Sennrich, 2019) and LayerNorm (Ba, Kiros and Hinton, 2016) with the residual
 * addition in front of them; kernels/cpu/norm.c has the formulas.
 *
 * Forward: one block a row, the row in registers between the sum and the scaling; LayerNorm's
 * variance is that of the centered values, a second sum over the same registers. Backward: a block
 * takes every gridDim-th row, each thread the same columns of all of them, so that the sums over
 * rows (dw, db) stay in registers; the loads of a row begin before the row in front of it is worked
 * on. Blocks leave their parts of dw and db in the workspace and a second kernel adds the parts up
 * in their order. Rows that do not divide into vectors of 16 bytes, or are too long for a block's
 * registers, take kernels that go over them element by element, twice or three times.
 *
 * The statistics are those of the sum as it is stored, rounded: backward sees nothing else.
 */
#include "kernels/cuda/columns.h"

enum {
    FORWARD_VECTORS = 4, /* a thread */
    FORWARD_THREADS = 512,
    BACKWARD_THREADS = 1024, /* of a multiprocessor: the bound that leaves 64 registers each */
    /* The same, with 96 registers for twice the sums: two rows of 4544 (Falcon 7B) in 16 bits. */
    LAYER_BACKWARD_THREADS = 640,
    ANY_THREADS = 256,
};

enum norm_kind { RMS, LAYER };

/* n of y = n w + b, and that y, by operations with names: backward must give what forward gave. */
static __device__ inline float normalized(float s, float mean, float rstd)
{
    return __fmul_rn(__fsub_rn(s, mean), rstd);
}

static __device__ inline float layer_output(float normalized, float w, float b)
{
    return __fmaf_rn(normalized, w, b);
}

/* --- forward -----------------------------------------------------------------------------------
 */

/* kernels.h has the shapes. RMSNorm has no mean and no b. */
template <class T> struct forward_arrays {
    T *y;
    float *mean, *rstd;
    T *sum;
    const T *x, *residual, *w, *b;
};

static __device__ inline float reciprocal_root(float squares, float eps, int64_t columns)
{
    return 1 / sqrtf(squares / (float)columns + eps);
}

template <norm_kind KIND, class T, bool RESIDUAL>
static __global__ void __launch_bounds__(FORWARD_THREADS)
    forward(const forward_arrays<T> a, float eps, int64_t columns)
{
    constexpr int N = pack<T>::size;
    __shared__ float scratch[KIND == LAYER ? 2 : 1][WARP];
    int64_t row = blockIdx.x * columns;
    elements<T, N> s[FORWARD_VECTORS], r[FORWARD_VECTORS], weight[FORWARD_VECTORS];
    elements<T, N> bias[FORWARD_VECTORS];
    float total = 0, squares = 0, mean = 0, scale;

#pragma unroll
    for (int k = 0; k < FORWARD_VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        if (column < columns) {
            s[k] = load<N>(a.x + row + column);
            if (RESIDUAL)
                r[k] = load<N>(a.residual + row + column);
        }
    }
#pragma unroll
    for (int k = 0; k < FORWARD_VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        if (column < columns)
            weight[k] = load<N>(a.w + column);
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
            store(a.sum + row + column, s[k]);
            widen(in, s[k]);
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            if (KIND == LAYER)
                total += in[i];
            else
                squares += in[i] * in[i];
    }
    if constexpr (KIND == LAYER) {
#pragma unroll
        for (int k = 0; k < FORWARD_VECTORS; k++) { /* where the residual was */
            int64_t column = (threadIdx.x + k * blockDim.x) * N;

            if (column < columns)
                bias[k] = load<N>(a.b + column);
        }
        mean = block_sum(total, scratch[1]) / (float)columns;
        if (threadIdx.x == 0)
            a.mean[blockIdx.x] = mean;
#pragma unroll
        for (int k = 0; k < FORWARD_VECTORS; k++) {
            int64_t column = (threadIdx.x + k * blockDim.x) * N;
            float in[N];

            if (column >= columns)
                continue;
            widen(in, s[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                squares += (in[i] - mean) * (in[i] - mean);
        }
    }
    scale = reciprocal_root(block_sum(squares, scratch[0]), eps, columns);
    if (threadIdx.x == 0)
        a.rstd[blockIdx.x] = scale;
#pragma unroll
    for (int k = 0; k < FORWARD_VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        float out[N], factor[N], shift[N];

        if (column >= columns)
            continue;
        widen(out, s[k]);
        widen(factor, weight[k]);
        if (KIND == LAYER)
            widen(shift, bias[k]);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (KIND == LAYER)
                out[i] = layer_output(normalized(out[i], mean, scale), factor[i], shift[i]);
            else
                out[i] *= scale * factor[i];
        store(a.y + row + column, narrow<T>(out));
    }
}

template <norm_kind KIND, class T>
static __global__ void forward_any(const forward_arrays<T> a, float eps, int64_t columns)
{
    __shared__ float scratch[2][WARP];
    int64_t row = blockIdx.x * columns;
    const T *s = (a.residual ? a.sum : a.x) + row;
    float total = 0, squares = 0, mean = 0, scale;

    for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) {
        T in = a.x[row + column];

        if (a.residual) {
            in = from_float<T>(to_float(in) + to_float(a.residual[row + column]));
            a.sum[row + column] = in;
        }
        total += to_float(in);
        squares += to_float(in) * to_float(in);
    }
    if (KIND == LAYER) {
        mean = block_sum(total, scratch[1]) / (float)columns;
        if (threadIdx.x == 0)
            a.mean[blockIdx.x] = mean;
        squares = 0;
        for (int64_t column = threadIdx.x; column < columns; column += blockDim.x)
            squares += (to_float(s[column]) - mean) * (to_float(s[column]) - mean);
    }
    scale = reciprocal_root(block_sum(squares, scratch[0]), eps, columns);
    if (threadIdx.x == 0)
        a.rstd[blockIdx.x] = scale;
    for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) {
        float in = to_float(s[column]), w = to_float(a.w[column]);

        a.y[row + column] = from_float<T>(
            KIND == LAYER ? layer_output(normalized(in, mean, scale), w, to_float(a.b[column]))
                          : in * (scale * w));
    }
}

template <norm_kind KIND, class T>
static void launch_forward(cudaStream_t handle, const forward_arrays<T> &a, double eps,
                           int64_t rows, int64_t columns)
{
    unsigned blocks = blocks_for(rows, 1, 1);
    int threads = round_up_to_warps(ceil_div(columns / pack<T>::size, FORWARD_VECTORS));

    assert(columns > 0 && (!a.residual || a.sum));
    if (rows == 0)
        return;
    if (!packs<T>(columns, a.y, a.x, a.w, a.residual) || !packs<T>(columns, a.sum, a.b) ||
        threads > FORWARD_THREADS)
        forward_any<KIND, T><<<blocks, ANY_THREADS, 0, handle>>>(a, (float)eps, columns);
    else if (a.residual)
        forward<KIND, T, true><<<blocks, threads, 0, handle>>>(a, (float)eps, columns);
    else
        forward<KIND, T, false><<<blocks, threads, 0, handle>>>(a, (float)eps, columns);
}

template <class T>
void cuda_rmsnorm_forward(struct stream *stream, void *y, float *rstd, void *sum, const void *x,
                          const void *residual, const void *w, double eps, int64_t rows,
                          int64_t columns)
{
    const forward_arrays<T> a = {
        (T *)y, nullptr, rstd, (T *)sum, (const T *)x, (const T *)residual, (const T *)w, nullptr};

    launch_forward<RMS>(handle_of(stream), a, eps, rows, columns);
    LAUNCHED("RMSNorm");
}

template <class T>
void cuda_layernorm_forward(struct stream *stream, void *y, float *mean, float *rstd, void *sum,
                            const void *x, const void *residual, const void *w, const void *b,
                            double eps, int64_t rows, int64_t columns)
{
    const forward_arrays<T> a = {(T *)y,       mean,         rstd,
                                 (T *)sum,     (const T *)x, (const T *)residual,
                                 (const T *)w, (const T *)b};

    launch_forward<LAYER>(handle_of(stream), a, eps, rows, columns);
    LAUNCHED("LayerNorm");
}

/* --- backward ----------------------------------------------------------------------------------
 */

/* kernels.h has the shapes. RMSNorm has no mean and no b. */
template <class T> struct backward_arrays {
    T *dx, *y;
    const T *dy, *s, *w, *b;
    const float *mean, *rstd;
    const T *dresidual;
};

/* LayerNorm needs two sums over a row, RMSNorm the second alone. */
template <norm_kind KIND> using sums_of_row = std::conditional_t<KIND == LAYER, float2, float>;

template <norm_kind KIND>
static __device__ inline void sum_row(float *plain, float *dot, sums_of_row<KIND> *scratch)
{
    if constexpr (KIND == LAYER) {
        float2 sums = block_sum(make_float2(*plain, *dot), scratch);

        *plain = sums.x;
        *dot = sums.y;
    } else {
        *dot = block_sum(*dot, scratch);
    }
}

/* What of the row's input, or of its n, is taken from the gradient; dot is their product's sum. */
template <norm_kind KIND>
static __device__ inline float share_of(float dot, float rstd, int64_t columns)
{
    return (KIND == LAYER ? dot : dot * rstd * rstd * rstd) / (float)columns;
}

/* What one thread reads of a row. */
template <class T, int VECTORS> struct row_part {
    elements<T, pack<T>::size> dy[VECTORS], s[VECTORS], dresidual[VECTORS];
    float mean, rstd;
};

template <norm_kind KIND, class T, int VECTORS>
static __device__ inline void read_part(row_part<T, VECTORS> *part, const backward_arrays<T> &a,
                                        int64_t row, int64_t columns)
{
    constexpr int N = pack<T>::size;

    part->mean = KIND == LAYER ? a.mean[row] : 0;
    part->rstd = a.rstd[row];
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        if (column < columns) {
            part->dy[k] = load<N>(a.dy + row * columns + column);
            part->s[k] = load<N>(a.s + row * columns + column);
            if (a.dresidual)
                part->dresidual[k] = load<N>(a.dresidual + row * columns + column);
        }
    }
}

/* Of w or b, which LayerNorm's backward reads from the cache for every row: there is no room to
 * keep them, nor for their addresses, hence the offset of 32 bits. */
template <int N, class T>
static __device__ inline elements<T, N> load_column(const T *from, int64_t column)
{
    return load<N>((const T *)((const char *)from + (uint32_t)(column * (int)sizeof(T))));
}

/* parts[gridDim.x][columns]: this block's sums over its rows, for dw; LayerNorm has as many for db
 * behind them. */
template <norm_kind KIND, class T, int VECTORS>
static __global__ void __launch_bounds__(KIND == LAYER ? LAYER_BACKWARD_THREADS : BACKWARD_THREADS)
    backward(const backward_arrays<T> a, float *parts, int64_t rows, int64_t columns)
{
    constexpr int N = pack<T>::size;
    constexpr bool AHEAD = KIND == LAYER || VECTORS == 1; /* else there is no room for two rows */
    __shared__ sums_of_row<KIND> scratch[2][WARP];
    elements<T, N> weight[VECTORS];
    float dw[VECTORS][N] = {}, db[VECTORS][N] = {};
    row_part<T, VECTORS> part, next;

#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        if (KIND == RMS && column < columns)
            weight[k] = load<N>(a.w + column);
    }
    if (AHEAD)
        read_part<KIND>(&next, a, blockIdx.x, columns);
    for (int64_t row = blockIdx.x, turn = 0; row < rows; row += gridDim.x, turn ^= 1) {
        float dot = 0, plain = 0, shift; /* sums over w dy n (RMSNorm: w dy s) and w dy */

        if (!AHEAD) {
            read_part<KIND>(&part, a, row, columns);
        } else {
            part = next;
            if (row + gridDim.x < rows)
                read_part<KIND>(&next, a, row + gridDim.x, columns);
        }
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            int64_t column = (threadIdx.x + k * blockDim.x) * N;

            float gradient[N], in[N], factor[N];

            if (column >= columns)
                continue;
            widen(gradient, part.dy[k]);
            widen(in, part.s[k]);
            widen(factor, KIND == LAYER ? load_column<N>(a.w, column) : weight[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                if constexpr (KIND == LAYER) {
                    in[i] = normalized(in[i], part.mean, part.rstd);
                    plain += gradient[i] * factor[i];
                    dot += gradient[i] * factor[i] * in[i];
                    dw[k][i] += gradient[i] * in[i];
                    db[k][i] += gradient[i];
                } else {
                    dot += gradient[i] * factor[i] * in[i];
                    dw[k][i] += gradient[i] * (in[i] * part.rstd);
                }
        }
        sum_row<KIND>(&plain, &dot, scratch[turn]);
        shift = share_of<KIND>(dot, part.rstd, columns);
        plain /= (float)columns;
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            int64_t column = (threadIdx.x + k * blockDim.x) * N;
            float gradient[N], in[N], factor[N], out[N] = {};

            if (column >= columns)
                continue;
            widen(gradient, part.dy[k]);
            widen(in, part.s[k]);
            widen(factor, KIND == LAYER ? load_column<N>(a.w, column) : weight[k]);
            if (a.dresidual)
                widen(out, part.dresidual[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                if constexpr (KIND == LAYER) {
                    in[i] = normalized(in[i], part.mean, part.rstd);
                    out[i] += part.rstd * (gradient[i] * factor[i] - plain - in[i] * shift);
                } else {
                    out[i] += gradient[i] * factor[i] * part.rstd - in[i] * shift;
                }
            store(a.dx + row * columns + column, narrow<T>(out));
            if (!a.y)
                continue;
            if constexpr (KIND == LAYER) {
                float bias[N];

                widen(bias, load_column<N>(a.b, column));
#pragma unroll
                for (int i = 0; i < N; i++)
                    in[i] = layer_output(in[i], factor[i], bias[i]);
            } else {
#pragma unroll
                for (int i = 0; i < N; i++)
                    in[i] *= part.rstd * factor[i];
            }
            store(a.y + row * columns + column, narrow<T>(in));
        }
    }
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        int64_t column = (threadIdx.x + k * blockDim.x) * N;

        if (column >= columns)
            continue;
        store(parts + blockIdx.x * columns + column, narrow<float>(dw[k]));
        if constexpr (KIND == LAYER)
            store(parts + (gridDim.x + blockIdx.x) * columns + column, narrow<float>(db[k]));
    }
}

template <norm_kind KIND, class T>
static __global__ void backward_any(const backward_arrays<T> a, int64_t columns)
{
    __shared__ sums_of_row<KIND> scratch[WARP];
    int64_t row = blockIdx.x * columns;
    float mean = KIND == LAYER ? a.mean[blockIdx.x] : 0, r = a.rstd[blockIdx.x];
    float dot = 0, plain = 0, shift;

    for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) {
        float in = to_float(a.s[row + column]);
        float gradient = to_float(a.dy[row + column]) * to_float(a.w[column]);

        plain += gradient;
        dot += gradient * (KIND == LAYER ? normalized(in, mean, r) : in);
    }
    sum_row<KIND>(&plain, &dot, scratch);
    shift = share_of<KIND>(dot, r, columns);
    plain /= (float)columns;
    for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) {
        float in = to_float(a.s[row + column]), w = to_float(a.w[column]);
        float gradient = to_float(a.dy[row + column]) * w, value;

        if (KIND == LAYER) {
            in = normalized(in, mean, r);
            value = r * (gradient - plain - in * shift);
        } else {
            value = gradient * r - in * shift;
        }
        if (a.dresidual)
            value += to_float(a.dresidual[row + column]);
        a.dx[row + column] = from_float<T>(value);
        if (a.y)
            a.y[row + column] = from_float<T>(
                KIND == LAYER ? layer_output(in, w, to_float(a.b[column])) : in * (r * w));
    }
}

/* Blocks of SLICE_COLUMNS x SLICE_ROWS threads, gridDim.y of them side by side over the rows.
 * parts[gridDim.y][columns], for dw. */
template <norm_kind KIND, class T>
static __global__ void backward_weight_any(float *parts, const backward_arrays<T> a, int64_t rows,
                                           int64_t columns)
{
    __shared__ float sums[SLICE_ROWS][SLICE_COLUMNS + 1];
    int64_t column = (int64_t)blockIdx.x * SLICE_COLUMNS + threadIdx.x;
    float sum = 0;

    if (column < columns)
        for (int64_t row = (int64_t)blockIdx.y * SLICE_ROWS + threadIdx.y; row < rows;
             row += (int64_t)gridDim.y * SLICE_ROWS) {
            int64_t at = row * columns + column;
            float in = to_float(a.s[at]);

            sum += to_float(a.dy[at]) *
                   (KIND == LAYER ? normalized(in, a.mean[row], a.rstd[row]) : in * a.rstd[row]);
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

/* dw += ; y may take dy's place, so that this must come before backward_any. */
template <norm_kind KIND, class T>
static void launch_weight_any(cudaStream_t handle, float *dw, const backward_arrays<T> &a,
                              int64_t rows, int64_t columns)
{
    float *parts = (float *)cuda_device.workspace;
    int64_t fitting = ceil_div(rows, 2 * SLICE_ROWS);
    int blocks = parts_in_workspace(fitting < 64 ? fitting : 64, columns);
    dim3 slices(blocks_for(columns, SLICE_COLUMNS, 1), (unsigned)blocks);

    backward_weight_any<KIND, T>
        <<<slices, dim3(SLICE_COLUMNS, SLICE_ROWS), 0, handle>>>(parts, a, rows, columns);
    launch_add_parts(handle, dw, nullptr, parts, blocks, columns);
}

/* Whether vectors can be used on all of the arrays. */
template <class T> static bool packs_all(const backward_arrays<T> &a, int64_t columns)
{
    return packs<T>(columns, a.dx, a.dy, a.s, a.w) && packs<T>(columns, a.dresidual, a.y, a.b);
}

template <class T>
void cuda_rmsnorm_backward(struct stream *stream, void *dx, float *dw, void *y, const void *dy,
                           const void *s, const void *w, const float *rstd, const void *dresidual,
                           int64_t rows, int64_t columns)
{
    const backward_arrays<T> a = {(T *)dx,      (T *)y,       (const T *)dy,
                                  (const T *)s, (const T *)w, nullptr,
                                  nullptr,      rstd,         (const T *)dresidual};
    cudaStream_t handle = handle_of(stream);
    int64_t vectors = columns / pack<T>::size;
    float *parts = (float *)cuda_device.workspace;

    assert(columns > 0 && handle == cuda_device.compute.handle);
    if (rows == 0)
        return;
    if (packs_all(a, columns) && vectors <= 2 * BACKWARD_THREADS) {
        bool two = vectors > BACKWARD_THREADS;
        int threads = round_up_to_warps(two ? ceil_div(vectors, 2) : vectors);
        int64_t fitting = (int64_t)cuda_device.multiprocessors * (BACKWARD_THREADS / threads);
        int blocks = parts_in_workspace(rows < fitting ? rows : fitting, columns);

        if (two)
            backward<RMS, T, 2><<<blocks, threads, 0, handle>>>(a, parts, rows, columns);
        else
            backward<RMS, T, 1><<<blocks, threads, 0, handle>>>(a, parts, rows, columns);
        launch_add_parts(handle, dw, nullptr, parts, blocks, columns);
    } else {
        launch_weight_any<RMS>(handle, dw, a, rows, columns);
        backward_any<RMS, T><<<blocks_for(rows, 1, 1), ANY_THREADS, 0, handle>>>(a, columns);
    }
    LAUNCHED("RMSNorm's backward");
}

template <class T>
void cuda_layernorm_backward(struct stream *stream, void *dx, float *dw, float *db, void *y,
                             const void *dy, const void *s, const void *w, const void *b,
                             const float *mean, const float *rstd, const void *dresidual,
                             int64_t rows, int64_t columns)
{
    const backward_arrays<T> a = {(T *)dx,      (T *)y,       (const T *)dy,
                                  (const T *)s, (const T *)w, (const T *)b,
                                  mean,         rstd,         (const T *)dresidual};
    cudaStream_t handle = handle_of(stream);
    int64_t vectors = columns / pack<T>::size;
    int threads = round_up_to_warps(ceil_div(vectors, 2));
    float *parts = (float *)cuda_device.workspace;

    assert(columns > 0 && handle == cuda_device.compute.handle);
    if (rows == 0)
        return;
    if (packs_all(a, columns) && threads <= LAYER_BACKWARD_THREADS) {
        int64_t fitting = (int64_t)cuda_device.multiprocessors * (LAYER_BACKWARD_THREADS / threads);
        int blocks = parts_in_workspace(rows < fitting ? rows : fitting, 2 * columns);

        backward<LAYER, T, 2><<<blocks, threads, 0, handle>>>(a, parts, rows, columns);
        launch_add_parts(handle, dw, db, parts, blocks, columns);
    } else {
        launch_weight_any<LAYER>(handle, dw, a, rows, columns);
        cuda_bias_backward<T>(stream, db, dy, rows, columns);
        backward_any<LAYER, T><<<blocks_for(rows, 1, 1), ANY_THREADS, 0, handle>>>(a, columns);
    }
    LAUNCHED("LayerNorm's backward");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_rmsnorm_forward<T>(struct stream *, void *, float *, void *, const void *,  \
                                          const void *, const void *, double, int64_t, int64_t);   \
    template void cuda_rmsnorm_backward<T>(struct stream *, void *, float *, void *, const void *, \
                                           const void *, const void *, const float *,              \
                                           const void *, int64_t, int64_t);                        \
    template void cuda_layernorm_forward<T>(struct stream *, void *, float *, float *, void *,     \
                                            const void *, const void *, const void *,              \
                                            const void *, double, int64_t, int64_t);               \
    template void cuda_layernorm_backward<T>(                                                      \
        struct stream *, void *, float *, float *, void *, const void *, const void *,             \
        const void *, const void *, const float *, const float *, const void *, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
