/* What both directions of attention_mma share: the problem as kernels see it, and tiles of rows on
 * their way between global memory, shared memory and fragments.
 */
#ifndef MTLLM_KERNELS_CUDA_ATTENTION_MMA_H
#define MTLLM_KERNELS_CUDA_ATTENTION_MMA_H

#include "kernels/cuda/attention.h"
#include "kernels/cuda/mma.h"

struct mma_problem {
    const int32_t *starts; /* [sequences + 1] on the device */
    int64_t rows, stride;  /* stride: elements from row to row of qkv */
    int heads, kv_heads, head_dim, sequences;
    int longest;
    int window;       /* `longest` when there is none */
    float scale;      /* of scores */
    float scale_log2; /* scale * log2(e), so that exponentials are powers of 2 */
    struct attention_drops drops;
};

struct mma_problem mma_problem_of(const struct attention_shape *shape);

/* head_dim rounded up to one that there are kernels for */
int mma_padded_dim(int head_dim);

void attention_mma_forward(struct stream *stream, void *out, float *lse, const void *qkv,
                           const struct attention_shape *shape, enum dtype dtype);
size_t attention_mma_workspace(const struct attention_shape *shape);
void attention_mma_backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                            const void *qkv, const float *lse, void *workspace,
                            const struct attention_shape *shape, enum dtype dtype);

/* Rows [first, first + ROWS) of one head to shared memory, by THREADS threads of which this is
 * number `thread`. `from` is row 0 of the sequence. Rows from `length` on and columns from
 * `head_dim` on become zeros. */
template <int ROWS, int DIM, int THREADS, class T>
static __device__ inline void copy_rows(T *tile, const T *from, int64_t stride, int first,
                                        int length, int head_dim, int thread)
{
    constexpr int chunks = DIM / CHUNK, rows_at_once = THREADS / chunks;
    int chunk = thread % chunks, row = thread / chunks;
    bool column_there = chunk * CHUNK < head_dim;
    const T *source = from + (int64_t)(first + row) * stride + chunk * CHUNK;
    uint32_t to = shared_address(tile);

#pragma unroll
    for (int i = 0; i < ROWS; i += rows_at_once) {
        if (ROWS % rows_at_once == 0 || i + row < ROWS)
            copy_chunk(to + CHUNK_BYTES * tile_chunk<DIM>(i + row, chunk), source,
                       column_there && first + i + row < length);
        source += rows_at_once * stride;
    }
}

/* A warp's fragments, [16 ROW_TILES, DIM], to the first `rows` rows at `to`, through its own part
 * of shared memory. */
template <class T, int ROW_TILES, int DIM>
static __device__ inline void store_rows(T *to, int64_t stride, int rows, int head_dim, T *tile,
                                         const float (&c)[ROW_TILES][DIM / 8][4])
{
    constexpr int chunks = DIM / CHUNK;
    int lane = threadIdx.x % WARP;

    __syncwarp(); /* what the tile held is read */
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
        for (int j = 0; j < DIM / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = 16 * i + 8 * half + lane / 4;
                T *place = tile + CHUNK * tile_chunk<DIM>(row, j) + lane % 4 * 2;

                *reinterpret_cast<uint32_t *>(place) =
                    pack_pair<T>(c[i][j][2 * half], c[i][j][2 * half + 1]);
            }
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < 16 * ROW_TILES * chunks; i += WARP) {
        int row = i / chunks, chunk = i % chunks;

        if (row < rows && chunk * CHUNK < head_dim)
            store_pack(to + row * stride + chunk * CHUNK,
                       load_pack(tile + CHUNK * tile_chunk<DIM>(row, chunk)));
    }
}

#endif
