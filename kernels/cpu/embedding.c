/* The embedding of a vocabulary of which rows [first, first + count) are here. */
#include "kernels/cpu/cpu.h"

#include <string.h>

#include "kernels/cpu/vector.h"

void cpu_embedding_forward(struct stream *stream, void *y, const int32_t *tokens, const void *w,
                           int64_t first, int64_t count, int64_t rows, int64_t columns)
{
    size_t bytes = (size_t)columns * sizeof(float);

    (void)stream;
#pragma omp parallel for schedule(static) if (rows * columns > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        int64_t token = tokens[row] - first;
        float *to = (float *)y + row * columns;

        if (token >= 0 && token < count)
            memcpy(to, (const float *)w + token * columns, bytes);
        else
            memset(to, 0, bytes);
    }
}

VECTORIZED static void add_slice(float *dw, const float *dy, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        dw[i] += dy[i];
}

/* Threads share out columns, not rows: each adds the rows in their order, and repeated tokens
 * need no lock. */
void cpu_embedding_backward(struct stream *stream, float *dw, const int32_t *tokens, const void *dy,
                            int64_t first, int64_t count, int64_t rows, int64_t columns)
{
    (void)stream;
#pragma omp parallel if (rows * columns > PARALLEL_ELEMENTS)
    {
        struct range range = thread_range(columns, 16);

        for (int64_t row = 0; row < rows && range.end > range.begin; row++) {
            int64_t token = tokens[row] - first;

            if (token >= 0 && token < count)
                add_slice(dw + token * columns + range.begin,
                          (const float *)dy + row * columns + range.begin, range.end - range.begin);
        }
    }
}
