/* The normal distribution, for GELU: one approximation for the processor and the device.
 *
 * With e = exp(-x^2 / 2), Phi(-|x|) = e p(r), r = c |x| / (1 + c |x|), c = NORMAL_SCALE. p(r) is
 * (1 - r) times the polynomial of degree 8 with the least relative error (2^-25) for |x| <= 13.4,
 * beyond which e is no normal number; Remez' algorithm found it. r of any |x| >= NORMAL_LIMIT may
 * be that of the limit: e is 0 there, and r of infinity would not be a number. In fp32 Phi is off
 * by 1e-7 at most, and in the tail by 2e-6 of itself down to x = -5, where 1 + erf(x / sqrt(2)) has
 * one digit left. The density needs no second exponential.
 */
#ifndef MTLLM_KERNELS_NORMAL_H
#define MTLLM_KERNELS_NORMAL_H

#define NORMAL_SCALE   0.27f
#define NORMAL_LIMIT   14.0f
#define NORMAL_DENSITY 0.398942280f /* 1 / sqrt(2 pi): the density is that times e */

/* On the device every operation is named: what the compiler fuses of others may differ from one
 * kernel to the next. */
#ifdef __CUDACC__
#define NORMAL_DEVICE                __device__
#define NORMAL_MULTIPLY(a, b)        __fmul_rn(a, b)
#define NORMAL_MULTIPLY_ADD(a, b, c) __fmaf_rn(a, b, c)
#define NORMAL_SUBTRACT(a, b)        __fsub_rn(a, b)
#else
#define NORMAL_DEVICE
#define NORMAL_MULTIPLY(a, b)        ((a) * (b))
#define NORMAL_MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#define NORMAL_SUBTRACT(a, b)        ((a) - (b))
#endif

/* Phi(x), the chance of less than x, from e and r as above. */
NORMAL_DEVICE static inline float normal_cumulative(float x, float e, float r)
{
    float p = -0.0288415036f, tail;

    p = NORMAL_MULTIPLY_ADD(p, r, 0.1336904265f);
    p = NORMAL_MULTIPLY_ADD(p, r, -0.1997198378f);
    p = NORMAL_MULTIPLY_ADD(p, r, 0.009730246297f);
    p = NORMAL_MULTIPLY_ADD(p, r, 0.1763963648f);
    p = NORMAL_MULTIPLY_ADD(p, r, 0.3105111881f);
    p = NORMAL_MULTIPLY_ADD(p, r, -1.376070959f);
    p = NORMAL_MULTIPLY_ADD(p, r, 1.951870359f);
    p = NORMAL_MULTIPLY_ADD(p, r, -1.477566296f);
    p = NORMAL_MULTIPLY_ADD(p, r, 0.5f);
    tail = NORMAL_MULTIPLY(e, p);
    return x < 0 ? tail : NORMAL_SUBTRACT(1, tail);
}

#endif
