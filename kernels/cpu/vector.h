/* How the CPU backend gets vector code out of plain loops.
 *
 * VECTORIZED compiles a function once for AVX-512, once for AVX2 and once for any machine; the
 * loader picks. One build serves every node, and a machine always gives the same bits. Loops in
 * such functions carry "#pragma omp simd", which vectorizes them at any optimization level, and
 * whose reduction clause allows the sums of a vector's lanes to be kept apart.
 */
#ifndef MTLLM_KERNELS_CPU_VECTOR_H
#define MTLLM_KERNELS_CPU_VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORIZED
#endif

/* exp(x) for x <= 88, within 1.5 units in the last place; 0 below -87.3, where the result would
 * be denormal (-infinity included); NaN stays NaN. No branch, so that loops over it vectorize.
 *
 * x = n ln 2 + r, |r| <= ln 2 / 2, e^x = 2^n (1 + r + r^2 q(r)) with q the polynomial through
 * (e^r - 1 - r) / r^2 at the Chebyshev nodes (relative error 2^-27). ln 2 in two parts, of which
 * n times the first is exact. */
static inline __attribute__((always_inline)) float exp_vector(float x)
{
    const float round = 0x1.8p23f; /* adding it leaves the nearest integer in the low bits */
    float shifted = x * 1.44269504f + round;
    float n = shifted - round;
    float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float q = 0.00139261761f, scale;
    uint32_t bits;

    q = q * r + 0.00836317307f;
    q = q * r + 0.0416665547f;
    q = q * r + 0.166665770f;
    q = q * r + 0.5f;
    q = 1 + (r + r * r * q);
    memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits << 23) + (127u << 23);
    memcpy(&scale, &bits, sizeof(scale));
    return x < -87.3f ? 0 : q * scale;
}

#endif
