/* Sums and constants element by element, and random weights: Box-Muller over Philox in double
 * precision, as on the CPU, so that both round to the same weights but for the last bit of the
 * functions. philox.h says which number goes where. */
#include "kernels/cuda/memory.h"

extern "C" {
#include "kernels/philox.h"
}

enum { THREADS = 256, VECTORS = 4 };

/* y[count] vectors of N elements. */
template <class T, int N> static __global__ void add(T *y, const T *x, int64_t count)
{
    int64_t begin = (int64_t)blockIdx.x * (THREADS * VECTORS) + threadIdx.x;
    elements<T, N> to[VECTORS], from[VECTORS];

#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (begin + k * THREADS < count) {
            to[k] = load<N>(y + (begin + k * THREADS) * N);
            from[k] = load<N>(x + (begin + k * THREADS) * N);
        }
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (begin + k * THREADS < count) {
            float sum[N], added[N];

            widen(sum, to[k]);
            widen(added, from[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                sum[i] += added[i];
            store(y + (begin + k * THREADS) * N, narrow<T>(sum));
        }
}

template <class T> void cuda_add(struct stream *stream, void *y, const void *x, int64_t n)
{
    constexpr int N = pack<T>::size;
    int64_t vectors = packs<T>(0, y, x) ? n / N : 0, rest = n - vectors * N;
    cudaStream_t handle = handle_of(stream);

    if (vectors > 0)
        add<T, N><<<blocks_for(vectors, THREADS, VECTORS), THREADS, 0, handle>>>(
            (T *)y, (const T *)x, vectors);
    if (rest > 0)
        add<T, 1><<<blocks_for(rest, THREADS, VECTORS), THREADS, 0, handle>>>(
            (T *)y + vectors * N, (const T *)x + vectors * N, rest);
    LAUNCHED("addition");
}

/* Rows of `width` vectors of N elements. */
template <class T, int N, bool ACCUMULATE>
static __global__ void copy_columns(T *to, int64_t to_stride, const T *from, int64_t from_stride,
                                    int64_t width, int64_t count)
{
    int64_t vector = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t row = vector / width, column = vector % width * N;
    elements<T, N> value;

    if (vector >= count)
        return;
    value = load<N>(from + row * from_stride + column);
    if (ACCUMULATE) {
        float sum[N], added[N];

        widen(sum, load<N>(to + row * to_stride + column));
        widen(added, value);
#pragma unroll
        for (int i = 0; i < N; i++)
            sum[i] += added[i];
        value = narrow<T>(sum);
    }
    store(to + row * to_stride + column, value);
}

template <class T, int N>
static void launch_copy_columns(cudaStream_t handle, T *to, int64_t to_stride, const T *from,
                                int64_t from_stride, int64_t rows, int64_t columns, bool accumulate)
{
    int64_t width = columns / N, count = rows * width;
    auto kernel = accumulate ? copy_columns<T, N, true> : copy_columns<T, N, false>;

    kernel<<<blocks_for(count, THREADS, 1), THREADS, 0, handle>>>(to, to_stride, from, from_stride,
                                                                  width, count);
}

template <class T>
void cuda_copy_columns(struct stream *stream, void *to, int64_t to_stride, const void *from,
                       int64_t from_stride, int64_t rows, int64_t columns, bool accumulate)
{
    constexpr int N = pack<T>::size;
    bool wide = packs<T>(columns, to, from) && to_stride % N == 0 && from_stride % N == 0;

    if (rows == 0 || columns == 0)
        return;
    if (wide)
        launch_copy_columns<T, N>(handle_of(stream), (T *)to, to_stride, (const T *)from,
                                  from_stride, rows, columns, accumulate);
    else
        launch_copy_columns<T, 1>(handle_of(stream), (T *)to, to_stride, (const T *)from,
                                  from_stride, rows, columns, accumulate);
    LAUNCHED("copy of columns");
}

template <class T, int N> static __global__ void fill(T *w, float value, int64_t count)
{
    int64_t begin = (int64_t)blockIdx.x * (THREADS * VECTORS) + threadIdx.x;
    float values[N];

#pragma unroll
    for (int i = 0; i < N; i++)
        values[i] = value;
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (begin + k * THREADS < count)
            store(w + (begin + k * THREADS) * N, narrow<T>(values));
}

template <class T> void cuda_fill(struct stream *stream, void *w, double value, int64_t n)
{
    constexpr int N = pack<T>::size;
    int64_t vectors = packs<T>(0, w) ? n / N : 0, rest = n - vectors * N;
    cudaStream_t handle = handle_of(stream);

    if (vectors > 0)
        fill<T, N><<<blocks_for(vectors, THREADS, VECTORS), THREADS, 0, handle>>>(
            (T *)w, (float)value, vectors);
    if (rest > 0)
        fill<T, 1><<<blocks_for(rest, THREADS, VECTORS), THREADS, 0, handle>>>((T *)w + vectors * N,
                                                                               (float)value, rest);
    LAUNCHED("filling");
}

/* --- random weights ----------------------------------------------------------------------------
 */

static __device__ inline double uniform(uint32_t x)
{
    return (x + 0.5) * 0x1p-32;
}

/* The normal numbers of elements 4 group to 4 group + 3. */
static __device__ inline void normal_group(double (&normal)[4], uint64_t group, uint64_t seed,
                                           uint64_t tensor)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)group, (uint32_t)(group >> 32), (uint32_t)tensor,
                                 (uint32_t)(tensor >> 32)};
    uint32_t x[4];

    philox(x, counter, key);
#pragma unroll
    for (int first = 0; first < 4; first += 2) {
        double radius = sqrt(-2 * log(uniform(x[first])));
        double sine, cosine;

        sincospi(2 * uniform(x[first + 1]), &sine, &cosine);
        normal[first] = radius * cosine;
        normal[first + 1] = radius * sine;
    }
}

/* One thread for each group of four that a row of the tile may have a part of. */
template <class T>
static __global__ void random_normal(T *w, const struct tile tile, int64_t groups, double std,
                                     uint64_t seed, uint64_t tensor)
{
    int64_t item = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = item / groups;
    int64_t begin = (tile.row + row) * tile.total_columns + tile.column; /* in the whole matrix */
    int64_t group = begin / 4 + item % groups;
    double normal[4];

    if (row >= tile.rows || group * 4 >= begin + tile.columns)
        return;
    normal_group(normal, group, seed, tensor);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int64_t column = group * 4 + i - begin;

        if (column >= 0 && column < tile.columns)
            w[row * tile.columns + column] = from_float<T>((float)(std * normal[i]));
    }
}

template <class T>
void cuda_random_normal(struct stream *stream, void *w, const struct tile *tile, double std,
                        uint64_t seed, uint64_t tensor)
{
    int64_t groups = tile->columns / 4 + 2;

    assert(tile->row >= 0 && tile->column >= 0 &&
           tile->column + tile->columns <= tile->total_columns);
    if (tile->rows * tile->columns == 0)
        return;
    if (std == 0) /* not the products with 0, half of which are -0 */
        cuda_fill<T>(stream, w, 0, tile->rows * tile->columns);
    else
        random_normal<T>
            <<<blocks_for(tile->rows * groups, THREADS, 1), THREADS, 0, handle_of(stream)>>>(
                (T *)w, *tile, groups, std, seed, tensor);
    LAUNCHED("random weights");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_copy_columns<T>(struct stream *, void *, int64_t, const void *, int64_t,    \
                                       int64_t, int64_t, bool);                                    \
    template void cuda_add<T>(struct stream *, void *, const void *, int64_t);                     \
    template void cuda_fill<T>(struct stream *, void *, double, int64_t);                          \
    template void cuda_random_normal<T>(struct stream *, void *, const struct tile *, double,      \
                                        uint64_t, uint64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
