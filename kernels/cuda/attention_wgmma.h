/* What the forward and the backward pass of attention on Hopper share.
 */
#ifndef MTLLM_KERNELS_CUDA_ATTENTION_WGMMA_H
#define MTLLM_KERNELS_CUDA_ATTENTION_WGMMA_H

#include "kernels/cuda/attention.h"
#include "kernels/cuda/wgmma.h"

/* Of keys and values of the heads that are worked on at one time: they stay in L2. */
enum { ATTENTION_SECTION_BYTES = 32 << 20 };

/* A row-major matrix of `rows` by `columns` 16-bit elements, in boxes of `box_rows` rows and
 * `panels` times 64 columns. */
CUtensorMap attention_map(const void *matrix, int64_t rows, int64_t columns, int box_rows,
                          int panels, enum dtype dtype);

size_t attention_wgmma_workspace(const struct attention_shape *shape);
void attention_wgmma_backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                              const void *qkv, const float *lse, void *workspace,
                              const struct attention_shape *shape, enum dtype dtype);

/* Where a ring of stages is. */
template <int STAGES> struct ring {
    uint32_t stage = 0, phase = 0;

    __device__ inline void next()
    {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

/* Arrival of a warp; all its threads are past the products that read what is given back. */
static __device__ inline void release(uint32_t barrier)
{
    if (threadIdx.x % 32 == 0)
        mbarrier_arrive(barrier);
}

/* The sums of a warpgroup (wgmma() has their layout) to D columns of a row-major matrix; `to` is
 * where the first row of this thread begins, and of what follows, `rows` are there. */
template <class T, int D>
static __device__ inline void store_rows(T *to, int64_t stride, const float (&sums)[D / 2],
                                         int rows)
{
    int place = threadIdx.x % 4;

#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            uint32_t x[4];

            /* Four threads hold four times eight columns; each is to have eight of its own. */
#pragma unroll
            for (int k = 0; k < 4; k++)
                x[k] =
                    pack_two<T>(sums[(4 * i + k) * 4 + 2 * h], sums[(4 * i + k) * 4 + 2 * h + 1]);
#pragma unroll
            for (int step = 1; step <= 2; step *= 2)
#pragma unroll
                for (int k = 0; k < 4; k++)
                    if (!(k & step)) {
                        uint32_t give = place & step ? x[k] : x[k + step];
                        uint32_t got = __shfl_xor_sync(~0u, give, step);

                        if (place & step)
                            x[k] = got;
                        else
                            x[k + step] = got;
                    }
            if (8 * h < rows)
                *reinterpret_cast<uint4 *>(to + 8 * h * stride + (4 * i + place) * 8) =
                    make_uint4(x[0], x[1], x[2], x[3]);
        }
    }
}

#endif
