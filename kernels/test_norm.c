/* Guards: RMSNorm and LayerNorm of the CPU backend compute what kernels.h says, checked the way
 * test_kernels.c checks: forwards against plain double-precision loops, backwards against finite
 * differences of those, outputs that begin as NaN, every alias that the contract allows. The
 * variance of rows far from zero is that of the centered values; the number of threads decides no
 * bit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/test_reference.h"

enum { THREADS = 3 };

static const double tolerance = 2e-6;

static const int64_t row_counts[] = {1, 7, 65}, column_counts[] = {1, 31, 64, 300};

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* --- RMSNorm ------------------------------------------------------------------------------- */

struct norm {
    int64_t rows, columns;
    double eps;
    double *dy, *dsum; /* dsum: gradient that reaches the sum by the residual path; may be NULL */
};

/* inputs: x [rows, columns], residual [rows, columns], w [columns] */
static double rmsnorm_loss(const double *inputs, const void *problem)
{
    const struct norm *p = problem;
    int64_t n = p->rows * p->columns;
    double *y = calloc((size_t)n, sizeof(double)), *s = calloc((size_t)n, sizeof(double)), loss;

    for (int64_t i = 0; i < n; i++)
        s[i] = inputs[i] + inputs[n + i];
    reference_rmsnorm(y, NULL, s, inputs + 2 * n, p->eps, p->rows, p->columns);
    loss = dot(y, p->dy, n) + (p->dsum ? dot(s, p->dsum, n) : 0);
    free(y);
    free(s);
    return loss;
}

/* With `zero_residual` the kernel gets NULL and the reference zeros. */
static void check_rmsnorm_forward(const struct kernels *k, const float *inputs, int64_t rows,
                                  int64_t columns, double eps, bool zero_residual)
{
    int64_t n = rows * columns;
    const float *residual = zero_residual ? NULL : inputs + n, *w = inputs + 2 * n;
    float *y = poisoned_array(n), *rstd = poisoned_array(rows), *sum = poisoned_array(n);
    float *again = poisoned_array(n), *in_place = copied(inputs, n);
    double *wide = widened(inputs, 2 * n + columns), *want = calloc((size_t)n, sizeof(double));
    double *want_rstd = calloc((size_t)rows, sizeof(double));

    for (int64_t i = 0; i < n; i++)
        wide[i] += wide[n + i];
    reference_rmsnorm(want, want_rstd, wide, wide + 2 * n, eps, rows, columns);
    k->rmsnorm_forward(NULL, y, rstd, sum, inputs, residual, w, eps, rows, columns);
    check_close("rmsnorm_forward", y, want, n, tolerance);
    check_close("rmsnorm_forward, rstd", rstd, want_rstd, rows, tolerance);
    if (zero_residual)
        assert_true(isnan(sum[0]) && isnan(sum[n - 1]));
    else
        check_close("rmsnorm_forward, sum", sum, wide, n, tolerance);

    /* sum may be x, or residual */
    k->rmsnorm_forward(NULL, again, rstd, in_place, in_place, residual, w, eps, rows, columns);
    check_same_bits(again, y, n);
    if (!zero_residual) {
        check_same_bits(in_place, sum, n);
        memcpy(in_place, residual, (size_t)n * sizeof(float));
        k->rmsnorm_forward(NULL, again, rstd, in_place, inputs, in_place, w, eps, rows, columns);
        check_same_bits(again, y, n);
        check_same_bits(in_place, sum, n);
    }
    free(y);
    free(rstd);
    free(sum);
    free(again);
    free(in_place);
    free(wide);
    free(want);
    free(want_rstd);
}

static void check_rmsnorm_backward(const struct kernels *k, const float *inputs, int64_t rows,
                                   int64_t columns, double eps, bool dresidual)
{
    int64_t n = rows * columns;
    float *s = copied(inputs, n), *y = poisoned_array(n), *rstd = poisoned_array(rows);
    float *dy = random_array(n, 1), *dsum = random_array(n, 1), *in_place = copied(dsum, n);
    float *gradient = poisoned_array(2 * n + columns), *dw = gradient + 2 * n;
    float *dw_before = random_array(columns, 1), *dw_after = copied(dw_before, columns);
    double *wide = widened(inputs, 2 * n + columns), *want = widened(dw_before, columns);
    struct norm problem = {rows, columns, eps, widened(dy, n), dresidual ? widened(dsum, n) : NULL};

    k->rmsnorm_forward(NULL, y, rstd, s, s, inputs + n, inputs + 2 * n, eps, rows, columns);
    memset(dw, 0, (size_t)columns * sizeof(float));
    k->rmsnorm_backward(NULL, gradient, dw, NULL, dy, s, inputs + 2 * n, rstd,
                        dresidual ? dsum : NULL, rows, columns);
    memcpy(gradient + n, gradient, (size_t)n * sizeof(float)); /* x and residual have the same */
    check_gradient("rmsnorm", rmsnorm_loss, &problem, wide, gradient, 2 * n + columns);

    /* dresidual may be dx; dw keeps what was there; what forward gave may take the place of dy. */
    k->rmsnorm_backward(NULL, in_place, dw_after, dy, dy, s, inputs + 2 * n, rstd,
                        dresidual ? in_place : NULL, rows, columns);
    check_same_bits(in_place, gradient, n);
    check_same_bits(dy, y, n);
    for (int64_t i = 0; i < columns; i++)
        want[i] += (double)dw[i];
    check_close("rmsnorm_backward, accumulating", dw_after, want, columns, tolerance);
    free(s);
    free(y);
    free(rstd);
    free(dy);
    free(dsum);
    free(in_place);
    free(gradient);
    free(dw_before);
    free(dw_after);
    free(wide);
    free(want);
    free(problem.dy);
    free(problem.dsum);
}

static void test_rmsnorm(void **state)
{
    for (size_t i = 0; i < COUNT(row_counts); i++)
        for (size_t j = 0; j < COUNT(column_counts); j++) {
            int64_t rows = row_counts[i], columns = column_counts[j];
            float *inputs = random_array((2 * rows + 1) * columns, 2);

            check_rmsnorm_forward(*state, inputs, rows, columns, 1e-5, false);
            check_rmsnorm_backward(*state, inputs, rows, columns, 1e-2, false);
            check_rmsnorm_backward(*state, inputs, rows, columns, 1e-2, true);
            memset(inputs + rows * columns, 0, (size_t)(rows * columns) * sizeof(float));
            check_rmsnorm_forward(*state, inputs, rows, columns, 1e-5, true);
            free(inputs);
        }
}

/* --- LayerNorm ----------------------------------------------------------------------------- */

/* inputs: x [rows, columns], residual [rows, columns], w [columns], b [columns] */
static double layernorm_loss(const double *inputs, const void *problem)
{
    const struct norm *p = problem;
    int64_t n = p->rows * p->columns;
    const double *w = inputs + 2 * n, *b = w + p->columns;
    double *y = calloc((size_t)n, sizeof(double)), *s = calloc((size_t)n, sizeof(double)), loss;

    for (int64_t i = 0; i < n; i++)
        s[i] = inputs[i] + inputs[n + i];
    reference_layernorm(y, NULL, NULL, s, w, b, p->eps, p->rows, p->columns);
    loss = dot(y, p->dy, n) + (p->dsum ? dot(s, p->dsum, n) : 0);
    free(y);
    free(s);
    return loss;
}

/* With `zero_residual` the kernel gets NULL and the reference zeros. */
static void check_layernorm_forward(const struct kernels *k, const float *inputs, int64_t rows,
                                    int64_t columns, double eps, bool zero_residual)
{
    int64_t n = rows * columns;
    const float *residual = zero_residual ? NULL : inputs + n;
    const float *w = inputs + 2 * n, *b = w + columns;
    float *y = poisoned_array(n), *mean = poisoned_array(rows), *rstd = poisoned_array(rows);
    float *sum = poisoned_array(n), *again = poisoned_array(n), *in_place = copied(inputs, n);
    double *wide = widened(inputs, 2 * (n + columns)), *want = calloc((size_t)n, sizeof(double));
    double *want_mean = calloc((size_t)rows, sizeof(double));
    double *want_rstd = calloc((size_t)rows, sizeof(double));

    for (int64_t i = 0; i < n; i++)
        wide[i] += wide[n + i];
    reference_layernorm(want, want_mean, want_rstd, wide, wide + 2 * n, wide + 2 * n + columns, eps,
                        rows, columns);
    k->layernorm_forward(NULL, y, mean, rstd, sum, inputs, residual, w, b, eps, rows, columns);
    check_close("layernorm_forward", y, want, n, tolerance);
    check_close("layernorm_forward, mean", mean, want_mean, rows, tolerance);
    check_close("layernorm_forward, rstd", rstd, want_rstd, rows, tolerance);
    if (zero_residual)
        assert_true(isnan(sum[0]) && isnan(sum[n - 1]));
    else
        check_close("layernorm_forward, sum", sum, wide, n, tolerance);

    /* sum may be x, or residual */
    k->layernorm_forward(NULL, again, mean, rstd, in_place, in_place, residual, w, b, eps, rows,
                         columns);
    check_same_bits(again, y, n);
    if (!zero_residual) {
        check_same_bits(in_place, sum, n);
        memcpy(in_place, residual, (size_t)n * sizeof(float));
        k->layernorm_forward(NULL, again, mean, rstd, in_place, inputs, in_place, w, b, eps, rows,
                             columns);
        check_same_bits(again, y, n);
        check_same_bits(in_place, sum, n);
    }
    free(y);
    free(mean);
    free(rstd);
    free(sum);
    free(again);
    free(in_place);
    free(wide);
    free(want);
    free(want_mean);
    free(want_rstd);
}

static void check_layernorm_backward(const struct kernels *k, const float *inputs, int64_t rows,
                                     int64_t columns, double eps, bool dresidual)
{
    int64_t n = rows * columns, count = 2 * (n + columns);
    const float *w = inputs + 2 * n, *b = w + columns;
    float *s = copied(inputs, n), *y = poisoned_array(n);
    float *mean = poisoned_array(rows), *rstd = poisoned_array(rows);
    float *dy = random_array(n, 1), *dsum = random_array(n, 1), *in_place = copied(dsum, n);
    float *gradient = poisoned_array(count), *dw = gradient + 2 * n, *db = dw + columns;
    float *before = random_array(2 * columns, 1), *after = copied(before, 2 * columns);
    double *wide = widened(inputs, count), *want = widened(before, 2 * columns);
    struct norm problem = {rows, columns, eps, widened(dy, n), dresidual ? widened(dsum, n) : NULL};

    k->layernorm_forward(NULL, y, mean, rstd, s, s, inputs + n, w, b, eps, rows, columns);
    memset(dw, 0, 2 * (size_t)columns * sizeof(float));
    k->layernorm_backward(NULL, gradient, dw, db, NULL, dy, s, w, b, mean, rstd,
                          dresidual ? dsum : NULL, rows, columns);
    memcpy(gradient + n, gradient, (size_t)n * sizeof(float)); /* x and residual have the same */
    check_gradient("layernorm", layernorm_loss, &problem, wide, gradient, count);

    /* dresidual may be dx; dw and db keep what was there; forward's output may take dy's place. */
    k->layernorm_backward(NULL, in_place, after, after + columns, dy, dy, s, w, b, mean, rstd,
                          dresidual ? in_place : NULL, rows, columns);
    check_same_bits(in_place, gradient, n);
    check_same_bits(dy, y, n);
    for (int64_t i = 0; i < 2 * columns; i++)
        want[i] += (double)dw[i];
    check_close("layernorm_backward, accumulating", after, want, 2 * columns, tolerance);
    free(s);
    free(y);
    free(mean);
    free(rstd);
    free(dy);
    free(dsum);
    free(in_place);
    free(gradient);
    free(before);
    free(after);
    free(wide);
    free(want);
    free(problem.dy);
    free(problem.dsum);
}

static void test_layernorm(void **state)
{
    for (size_t i = 0; i < COUNT(row_counts); i++)
        for (size_t j = 0; j < COUNT(column_counts); j++) {
            int64_t rows = row_counts[i], columns = column_counts[j];
            float *inputs = random_array(2 * (rows + 1) * columns, 2);

            check_layernorm_forward(*state, inputs, rows, columns, 1e-5, false);
            check_layernorm_backward(*state, inputs, rows, columns, 1e-2, false);
            check_layernorm_backward(*state, inputs, rows, columns, 1e-2, true);
            memset(inputs + rows * columns, 0, (size_t)(rows * columns) * sizeof(float));
            check_layernorm_forward(*state, inputs, rows, columns, 1e-5, true);
            free(inputs);
        }
}

/* Rows around 1000 of variance 1/3: the mean of squares is 3 million times that. What is left is
 * what fp32 cannot say of the mean. */
static void test_layernorm_far_from_zero(void **state)
{
    enum { ROWS = 5, COLUMNS = 777, N = ROWS * COLUMNS };
    const struct kernels *k = *state;
    float *s = random_array(N, 1), *w = random_array(COLUMNS, 1), *b = random_array(COLUMNS, 1);
    float *y = poisoned_array(N), mean[ROWS], rstd[ROWS];
    double *wide, *wide_w = widened(w, COLUMNS), *wide_b = widened(b, COLUMNS);
    double *want = calloc(N, sizeof(double)), want_mean[ROWS], want_rstd[ROWS];

    for (int i = 0; i < N; i++)
        s[i] += 1000;
    wide = widened(s, N);
    reference_layernorm(want, want_mean, want_rstd, wide, wide_w, wide_b, 1e-5, ROWS, COLUMNS);
    k->layernorm_forward(NULL, y, mean, rstd, NULL, s, NULL, w, b, 1e-5, ROWS, COLUMNS);
    check_close("layernorm_forward, far from zero", y, want, N, 1e-4);
    check_close("layernorm_forward, far from zero, mean", mean, want_mean, ROWS, 1e-7);
    check_close("layernorm_forward, far from zero, rstd", rstd, want_rstd, ROWS, 1e-7);
    free(s);
    free(w);
    free(b);
    free(y);
    free(wide);
    free(wide_w);
    free(wide_b);
    free(want);
}

/* --- any number of threads ----------------------------------------------------------------- */

static void test_threads(void **state)
{
    enum { ROWS = 130, COLUMNS = 321, N = ROWS * COLUMNS, OUTPUTS = 2 * (N + COLUMNS + ROWS) };
    float *s = random_array(N, 1), *dy = random_array(N, 1), *one = NULL;
    float *w = random_array(COLUMNS, 1), *b = random_array(COLUMNS, 1);
    (void)state;

    for (int threads = 1; threads <= 5; threads++) {
        const struct kernels *k = kernels_cpu(threads);
        float *y = calloc(OUTPUTS, sizeof(*y)), *dx = y + N, *dw = dx + N, *db = dw + COLUMNS;
        float *mean = db + COLUMNS, *rstd = mean + ROWS;

        k->layernorm_forward(NULL, y, mean, rstd, NULL, s, NULL, w, b, 1e-5, ROWS, COLUMNS);
        k->layernorm_backward(NULL, dx, dw, db, NULL, dy, s, w, b, mean, rstd, NULL, ROWS, COLUMNS);
        if (!one) {
            one = y;
            continue;
        }
        check_same_bits(y, one, OUTPUTS);
        free(y);
    }
    (void)kernels_cpu(THREADS);
    free(s);
    free(dy);
    free(w);
    free(b);
    free(one);
}

int main(void)
{
    struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_layernorm),
        cmocka_unit_test(test_layernorm_far_from_zero),
        cmocka_unit_test(test_threads),
    };

    for (size_t i = 0; i < COUNT(tests); i++)
        tests[i].initial_state = (void *)kernels_cpu(THREADS);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
