/* Rotary positions (Su et al., 2021) in Hugging Face's arrangement: element i of the first half of
 * a head turns with element i of the second half. q and k heads lie next to each other in a row
 * of qkv, so one loop over heads + kv_heads turns both. */
#include "kernels/cpu/cpu.h"

#include <assert.h>

#include "kernels/cpu/vector.h"

VECTORIZED static void rotate_row(float *row, const float *cosine, const float *sine, int heads,
                                  int64_t half, float direction)
{
    for (int head = 0; head < heads; head++) {
        float *first = row + 2 * half * head, *second = first + half;

#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            float a = first[i], b = second[i], c = cosine[i], s = sine[i] * direction;

            first[i] = a * c - b * s;
            second[i] = b * c + a * s;
        }
    }
}

void cpu_rope(struct stream *stream, void *qkv, const float *cosine, const float *sine,
              const int32_t *positions, int64_t rows, int heads, int kv_heads, int head_dim,
              bool inverse)
{
    int64_t half = head_dim / 2, stride = (int64_t)(heads + 2 * kv_heads) * head_dim;

    (void)stream;
    assert(head_dim % 2 == 0);
#pragma omp parallel for schedule(static) if (rows * stride > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++)
        rotate_row((float *)qkv + row * stride, cosine + positions[row] * half,
                   sine + positions[row] * half, heads + kv_heads, half, inverse ? -1 : 1);
}
