/* Guards: the memory-bound kernels of the CUDA backend give what the CPU backend gives, at sizes
 * that fill vectors of 16 bytes and at those that do not, with every alias that the contract
 * allows, added to what is there where it says so; the same bits every time; stochastic rounding is
 * to one of the two neighbours, right on average, and does not see how a matrix is cut into tiles.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/test_device.h"

static const int64_t row_counts[] = {1, 3, 257};
static const int64_t column_counts[] = {1, 7, 33, 130, 2048};
enum { ROW_COUNTS = 3, COLUMN_COUNTS = 5 };

static enum dtype act(void)
{
    return cuda->dtype;
}

/* Another array with the values that `twin` has on the CPU. */
static struct twin copied(const struct twin *twin)
{
    return twin_from(twin->name, twin->host, twin->count, twin->dtype);
}

/* The bytes of the device's array; to be freed. */
static void *fetched(const struct twin *twin)
{
    size_t bytes = (size_t)twin->count * dtype_bytes(twin->dtype);
    void *values = malloc(bytes + 1);
    struct error error = {0};

    cuda->to_host(NULL, values, twin->device, bytes);
    if (cuda->stream_sync(NULL, &error) < 0) {
        test_fail("%s: %s", twin->name, error.text);
        exit(1);
    }
    return values;
}

static void *fetched_wide(const struct twin *twin)
{
    float *wide = malloc((size_t)twin->count * sizeof(float) + 1);
    void *values = fetched(twin);

    if (twin->dtype == DTYPE_F32)
        memcpy(wide, values, (size_t)twin->count * sizeof(float));
    else
        dtype_convert(wide, DTYPE_F32, values, twin->dtype, (size_t)twin->count);
    free(values);
    return wide;
}

static void free_all(struct twin *twins, int count)
{
    for (int i = 0; i < count; i++)
        twin_free(&twins[i]);
}

/* --- norm ---------------------------------------------------------------------------------- */

/* `sum` is where the sum goes: an array of its own, x or the residual. */
static void check_norm_forward(int64_t rows, int64_t columns, char alias)
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
static void check_norm_again(int64_t rows, int64_t columns)
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
static void check_norm_backward(int64_t rows, int64_t columns, char residual)
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

static void test_norm(int64_t rows, int64_t columns)
{
    check_norm_forward(rows, columns, '-');
    check_norm_forward(rows, columns, 'o');
    check_norm_forward(rows, columns, 'x');
    check_norm_forward(rows, columns, 'r');
    if (columns > 1) /* the gradient of x / |x| is all cancellation */
        check_norm_backward(rows, columns, '-');
    check_norm_backward(rows, columns, 'd');
    check_norm_backward(rows, columns, 'o');
    check_norm_again(rows, columns);
}

/* --- rope, SwiGLU, elementwise ------------------------------------------------------------- */

static void check_rope(int64_t rows, int heads, int kv_heads, int head_dim, bool inverse)
{
    enum { POSITIONS = 300 };
    int64_t n = rows * (heads + 2 * kv_heads) * head_dim;
    struct twin qkv[2], cosine = twin_random("cosine", POSITIONS * head_dim / 2, DTYPE_F32, 1);
    struct twin sine = twin_random("sine", POSITIONS * head_dim / 2, DTYPE_F32, 1), positions;
    int32_t *where = malloc((size_t)rows * sizeof(*where));

    for (int64_t row = 0; row < rows; row++)
        where[row] = test_below(POSITIONS);
    positions = twin_integers("positions", where, rows);
    qkv[0] = twin_random("qkv", n, act(), 1);
    qkv[1] = copied(&qkv[0]);
    for (int i = 0; i < 2; i++)
        cuda->rope(NULL, qkv[i].device, cosine.device, sine.device, positions.device, rows, heads,
                   kv_heads, head_dim, inverse);
    cpu->rope(NULL, qkv[0].host, cosine.host, sine.host, where, rows, heads, kv_heads, head_dim,
              inverse);
    twin_compare("rope", &qkv[0], tolerance());
    twin_same_bits("rope", &qkv[0], &qkv[1]);
    free_all((struct twin[]){qkv[0], qkv[1], cosine, sine, positions}, 5);
    free(where);
}

static void test_rope(void)
{
    for (int i = 0; i < ROW_COUNTS; i++) {
        check_rope(row_counts[i], 1, 1, 2, false);
        check_rope(row_counts[i], 5, 1, 6, true);
        check_rope(row_counts[i], 12, 4, 64, false);
        check_rope(row_counts[i], 13, 1, 128, true);
        check_rope(row_counts[i], 3, 3, 80, false);
    }
}

static void test_swiglu(int64_t rows, int64_t f)
{
    struct twin gate_up = twin_random("gate_up", rows * 2 * f, act(), 4);
    struct twin dy = twin_random("dy", rows * f, act(), 1);
    struct twin y[2] = {twin_poisoned("y", rows * f, act()), twin_poisoned("y", rows * f, act())};
    struct twin dgate_up[2] = {twin_poisoned("dgate_up", rows * 2 * f, act()), copied(&gate_up)};
    struct twin again = copied(&dy);

    for (int i = 0; i < 2; i++)
        cuda->swiglu_forward(NULL, y[i].device, gate_up.device, rows, f);
    cuda->swiglu_backward(NULL, dgate_up[0].device, NULL, dy.device, gate_up.device, rows, f);
    cuda->swiglu_backward(NULL, dgate_up[1].device, again.device, again.device, dgate_up[1].device,
                          rows, f);
    cpu->swiglu_forward(NULL, y[0].host, gate_up.host, rows, f);
    cpu->swiglu_backward(NULL, dgate_up[0].host, NULL, dy.host, gate_up.host, rows, f);
    twin_compare("swiglu_forward", &y[0], tolerance());
    twin_same_bits("swiglu_forward", &y[0], &y[1]);
    twin_compare("swiglu_backward", &dgate_up[0], tolerance());
    twin_same_bits("swiglu_backward, in place", &dgate_up[0], &dgate_up[1]);
    twin_same_bits("swiglu_backward, forward again", &y[0], &again);
    free_all((struct twin[]){gate_up, dy, y[0], y[1], dgate_up[0], dgate_up[1], again}, 7);
}

/* From element `from` on, so that vectors may not fit. */
static void check_elementwise(int64_t n, int64_t from)
{
    size_t bytes = (size_t)from * dtype_bytes(act());
    struct twin y = twin_random("y", n + from, act(), 1);
    struct twin x = twin_random("x", n + from, act(), 1);
    struct twin w = twin_random("w", n + from, act(), 1);

    cuda->add(NULL, (char *)y.device + bytes, (char *)x.device + bytes, n);
    cpu->add(NULL, y.host + from, x.host + from, n);
    twin_compare("add", &y, tolerance());
    cuda->fill(NULL, (char *)w.device + bytes, act(), 0.1, n);
    cpu->fill(NULL, w.host + from, DTYPE_F32, 0.1, n);
    twin_compare("fill", &w, tolerance());
    free_all((struct twin[]){y, x, w}, 3);
}

static void check_random(struct tile tile, double std)
{
    struct twin w = twin_poisoned("w", tile.rows * tile.columns, act());

    cuda->random_normal(NULL, w.device, act(), &tile, std, 0x123456789abcdefu, 77);
    cpu->random_normal(NULL, w.host, DTYPE_F32, &tile, std, 0x123456789abcdefu, 77);
    twin_compare("random_normal", &w, act() == DTYPE_F32 ? 1e-7 : tolerance());
    twin_free(&w);
}

static void test_elementwise(void)
{
    static const int64_t counts[] = {1, 7, 33, 4096, 100003};

    for (int i = 0; i < 5; i++) {
        check_elementwise(counts[i], 0);
        check_elementwise(counts[i], 3);
    }
    check_random((struct tile){0, 1, 0, 1, 1}, 1);
    check_random((struct tile){0, 257, 0, 130, 130}, 0.02);
    check_random((struct tile){3, 31, 5, 7, 33}, 3);
    check_random((struct tile){100000, 9, 70001, 300, 100001}, 1);
    check_random((struct tile){0, 3, 0, 7, 7}, 0);
}

/* --- embedding ----------------------------------------------------------------------------- */

/* Token `often` is every `every`-th row's (0: no row's). */
static void check_embedding(int64_t rows, int64_t columns, int32_t vocabulary, int64_t first,
                            int64_t count, int every)
{
    int32_t *ids = malloc((size_t)rows * sizeof(*ids)), often = (int32_t)(first + count / 2);
    struct twin tokens, w = twin_random("w", count * columns, act(), 1), dw[2];
    struct twin dy = twin_random("dy", rows * columns, act(), 1);
    struct twin y = twin_poisoned("y", rows * columns, act());

    for (int64_t row = 0; row < rows; row++)
        ids[row] = every && test_below(every) == 0 ? often : test_below(vocabulary);
    tokens = twin_integers("tokens", ids, rows);
    cuda->embedding_forward(NULL, y.device, tokens.device, w.device, first, count, rows, columns);
    cpu->embedding_forward(NULL, y.host, ids, w.host, first, count, rows, columns);
    twin_compare("embedding_forward", &y, 0);
    dw[0] = twin_random("dw", count * columns, DTYPE_F32, 1);
    dw[1] = copied(&dw[0]);
    for (int i = 0; i < 2; i++)
        cuda->embedding_backward(NULL, dw[i].device, tokens.device, dy.device, first, count, rows,
                                 columns);
    cpu->embedding_backward(NULL, dw[0].host, ids, dy.host, first, count, rows, columns);
    twin_compare("embedding_backward", &dw[0], 1e-5);
    twin_same_bits("embedding_backward", &dw[0], &dw[1]);
    free_all((struct twin[]){tokens, w, dw[0], dw[1], dy, y}, 6);
    free(ids);
}

static void test_embedding(void)
{
    for (int i = 0; i < ROW_COUNTS; i++)
        for (int j = 0; j < COLUMN_COUNTS; j++)
            check_embedding(row_counts[i], column_counts[j], 50, 10, 30, 0);
    check_embedding(1000, 16, 1, 0, 1, 0);     /* one token */
    check_embedding(1000, 16, 20, 19, 1, 0);   /* one of twenty is here */
    check_embedding(1000, 16, 20, 100, 7, 0);  /* none is */
    check_embedding(5000, 40, 512, 0, 512, 2); /* just one digit */
    check_embedding(5000, 40, 513, 0, 513, 2); /* just not */
    check_embedding(16384, 64, 32000, 100, 31000, 3);
    check_embedding(65536, 8, 262144, 0, 262144, 1); /* all rows have the same */
    check_embedding(70000, 8, 300000, 1, 299000, 9); /* three digits, two slices */
    check_embedding(20000, 24, 400, 50, 300, 5);     /* all runs are cut */
}

/* --- cross-entropy ------------------------------------------------------------------------- */

static void same_integers(const char *what, const struct twin *twin, int64_t first)
{
    int32_t *found = fetched(twin), *want = (int32_t *)(void *)twin->host;

    for (int64_t i = 0; i < twin->count; i++)
        if (found[i] != want[i]) {
            test_fail("%s: %s [%s]: element %lld is %d, expected %d (first %lld)", what, twin->name,
                      dtype_name(act()), (long long)i, found[i], want[i], (long long)first);
            break;
        }
    free(found);
}

/* `logits` become their gradient. */
static void check_cross_entropy(struct twin *logits, const int32_t *ids, int64_t first,
                                int64_t count, int64_t stride, int64_t rows)
{
    struct twin again = copied(logits), inputs = copied(logits);
    struct twin targets = twin_integers("targets", ids, rows);
    struct twin weight = twin_random("weight", rows, DTYPE_F32, 1);
    struct twin maximum[2], sum[2], target[2], best[2], loss[2];
    struct twin *in[2] = {logits, &again};

    for (int i = 0; i < 2; i++) {
        maximum[i] = twin_poisoned("maximum", rows, DTYPE_F32);
        sum[i] = twin_poisoned("sum", rows, DTYPE_F32);
        target[i] = twin_poisoned("target", rows, DTYPE_F32);
        best[i] = twin_poisoned("best", rows, DTYPE_F32);
        loss[i] = twin_poisoned("loss", rows, DTYPE_F32);
        cuda->cross_entropy_partial(NULL, maximum[i].device, sum[i].device, target[i].device,
                                    best[i].device, in[i]->device, targets.device, first, count,
                                    stride, rows);
    }
    cpu->cross_entropy_partial(NULL, maximum[0].host, sum[0].host, target[0].host,
                               (int32_t *)(void *)best[0].host, logits->host, ids, first, count,
                               stride, rows);
    twin_compare("cross_entropy_partial", &maximum[0], 0);
    twin_compare("cross_entropy_partial", &target[0], 0);
    twin_compare("cross_entropy_partial", &sum[0], 1e-5);
    same_integers("cross_entropy_partial", &best[0], first);
    twin_same_bits("cross_entropy_partial", &sum[0], &sum[1]);

    /* without the gradient first: logits must stay */
    cuda->cross_entropy_finish(NULL, loss[1].device, again.device, targets.device, weight.device,
                               maximum[1].device, sum[1].device, target[1].device, first, count,
                               stride, rows, false);
    twin_same_bits("cross_entropy_finish, forward", &inputs, &again);
    for (int i = 0; i < 2; i++)
        cuda->cross_entropy_finish(NULL, loss[i].device, in[i]->device, targets.device,
                                   weight.device, maximum[i].device, sum[i].device,
                                   target[i].device, first, count, stride, rows, true);
    cpu->cross_entropy_finish(NULL, loss[0].host, logits->host, ids, weight.host, maximum[0].host,
                              sum[0].host, target[0].host, first, count, stride, rows, true);
    twin_compare("cross_entropy_finish", &loss[0], 1e-5);
    twin_compare("cross_entropy_finish", logits, tolerance());
    twin_same_bits("cross_entropy_finish", logits, &again);

    cuda->cross_entropy_rescale(NULL, sum[0].device, target[0].device, maximum[0].device, rows);
    cpu->cross_entropy_rescale(NULL, sum[0].host, target[0].host, maximum[0].host, rows);
    twin_compare("cross_entropy_rescale", &sum[0], 1e-5);
    for (int i = 0; i < 2; i++)
        free_all((struct twin[]){maximum[i], sum[i], target[i], best[i], loss[i]}, 5);
    free_all((struct twin[]){again, inputs, targets, weight}, 4);
}

static void check_vocabulary(int64_t rows, int64_t first, int64_t count, int64_t padding,
                             double scale)
{
    int64_t stride = count + padding;
    struct twin logits = twin_random("logits", rows * stride, act(), scale);
    int32_t *ids = malloc((size_t)rows * sizeof(*ids));

    for (int64_t row = 0; row < rows; row++)
        ids[row] = row % 5 == 3 ? -1 : (int32_t)(first - 2 + test_below((int32_t)count + 4));
    for (int64_t row = 0; row < rows; row++)
        if (ids[row] < -1)
            ids[row] = (int32_t)first;
    check_cross_entropy(&logits, ids, first, count, stride, rows);
    twin_free(&logits);
    free(ids);
}

/* Logits that a plain exp() does not survive, and those that have no loss. */
static void check_extreme_logits(int64_t columns)
{
    const float inf = INFINITY;
    const float starts[][6] = {
        {3e38f, -3e38f, 0, 0, 0, 0},
        {1e4f, 1e4f, -1e4f, 0, 0, 0},
        {-inf, 2, -inf, -inf, 2, -inf},
        {-1e30f, -1e30f, -1e30f, -1e30f, -1e30f, -1e30f},
        {-inf, -inf, -inf, -inf, -inf, 7},
        {NAN, 1, 2, 3, 4, 5},
        {5, 4, 3, 2, 1, NAN},
        {NAN, NAN, NAN, NAN, NAN, NAN},
        {inf, 1, 2, 3, 4, 5},
        {-inf, -inf, -inf, -inf, -inf, -inf},
        {-inf, -inf, NAN, -inf, -inf, -inf},
        {NAN, NAN, NAN, -inf, -inf, -inf},
    };
    enum { ROWS = sizeof(starts) / sizeof(*starts) };
    const int32_t ids[ROWS] = {0, 1, 4, 2, 5, 2, 2, 2, 2, 2, 1, 4};
    float *values = malloc((size_t)(ROWS * columns) * sizeof(*values));
    struct twin logits;

    for (int64_t i = 0; i < ROWS * columns; i++)
        values[i] = starts[i / columns][i % columns < 6 ? i % columns : 5];
    logits = twin_from("extreme logits", values, ROWS * columns, act());
    check_cross_entropy(&logits, ids, 0, columns, columns, ROWS);
    twin_free(&logits);
    free(values);
}

static void test_cross_entropy(void)
{
    for (int i = 0; i < ROW_COUNTS; i++)
        for (int j = 0; j < COLUMN_COUNTS; j++) {
            check_vocabulary(row_counts[i], 0, column_counts[j], 0, 3);
            check_vocabulary(row_counts[i], 1000, column_counts[j], 6, 3);
        }
    check_vocabulary(9, 0, 32000, 0, 5);
    check_vocabulary(9, 32000, 31997, 3, 5);
    check_vocabulary(3, 5, 128256, 8, 0.01); /* many columns with the same maximum */
    check_vocabulary(3, 5, 100001, 0, 100);
    check_extreme_logits(6);
    check_extreme_logits(16);
    check_extreme_logits(40000);
}

/* --- sums and AdamW ------------------------------------------------------------------------ */

/* What the device makes of *out == 5 twice: the same, within 1e-12 of the CPU's. */
static void check_sum(const char *what, const float *weight, const float *x,
                      const float *weight_host, const float *x_host, int64_t n)
{
    double found[2], want = 5;
    double *out = cuda->allocate(sizeof(*out));
    struct error error = {0};

    for (int i = 0; i < 2; i++) {
        found[i] = 5;
        cuda->to_device(NULL, out, &found[i], sizeof(*out));
        if (weight)
            cuda->weighted_sum(NULL, out, weight, x, n);
        else
            cuda->sum_squares(NULL, out, x, n);
        cuda->to_host(NULL, &found[i], out, sizeof(*out));
        (void)cuda->stream_sync(NULL, &error);
    }
    if (weight)
        cpu->weighted_sum(NULL, &want, weight_host, x_host, n);
    else
        cpu->sum_squares(NULL, &want, x_host, n);
    if ((found[0] != found[1] && !(isnan(found[0]) && isnan(found[1]))) ||
        !(isnan(want) ? isnan(found[0])
                      : fabs(found[0] - want) <= 1e-11 * (fabs(want) + sqrt((double)n))))
        test_fail("%s of %lld: %.17g and %.17g, expected %.17g", what, (long long)n, found[0],
                  found[1], want);
    cuda->release(out);
}

static void test_sums(void)
{
    static const int64_t counts[] = {0, 1, 7, 33, 1000, 70001, 3000000};

    for (int i = 0; i < 7; i++) {
        struct twin x = twin_random("x", counts[i] + 1, DTYPE_F32, 3);
        struct twin weight = twin_random("weight", counts[i] + 1, DTYPE_F32, 1);
        float large = 1e30f;

        for (int from = 0; from < 2; from++) {
            const float *x_device = (const float *)x.device + from;
            const float *weight_device = (const float *)weight.device + from;

            check_sum("sum_squares", NULL, x_device, NULL, x.host + from, counts[i]);
            check_sum("weighted_sum", weight_device, x_device, weight.host + from, x.host + from,
                      counts[i]);
        }
        x.host[counts[i] / 2] = large;
        cuda->to_device(NULL, (float *)x.device + counts[i] / 2, &large, sizeof(large));
        check_sum("sum_squares", NULL, x.device, NULL, x.host, counts[i]);
        free_all((struct twin[]){x, weight}, 2);
    }
}

static struct adamw update_at(int64_t step)
{
    return (struct adamw){
        .lr = 1e-2,
        .beta1 = 0.9,
        .beta2 = 0.95,
        .eps = 1e-8,
        .weight_decay = 0.1,
        .grad_scale = 0.7,
        .step = step,
        .moments = DTYPE_F32,
        .seed = 0xfedcba9876543210u,
        .tensor = 12,
    };
}

/* Arrays of an optimizer's state: v is not negative. */
static void make_state(struct twin state[4], int64_t n, enum dtype weights, enum dtype moments)
{
    struct twin root = twin_random("v", n, moments, 1e-2);

    for (int64_t i = 0; i < n; i++)
        root.host[i] *= root.host[i];
    state[0] = twin_random("weight", n, weights, 1);
    state[1] = twin_random("m", n, moments, 1e-2);
    state[2] = twin_from("v", root.host, n, moments);
    state[3] = twin_random("grad", n, DTYPE_F32, 1e-2);
    twin_free(&root);
}

/* Nothing is rounded stochastically: the CPU's result. With a master, the weight is its rounding.
 */
static void check_adamw(int64_t n, bool has_master, int64_t from)
{
    enum dtype weights = has_master ? DTYPE_F32 : act();
    struct twin state[4], narrow = twin_poisoned("weight", n + from, act());
    float *master, *weight;

    make_state(state, n + from, weights, DTYPE_F32);
    for (int step = 1; step <= 3; step++) {
        struct adamw update = update_at(step);
        float *device[4];

        for (int i = 0; i < 4; i++)
            device[i] = (float *)state[i].device + from;
        cuda->adamw(NULL,
                    has_master ? (char *)narrow.device + (size_t)from * dtype_bytes(act())
                               : (void *)device[0],
                    has_master ? device[0] : NULL, device[1], device[2], device[3], n, &update);
        cpu->adamw(NULL, state[0].host + from, NULL, state[1].host + from, state[2].host + from,
                   state[3].host + from, n, &update);
    }
    for (int i = 0; i < 3; i++)
        twin_compare("adamw", &state[i], 1e-6);
    if (has_master) {
        void *rounded = malloc((size_t)(n + from) * sizeof(float));
        void *found = fetched(&narrow);
        size_t begin = (size_t)from * dtype_bytes(act());

        master = fetched(&state[0]);
        if (act() == DTYPE_F32)
            memcpy(rounded, master, (size_t)(n + from) * sizeof(float));
        else
            dtype_convert(rounded, act(), master, DTYPE_F32, (size_t)(n + from));
        if (memcmp((char *)rounded + begin, (char *)found + begin,
                   (size_t)n * dtype_bytes(act())) != 0)
            test_fail("adamw [%s]: the weight is not its master rounded", dtype_name(act()));
        free(rounded);
        free(found);
        free(master);
    } else {
        weight = fetched_wide(&state[0]); /* what is in front of the first element stays */
        for (int64_t i = 0; i < from; i++)
            if (weight[i] != state[0].host[i])
                test_fail("adamw: wrote in front of its elements");
        free(weight);
    }
    twin_free(&narrow);
    free_all(state, 4);
}

/* The distance of numbers of a type around x. */
static double spacing(double x, enum dtype dtype)
{
    int exponent, bits = dtype == DTYPE_BF16 ? 8 : 11, lowest = dtype == DTYPE_BF16 ? -133 : -24;

    (void)frexp(x, &exponent);
    exponent -= bits;
    return ldexp(1, exponent > lowest ? exponent : lowest);
}

/* Each number on the device is within one spacing of what it was rounded from, which the CPU has
 * up to `slack`, and all together are not off. */
static void check_rounding(const struct twin *twin, double slack)
{
    float *found = fetched_wide(twin);
    double sum = 0, squares = 0, mean, bound;
    int64_t taken = 0;

    for (int64_t i = 0; i < twin->count; i++) {
        double want = (double)twin->host[i], unit = spacing(want, twin->dtype);
        double off = (double)found[i] - want;

        if (!(fabs(off) <= 1.001 * unit + slack)) {
            test_fail("adamw: %s [%s]: element %lld is %.9g, which is no neighbour of %.9g",
                      twin->name, dtype_name(act()), (long long)i, (double)found[i], want);
            break;
        }
        if (unit < 100 * slack)
            continue;
        sum += off / unit;
        squares += off / unit * (off / unit);
        taken++;
    }
    mean = sum / (double)taken;
    squares /= (double)taken;
    bound = 3 / sqrt((double)taken);
    /* Of a number at x between two neighbours at 0 and 1, the mean square is x (1 - x): 1/6. */
    if (!(fabs(mean) < bound) || !(fabs(squares - 1.0 / 6) < 0.01) || taken < twin->count / 2)
        test_fail("adamw: %s [%s]: rounding is off by %.3g spacings (at most %.3g), mean square %g",
                  twin->name, dtype_name(act()), mean, bound, squares);
    else if (getenv("MTLLM_TEST_VERBOSE"))
        printf("adamw: %s [%s]: off by %.2g spacings (at most %.2g), mean square %.3g, of %lld\n",
               twin->name, dtype_name(act()), mean, bound, squares, (long long)taken);
    free(found);
}

/* Weights and moments of one update from fresh state, [rows, columns]. */
static void check_stochastic(int64_t rows, int64_t columns, bool has_master)
{
    int64_t n = rows * columns;
    struct tile tile = {0, rows, 0, columns, columns};
    enum dtype weights = has_master ? DTYPE_F32 : act();
    struct twin state[4], again[3], narrow = twin_poisoned("weight", n, act());
    struct adamw update = update_at(3);

    make_state(state, n, weights, DTYPE_BF16);
    for (int i = 0; i < 3; i++)
        again[i] = copied(&state[i]);
    update.moments = DTYPE_BF16;
    update.tile = &tile;
    for (int i = 0; i < 2; i++) {
        struct twin *s = i ? again : state;

        cuda->adamw(NULL, has_master ? narrow.device : s[0].device, has_master ? s[0].device : NULL,
                    s[1].device, s[2].device, state[3].device, n, &update);
    }
    for (int i = 0; i < 3; i++)
        twin_same_bits("adamw", &state[i], &again[i]);
    update.moments = DTYPE_F32;
    cpu->adamw(NULL, state[0].host, NULL, state[1].host, state[2].host, state[3].host, n, &update);
    check_rounding(&state[1], 1e-8);
    check_rounding(&state[2], 1e-10);
    if (weights == DTYPE_F32)
        twin_compare("adamw", &state[0], 1e-6);
    else
        check_rounding(&state[0], 1e-7);
    twin_free(&narrow);
    free_all(state, 4);
    free_all(again, 3);
}

/* Update [row, row + rows) x [column, column + columns) of the arrays alone, by itself. */
static void update_tile(struct twin state[4], struct tile tile)
{
    int64_t n = tile.rows * tile.columns;
    struct adamw update = update_at(1000);
    struct twin part[4];
    struct error error = {0};

    for (int i = 0; i < 4; i++) {
        size_t bytes = dtype_bytes(state[i].dtype), width = (size_t)tile.columns * bytes;

        part[i] = twin_poisoned("part", n, state[i].dtype);
        for (int64_t row = 0; row < tile.rows; row++)
            cuda->copy(NULL, (char *)part[i].device + (size_t)row * width,
                       (char *)state[i].device +
                           (size_t)((tile.row + row) * tile.total_columns + tile.column) * bytes,
                       width);
    }
    update.moments = DTYPE_BF16;
    update.tile = &tile;
    cuda->adamw(NULL, part[0].device, NULL, part[1].device, part[2].device, part[3].device, n,
                &update);
    for (int i = 0; i < 3; i++) {
        size_t bytes = dtype_bytes(state[i].dtype), width = (size_t)tile.columns * bytes;

        for (int64_t row = 0; row < tile.rows; row++)
            cuda->copy(NULL,
                       (char *)state[i].device +
                           (size_t)((tile.row + row) * tile.total_columns + tile.column) * bytes,
                       (char *)part[i].device + (size_t)row * width, width);
    }
    (void)cuda->stream_sync(NULL, &error);
    free_all(part, 4);
}

static void check_tiles(int64_t rows, int64_t columns, int64_t row_cut, int64_t column_cut)
{
    struct twin whole[4], cut[4];

    make_state(whole, rows * columns, act(), DTYPE_BF16);
    for (int i = 0; i < 4; i++)
        cut[i] = copied(&whole[i]);
    update_tile(whole, (struct tile){0, rows, 0, columns, columns});
    update_tile(cut, (struct tile){0, row_cut, 0, columns, columns});
    update_tile(cut, (struct tile){row_cut, rows - row_cut, 0, column_cut, columns});
    update_tile(cut,
                (struct tile){row_cut, rows - row_cut, column_cut, columns - column_cut, columns});
    for (int i = 0; i < 3; i++)
        twin_same_bits("adamw, in tiles", &whole[i], &cut[i]);
    free_all(whole, 4);
    free_all(cut, 4);
}

static void test_adamw(void)
{
    static const int64_t counts[] = {1, 7, 33, 4096, 70001};

    for (int i = 0; i < 5; i++)
        for (int from = 0; from < 2; from++) {
            check_adamw(counts[i], true, from);
            if (act() == DTYPE_F32)
                check_adamw(counts[i], false, from);
        }
    check_stochastic(257, 2048, true);
    check_stochastic(257, 2048, false);
    check_stochastic(257, 1027, false);
    check_tiles(6, 33, 1, 8);
    check_tiles(6, 33, 1, 7);
    check_tiles(5, 128, 2, 64);
    check_tiles(5, 7, 3, 1);
}

static void test(void)
{
    srand48(20);
    for (int i = test_small() ? ROW_COUNTS - 1 : 0; i < ROW_COUNTS; i++)
        for (int j = test_small() ? COLUMN_COUNTS - 2 : 0; j < COLUMN_COUNTS; j++) {
            test_norm(row_counts[i], column_counts[j]);
            test_swiglu(row_counts[i], column_counts[j]);
        }
    test_norm(700, 96);
    test_norm(5, 9000);
    test_norm(3, 20000);
    test_norm(2, 8191);
    test_rope();
    test_elementwise();
    test_embedding();
    test_cross_entropy();
    test_sums();
    test_adamw();
}

int main(int argc, char **argv)
{
    return test_device_main(argc, argv, test);
}
