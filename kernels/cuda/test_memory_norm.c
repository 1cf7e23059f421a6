/* Guards: RMSNorm on the device; see test_memory.c. */
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
