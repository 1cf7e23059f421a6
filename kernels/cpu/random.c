/* Random weights: Box-Muller over Philox. philox.h says which number goes where. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/philox.h"

static double uniform(uint32_t x)
{
    return (x + 0.5) * 0x1p-32;
}

/* The normal numbers of elements 4 group to 4 group + 3. */
static void normal_group(double normal[4], uint64_t group, uint64_t seed, uint64_t tensor)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)group, (uint32_t)(group >> 32), (uint32_t)tensor,
                                 (uint32_t)(tensor >> 32)};
    uint32_t x[4];

    philox(x, counter, key);
    for (int first = 0; first < 4; first += 2) {
        double radius = sqrt(-2 * log(uniform(x[first])));
        double sine, cosine;

        sincos(2 * M_PI * uniform(x[first + 1]), &sine, &cosine);
        normal[first] = radius * cosine;
        normal[first + 1] = radius * sine;
    }
}

/* w[0..n): elements first to first + n - 1 of the whole matrix. */
static void normal_range(float *w, uint64_t first, int64_t n, double std, uint64_t seed,
                         uint64_t tensor)
{
    double normal[4];

    for (int64_t i = 0; i < n; i++) {
        uint64_t element = first + (uint64_t)i;

        if (i == 0 || element % 4 == 0)
            normal_group(normal, element / 4, seed, tensor);
        w[i] = (float)(std * normal[element % 4]);
    }
}

void cpu_random_normal(struct stream *stream, void *w, enum dtype dtype, const struct tile *tile,
                       double std, uint64_t seed, uint64_t tensor)
{
    (void)stream;
    (void)dtype;
    assert(dtype == DTYPE_F32 && tile->row >= 0 && tile->column >= 0 &&
           tile->column + tile->columns <= tile->total_columns);
    if (std == 0) { /* not the products with 0, half of which are -0 */
        memset(w, 0, (size_t)(tile->rows * tile->columns) * sizeof(float));
        return;
    }
#pragma omp parallel for schedule(static) if (tile->rows * tile->columns > PARALLEL_ELEMENTS / 16)
    for (int64_t row = 0; row < tile->rows; row++)
        normal_range((float *)w + row * tile->columns,
                     (uint64_t)((tile->row + row) * tile->total_columns + tile->column),
                     tile->columns, std, seed, tensor);
}
