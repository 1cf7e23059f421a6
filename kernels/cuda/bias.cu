/* The bias of a product.
 *
 * Its gradient: a block takes WARP vectors of columns and every gridDim.y-th group of GROUP_ROWS
 * rows, each warp one row of a group; the loads of several groups are started together. The warps'
 * sums meet in shared memory, in their order, and the blocks' as columns.h has it.
 */
#include "kernels/cuda/columns.h"

enum {
    THREADS = 256,
    VECTORS_A_THREAD = 4,
    GROUP_ROWS = THREADS / WARP,
    GROUPS_AHEAD = 4,
    BLOCKS_A_MULTIPROCESSOR = 4,
};

template <class T, int N>
static __global__ void forward(T *y, const T *bias, int64_t items, uint32_t vectors)
{
    int64_t begin = (int64_t)blockIdx.x * (THREADS * VECTORS_A_THREAD) + threadIdx.x;
    elements<T, N> to[VECTORS_A_THREAD], from[VECTORS_A_THREAD];

#pragma unroll
    for (int k = 0; k < VECTORS_A_THREAD; k++) {
        int64_t item = begin + k * THREADS;

        if (item < items) {
            to[k] = load<N>(y + item * N);
            from[k] = load<N>(bias + (N == 1 ? item % vectors : (uint32_t)item % vectors) * N);
        }
    }
#pragma unroll
    for (int k = 0; k < VECTORS_A_THREAD; k++)
        if (begin + k * THREADS < items) {
            float sum[N], added[N];

            widen(sum, to[k]);
            widen(added, from[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                sum[i] += added[i];
            store(y + (begin + k * THREADS) * N, narrow<T>(sum));
        }
}

template <class T, int N>
static void launch_forward(cudaStream_t handle, T *y, const T *bias, int64_t rows, int64_t columns)
{
    int64_t vectors = columns / N, items = rows * vectors;

    /* Where divisions are to be quick, the numbers are of 32 bits. */
    assert(vectors <= INT32_MAX && (N == 1 || items <= INT32_MAX));
    forward<T, N><<<blocks_for(items, THREADS, VECTORS_A_THREAD), THREADS, 0, handle>>>(
        y, bias, items, (uint32_t)vectors);
}

template <class T>
void cuda_bias_forward(struct stream *stream, void *y, const void *bias, int64_t rows,
                       int64_t columns)
{
    cudaStream_t handle = handle_of(stream);

    if (rows * columns == 0)
        return;
    if (packs<T>(columns, y, bias))
        launch_forward<T, pack<T>::size>(handle, (T *)y, (const T *)bias, rows, columns);
    else
        launch_forward<T, 1>(handle, (T *)y, (const T *)bias, rows, columns);
    LAUNCHED("bias");
}

/* Blocks of WARP x GROUP_ROWS threads. parts[gridDim.y][columns]. */
template <class T, int N>
static __global__ void __launch_bounds__(THREADS, BLOCKS_A_MULTIPROCESSOR)
    sum_rows(float *parts, const T *dy, int64_t rows, int64_t columns)
{
    __shared__ float sums[GROUP_ROWS][WARP * N];
    int64_t first = (int64_t)blockIdx.x * (WARP * N), column = first + threadIdx.x * N;
    int64_t step = (int64_t)gridDim.y * GROUP_ROWS;
    float sum[N] = {};

    if (column < columns)
        for (int64_t row = (int64_t)blockIdx.y * GROUP_ROWS + threadIdx.y; row < rows;
             row += step * GROUPS_AHEAD) {
            elements<T, N> in[GROUPS_AHEAD];

#pragma unroll
            for (int k = 0; k < GROUPS_AHEAD; k++)
                if (row + k * step < rows)
                    in[k] = load<N>(dy + (row + k * step) * columns + column);
#pragma unroll
            for (int k = 0; k < GROUPS_AHEAD; k++)
                if (row + k * step < rows) {
                    float added[N];

                    widen(added, in[k]);
#pragma unroll
                    for (int i = 0; i < N; i++)
                        sum[i] += added[i];
                }
        }
#pragma unroll
    for (int i = 0; i < N; i++)
        sums[threadIdx.y][threadIdx.x * N + i] = sum[i];
    __syncthreads();
    for (int i = threadIdx.y * WARP + threadIdx.x; i < WARP * N && first + i < columns;
         i += THREADS) {
        float total = 0;

        for (int group = 0; group < GROUP_ROWS; group++)
            total += sums[group][i];
        parts[blockIdx.y * columns + first + i] = total;
    }
}

/* Returns how many parts there are. */
template <class T, int N>
static int launch_sum_rows(cudaStream_t handle, float *parts, const T *dy, int64_t rows,
                           int64_t columns)
{
    unsigned slices = blocks_for(columns / N, WARP, 1);
    int64_t resident = (int64_t)cuda_device.multiprocessors * BLOCKS_A_MULTIPROCESSOR / slices;
    int64_t useful = ceil_div(rows, GROUP_ROWS * GROUPS_AHEAD);
    int64_t blocks = resident < 1 ? 1 : resident < useful ? resident : useful;
    int count = parts_in_workspace(blocks, columns);

    sum_rows<T, N><<<dim3(slices, (unsigned)count), dim3(WARP, GROUP_ROWS), 0, handle>>>(
        parts, dy, rows, columns);
    return count;
}

template <class T>
void cuda_bias_backward(struct stream *stream, float *dbias, const void *dy, int64_t rows,
                        int64_t columns)
{
    cudaStream_t handle = handle_of(stream);
    float *parts = (float *)cuda_device.workspace;
    int count;

    assert(handle == cuda_device.compute.handle);
    if (rows * columns == 0)
        return;
    if (packs<T>(columns, dy))
        count = launch_sum_rows<T, pack<T>::size>(handle, parts, (const T *)dy, rows, columns);
    else
        count = launch_sum_rows<T, 1>(handle, parts, (const T *)dy, rows, columns);
    launch_add_parts(handle, dbias, nullptr, parts, count, columns);
    LAUNCHED("bias's backward");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_bias_forward<T>(struct stream *, void *, const void *, int64_t, int64_t);   \
    template void cuda_bias_backward<T>(struct stream *, float *, const void *, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
