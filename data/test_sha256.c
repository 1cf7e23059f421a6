#include "data/test_sha256.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static uint32_t rotate(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

/* The first 32 bits of the fraction of the square root (power 2) or cube root (3) of the n-th
 * prime, as the standard defines its constants. */
static uint32_t prime_root(int n, int power)
{
    int prime = 1;
    long double root;

    for (int found = -1; found < n;) {
        int divisor = 2;

        prime++;
        while (divisor * divisor <= prime && prime % divisor)
            divisor++;
        found += divisor * divisor > prime;
    }
    root = power == 2 ? sqrtl(prime) : cbrtl(prime);
    return (uint32_t)((root - floorl(root)) * 4294967296.0L);
}

static void digest_block(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64] = {0}, s[8];

    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 4; k++)
            w[i] = w[i] << 8 | *block++;
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] +
               (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, state, sizeof(s));
    for (int i = 0; i < 64; i++) {
        static uint32_t k[64];
        uint32_t a, b;

        if (!k[i])
            k[i] = prime_root(i, 3);
        a = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
            ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
        b = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
            ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof(*s));
        s[4] += a;
        s[0] = a + b;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

void sha256_prefix(const void *bytes, size_t size, char hex[17])
{
    const uint8_t *at = bytes;
    uint8_t tail[128] = {0};
    uint32_t state[8];
    size_t left = size, padded;

    for (int i = 0; i < 8; i++)
        state[i] = prime_root(i, 2);
    for (; left >= 64; left -= 64, at += 64)
        digest_block(state, at);
    if (left > 0)
        memcpy(tail, at, left);
    tail[left] = 0x80;
    padded = left < 56 ? 64 : 128;
    for (int i = 0; i < 8; i++)
        tail[padded - 1 - (size_t)i] = (uint8_t)((uint64_t)size * 8 >> 8 * i);
    for (size_t i = 0; i < padded; i += 64)
        digest_block(state, tail + i);
    snprintf(hex, 17, "%08x%08x", state[0], state[1]);
}
