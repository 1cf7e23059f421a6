/* Guards: sums and AdamW on the device; see test_memory.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/test_memory.h"

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

void test_sums(void)
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

void test_adamw(void)
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
