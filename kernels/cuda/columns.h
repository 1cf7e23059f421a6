/* Sums over the rows of a matrix, column by column: blocks leave their parts in the workspace, a
 * second kernel adds the parts up in their order, in double, to what is there.
 */
#ifndef MTLLM_KERNELS_CUDA_COLUMNS_H
#define MTLLM_KERNELS_CUDA_COLUMNS_H

#include "kernels/cuda/memory.h"

enum {
    SLICE_COLUMNS = 32,
    SLICE_ROWS = 32, /* rows, or parts, that a block adds up side by side */
};

/* Parts that `blocks` would leave of so many sums, as far as the workspace has room for them. */
static inline int parts_in_workspace(int64_t blocks, int64_t sums)
{
    int64_t room = WORKSPACE_BYTES / (sums * (int64_t)sizeof(float));

    assert(room > 0);
    return (int)(blocks < room ? blocks : room);
}

/* Blocks of SLICE_COLUMNS x SLICE_ROWS threads. to[columns] += the sum over parts[count][columns];
 * with gridDim.y 2, `second` gets the sum over the count parts behind those. */
static __global__ void add_parts(float *to, float *second, const float *parts, int count,
                                 int64_t columns)
{
    __shared__ double sums[SLICE_ROWS][SLICE_COLUMNS + 1];
    int64_t column = (int64_t)blockIdx.x * SLICE_COLUMNS + threadIdx.x;
    double sum = 0;

    if (blockIdx.y == 1) {
        to = second;
        parts += count * columns;
    }
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
    to[column] = (float)((double)to[column] + sum);
}

/* One sum, or two: `second` may be NULL. */
static inline void launch_add_parts(cudaStream_t handle, float *to, float *second,
                                    const float *parts, int count, int64_t columns)
{
    dim3 slices(blocks_for(columns, SLICE_COLUMNS, 1), second ? 2 : 1);

    add_parts<<<slices, dim3(SLICE_COLUMNS, SLICE_ROWS), 0, handle>>>(to, second, parts, count,
                                                                      columns);
}

#endif
