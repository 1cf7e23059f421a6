/* Guards: kernels of the CPU backend compute what kernels.h says; norms (test_norm.c), losses and
 * the optimizer have programs of their own. Forwards are held against
 * plain double-precision loops, backwards against finite differences of those loops. Outputs begin
 * as NaN, so an element that nobody writes shows; what is accumulated into keeps what was there;
 * the aliases that kernels.h allows work; a second call gives the same bits; sizes are odd ones,
 * small (one thread) and large enough for all threads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/vector.h"
#include "kernels/kernels.h"
#include "kernels/test_reference.h"

enum { THREADS = 3 };

static const double tolerance = 2e-6;

static const int64_t row_counts[] = {1, 7, 65};

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* --- the exponential under softmax, SwiGLU and cross-entropy --------------------------------- */

VECTORIZED static void exp_all(float *y, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = exp_vector(x[i]);
}

static void test_exp(void **state)
{
    enum { POINTS = 200000 };
    const float special[] = {0, -0.0f, -INFINITY, NAN, -88, -1e30f, -87.3f, 88};
    float found[COUNT(special)], *x = poisoned_array(POINTS), *y = poisoned_array(POINTS);
    (void)state;

    for (int64_t i = 0; i < POINTS; i++)
        x[i] = i % 2 ? (random_float() - 1) * 43.6f : random_float();
    exp_all(y, x, POINTS);
    for (int64_t i = 0; i < POINTS; i++) {
        double want = exp((double)x[i]), ulp = ldexp(1, ilogb(want) - 23);

        if (!(fabs((double)y[i] - want) <= 1.5 * ulp))
            fail_msg("exp(%.9g) is %.9g, expected %.9g: off by %.2f units in the last place",
                     (double)x[i], (double)y[i], want, fabs((double)y[i] - want) / ulp);
    }
    exp_all(found, special, COUNT(special));
    assert_true(found[0] == 1 && found[1] == 1 && found[2] == 0 && isnan(found[3]));
    assert_true(found[4] == 0 && found[5] == 0 && found[6] > 0 && isfinite(found[7]));
    free(x);
    free(y);
}

/* --- products ------------------------------------------------------------------------------ */

struct linear {
    int64_t rows, in, out;
    double *dy;
};

static double linear_loss(const double *inputs, const void *problem)
{
    const struct linear *p = problem;
    double *y = calloc((size_t)(p->rows * p->out), sizeof(double)), loss;

    reference_linear(y, inputs, inputs + p->rows * p->in, p->rows, p->in, p->out);
    loss = dot(y, p->dy, p->rows * p->out);
    free(y);
    return loss;
}

static void check_linear(const struct kernels *k, int64_t rows, int64_t in, int64_t out)
{
    int64_t nx = rows * in, nw = out * in, ny = rows * out;
    float *inputs = random_array(nx + nw, 1), *x = inputs, *w = inputs + nx;
    float *y = poisoned_array(ny), *dy = random_array(ny, 1), *gradient = poisoned_array(nx + nw);
    float *before = random_array(nx + nw, 1);
    double *wide = widened(inputs, nx + nw), *want = calloc((size_t)ny, sizeof(double));
    struct linear problem = {rows, in, out, widened(dy, ny)};

    reference_linear(want, wide, wide + nx, rows, in, out);
    k->linear_forward(NULL, y, x, w, rows, in, out, false);
    check_close("linear_forward", y, want, ny, tolerance);
    k->linear_forward(NULL, y, x, w, rows, in, out, true);
    for (int64_t i = 0; i < ny; i++)
        want[i] *= 2;
    check_close("linear_forward, accumulating", y, want, ny, tolerance);

    k->linear_backward_input(NULL, gradient, dy, w, rows, in, out, false);
    memset(gradient + nx, 0, (size_t)nw * sizeof(float));
    k->linear_backward_weight(NULL, gradient + nx, dy, x, rows, in, out);
    check_gradient("linear", linear_loss, &problem, wide, gradient, nx + nw);

    /* Both add to what is there. */
    free(want);
    want = widened(gradient, nx + nw);
    for (int64_t i = 0; i < nx + nw; i++)
        want[i] += (double)before[i];
    k->linear_backward_input(NULL, before, dy, w, rows, in, out, true);
    k->linear_backward_weight(NULL, before + nx, dy, x, rows, in, out);
    check_close("linear backward, accumulating", before, want, nx + nw, tolerance);

    free(inputs);
    free(y);
    free(dy);
    free(gradient);
    free(before);
    free(wide);
    free(want);
    free(problem.dy);
}

static void test_linear(void **state)
{
    for (size_t i = 0; i < COUNT(row_counts); i++) {
        check_linear(*state, row_counts[i], 1, 3);
        check_linear(*state, row_counts[i], 33, 17);
        check_linear(*state, row_counts[i], 64, 129);
    }
}

/* --- rotary positions ---------------------------------------------------------------------- */

struct rotation {
    int64_t rows;
    int heads, kv_heads, head_dim;
    const int32_t *positions;
    double *dy;
};

static double rotation_loss(const double *inputs, const void *problem)
{
    const struct rotation *p = problem;
    int64_t n = p->rows * (p->heads + 2 * p->kv_heads) * p->head_dim;
    double *turned = calloc((size_t)n, sizeof(double)), loss;

    reference_rope(turned, inputs, p->positions, 10000, p->rows, p->heads, p->kv_heads,
                   p->head_dim);
    loss = dot(turned, p->dy, n);
    free(turned);
    return loss;
}

static void check_rope(const struct kernels *k, int64_t rows, int heads, int kv_heads, int head_dim)
{
    enum { TABLE_ROWS = 200 };
    int64_t n = rows * (heads + 2 * kv_heads) * head_dim, half = head_dim / 2;
    float *cosine = poisoned_array(TABLE_ROWS * half), *sine = poisoned_array(TABLE_ROWS * half);
    float *qkv = random_array(n, 1), *turned = copied(qkv, n), *gradient = random_array(n, 1);
    double *wide = widened(qkv, n), *want = calloc((size_t)n, sizeof(double));
    int32_t *positions = calloc((size_t)rows, sizeof(*positions));
    struct rotation problem = {rows, heads, kv_heads, head_dim, positions, widened(gradient, n)};

    for (int64_t row = 0; row < rows; row++)
        positions[row] = random_below(TABLE_ROWS);
    for (int64_t i = 0; i < TABLE_ROWS * half; i++) {
        int64_t position = i / half;
        double angle = (double)position * pow(10000, -2.0 * (double)(i % half) / head_dim);

        cosine[i] = (float)cos(angle);
        sine[i] = (float)sin(angle);
    }
    reference_rope(want, wide, positions, 10000, rows, heads, kv_heads, head_dim);
    k->rope(NULL, turned, cosine, sine, positions, rows, heads, kv_heads, head_dim, false);
    check_close("rope", turned, want, n, tolerance);
    k->rope(NULL, turned, cosine, sine, positions, rows, heads, kv_heads, head_dim, true);
    check_close("rope, there and back", turned, wide, n, tolerance);
    k->rope(NULL, gradient, cosine, sine, positions, rows, heads, kv_heads, head_dim, true);
    check_gradient("rope", rotation_loss, &problem, wide, gradient, n);
    free(cosine);
    free(sine);
    free(qkv);
    free(turned);
    free(gradient);
    free(wide);
    free(want);
    free(positions);
    free(problem.dy);
}

static void test_rope(void **state)
{
    check_rope(*state, 1, 1, 1, 2);
    check_rope(*state, 7, 3, 1, 6);
    check_rope(*state, 65, 4, 2, 34);
    check_rope(*state, 65, 5, 5, 128);
}

/* --- attention ----------------------------------------------------------------------------- */

struct attention {
    struct attention_shape shape;
    double *dout;
};

static double attention_loss(const double *inputs, const void *problem)
{
    const struct attention *p = problem;
    int64_t n = p->shape.rows * p->shape.heads * p->shape.head_dim;
    double *out = calloc((size_t)n, sizeof(double)), loss;

    reference_attention(out, NULL, inputs, &p->shape);
    loss = dot(out, p->dout, n);
    free(out);
    return loss;
}

static void check_attention(const struct kernels *k, const struct attention_shape *shape,
                            float spread)
{
    int64_t n = shape->rows * (shape->heads + 2 * shape->kv_heads) * shape->head_dim;
    int64_t nout = shape->rows * shape->heads * shape->head_dim, nlse = shape->heads * shape->rows;
    float *qkv = random_array(n, spread), *dout = random_array(nout, 1);
    float *out = poisoned_array(nout), *lse = poisoned_array(nlse), *dqkv = poisoned_array(n);
    float *out_again = poisoned_array(nout), *dqkv_again = poisoned_array(n);
    double *wide = widened(qkv, n), *want = calloc((size_t)nout, sizeof(double));
    double *want_lse = calloc((size_t)nlse, sizeof(double));
    struct attention problem = {*shape, widened(dout, nout)};

    reference_attention(want, want_lse, wide, shape);
    k->attention_forward(NULL, out, lse, qkv, shape);
    check_close("attention_forward", out, want, nout, 2 * tolerance);
    check_close("attention_forward, lse", lse, want_lse, nlse, 2 * tolerance);
    k->attention_backward(NULL, dqkv, dout, out, qkv, lse, NULL, shape);
    check_gradient("attention", attention_loss, &problem, wide, dqkv, n);

    k->attention_forward(NULL, out_again, lse, qkv, shape);
    check_same_bits(out_again, out, nout);
    k->attention_backward(NULL, dqkv_again, dout, out, qkv, lse, NULL, shape);
    check_same_bits(dqkv_again, dqkv, n);
    free(qkv);
    free(dout);
    free(out);
    free(lse);
    free(dqkv);
    free(out_again);
    free(dqkv_again);
    free(wide);
    free(want);
    free(want_lse);
    free(problem.dout);
}

#define SHAPE(n, query_heads, key_heads, dim, count, first_rows, seen)                             \
    {                                                                                              \
        .rows = (n), .heads = (query_heads), .kv_heads = (key_heads), .head_dim = (dim),           \
        .sequences = (count), .starts = (first_rows), .window = (seen)                             \
    }

/* Multi-head, grouped and multi-query; with and without a window; one sequence and several of
 * uneven lengths, an empty one among them; shorter and longer than the kernel's blocks. */
static void test_attention(void **state)
{
    static const int32_t one[] = {0, 1}, seven[] = {0, 7}, packed[] = {0, 1, 30, 30, 65};
    static const int32_t whole[] = {0, 65}, long_one[] = {0, 301}, long_two[] = {0, 290, 301};
    static const struct attention_shape shapes[] = {
        SHAPE(1, 1, 1, 2, 1, one, 0),         SHAPE(7, 3, 3, 6, 1, seven, 0),
        SHAPE(7, 4, 2, 16, 1, seven, 3),      SHAPE(65, 4, 1, 34, 4, packed, 0),
        SHAPE(65, 6, 2, 10, 4, packed, 5),    SHAPE(65, 4, 2, 64, 1, whole, 0),
        SHAPE(65, 2, 2, 128, 1, whole, 1),    SHAPE(301, 1, 1, 8, 1, long_one, 0),
        SHAPE(301, 2, 1, 32, 2, long_two, 0), SHAPE(301, 2, 1, 4, 2, long_two, 150),
    };

    for (size_t i = 0; i < COUNT(shapes); i++) {
        struct attention_shape shape = shapes[i];

        check_attention(*state, &shape, i % 2 ? 1 : 3);
        shape.dropout = (struct attention_dropout){i % 3 ? 0.3 : 0.8, 7, 5, (1LL << 33) + 1003, 6};
        check_attention(*state, &shape, i % 2 ? 1 : 3);
    }
}

/* Rows of attention that all look alike at every key that they see: with values that are the rows
 * of the unit matrix, the output is the probabilities. `sequences` of MASK_LENGTH rows. */
enum { MASK_LENGTH = 70 };

static float *probabilities(const struct kernels *k, int sequences, int heads, float *lse,
                            const struct attention_dropout *dropout)
{
    int32_t *starts = calloc((size_t)sequences + 1, sizeof(int32_t));
    struct attention_shape shape = {
        .rows = (int64_t)sequences * MASK_LENGTH,
        .heads = heads,
        .kv_heads = 1,
        .head_dim = MASK_LENGTH,
        .sequences = sequences,
        .starts = starts,
        .dropout = *dropout,
    };
    int64_t stride = (int64_t)(heads + 2) * MASK_LENGTH;
    float *qkv = calloc((size_t)(shape.rows * stride), sizeof(float));
    float *out = poisoned_array(shape.rows * heads * MASK_LENGTH);

    for (int i = 0; i <= sequences; i++)
        starts[i] = i * MASK_LENGTH;
    for (int64_t row = 0; row < shape.rows; row++)
        qkv[(row + 1) * stride - MASK_LENGTH + row % MASK_LENGTH] = 1;
    k->attention_forward(NULL, out, lse, qkv, &shape);
    free(qkv);
    free(starts);
    return out;
}

/* How many of the probabilities that are above 0 without dropout are 0 in only one of the two. */
static double share_that_differs(const float *all, const float *a, const float *b, int64_t n)
{
    int64_t seen = 0, different = 0;

    for (int64_t i = 0; i < n; i++) {
        seen += all[i] > 0;
        different += (a[i] == 0) != (b[i] == 0);
    }
    return (double)different / (double)seen;
}

/* As many are dropped as asked for, the others scaled, the sum of exponentials as without; any
 * division of heads and rows gives the same, other places, seeds, heads and rows something else. */
static void test_attention_dropout(void **state)
{
    enum { SEQUENCES = 6, HEADS = 4, HEAD = MASK_LENGTH, ROW = HEADS * HEAD };
    enum { ROWS = SEQUENCES * MASK_LENGTH, N = ROWS * ROW, CUT = 2, CUT_HEAD = 3 };
    const struct kernels *k = *state;
    const struct attention_dropout none = {0, 7, 5, 1000003, 9}, some = {0.3, 7, 5, 1000003, 9};
    struct attention_dropout others[] = {some, some, some, some}, part = some;
    float lse[ROWS * HEADS], dropped_lse[ROWS * HEADS];
    float *all = probabilities(k, SEQUENCES, HEADS, lse, &none);
    float *dropped = probabilities(k, SEQUENCES, HEADS, dropped_lse, &some), *other;

    check_same_bits(dropped_lse, lse, (int64_t)ROWS * HEADS);
    for (int64_t i = 0; i < N; i++)
        assert_true(dropped[i] == 0 || fabsf(dropped[i] - all[i] / 0.7F) <= 1e-6F);
    /* six standard deviations */
    assert_true(fabs(share_that_differs(all, all, dropped, N) - 0.3) < 0.0115);
    others[0].seed = 8;
    others[1].place = 6;
    others[2].first_head += HEADS;
    others[3].first_row += ROWS;
    for (size_t i = 0; i < COUNT(others); i++) {
        other = probabilities(k, SEQUENCES, HEADS, dropped_lse, &others[i]);
        assert_true(fabs(share_that_differs(all, other, dropped, N) - 0.42) < 0.0125);
        free(other);
    }
    part.first_row += CUT * MASK_LENGTH;
    part.first_head += CUT_HEAD;
    other = probabilities(k, SEQUENCES - CUT, HEADS - CUT_HEAD, dropped_lse, &part);
    for (int64_t row = 0; row < ROWS - CUT * MASK_LENGTH; row++)
        check_same_bits(other + row * (HEADS - CUT_HEAD) * HEAD,
                        dropped + (row + CUT * MASK_LENGTH) * ROW + CUT_HEAD * HEAD,
                        (HEADS - CUT_HEAD) * HEAD);
    free(other);
    free(all);
    free(dropped);
}

/* Scores far beyond what exp() takes, and a NaN that only its own and later rows see. */
static void test_attention_extremes(void **state)
{
    static const int32_t starts[] = {0, 5};
    static const struct attention_shape shape = SHAPE(5, 1, 1, 2, 1, starts, 0);
    const struct kernels *k = *state;
    float qkv[30], out[10], lse[5];
    double wide[30], want[10];

    for (int i = 0; i < 30; i++) {
        qkv[i] = random_float() * (i % 6 < 4 ? 300 : 1);
        wide[i] = (double)qkv[i] / (i % 6 < 2 ? 300 : 1);
    }
    k->attention_forward(NULL, out, lse, qkv, &shape);
    for (int i = 0; i < 10; i++)
        assert_true(fabsf(out[i]) <= 1);
    for (int i = 0; i < 30; i++)
        qkv[i] = (float)wide[i];
    qkv[3 * 6 + 2] = NAN;
    k->attention_forward(NULL, out, lse, qkv, &shape);
    for (int i = 0; i < 30; i++)
        wide[i] = i == 3 * 6 + 2 ? 0 : wide[i];
    reference_attention(want, NULL, wide, &shape);
    check_close("rows before a NaN", out, want, 6, 1e-4);
    for (int i = 6; i < 10; i++)
        assert_true(isnan(out[i]));
    assert_true(isnan(lse[3]) && isnan(lse[4]));
}

/* --- SwiGLU -------------------------------------------------------------------------------- */

struct swiglu {
    int64_t rows, f;
    double *dy;
};

static double swiglu_loss(const double *inputs, const void *problem)
{
    const struct swiglu *p = problem;
    double *y = calloc((size_t)(p->rows * p->f), sizeof(double)), loss;

    reference_swiglu(y, inputs, p->rows, p->f);
    loss = dot(y, p->dy, p->rows * p->f);
    free(y);
    return loss;
}

static void check_swiglu(const struct kernels *k, int64_t rows, int64_t f, float spread)
{
    int64_t n = rows * f;
    float *gate_up = random_array(2 * n, spread), *dy = random_array(n, 1);
    float *y = poisoned_array(n), *gradient = poisoned_array(2 * n), *in_place;
    double *wide = widened(gate_up, 2 * n), *want = calloc((size_t)n, sizeof(double));
    struct swiglu problem = {rows, f, widened(dy, n)};

    reference_swiglu(want, wide, rows, f);
    k->swiglu_forward(NULL, y, gate_up, rows, f);
    check_close("swiglu_forward", y, want, n, tolerance);
    k->swiglu_backward(NULL, gradient, NULL, dy, gate_up, rows, f);
    check_gradient("swiglu", swiglu_loss, &problem, wide, gradient, 2 * n);
    in_place = copied(gate_up, 2 * n);
    k->swiglu_backward(NULL, in_place, dy, dy, in_place, rows, f);
    check_same_bits(in_place, gradient, 2 * n);
    check_same_bits(dy, y, n);
    free(gate_up);
    free(dy);
    free(y);
    free(gradient);
    free(in_place);
    free(wide);
    free(want);
    free(problem.dy);
}

static void test_swiglu(void **state)
{
    const struct kernels *k = *state;
    float extreme[] = {-1000, 1000, NAN, 2, 3, 4}, y[3];

    for (size_t i = 0; i < COUNT(row_counts); i++) {
        check_swiglu(k, row_counts[i], 1, 4);
        check_swiglu(k, row_counts[i], 77, 4);
        check_swiglu(k, row_counts[i], 321, 20);
    }
    k->swiglu_forward(NULL, y, extreme, 1, 3);
    assert_true(y[0] == 0 && y[1] == 3000 && isnan(y[2]));
}

/* --- GELU ---------------------------------------------------------------------------------- */

struct gelu {
    int64_t n;
    double *dy;
};

static double gelu_loss(const double *inputs, const void *problem)
{
    const struct gelu *p = problem;
    double *y = calloc((size_t)p->n, sizeof(double)), loss;

    reference_gelu(y, inputs, p->n);
    loss = dot(y, p->dy, p->n);
    free(y);
    return loss;
}

/* As many are dropped as asked for, the others scaled; any division of the elements gives the same,
 * other places and seeds something else. */
static void test_dropout(void **state)
{
    enum { N = 40001, FIRST = 1000003, CUT = 12347 };
    const struct kernels *k = kernels_cpu(2);
    float *x = random_array(N, 1), *y = poisoned_array(N), *parts = poisoned_array(N);
    int64_t dropped = 0, same_place = 0, same_seed = 0;
    (void)state;

    k->dropout(NULL, y, x, N, 0.3, 7, 5, FIRST);
    for (int64_t i = 0; i < N; i++) {
        dropped += y[i] == 0;
        assert_true(y[i] == 0 || fabsf(y[i] - x[i] / 0.7F) <= 1e-6F * fabsf(x[i]));
    }
    assert_true(fabs((double)dropped / N - 0.3) < 0.01); /* four standard deviations */
    k->dropout(NULL, parts, x, CUT, 0.3, 7, 5, FIRST);
    k->dropout(NULL, parts + CUT, x + CUT, N - CUT, 0.3, 7, 5, FIRST + CUT);
    check_same_bits(parts, y, N);
    k->dropout(NULL, parts, x, N, 0.3, 7, 6, FIRST);
    for (int64_t i = 0; i < N; i++)
        same_place += (parts[i] == 0) == (y[i] == 0);
    k->dropout(NULL, parts, x, N, 0.3, 8, 5, FIRST);
    for (int64_t i = 0; i < N; i++)
        same_seed += (parts[i] == 0) == (y[i] == 0);
    assert_true(fabs((double)same_place / N - 0.58) < 0.01 &&
                fabs((double)same_seed / N - 0.58) < 0.01); /* 0.3^2 + 0.7^2 */
    k->dropout(NULL, y, y, N, 0, 7, 5, FIRST);
    free(x);
    free(y);
    free(parts);
}

static void check_gelu(const struct kernels *k, int64_t n, float spread)
{
    float *x = random_array(n, spread), *dy = random_array(n, 1), *y = poisoned_array(n);
    float *gradient = poisoned_array(n), *in_place = copied(x, n);
    double *wide = widened(x, n), *want = calloc((size_t)n, sizeof(double));
    struct gelu problem = {n, widened(dy, n)};

    reference_gelu(want, wide, n);
    k->gelu_forward(NULL, y, x, n);
    check_close("gelu_forward", y, want, n, tolerance);
    k->gelu_backward(NULL, gradient, NULL, dy, x, n);
    check_gradient("gelu", gelu_loss, &problem, wide, gradient, n);
    k->gelu_backward(NULL, in_place, dy, dy, in_place, n);
    check_same_bits(in_place, gradient, n);
    check_same_bits(dy, y, n);
    free(x);
    free(dy);
    free(y);
    free(gradient);
    free(in_place);
    free(wide);
    free(want);
    free(problem.dy);
}

/* The cumulative function over all of where it is neither 0 nor 1, tail included. */
static void check_gelu_tail(const struct kernels *k)
{
    enum { HALF = 50000, POINTS = 2 * HALF };
    float *x = poisoned_array(POINTS), *y = poisoned_array(POINTS);

    for (int64_t i = 0; i < POINTS; i++)
        x[i] = (float)(i - HALF) * (6.0f / HALF);
    k->gelu_forward(NULL, y, x, POINTS);
    for (int64_t i = 0; i < POINTS; i++) {
        double in = (double)x[i], phi = erfc(-in / sqrt(2)) / 2,
               off = fabs((double)y[i] - in * phi);

        if (!(off <= 2e-7 * fabs(in) && off <= 5e-6 * fabs(in * phi)))
            fail_msg("gelu(%.9g) is %.9g, expected %.9g", in, (double)y[i], in * phi);
    }
    free(x);
    free(y);
}

static void test_gelu(void **state)
{
    const struct kernels *k = *state;
    float extreme[] = {-1000, 1000, NAN, -1e30f, 1e30f, 0, INFINITY}, y[7];
    float dy[] = {1, 1, 1, 1, 1, 1};

    check_gelu(k, 1, 4);
    check_gelu(k, 539, 4);
    check_gelu(k, 20865, 4);
    check_gelu(k, 20865, 20);
    check_gelu_tail(k);
    k->gelu_forward(NULL, y, extreme, 7);
    assert_true(y[0] == 0 && y[1] == 1000 && isnan(y[2]) && y[3] == 0 && y[4] == 1e30f);
    assert_true(y[5] == 0 && y[6] == INFINITY);
    k->gelu_backward(NULL, extreme, NULL, dy, extreme, 6);
    assert_true(extreme[0] == 0 && extreme[1] == 1 && isnan(extreme[2]) && extreme[3] == 0);
    assert_true(extreme[4] == 1 && extreme[5] == 0.5f);
}

/* --- bias ---------------------------------------------------------------------------------- */

static void check_bias(const struct kernels *k, int64_t rows, int64_t columns)
{
    int64_t n = rows * columns;
    float *y = random_array(n, 1), *bias = random_array(columns, 1), *dy = random_array(n, 1);
    float *dbias = random_array(columns, 1), *again = copied(dbias, columns);
    double *want = widened(y, n), *sums = widened(dbias, columns);

    for (int64_t i = 0; i < n; i++) {
        want[i] += (double)bias[i % columns];
        sums[i % columns] += (double)dy[i];
    }
    k->bias_forward(NULL, y, bias, rows, columns);
    check_close("bias_forward", y, want, n, tolerance);
    k->bias_backward(NULL, dbias, dy, rows, columns);
    check_close("bias_backward", dbias, sums, columns, tolerance);
    k->bias_backward(NULL, again, dy, rows, columns);
    check_same_bits(again, dbias, columns);
    free(y);
    free(bias);
    free(dy);
    free(dbias);
    free(again);
    free(want);
    free(sums);
}

static void test_bias(void **state)
{
    for (size_t i = 0; i < COUNT(row_counts); i++) {
        check_bias(*state, row_counts[i], 1);
        check_bias(*state, row_counts[i], 64);
        check_bias(*state, row_counts[i], 321);
    }
    check_bias(*state, 1000, 33);
}

/* --- any number of threads ----------------------------------------------------------------- */

static void test_threads(void **state)
{
    enum { ROWS = 130, COLUMNS = 321, N = ROWS * COLUMNS, OUTPUTS = 2 * N + COLUMNS };
    float *x = random_array(N, 4), *dy = random_array(N, 1), *one = NULL;
    (void)state;

    for (int threads = 1; threads <= 5; threads++) {
        const struct kernels *k = kernels_cpu(threads);
        float *outputs = calloc(OUTPUTS, sizeof(*outputs));

        k->gelu_forward(NULL, outputs, x, N);
        k->bias_forward(NULL, outputs, dy, ROWS, COLUMNS);
        k->gelu_backward(NULL, outputs + N, NULL, dy, x, N);
        k->bias_backward(NULL, outputs + 2 * N, dy, ROWS, COLUMNS);
        if (!one) {
            one = outputs;
            continue;
        }
        check_same_bits(outputs, one, OUTPUTS);
        free(outputs);
    }
    (void)kernels_cpu(THREADS);
    free(x);
    free(dy);
    free(one);
}

int main(void)
{
    struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_bias),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_extremes),
        cmocka_unit_test(test_attention_dropout),
        cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_gelu),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_threads),
    };

    for (size_t i = 0; i < COUNT(tests); i++)
        tests[i].initial_state = (void *)kernels_cpu(THREADS);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
