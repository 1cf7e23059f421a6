/* Sums over gradients and the AdamW update (Loshchilov and Hutter, 2019). */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <omp.h>

#include "kernels/cpu/vector.h"

enum { GRAIN = 1024 };

VECTORIZED static double sum_squares_range(const float *x, int64_t n)
{
    double sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sum;
}

VECTORIZED static double weighted_sum_range(const float *weight, const float *x, int64_t n)
{
    double sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += (double)weight[i] * x[i];
    return sum;
}

/* Sum of x[i]^2, or of weight[i] x[i] where there are weights: each thread its own part, the parts
 * added up by thread number. */
static double sum_in_thread_order(const float *weight, const float *x, int64_t n)
{
    double partial[omp_get_max_threads()], sum = 0;
    int threads = 1;

#pragma omp parallel if (n > PARALLEL_ELEMENTS)
    {
        struct range range = thread_range(n, GRAIN);
        int64_t count = range.end - range.begin;

#pragma omp single
        threads = omp_get_num_threads();
        partial[omp_get_thread_num()] =
            weight ? weighted_sum_range(weight + range.begin, x + range.begin, count)
                   : sum_squares_range(x + range.begin, count);
    }
    for (int thread = 0; thread < threads; thread++)
        sum += partial[thread];
    return sum;
}

void cpu_sum_squares(struct stream *stream, double *out, const float *x, int64_t n)
{
    (void)stream;
    *out += sum_in_thread_order(NULL, x, n);
}

void cpu_weighted_sum(struct stream *stream, double *out, const float *weight, const float *x,
                      int64_t n)
{
    (void)stream;
    if (n > 0)
        *out += sum_in_thread_order(weight, x, n);
}

/* The update with everything that does not depend on the element worked out. */
struct step {
    float grad_scale;
    float keep1, take1, keep2, take2; /* of the moments and of the gradient */
    float denominator_scale;          /* 1 / sqrt(1 - beta2^step) */
    float rate;                       /* lr / (1 - beta1^step) */
    float eps, decay;                 /* lr weight_decay */
};

VECTORIZED static void adamw_range(float *w, float *m, float *v, const float *grad, int64_t n,
                                   const struct step *step)
{
    const struct step s = *step;

#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float g = grad[i] * s.grad_scale;
        float m_new = s.keep1 * m[i] + s.take1 * g, v_new = s.keep2 * v[i] + s.take2 * (g * g);

        m[i] = m_new;
        v[i] = v_new;
        w[i] -= s.rate * m_new / (sqrtf(v_new) * s.denominator_scale + s.eps) + s.decay * w[i];
    }
}

void cpu_adamw(struct stream *stream, void *weight, float *master, void *m, void *v,
               const float *grad, int64_t n, const struct adamw *update)
{
    struct step step = {
        .grad_scale = (float)update->grad_scale,
        .keep1 = (float)update->beta1,
        .take1 = (float)(1 - update->beta1),
        .keep2 = (float)update->beta2,
        .take2 = (float)(1 - update->beta2),
        .denominator_scale = (float)(1 / sqrt(1 - pow(update->beta2, (double)update->step))),
        .rate = (float)(update->lr / (1 - pow(update->beta1, (double)update->step))),
        .eps = (float)update->eps,
        .decay = (float)(update->lr * update->weight_decay),
    };

    (void)stream;
    assert(!master && update->moments == DTYPE_F32 && update->step >= 1);
    (void)master;
#pragma omp parallel if (n > PARALLEL_ELEMENTS)
    {
        struct range range = thread_range(n, GRAIN);

        adamw_range((float *)weight + range.begin, (float *)m + range.begin,
                    (float *)v + range.begin, grad + range.begin, range.end - range.begin, &step);
    }
}
