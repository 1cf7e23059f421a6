/* Tensor cores as sm_80 has them: mma.sync on fragments that ldmatrix brings from shared memory and
 * cp.async brings there.
 *
 * A fragment spreads a tile over the 32 lanes of a warp. With g = lane / 4 and t = lane % 4, what
 * mma m16n8k16 adds up, c[16, 8] += a[16, 16] b[16, 8], lies as
 *   c[0..1] at row g, columns 2t, 2t + 1; c[2..3] at row g + 8
 *   a[0], a[1] at rows g, g + 8, columns 2t, 2t + 1; a[2], a[3] 8 columns further
 *   b[0] at rows 2t, 2t + 1, column g; b[1] 8 rows further
 * so that two c side by side, rounded, are one a: a product's result is the left side of the next
 * one without leaving the registers.
 *
 * Tiles in shared memory are rows of 16-byte chunks (8 elements). ldmatrix reads a chunk from each
 * of eight rows at a time; that these lie in different banks is what tile_chunk's order is for.
 */
#ifndef MTLLM_KERNELS_CUDA_MMA_H
#define MTLLM_KERNELS_CUDA_MMA_H

#include "kernels/cuda/cuda.h"

enum { CHUNK = 8, CHUNK_BYTES = 16, WARP = 32 };

/* Where chunk `chunk` of row `row` lies, in chunks, in a tile of that many columns (a power of two,
 * at least 16): the place within the row is exclusive-or'ed with a number that differs between
 * rows that would share banks. */
template <int COLUMNS> static __device__ inline int tile_chunk(int row, int chunk)
{
    constexpr int chunks = COLUMNS / CHUNK;
    constexpr int rows_abreast = chunks < 8 ? 8 / chunks : 1; /* in one line of all the banks */
    constexpr int orders = chunks < 8 ? chunks : 8;

    return row * chunks + (chunk ^ (row / rows_abreast % orders));
}

static __device__ inline uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* --- copies -------------------------------------------------------------------------------------
 */

/* 16 bytes into shared memory, some time before the copies are waited for; zeros unless `there`. */
static __device__ inline void copy_chunk(uint32_t to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

static __device__ inline void copy_4_bytes(uint32_t to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

static __device__ inline void copies_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most `pending` of this thread's groups are under way. */
template <int pending> static __device__ inline void copies_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* --- fragments ----------------------------------------------------------------------------------
 */

/* Four matrices of 8 x 8: lane 8 i + j has the address of row j of the i-th. */
static __device__ inline void load_matrices(uint32_t (&to)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

/* The same, each of the four transposed. */
static __device__ inline void load_matrices_transposed(uint32_t (&to)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

/* The lane's address for load_matrices() of 16 rows and 16 columns from the tile's corner, the four
 * matrices in order of (rows 0-7, 8-15) within (columns 0-7, 8-15): a fragment a[row, column], or,
 * transposed, b[row, column] for two neighbours of 8 columns.
 *
 * 16 rows further is a constant more. 16 columns further is not: use column_step(). */
template <int COLUMNS> static __device__ inline uint32_t rows_first(const void *tile)
{
    int lane = threadIdx.x % WARP;

    return shared_address(tile) +
           CHUNK_BYTES * tile_chunk<COLUMNS>(lane % 8 + lane / 8 % 2 * 8, lane / 16);
}

/* In order of (columns 0-7, 8-15) within (rows 0-7, 8-15): a fragment b[column, row] for two
 * neighbours of 8 rows, or, transposed, a[column, row]. */
template <int COLUMNS> static __device__ inline uint32_t columns_first(const void *tile)
{
    int lane = threadIdx.x % WARP;

    return shared_address(tile) +
           CHUNK_BYTES * tile_chunk<COLUMNS>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

/* 16 * `steps` columns further than an address of the corner's columns, in a tile that is aligned
 * to the bytes of its rows. */
static __device__ inline uint32_t column_step(uint32_t address, int steps)
{
    return address ^ (uint32_t)(steps * 2 * CHUNK_BYTES);
}

/* Where this lane's first pair of a fragment c goes in a tile, with the fragment at the tile's
 * corner: 8 rows further is a constant more, for columns there is chunk_step(). */
template <int COLUMNS> static __device__ inline uint32_t pair_address(const void *tile)
{
    int lane = threadIdx.x % WARP;

    return shared_address(tile) + CHUNK_BYTES * tile_chunk<COLUMNS>(lane / 4, 0) + lane % 4 * 4;
}

/* 8 * `steps` columns further than an address of the corner's columns. */
static __device__ inline uint32_t chunk_step(uint32_t address, int steps)
{
    return address ^ (uint32_t)(steps * CHUNK_BYTES);
}

static __device__ inline void store_pair(uint32_t address, uint32_t pair)
{
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(pair) : "memory");
}

template <class T>
static __device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ inline void mma<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two numbers rounded into one register, the first in the lower half. */
template <class T> static __device__ inline uint32_t pack_pair(float first, float second);

template <> __device__ inline uint32_t pack_pair<bf16>(float first, float second)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);

    return *reinterpret_cast<uint32_t *>(&pair);
}

template <> __device__ inline uint32_t pack_pair<__half>(float first, float second)
{
    __half2 pair = __floats2half2_rn(first, second);

    return *reinterpret_cast<uint32_t *>(&pair);
}

static __device__ inline float2 unpack_pair(uint32_t pair, bf16)
{
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000));
}

static __device__ inline float2 unpack_pair(uint32_t pair, __half)
{
    return __half22float2(*reinterpret_cast<__half2 *>(&pair));
}

/* 2^x; what is too small for a normal number becomes 0. */
static __device__ inline float power_of_2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
