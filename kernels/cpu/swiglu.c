/* SwiGLU (Shazeer, 2020): y = gate sigmoid(gate) up.
 *
 * sigmoid(g) is written with e = exp(-|g|) <= 1, which cannot overflow: 1 / (1 + e) for g >= 0,
 * e / (1 + e) below; 1 - sigmoid(g) is the other of the two, without cancellation. */
#include "kernels/cpu/cpu.h"

#include <math.h>

#include "kernels/cpu/vector.h"

/* With e = exp(-|gate|). */
static inline float forward(float gate, float up, float e)
{
    return gate * ((gate < 0 ? e : 1) / (1 + e)) * up;
}

VECTORIZED static void forward_row(float *y, const float *gate, const float *up, int64_t f)
{
#pragma omp simd
    for (int64_t i = 0; i < f; i++) {
        y[i] = forward(gate[i], up[i], exp_vector(-fabsf(gate[i])));
    }
}

void cpu_swiglu_forward(struct stream *stream, void *y, const void *gate_up, int64_t rows,
                        int64_t f)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (rows * f > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        const float *gate = (const float *)gate_up + row * 2 * f;

        forward_row((float *)y + row * f, gate, gate + f, f);
    }
}

VECTORIZED static void backward_row(float *dgate, float *dup, float *y, const float *dy,
                                    const float *gate, const float *up, int64_t f)
{
#pragma omp simd
    for (int64_t i = 0; i < f; i++) {
        float g = gate[i], u = up[i], d = dy[i], e = exp_vector(-fabsf(g)), scale = 1 / (1 + e);
        float sigmoid = (g < 0 ? e : 1) * scale, complement = (g < 0 ? 1 : e) * scale;

        if (y)
            y[i] = forward(g, u, e);
        dgate[i] = d * u * (sigmoid * (1 + g * complement));
        dup[i] = d * (g * sigmoid);
    }
}

void cpu_swiglu_backward(struct stream *stream, void *dgate_up, void *y, const void *dy,
                         const void *gate_up, int64_t rows, int64_t f)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (rows * f > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        const float *gate = (const float *)gate_up + row * 2 * f;
        float *dgate = (float *)dgate_up + row * 2 * f;

        backward_row(dgate, dgate + f, y ? (float *)y + row * f : NULL, (const float *)dy + row * f,
                     gate, gate + f, f);
    }
}
