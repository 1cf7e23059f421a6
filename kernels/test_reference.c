#include "kernels/test_reference.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/philox.h"

void reference_linear(double *y, const double *x, const double *w, int64_t rows, int64_t in,
                      int64_t out)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < out; column++)
            y[row * out + column] = dot(x + row * in, w + column * in, in);
}

void reference_rmsnorm(double *y, double *rstd, const double *s, const double *w, double eps,
                       int64_t rows, int64_t columns)
{
    for (int64_t row = 0; row < rows; row++) {
        const double *x = s + row * columns;
        double rms = sqrt(dot(x, x, columns) / (double)columns + eps);

        for (int64_t i = 0; i < columns; i++)
            y[row * columns + i] = x[i] / rms * w[i];
        if (rstd)
            rstd[row] = 1 / rms;
    }
}

void reference_layernorm(double *y, double *mean, double *rstd, const double *s, const double *w,
                         const double *b, double eps, int64_t rows, int64_t columns)
{
    for (int64_t row = 0; row < rows; row++) {
        const double *x = s + row * columns;
        double middle = 0, variance = 0, deviation;

        for (int64_t i = 0; i < columns; i++)
            middle += x[i] / (double)columns;
        for (int64_t i = 0; i < columns; i++)
            variance += (x[i] - middle) * (x[i] - middle) / (double)columns;
        deviation = sqrt(variance + eps);
        for (int64_t i = 0; i < columns; i++)
            y[row * columns + i] = (x[i] - middle) / deviation * w[i] + b[i];
        if (mean)
            mean[row] = middle;
        if (rstd)
            rstd[row] = 1 / deviation;
    }
}

void reference_rope(double *turned, const double *qkv, const int32_t *positions, double base,
                    int64_t rows, int heads, int kv_heads, int head_dim)
{
    int64_t stride = (int64_t)(heads + 2 * kv_heads) * head_dim;
    int half = head_dim / 2;

    memcpy(turned, qkv, (size_t)(rows * stride) * sizeof(double));
    for (int64_t row = 0; row < rows; row++)
        for (int head = 0; head < heads + kv_heads; head++)
            for (int i = 0; i < half; i++) {
                double angle = positions[row] * pow(base, -2.0 * i / head_dim);
                const double *x = qkv + row * stride + (int64_t)head * head_dim;
                double *y = turned + row * stride + (int64_t)head * head_dim;

                y[i] = x[i] * cos(angle) - x[i + half] * sin(angle);
                y[i + half] = x[i + half] * cos(angle) + x[i] * sin(angle);
            }
}

/* 0 or 1 / (1 - rate), as philox.h says. */
static double dropout_factor(const struct attention_dropout *dropout, int64_t row, int head,
                             int64_t key)
{
    uint64_t run_row = (uint64_t)(dropout->first_row + row);
    uint64_t run_head = (uint64_t)(dropout->first_head + head);
    const uint32_t seed[2] = {(uint32_t)dropout->seed, (uint32_t)(dropout->seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)(run_row % (1ULL << 32)),
                                 (uint32_t)(run_row / (1ULL << 32) + run_head * 65536),
                                 (uint32_t)(key / 32 * 8 + key % 8), 2147483648U + dropout->place};
    uint32_t numbers[4];

    if (dropout->rate == 0)
        return 1;
    philox(numbers, counter, seed);
    return numbers[key / 8 % 4] < dropout->rate * 4294967296.0 ? 0 : 1 / (1 - dropout->rate);
}

static void attend(double *out, double *lse, const double *qkv, const struct attention_shape *shape,
                   int64_t start, int64_t row, int head)
{
    int dim = shape->head_dim, kv_head = head * shape->kv_heads / shape->heads;
    int64_t stride = (int64_t)(shape->heads + 2 * shape->kv_heads) * dim;
    const double *q = qkv + row * stride + (int64_t)head * dim;
    const double *k = qkv + (int64_t)(shape->heads + kv_head) * dim;
    const double *v = k + (int64_t)shape->kv_heads * dim;
    int64_t first =
        shape->window > 0 && row - shape->window + 1 > start ? row - shape->window + 1 : start;
    double sum = 0, *o = out + (row * shape->heads + head) * dim;

    memset(o, 0, (size_t)dim * sizeof(double));
    for (int64_t j = first; j <= row; j++) {
        double weight = exp(dot(q, k + j * stride, dim) / sqrt(dim));

        sum += weight;
        weight *= dropout_factor(&shape->dropout, row, head, j - start);
        for (int i = 0; i < dim; i++)
            o[i] += weight * v[j * stride + i];
    }
    for (int i = 0; i < dim; i++)
        o[i] /= sum;
    if (lse)
        lse[head * shape->rows + row] = log(sum);
}

void reference_attention(double *out, double *lse, const double *qkv,
                         const struct attention_shape *shape)
{
    for (int sequence = 0; sequence < shape->sequences; sequence++)
        for (int64_t row = shape->starts[sequence]; row < shape->starts[sequence + 1]; row++)
            for (int head = 0; head < shape->heads; head++)
                attend(out, lse, qkv, shape, shape->starts[sequence], row, head);
}

void reference_swiglu(double *y, const double *gate_up, int64_t rows, int64_t f)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < f; i++) {
            double gate = gate_up[row * 2 * f + i];

            y[row * f + i] = gate / (1 + exp(-gate)) * gate_up[row * 2 * f + f + i];
        }
}

void reference_gelu(double *y, const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * (1 + erf(x[i] / sqrt(2))) / 2;
}

double reference_cross_entropy(const double *logits, int64_t target, int64_t count)
{
    double maximum = logits[0], sum;

    for (int64_t i = 1; i < count; i++)
        maximum = fmax(maximum, logits[i]);
    sum = exp(logits[0] - maximum);
    for (int64_t i = 1; i < count; i++)
        sum += exp(logits[i] - maximum);
    return maximum + log(sum) - logits[target];
}

double dot(const double *x, const double *y, int64_t n)
{
    double sum = 0;

    for (int64_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* --- numbers ------------------------------------------------------------------------------- */

static uint32_t random_bits(void)
{
    static uint64_t state = 0x853c49e6748fea9bu;

    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

float random_float(void)
{
    return (float)(random_bits() * 0x1p-31 - 1);
}

int32_t random_below(int32_t n)
{
    return (int32_t)(((uint64_t)random_bits() * (uint32_t)n) >> 32);
}

static void *array(int64_t n, size_t size)
{
    void *pointer = calloc((size_t)(n > 0 ? n : 1), size);

    assert_non_null(pointer);
    return pointer;
}

float *random_array(int64_t n, float scale)
{
    float *x = array(n, sizeof(*x));

    for (int64_t i = 0; i < n; i++)
        x[i] = random_float() * scale;
    return x;
}

float *poisoned_array(int64_t n)
{
    float *x = array(n, sizeof(*x));

    for (int64_t i = 0; i < n; i++)
        x[i] = NAN;
    return x;
}

double *widened(const float *x, int64_t n)
{
    double *y = array(n, sizeof(*y));

    for (int64_t i = 0; i < n; i++)
        y[i] = (double)x[i];
    return y;
}

float *copied(const float *x, int64_t n)
{
    float *y = array(n, sizeof(*y));

    memcpy(y, x, (size_t)n * sizeof(*y));
    return y;
}

/* --- comparisons --------------------------------------------------------------------------- */

void check_close(const char *what, const float *got, const double *want, int64_t n,
                 double tolerance)
{
    double size = n > 0 ? sqrt(dot(want, want, n) / (double)n) : 0;

    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= tolerance * (fabs(want[i]) + size)))
            fail_msg("%s: element %lld of %lld is %.9g, expected %.9g", what, (long long)i,
                     (long long)n, (double)got[i], want[i]);
}

void check_same_bits(const float *x, const float *y, int64_t n)
{
    assert_memory_equal(x, y, (size_t)n * sizeof(*x));
}

/* The change of loss along `direction`, divided by the step. */
static double slope(double (*loss)(const double *, const void *), const void *problem,
                    const double *inputs, const double *direction, double *moved, int64_t n)
{
    const double step = 1e-5;
    double up, down;

    for (int64_t i = 0; i < n; i++)
        moved[i] = inputs[i] + step * direction[i];
    up = loss(moved, problem);
    for (int64_t i = 0; i < n; i++)
        moved[i] = inputs[i] - step * direction[i];
    down = loss(moved, problem);
    return (up - down) / (2 * step);
}

void check_gradient(const char *what, double (*loss)(const double *inputs, const void *problem),
                    const void *problem, const double *inputs, const float *gradient, int64_t n)
{
    enum { SAMPLES = 48, DIRECTIONS = 2 };
    const double tolerance = 2e-5;
    double *direction = array(n, sizeof(double)), *moved = array(n, sizeof(double));
    double *found = widened(gradient, n);
    double size = sqrt(dot(found, found, n) / (double)n);

    for (int64_t sample = 0; sample < SAMPLES && sample < n; sample++) {
        int64_t i = n <= SAMPLES ? sample : random_below((int32_t)n);
        double expected;

        memset(direction, 0, (size_t)n * sizeof(double));
        direction[i] = 1;
        expected = slope(loss, problem, inputs, direction, moved, n);
        if (!(fabs(found[i] - expected) <= tolerance * (fabs(expected) + size) + 1e-8))
            fail_msg("%s: gradient of element %lld of %lld is %.9g, finite differences say %.9g",
                     what, (long long)i, (long long)n, found[i], expected);
    }
    for (int trial = 0; trial < DIRECTIONS; trial++) {
        double expected, along;

        for (int64_t i = 0; i < n; i++)
            direction[i] = random_bits() & 1 ? 1 : -1;
        expected = slope(loss, problem, inputs, direction, moved, n);
        along = dot(found, direction, n);
        if (!(fabs(along - expected) <= tolerance * size * sqrt((double)n) + 1e-7))
            fail_msg("%s: gradient along a direction through all %lld elements is %.9g, finite "
                     "differences say %.9g",
                     what, (long long)n, along, expected);
    }
    free(direction);
    free(moved);
    free(found);
}
