/* Guards: the memory-bound kernels of the CUDA backend give what the CPU backend gives, at sizes
 * that fill vectors of 16 bytes and at those that do not, with every alias that the contract
 * allows, added to what is there where it says so; the same bits every time; stochastic rounding is
 * to one of the two neighbours, right on average, and does not see how a matrix is cut into tiles.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/test_memory.h"

static const int64_t row_counts[] = {1, 3, 257};
static const int64_t column_counts[] = {1, 7, 33, 130, 2048};
enum { ROW_COUNTS = 3, COLUMN_COUNTS = 5 };

enum dtype act(void)
{
    return cuda->dtype;
}

struct twin copied(const struct twin *twin)
{
    return twin_from(twin->name, twin->host, twin->count, twin->dtype);
}

void *fetched(const struct twin *twin)
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

void *fetched_wide(const struct twin *twin)
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

void *element_of(const struct twin *twin, int64_t index)
{
    return (char *)twin->device + (size_t)index * dtype_bytes(twin->dtype);
}

void free_all(struct twin *twins, int count)
{
    for (int i = 0; i < count; i++)
        twin_free(&twins[i]);
}

/* --- rope, SwiGLU, GELU, bias, elementwise ------------------------------------------------- */

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

static void check_dropout(int64_t n, int64_t from, int64_t first)
{
    struct twin x = twin_random("x", n + from, act(), 1), y[2] = {copied(&x), copied(&x)};
    void *in_place = element_of(&y[1], from);

    cuda->fill(NULL, element_of(&y[0], from), act(), NAN, n);
    cuda->dropout(NULL, element_of(&y[0], from), element_of(&x, from), n, 0.3, 0x123456789abc, 17,
                  first);
    cuda->dropout(NULL, in_place, in_place, n, 0.3, 0x123456789abc, 17, first);
    cpu->dropout(NULL, y[0].host + from, x.host + from, n, 0.3, 0x123456789abc, 17, first);
    twin_compare("dropout", &y[0], tolerance());
    twin_same_bits("dropout, in place", &y[0], &y[1]);
    free_all((struct twin[]){x, y[0], y[1]}, 3);
}

/* Also beyond 2^32 groups, and where groups of four are cut. */
static void test_dropout(void)
{
    static const int64_t counts[] = {1, 5, 4096, 100003}, firsts[] = {0, 3, 4, (1LL << 35) + 8};

    for (size_t i = 0; i < 4; i++)
        for (size_t j = 0; j < 4; j++) {
            check_dropout(counts[i], 0, firsts[j]);
            check_dropout(counts[i], 3, firsts[j]);
        }
}

/* From element `from` on, so that vectors may not fit. */
static void check_gelu(int64_t n, int64_t from)
{
    int64_t count = n + from;
    struct twin x = twin_random("x", count, act(), 3), dy = twin_random("dy", count, act(), 1);
    struct twin y[2] = {copied(&dy), copied(&dy)}, again = copied(&dy);
    struct twin dx[2] = {copied(&x), copied(&x)};
    void *in_place = element_of(&dx[1], from), *taken = element_of(&again, from);

    for (int i = 0; i < 2; i++) {
        cuda->fill(NULL, element_of(&y[i], from), act(), NAN, n);
        cuda->gelu_forward(NULL, element_of(&y[i], from), element_of(&x, from), n);
    }
    cuda->fill(NULL, element_of(&dx[0], from), act(), NAN, n);
    cuda->gelu_backward(NULL, element_of(&dx[0], from), NULL, element_of(&dy, from),
                        element_of(&x, from), n);
    cuda->gelu_backward(NULL, in_place, taken, taken, in_place, n);
    cpu->gelu_forward(NULL, y[0].host + from, x.host + from, n);
    cpu->gelu_backward(NULL, dx[0].host + from, NULL, dy.host + from, x.host + from, n);
    twin_compare("gelu_forward", &y[0], tolerance());
    twin_same_bits("gelu_forward", &y[0], &y[1]);
    twin_compare("gelu_backward", &dx[0], tolerance());
    twin_same_bits("gelu_backward, in place", &dx[0], &dx[1]);
    twin_same_bits("gelu_backward, forward again", &y[0], &again);
    free_all((struct twin[]){x, dy, y[0], y[1], again, dx[0], dx[1]}, 7);
}

static void test_gelu(void)
{
    static const int64_t counts[] = {1, 7, 33, 4096, 100003};

    for (int i = 0; i < 5; i++) {
        check_gelu(counts[i], 0);
        check_gelu(counts[i], 3);
    }
}

/* Activations from element `from` on. */
static void check_bias(int64_t rows, int64_t columns, int64_t from)
{
    int64_t n = rows * columns + from;
    struct twin y[2] = {twin_random("y", n, act(), 1)}, dy = twin_random("dy", n, act(), 1);
    struct twin bias = twin_random("bias", columns + from, act(), 1);
    struct twin dbias[2] = {twin_random("dbias", columns, DTYPE_F32, 1)};

    y[1] = copied(&y[0]);
    dbias[1] = copied(&dbias[0]);
    for (int i = 0; i < 2; i++) {
        cuda->bias_forward(NULL, element_of(&y[i], from), element_of(&bias, from), rows, columns);
        cuda->bias_backward(NULL, dbias[i].device, element_of(&dy, from), rows, columns);
    }
    cpu->bias_forward(NULL, y[0].host + from, bias.host + from, rows, columns);
    cpu->bias_backward(NULL, dbias[0].host, dy.host + from, rows, columns);
    twin_compare("bias_forward", &y[0], tolerance());
    twin_same_bits("bias_forward", &y[0], &y[1]);
    twin_compare("bias_backward", &dbias[0], 1e-5);
    twin_same_bits("bias_backward", &dbias[0], &dbias[1]);
    free_all((struct twin[]){y[0], y[1], dy, bias, dbias[0], dbias[1]}, 6);
}

static void test_bias(void)
{
    for (int i = 0; i < ROW_COUNTS; i++)
        for (int j = 0; j < COLUMN_COUNTS; j++) {
            check_bias(row_counts[i], column_counts[j], 0);
            check_bias(row_counts[i], column_counts[j], 3);
        }
    check_bias(700, 4544, 0);  /* the last slice of columns is not full */
    check_bias(70000, 8, 0);   /* one vector, all blocks over the rows */
    check_bias(5000, 33, 0);   /* the same, element by element */
    check_bias(40, 100000, 0); /* one block for the rows of each slice */
    check_bias(0, 8, 0);
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

static void test(void)
{
    srand48(20);
    for (int i = test_small() ? ROW_COUNTS - 1 : 0; i < ROW_COUNTS; i++)
        for (int j = test_small() ? COLUMN_COUNTS - 2 : 0; j < COLUMN_COUNTS; j++) {
            test_rmsnorm(row_counts[i], column_counts[j]);
            test_layernorm(row_counts[i], column_counts[j]);
            test_swiglu(row_counts[i], column_counts[j]);
        }
    test_rmsnorm(700, 96);
    test_rmsnorm(5, 9000);
    test_rmsnorm(3, 20000);
    test_rmsnorm(2, 8191);
    test_layernorm(700, 4544); /* several rows a block */
    test_layernorm(700, 96);
    test_layernorm(5, 5120); /* the longest for backward's registers: fp32 */
    test_layernorm(5, 5124);
    test_layernorm(5, 10240); /* 16 bits */
    test_layernorm(5, 10248);
    test_layernorm(3, 20000); /* too long for forward's */
    test_layernorm(2, 8191);
    test_layernorm_starts();
    test_rope();
    test_gelu();
    test_dropout();
    test_bias();
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
