/* Dropout (Srivastava et al., JMLR 2014), scaled where it is applied. philox.h says which element
 * goes with which random number. */
#include "kernels/cpu/cpu.h"

#include <assert.h>

#include "kernels/philox.h"

/* The numbers of elements 4 group to 4 group + 3. */
static void dropout_group(uint32_t x[4], uint64_t group, uint64_t seed, uint32_t place)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)group, (uint32_t)(group >> 32), place, 1U << 31};

    philox(x, counter, key);
}

void cpu_dropout(struct stream *stream, void *y, const void *x, int64_t n, double rate,
                 uint64_t seed, uint32_t place, int64_t first)
{
    uint32_t threshold = (uint32_t)(rate * 0x1p32);
    float scale = (float)(1 / (1 - rate)), *to = y;
    const float *from = x;
    (void)stream;

    assert(rate >= 0 && rate < 1 && first >= 0);
#pragma omp parallel for schedule(static) if (n > PARALLEL_ELEMENTS / 4)
    for (int64_t group = first / 4; group <= (first + n - 1) / 4; group++) {
        uint32_t numbers[4];

        dropout_group(numbers, (uint64_t)group, seed, place);
        for (int64_t k = 0; k < 4; k++) {
            int64_t i = 4 * group + k - first;

            if (i >= 0 && i < n)
                to[i] = numbers[k] < threshold ? 0 : from[i] * scale;
        }
    }
}
