/* Guards: RMSNorm of the CPU backend computes what kernels.h says, checked the way test_kernels.c
 * checks: forward against plain double-precision loops, backward against finite differences of
 * those, outputs that begin as NaN, every alias that the contract allows.
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

int main(void)
{
    struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm),
    };

    for (size_t i = 0; i < COUNT(tests); i++)
        tests[i].initial_state = (void *)kernels_cpu(THREADS);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
