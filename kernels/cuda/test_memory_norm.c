/* Guards: RMSNorm and LayerNorm on the device; see test_memory.c. */
#include <math.h>

#include "kernels/cuda/test_memory.h"

/* --- RMSNorm ------------------------------------------------------------------------------- */

/* `sum` is where the sum goes: an array of its own, x or the residual. */
static void check_rmsnorm_forward(int64_t rows, int64_t columns, char alias)
{
    int64_t n = rows * columns;
    struct twin x = twin_random("x", n, act(), 1), residual = twin_random("residual", n, act(), 1);
    struct twin w = twin_random("w", columns, act(), 1);
    struct twin x2 = copied(&x), residual2 = copied(&residual);
    struct twin other = twin_poisoned("sum", n, act()), other2 = twin_poisoned("sum", n, act());
    struct twin y[2] = {twin_poisoned("y", n, act()), twin_poisoned("y", n, act())};
    struct twin rstd[2] = {twin_poisoned("rstd", rows, DTYPE_F32),
                           twin_poisoned("rstd", rows, DTYPE_F32)};
    struct twin *sum = alias == 'x' ? &x : alias == 'r' ? &residual : &other;
    struct twin *sum2 = alias == 'x' ? &x2 : alias == 'r' ? &residual2 : &other2;
    const bool add = alias != '-';

    cuda->rmsnorm_forward(NULL, y[0].device, rstd[0].device, add ? sum->device : NULL, x.device,
                          add ? residual.device : NULL, w.device, 1e-5, rows, columns);
    cuda->rmsnorm_forward(NULL, y[1].device, rstd[1].device, add ? sum2->device : NULL, x2.device,
                          add ? residual2.device : NULL, w.device, 1e-5, rows, columns);
    cpu->rmsnorm_forward(NULL, y[0].host, rstd[0].host, add ? sum->host : NULL, x.host,
                         add ? residual.host : NULL, w.host, 1e-5, rows, columns);
    twin_compare("rmsnorm_forward", &y[0], tolerance());
    twin_compare("rmsnorm_forward", &rstd[0], tolerance());
    twin_compare("rmsnorm_forward", sum, tolerance());
    twin_same_bits("rmsnorm_forward", &y[0], &y[1]);
    twin_same_bits("rmsnorm_forward", &rstd[0], &rstd[1]);
    twin_same_bits("rmsnorm_forward", sum, sum2);
    free_all(
        (struct twin[]){x, residual, w, x2, residual2, other, other2, y[0], y[1], rstd[0], rstd[1]},
        11);
}

/* What backward gives back of forward has its bits, and may take the place of dy. */
static void check_rmsnorm_again(int64_t rows, int64_t columns)
{
    int64_t n = rows * columns;
    struct twin dy[2] = {twin_random("dy", n, act(), 1)}, s = twin_random("s", n, act(), 2);
    struct twin w = twin_random("w", columns, act(), 1), y = twin_poisoned("y", n, act());
    struct twin rstd = twin_poisoned("rstd", rows, DTYPE_F32), dx[2], dw[2];

    dy[1] = copied(&dy[0]);
    cuda->rmsnorm_forward(NULL, y.device, rstd.device, NULL, s.device, NULL, w.device, 1e-5, rows,
                          columns);
    for (int i = 0; i < 2; i++) {
        dx[i] = twin_poisoned("dx", n, act());
        dw[i] = twin_poisoned("dw", columns, DTYPE_F32);
        cuda->fill(NULL, dw[i].device, DTYPE_F32, 0, columns);
        cuda->rmsnorm_backward(NULL, dx[i].device, dw[i].device, i == 0 ? NULL : dy[i].device,
                               dy[i].device, s.device, w.device, rstd.device, NULL, rows, columns);
    }
    twin_same_bits("rmsnorm_backward, forward again", &y, &dy[1]);
    twin_same_bits("rmsnorm_backward, forward again", &dx[0], &dx[1]);
    twin_same_bits("rmsnorm_backward, forward again", &dw[0], &dw[1]);
    free_all((struct twin[]){dy[0], dy[1], s, w, y, rstd, dx[0], dx[1], dw[0], dw[1]}, 10);
}

/* `residual`: '-' none, 'd' dx itself, 'o' an array of its own. */
static void check_rmsnorm_backward(int64_t rows, int64_t columns, char residual)
{
    int64_t n = rows * columns;
    struct twin dy = twin_random("dy", n, act(), 1), s = twin_random("s", n, act(), 2);
    struct twin w = twin_random("w", columns, act(), 1);
    struct twin y = twin_poisoned("y", n, act()), rstd = twin_poisoned("rstd", rows, DTYPE_F32);
    struct twin dx[2], dw[2], other = twin_random("dresidual", n, act(), 1);
    struct twin exact_rstd;

    cpu->rmsnorm_forward(NULL, y.host, rstd.host, NULL, s.host, NULL, w.host, 1e-5, rows, columns);
    exact_rstd = copied(&rstd);
    dw[0] = twin_random("dw", columns, DTYPE_F32, 1);
    dw[1] = copied(&dw[0]);
    for (int i = 0; i < 2; i++) {
        const void *dresidual = NULL;

        dx[i] = residual == 'd' ? copied(&other) : twin_poisoned("dx", n, act());
        if (residual != '-')
            dresidual = residual == 'd' ? dx[i].device : other.device;
        cuda->rmsnorm_backward(NULL, dx[i].device, dw[i].device, NULL, dy.device, s.device,
                               w.device, exact_rstd.device, dresidual, rows, columns);
    }
    cpu->rmsnorm_backward(NULL, dx[0].host, dw[0].host, NULL, dy.host, s.host, w.host, rstd.host,
                          residual == '-'   ? NULL
                          : residual == 'd' ? dx[0].host
                                            : other.host,
                          rows, columns);
    twin_compare("rmsnorm_backward", &dx[0], tolerance());
    twin_compare("rmsnorm_backward", &dw[0], 1e-5);
    twin_same_bits("rmsnorm_backward", &dx[0], &dx[1]);
    twin_same_bits("rmsnorm_backward", &dw[0], &dw[1]);
    free_all((struct twin[]){dy, s, w, y, rstd, dx[0], dx[1], dw[0], dw[1], other, exact_rstd}, 11);
}

void test_rmsnorm(int64_t rows, int64_t columns)
{
    check_rmsnorm_forward(rows, columns, '-');
    check_rmsnorm_forward(rows, columns, 'o');
    check_rmsnorm_forward(rows, columns, 'x');
    check_rmsnorm_forward(rows, columns, 'r');
    if (columns > 1) /* the gradient of x / |x| is all cancellation */
        check_rmsnorm_backward(rows, columns, '-');
    check_rmsnorm_backward(rows, columns, 'd');
    check_rmsnorm_backward(rows, columns, 'o');
    check_rmsnorm_again(rows, columns);
}

/* --- LayerNorm ----------------------------------------------------------------------------- */

/* Normal random numbers of deviation 1 around `middle`. */
static struct twin random_around(const char *name, float middle, int64_t count)
{
    struct twin zero = twin_random(name, count, DTYPE_F32, 1), moved;

    for (int64_t i = 0; i < count; i++)
        zero.host[i] += middle;
    moved = twin_from(name, zero.host, count, act());
    twin_free(&zero);
    return moved;
}

/* `sum` is where the sum goes: an array of its own, x or the residual; '-': there is no residual.
 * All activations begin with element `from` of their arrays. */
static void check_layernorm_forward(int64_t rows, int64_t columns, char alias, int64_t from)
{
    int64_t n = rows * columns + from;
    struct twin x = random_around("x", 1, n), residual = twin_random("residual", n, act(), 1);
    struct twin w = twin_random("w", columns + from, act(), 1);
    struct twin b = twin_random("b", columns + from, act(), 1);
    struct twin xs[2] = {x, copied(&x)}, residuals[2] = {residual, copied(&residual)};
    struct twin others[2], y[2], mean[2], rstd[2], *sum[2];
    const bool add = alias != '-';

    for (int i = 0; i < 2; i++) {
        others[i] = twin_poisoned("sum", n, act());
        y[i] = twin_poisoned("y", n, act());
        mean[i] = twin_poisoned("mean", rows, DTYPE_F32);
        rstd[i] = twin_poisoned("rstd", rows, DTYPE_F32);
        sum[i] = alias == 'x' ? &xs[i] : alias == 'r' ? &residuals[i] : &others[i];
        cuda->layernorm_forward(NULL, element_of(&y[i], from), mean[i].device, rstd[i].device,
                                add ? element_of(sum[i], from) : NULL, element_of(&xs[i], from),
                                add ? element_of(&residuals[i], from) : NULL, element_of(&w, from),
                                element_of(&b, from), 1e-5, rows, columns);
    }
    cpu->layernorm_forward(NULL, y[0].host + from, mean[0].host, rstd[0].host,
                           add ? sum[0]->host + from : NULL, xs[0].host + from,
                           add ? residuals[0].host + from : NULL, w.host + from, b.host + from,
                           1e-5, rows, columns);
    twin_compare("layernorm_forward", &y[0], tolerance());
    twin_compare("layernorm_forward", &mean[0], tolerance());
    twin_compare("layernorm_forward", &rstd[0], tolerance());
    twin_compare("layernorm_forward", sum[0], tolerance());
    twin_same_bits("layernorm_forward", &y[0], &y[1]);
    twin_same_bits("layernorm_forward", &mean[0], &mean[1]);
    twin_same_bits("layernorm_forward", &rstd[0], &rstd[1]);
    twin_same_bits("layernorm_forward", sum[0], sum[1]);
    for (int i = 0; i < 2; i++)
        free_all((struct twin[]){xs[i], residuals[i], others[i], y[i], mean[i], rstd[i]}, 6);
    free_all((struct twin[]){w, b}, 2);
}

/* What backward gives back of forward has its bits, and may take the place of dy. */
static void check_layernorm_again(int64_t rows, int64_t columns, int64_t from)
{
    int64_t n = rows * columns + from;
    struct twin dy[2] = {twin_random("dy", n, act(), 1)}, s = twin_random("s", n, act(), 2);
    struct twin w = twin_random("w", columns + from, act(), 1);
    struct twin b = twin_random("b", columns + from, act(), 1);
    struct twin y = copied(&dy[0]), dx[2], dw[2], db[2];
    struct twin mean = twin_poisoned("mean", rows, DTYPE_F32);
    struct twin rstd = twin_poisoned("rstd", rows, DTYPE_F32);

    dy[1] = copied(&dy[0]);
    cuda->layernorm_forward(NULL, element_of(&y, from), mean.device, rstd.device, NULL,
                            element_of(&s, from), NULL, element_of(&w, from), element_of(&b, from),
                            1e-5, rows, columns);
    for (int i = 0; i < 2; i++) {
        void *gradient = element_of(&dy[i], from);

        dx[i] = twin_poisoned("dx", n, act());
        dw[i] = twin_poisoned("dw", columns, DTYPE_F32);
        db[i] = twin_poisoned("db", columns, DTYPE_F32);
        cuda->fill(NULL, dw[i].device, DTYPE_F32, 0, columns);
        cuda->fill(NULL, db[i].device, DTYPE_F32, 0, columns);
        cuda->layernorm_backward(NULL, element_of(&dx[i], from), dw[i].device, db[i].device,
                                 i == 0 ? NULL : gradient, gradient, element_of(&s, from),
                                 element_of(&w, from), element_of(&b, from), mean.device,
                                 rstd.device, NULL, rows, columns);
    }
    twin_same_bits("layernorm_backward, forward again", &y, &dy[1]);
    twin_same_bits("layernorm_backward, forward again", &dx[0], &dx[1]);
    twin_same_bits("layernorm_backward, forward again", &dw[0], &dw[1]);
    twin_same_bits("layernorm_backward, forward again", &db[0], &db[1]);
    for (int i = 0; i < 2; i++)
        free_all((struct twin[]){dy[i], dx[i], dw[i], db[i]}, 4);
    free_all((struct twin[]){s, w, b, y, mean, rstd}, 6);
}

/* `residual`: '-' none, 'd' dx itself, 'o' an array of its own. */
static void check_layernorm_backward(int64_t rows, int64_t columns, char residual, int64_t from)
{
    int64_t n = rows * columns + from;
    struct twin dy = twin_random("dy", n, act(), 1), s = twin_random("s", n, act(), 2);
    struct twin w = twin_random("w", columns + from, act(), 1);
    struct twin b = twin_random("b", columns + from, act(), 1);
    struct twin other = twin_random("dresidual", n, act(), 1), y = twin_poisoned("y", n, act());
    struct twin mean = twin_poisoned("mean", rows, DTYPE_F32);
    struct twin rstd = twin_poisoned("rstd", rows, DTYPE_F32), exact_mean, exact_rstd;
    struct twin dx[2], dw[2], db[2];

    /* With so large an eps a row of one column does not make much of what is rounded. */
    cpu->layernorm_forward(NULL, y.host + from, mean.host, rstd.host, NULL, s.host + from, NULL,
                           w.host + from, b.host + from, 1e-3, rows, columns);
    exact_mean = copied(&mean);
    exact_rstd = copied(&rstd);
    dw[0] = twin_random("dw", columns, DTYPE_F32, 1);
    dw[1] = copied(&dw[0]);
    db[0] = twin_random("db", columns, DTYPE_F32, 1);
    db[1] = copied(&db[0]);
    for (int i = 0; i < 2; i++) {
        const void *dresidual = NULL;

        dx[i] = residual == 'd' ? copied(&other) : twin_poisoned("dx", n, act());
        if (residual != '-')
            dresidual = element_of(residual == 'd' ? &dx[i] : &other, from);
        cuda->layernorm_backward(NULL, element_of(&dx[i], from), dw[i].device, db[i].device, NULL,
                                 element_of(&dy, from), element_of(&s, from), element_of(&w, from),
                                 element_of(&b, from), exact_mean.device, exact_rstd.device,
                                 dresidual, rows, columns);
    }
    cpu->layernorm_backward(NULL, dx[0].host + from, dw[0].host, db[0].host, NULL, dy.host + from,
                            s.host + from, w.host + from, b.host + from, mean.host, rstd.host,
                            residual == '-'   ? NULL
                            : residual == 'd' ? dx[0].host + from
                                              : other.host + from,
                            rows, columns);
    twin_compare("layernorm_backward", &dx[0], tolerance());
    twin_compare("layernorm_backward", &dw[0], 1e-5);
    twin_compare("layernorm_backward", &db[0], 1e-5);
    twin_same_bits("layernorm_backward", &dx[0], &dx[1]);
    twin_same_bits("layernorm_backward", &dw[0], &dw[1]);
    twin_same_bits("layernorm_backward", &db[0], &db[1]);
    for (int i = 0; i < 2; i++)
        free_all((struct twin[]){dx[i], dw[i], db[i]}, 3);
    free_all((struct twin[]){dy, s, w, b, other, y, mean, rstd, exact_mean, exact_rstd}, 10);
}

void test_layernorm(int64_t rows, int64_t columns)
{
    check_layernorm_forward(rows, columns, '-', 0);
    check_layernorm_forward(rows, columns, 'o', 0);
    check_layernorm_forward(rows, columns, 'x', 0);
    check_layernorm_forward(rows, columns, 'r', 0);
    if (columns > 1) /* of one column the gradient is nothing but what is rounded */
        check_layernorm_backward(rows, columns, '-', 0);
    check_layernorm_backward(rows, columns, 'd', 0);
    check_layernorm_backward(rows, columns, 'o', 0);
    check_layernorm_again(rows, columns, 0);
}

/* Rows around 1000: mean(s^2) - mean(s)^2 would have nothing left of their variance in fp32. */
static void check_layernorm_far_from_zero(int64_t rows, int64_t columns)
{
    struct twin s = random_around("s", 1000, rows * columns);
    struct twin w = twin_random("w", columns, act(), 1), b = twin_random("b", columns, act(), 1);
    struct twin y = twin_poisoned("y", rows * columns, act());
    struct twin mean = twin_poisoned("mean", rows, DTYPE_F32);
    struct twin rstd = twin_poisoned("rstd", rows, DTYPE_F32);

    cuda->layernorm_forward(NULL, y.device, mean.device, rstd.device, NULL, s.device, NULL,
                            w.device, b.device, 1e-5, rows, columns);
    cpu->layernorm_forward(NULL, y.host, mean.host, rstd.host, NULL, s.host, NULL, w.host, b.host,
                           1e-5, rows, columns);
    /* In fp32 the mean itself is off by some 1e-4 of the deviation. */
    twin_compare("layernorm_forward, far from zero", &y, fmax(tolerance(), 1e-3));
    twin_compare("layernorm_forward, far from zero", &mean, 2e-6);
    twin_compare("layernorm_forward, far from zero", &rstd, 1e-5);
    free_all((struct twin[]){s, w, b, y, mean, rstd}, 6);
}

void test_layernorm_starts(void)
{
    static const int64_t column_counts[] = {8, 130, 2048, 4544};

    for (int i = 0; i < 4; i++) {
        check_layernorm_forward(5, column_counts[i], '-', 3);
        check_layernorm_forward(5, column_counts[i], 'o', 3);
        check_layernorm_backward(5, column_counts[i], 'd', 3);
        check_layernorm_again(5, column_counts[i], 3);
        check_layernorm_far_from_zero(5, column_counts[i]);
    }
    check_layernorm_far_from_zero(5, 2047); /* element by element */
}
