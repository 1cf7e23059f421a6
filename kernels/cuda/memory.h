/* What the memory-bound kernels share: vectors of elements of any width, sums over the threads of a
 * block, a fast exponential, and how many blocks a number of elements takes.
 *
 * Such a kernel is a template over the elements N that one access moves: pack<T>::size where rows
 * and addresses permit 16 bytes, 1 where they do not. Each thread starts several loads before it
 * uses the first; what the memory of the device needs in flight is more than one load for every
 * thread that fits.
 */
#ifndef MTLLM_KERNELS_CUDA_MEMORY_H
#define MTLLM_KERNELS_CUDA_MEMORY_H

#include <type_traits>

#include "kernels/cuda/cuda.h"

enum { WARP = 32 };

/* --- vectors -----------------------------------------------------------------------------------
 * As 32-bit words, not as elements: the compiler keeps each 16-bit element that it sees in a
 * register of its own. */

template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) elements {
    using word = std::conditional_t<sizeof(T) * N % sizeof(uint32_t) == 0, uint32_t, uint16_t>;
    static constexpr int words = sizeof(T) * N / sizeof(word);
    word at[words];
};

template <int N, class T> static __device__ inline elements<T, N> load(const T *from)
{
    return *reinterpret_cast<const elements<T, N> *>(from);
}

/* In so many words: the compiler takes stores of structures apart and does not always put them
 * together again. */
template <class T, int N> static __device__ inline void store(T *to, const elements<T, N> &value)
{
    constexpr int words = elements<T, N>::words;
    using word = typename elements<T, N>::word;
    size_t address = __cvta_generic_to_global(to);

    if constexpr (words % 4 == 0)
#pragma unroll
        for (int i = 0; i < words; i += 4)
            asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address + 4 * i),
                         "r"(value.at[i]), "r"(value.at[i + 1]), "r"(value.at[i + 2]),
                         "r"(value.at[i + 3])
                         : "memory");
    else if constexpr (words == 2)
        asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(value.at[0]),
                     "r"(value.at[1])
                     : "memory");
    else
        *reinterpret_cast<word *>(to) = value.at[0];
    static_assert(words % 4 == 0 || words <= 2, "no other widths are in use");
}

static __device__ inline void widen_pair(float *x, uint32_t pair, bf16)
{
    x[0] = __uint_as_float(pair << 16);
    x[1] = __uint_as_float(pair & 0xffff0000u);
}

static __device__ inline void widen_pair(float *x, uint32_t pair, __half)
{
    float2 both = __half22float2(*reinterpret_cast<__half2 *>(&pair));

    x[0] = both.x;
    x[1] = both.y;
}

static __device__ inline uint32_t round_pair(float low, float high, bf16)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);

    return *reinterpret_cast<uint32_t *>(&pair);
}

static __device__ inline uint32_t round_pair(float low, float high, __half)
{
    __half2 pair = __floats2half2_rn(low, high);

    return *reinterpret_cast<uint32_t *>(&pair);
}

template <class T, int N>
static __device__ inline void widen(float (&x)[N], const elements<T, N> &value)
{
    if constexpr (sizeof(T) == sizeof(float)) {
#pragma unroll
        for (int i = 0; i < N; i++)
            x[i] = __uint_as_float(value.at[i]);
    } else if constexpr (N == 1) {
        x[0] = to_float(*reinterpret_cast<const T *>(value.at));
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 2)
            widen_pair(x + i, value.at[i / 2], T());
    }
}

/* Rounded to nearest even. */
template <class T, int N> static __device__ inline elements<T, N> narrow(const float (&x)[N])
{
    elements<T, N> value;

    if constexpr (sizeof(T) == sizeof(float)) {
#pragma unroll
        for (int i = 0; i < N; i++)
            value.at[i] = __float_as_uint(x[i]);
    } else if constexpr (N == 1) {
        *reinterpret_cast<T *>(value.at) = from_float<T>(x[0]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 2)
            value.at[i / 2] = round_pair(x[i], x[i + 1], T());
    }
    return value;
}

/* Blocks of `threads` threads that take `each` of `count` pieces a thread. */
static inline unsigned blocks_for(int64_t count, int threads, int each)
{
    int64_t blocks = ceil_div(count, (int64_t)threads * each);

    assert(blocks <= INT32_MAX);
    return (unsigned)blocks;
}

static inline int round_up_to_warps(int64_t threads)
{
    return (int)(ceil_div(threads, WARP) * WARP);
}

/* --- sums, in an order that only the block's size decides --------------------------------------
 */

/* All lanes get the same bits. */
template <class S> static __device__ inline S warp_sum(S x)
{
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

/* Two sums at one barrier. */
static __device__ inline float2 warp_sum(float2 x)
{
    return make_float2(warp_sum(x.x), warp_sum(x.y));
}

/* Over a block of whole warps; all threads get the same bits. `scratch` is shared memory, [WARP],
 * and free to be written again after the next barrier. */
template <class S> static __device__ inline S block_sum(S x, S *scratch)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;

    x = warp_sum(x);
    if (warps == 1)
        return x;
    if (lane == 0)
        scratch[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : S());
}

/* --- exp -------------------------------------------------------------------------------------
 * 2^x with a relative error of about 2^-22; e^x with a relative error of about 2^-22 + |x| 2^-23; 0
 * where that is denormal; NaN stays NaN. */
static __device__ inline float exp2_fast(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ inline float exp_fast(float x)
{
    return exp2_fast(x * 1.44269504f);
}

#endif
