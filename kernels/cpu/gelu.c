/* GELU (Hendrycks and Gimpel, 2016), y = x Phi(x); dx = dy (Phi(x) + x phi(x)) with phi, the
 * density. normal.h has both. */
#include "kernels/cpu/cpu.h"

#include <math.h>

#include "kernels/cpu/vector.h"
#include "kernels/normal.h"

enum { GRAIN = 1024 }; /* elements */

/* Phi(x), with e = exp(-x^2 / 2). */
static inline float cumulative(float x, float e)
{
    float size = fabsf(x), scaled = NORMAL_SCALE * (size < NORMAL_LIMIT ? size : NORMAL_LIMIT);

    return normal_cumulative(x, e, scaled / (1 + scaled));
}

VECTORIZED static void forward_range(float *y, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * cumulative(x[i], exp_vector(-0.5f * x[i] * x[i]));
}

void cpu_gelu_forward(struct stream *stream, void *y, const void *x, int64_t n)
{
    (void)stream;
#pragma omp parallel if (n > PARALLEL_ELEMENTS)
    {
        struct range range = thread_range(n, GRAIN);

        forward_range((float *)y + range.begin, (const float *)x + range.begin,
                      range.end - range.begin);
    }
}

VECTORIZED static void backward_range(float *dx, float *y, const float *dy, const float *x,
                                      int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float in = x[i], d = dy[i], e = exp_vector(-0.5f * in * in), phi = cumulative(in, e);

        if (y)
            y[i] = in * phi;
        dx[i] = d * (phi + in * (NORMAL_DENSITY * e));
    }
}

void cpu_gelu_backward(struct stream *stream, void *dx, void *y, const void *dy, const void *x,
                       int64_t n)
{
    (void)stream;
#pragma omp parallel if (n > PARALLEL_ELEMENTS)
    {
        struct range range = thread_range(n, GRAIN);

        backward_range((float *)dx + range.begin, y ? (float *)y + range.begin : NULL,
                       (const float *)dy + range.begin, (const float *)x + range.begin,
                       range.end - range.begin);
    }
}
