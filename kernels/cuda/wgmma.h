/* Hopper's own instructions as functions: barriers in shared memory that count bytes (mbarrier),
 * copies of whole boxes of a matrix by the copy engine (TMA), and products by a warpgroup of four
 * warps (wgmma). Only for code of sm_90a.
 *
 * Tiles in shared memory are panels of 64 elements (128 bytes) by any multiple of 8 rows, begin at
 * a multiple of 1024 bytes and are swizzled: the 16-byte chunk c of row r lies at chunk c ^ (r &
 * 7), which is what the copy engine writes with CU_TENSOR_MAP_SWIZZLE_128B. The same tile can be an
 * operand whose rows run along the sum (K-major) or across it (MN-major, "transposed"):
 *
 *   K-major    one product of depth 16 takes 32 bytes of every row; groups of 8 rows are 1024
 *              bytes apart.
 *   MN-major   one product of depth 16 takes 16 rows, 2048 bytes; panels of 64 are `panel` bytes
 *              apart.
 *
 * (PTX ISA, "Asynchronous warpgroup level matrix instructions": matrix descriptor, strides.)
 */
#ifndef MTLLM_KERNELS_CUDA_WGMMA_H
#define MTLLM_KERNELS_CUDA_WGMMA_H

#include <cuda.h>

#include "kernels/cuda/cuda.h"

static __device__ inline uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* --- barriers ----------------------------------------------------------------------------------
 */

static __device__ inline void mbarrier_init(uint32_t barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

/* After the inits, before other threads or the copy engine use them. */
static __device__ inline void mbarrier_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ inline void mbarrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives, and has the phase wait for that many bytes of copies too. */
static __device__ inline void mbarrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/* Until the phase with that parity is over. */
static __device__ inline void mbarrier_wait(uint32_t barrier, uint32_t parity)
{
    uint32_t done;

    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!done);
}

/* Barriers of the block by number (1 to 15; 0 is __syncthreads), of some of its warps. */
static __device__ inline void named_sync(int number, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

static __device__ inline void named_arrive(int number, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/* What this thread wrote to shared memory becomes visible to products and copies that follow a
 * barrier. */
static __device__ inline void fence_async_shared()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* --- copies ------------------------------------------------------------------------------------
 */

/* One box into shared memory; completes its bytes on the barrier. Coordinates: element in the
 * panel (always 0), row, panel. */
static __device__ inline void copy_box(uint32_t to, const CUtensorMap *map, int row, int panel,
                                       uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(map), "r"(0), "r"(row), "r"(panel), "r"(barrier)
                 : "memory");
}

static __device__ inline void copy_bytes(uint32_t to, const void *from, uint32_t bytes,
                                         uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
                 : "memory");
}

/* Copies and additions from shared to device memory, by the thread that starts them. Fixed order:
 * each addition to an element is done before what waits for it. */
static __device__ inline void bulk_store(float *to, uint32_t from, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                     __cvta_generic_to_global(to)),
                 "r"(from), "r"(bytes)
                 : "memory");
}

static __device__ inline void bulk_add(float *to, uint32_t from, uint32_t bytes)
{
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                     __cvta_generic_to_global(to)),
                 "r"(from), "r"(bytes)
                 : "memory");
}

static __device__ inline void bulk_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Until shared memory has been read. */
static __device__ inline void bulk_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

/* Until device memory has been written. */
static __device__ inline void bulk_wait()
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/* Orders the copy engine's accesses to device memory with this thread's own. */
static __device__ inline void fence_async()
{
    asm volatile("fence.proxy.async;" ::: "memory");
}

/* Flags between blocks. */
static __device__ inline void flag_set(uint32_t *flag, uint32_t value)
{
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

static __device__ inline void flag_wait(const uint32_t *flag, uint32_t value)
{
    uint32_t now;

    do
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(flag) : "memory");
    while (now != value);
}

static __device__ inline void prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* --- shared memory by its address -------------------------------------------------------------
 */

static __device__ inline float2 shared_load2(uint32_t from)
{
    float2 x;

    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from) : "memory");
    return x;
}

static __device__ inline void shared_store4(uint32_t to, const float *x)
{
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(x[0]), "f"(x[1]),
                 "f"(x[2]), "f"(x[3])
                 : "memory");
}

/* Four matrices of 8 by 8 in the layout of products' sums; this lane's address is that of row
 * lane % 8 of matrix lane / 8. */
static __device__ inline void shared_store_matrices(uint32_t to, const uint32_t *x)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
}

/* --- products ----------------------------------------------------------------------------------
 */

/* Before the first product, and whenever registers of one (sums or A) were written since. */
static __device__ inline void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ inline void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most that many of the latest groups are unfinished. */
template <int pending> static __device__ inline void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/* The compiler must not move uses of these registers over this point: it does not know that the
 * instruction which seems to write them ends later. Costs no instruction. */
template <int count> static __device__ inline void keep(float (&registers)[count])
{
#pragma unroll
    for (int i = 0; i < count; i++)
        asm volatile("" : "+f"(registers[i])::"memory");
}

template <int count> static __device__ inline void keep(uint32_t (&registers)[count])
{
#pragma unroll
    for (int i = 0; i < count; i++)
        asm volatile("" : "+r"(registers[i])::"memory");
}

/* Operands in shared memory. */
static __device__ inline uint64_t operand_k_major(uint32_t address)
{
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

static __device__ inline uint64_t operand_mn_major(uint32_t address, uint32_t panel)
{
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(panel >> 4) << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* An operand that begins that many bytes later. */
static __device__ inline uint64_t operand_plus(uint64_t operand, uint32_t bytes)
{
    return operand + (bytes >> 4);
}

#define WGMMA_SUMS_32                                                                              \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                      \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define WGMMA_SUMS_64                                                                              \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                      \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define WGMMA_8(d, i)                                                                              \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_32(d, i) WGMMA_8(d, i), WGMMA_8(d, i + 8), WGMMA_8(d, i + 16), WGMMA_8(d, i + 24)

#define WGMMA_TEXT(type, n, sums, a, b, accumulate, last)                                          \
    "{\n"                                                                                          \
    ".reg .pred p;\n"                                                                              \
    "setp.ne.b32 p, " accumulate ", 0;\n"                                                          \
    "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " " sums ", " a ", " b          \
    ", p, 1, 1, " last ";\n"                                                                       \
    "}"
/* A in shared memory, or in registers. */
#define WGMMA_SHARED_32(type) WGMMA_TEXT(type, "64", WGMMA_SUMS_32, "%32", "%33", "%34", "%35, %36")
#define WGMMA_SHARED_64(type)                                                                      \
    WGMMA_TEXT(type, "128", WGMMA_SUMS_64, "%64", "%65", "%66", "%67, %68")
#define WGMMA_REGISTERS_32(type)                                                                   \
    WGMMA_TEXT(type, "64", WGMMA_SUMS_32, "{%32, %33, %34, %35}", "%36", "%37", "%38")
#define WGMMA_REGISTERS_64(type)                                                                   \
    WGMMA_TEXT(type, "128", WGMMA_SUMS_64, "{%64, %65, %66, %67}", "%68", "%69", "%70")

template <class T> static constexpr bool is_bf16 = false;
template <> constexpr bool is_bf16<bf16> = true;

/* sums (+)= A B, of depth 16, 64 rows and 64 or 128 columns: sums[4 n + 2 h + c] of thread t is
 * row 16 (t / 32) + t % 32 / 4 + 8 h, column 8 n + 2 (t % 4) + c. trans_a, trans_b: the operand is
 * MN-major. */
template <class T, int trans_a, int trans_b>
static __device__ inline void wgmma(float (&d)[32], uint64_t a, uint64_t b, int accumulate)
{
    if constexpr (is_bf16<T>)
        asm volatile(WGMMA_SHARED_32("bf16")
                     : WGMMA_32(d, 0)
                     : "l"(a), "l"(b), "r"(accumulate), "n"(trans_a), "n"(trans_b));
    else
        asm volatile(WGMMA_SHARED_32("f16")
                     : WGMMA_32(d, 0)
                     : "l"(a), "l"(b), "r"(accumulate), "n"(trans_a), "n"(trans_b));
}

template <class T, int trans_a, int trans_b>
static __device__ inline void wgmma(float (&d)[64], uint64_t a, uint64_t b, int accumulate)
{
    if constexpr (is_bf16<T>)
        asm volatile(WGMMA_SHARED_64("bf16")
                     : WGMMA_32(d, 0), WGMMA_32(d, 32)
                     : "l"(a), "l"(b), "r"(accumulate), "n"(trans_a), "n"(trans_b));
    else
        asm volatile(WGMMA_SHARED_64("f16")
                     : WGMMA_32(d, 0), WGMMA_32(d, 32)
                     : "l"(a), "l"(b), "r"(accumulate), "n"(trans_a), "n"(trans_b));
}

/* The same with A in the registers a[0] to a[3]: the layout of the sums, two columns a register
 * (pack_two). */
template <class T, int trans_b>
static __device__ inline void wgmma(float (&d)[32], const uint32_t *a, uint64_t b, int accumulate)
{
    if constexpr (is_bf16<T>)
        asm volatile(WGMMA_REGISTERS_32("bf16")
                     : WGMMA_32(d, 0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),
                       "n"(trans_b));
    else
        asm volatile(WGMMA_REGISTERS_32("f16")
                     : WGMMA_32(d, 0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),
                       "n"(trans_b));
}

template <class T, int trans_b>
static __device__ inline void wgmma(float (&d)[64], const uint32_t *a, uint64_t b, int accumulate)
{
    if constexpr (is_bf16<T>)
        asm volatile(WGMMA_REGISTERS_64("bf16")
                     : WGMMA_32(d, 0), WGMMA_32(d, 32)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),
                       "n"(trans_b));
    else
        asm volatile(WGMMA_REGISTERS_64("f16")
                     : WGMMA_32(d, 0), WGMMA_32(d, 32)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),
                       "n"(trans_b));
}

/* Two numbers in one register, the first in the low half. */
template <class T> static __device__ inline uint32_t pack_two(float low, float high);
template <> __device__ inline uint32_t pack_two<bf16>(float low, float high)
{
    uint32_t packed;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
template <> __device__ inline uint32_t pack_two<__half>(float low, float high)
{
    uint32_t packed;

    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

template <class T> static __device__ inline float2 unpack_two(uint32_t packed);
template <> __device__ inline float2 unpack_two<bf16>(uint32_t packed)
{
    return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u));
}
template <> __device__ inline float2 unpack_two<__half>(uint32_t packed)
{
    return __half22float2(*reinterpret_cast<__half2 *>(&packed));
}

/* The registers of a warpgroup from here on; all its four warps. */
template <int count> static __device__ inline void registers_raise()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

template <int count> static __device__ inline void registers_lower()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

static __device__ inline float exp2_fast(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
