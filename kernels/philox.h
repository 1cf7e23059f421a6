/* Philox 4x32-10, the counter-based generator of every random number whose value must not depend
 * on the layout (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
 *
 * Normal numbers of a tensor, on every device:
 *   key     = {seed, seed >> 32}
 *   counter = {i / 4, (i / 4) >> 32, tensor, tensor >> 32}, i = row * total_columns + column,
 *             the element's index in the whole matrix
 *   x[0..3] = philox(counter, key); u(x) = (x + 0.5) / 2^32, inside (0, 1)
 *   i % 4:  0: sqrt(-2 ln u(x0)) cos(2 pi u(x1))      1: the same with sin
 *           2: sqrt(-2 ln u(x2)) cos(2 pi u(x3))      3: the same with sin
 *
 * Stochastic rounding in update number `step` of an optimizer, i as above:
 *   key     = {seed, seed >> 32}
 *   counter = {i / 2, (i / 2) >> 32, tensor, (tensor >> 32) ^ step}; steps start at 1, so that
 *             tensors below 2^32 share no counter with the normal numbers
 *   x[0..3] = philox(counter, key); h = 2 (i % 2)
 *   x[h] rounds the weight, the low 16 bits of x[h + 1] the first moment, the high 16 the second.
 *   To bf16: of the 32 bits of a weight the high 16 are used. The number that 16 bits make is added
 *   to the bits of the float, whose low 16 bits are then cut off.
 *   To fp16: up, away from zero, where the 32 bits, taken as a fraction of 2^32, are below the part
 *   of the way to the next number up that the float has gone.
 *   NaN stays NaN, infinity infinity.
 *
 * Dropout at a place of the model, i the element's index among all that ever pass there:
 *   key     = {seed, seed >> 32}
 *   counter = {i / 4, (i / 4) >> 32, place, 2^31}
 *   x[0..3] = philox(counter, key); the element is dropped where x[i % 4] < rate 2^32
 *
 * Dropout of attention's probabilities at a place of the model, numbered from 1 and below 2^31:
 *   key     = {seed, seed >> 32}
 *   counter = {row, (row >> 32) ^ (head << 16), k / 32 * 8 + k % 8, 2^31 + place}
 *             row: of the query among all rows of the run, below 2^48; head: of the query among all
 *             query heads of the model, below 2^16; k: the key's index within its sequence
 *   x[0..3] = philox(counter, key); the probability is dropped where x[k / 8 % 4] < rate 2^32
 * The four keys of a counter are 8 apart, as those are that a thread has in fragments of tensor
 * cores, where keys are the rows and where they are the columns. A document that is packed behind
 * another has other keys than one with a row for itself, so its masks are others too.
 */
#ifndef MTLLM_KERNELS_PHILOX_H
#define MTLLM_KERNELS_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_DEVICE __host__ __device__
#else
#define PHILOX_DEVICE
#endif

PHILOX_DEVICE static inline void philox(uint32_t out[4], const uint32_t counter[4],
                                        const uint32_t key[2])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];

    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0;
        uint64_t product1 = (uint64_t)0xCD9E8D57u * c2;

        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* The numbers of dropout of attention that `key`, an index within the sequence, is one of. */
PHILOX_DEVICE static inline void philox_attention(uint32_t out[4], const uint32_t seed[2],
                                                  uint32_t place, int64_t row, int head, int key)
{
    const uint32_t counter[4] = {
        (uint32_t)row,
        (uint32_t)((uint64_t)row >> 32) ^ (uint32_t)head << 16,
        (uint32_t)key / 32 * 8 + (uint32_t)key % 8,
        (1U << 31) + place,
    };

    philox(out, counter, seed);
}

#endif
