/* Guards: sums, AdamW, random weights and memory of the CPU backend. AdamW follows its published
 * formula in double precision over several steps; random numbers are Philox's and do not depend on
 * the tile; sums survive what fp32 would not and keep non-finite values.
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
#include "kernels/philox.h"
#include "kernels/test_reference.h"

enum { THREADS = 3 };

static void test_sums(void **state)
{
    static const int64_t counts[] = {0, 1, 17, 1000, 70001};
    const struct kernels *k = *state;

    for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
        int64_t n = counts[i];
        float *x = random_array(n, 3), *weight = random_array(n, 1);
        double *wide = widened(x, n), *wide_weight = widened(weight, n);
        double squares = 5, weighted = -2, first;

        k->sum_squares(NULL, &squares, x, n);
        assert_true(fabs(squares - 5 - dot(wide, wide, n)) <= 1e-12 * squares);
        k->weighted_sum(NULL, &weighted, weight, x, n);
        assert_true(fabs(weighted + 2 - dot(wide, wide_weight, n)) <= 1e-10);
        first = squares;
        squares = 5;
        k->sum_squares(NULL, &squares, x, n);
        assert_memory_equal(&squares, &first, sizeof(first));
        if (n > 0) {
            x[n / 2] = 1e30f;
            squares = 0;
            k->sum_squares(NULL, &squares, x, n);
            assert_true(fabs(squares / 1e60 - 1) < 1e-6);
            x[n / 2] = NAN;
            k->sum_squares(NULL, &squares, x, n);
            assert_true(isnan(squares));
        }
        free(x);
        free(weight);
        free(wide);
        free(wide_weight);
    }
}

static void test_add_fill_copy(void **state)
{
    static const int64_t counts[] = {0, 1, 33, 40001};
    const struct kernels *k = *state;

    for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
        int64_t n = counts[i];
        size_t bytes = (size_t)n * sizeof(float);
        float *x = random_array(n, 1), *y = random_array(n, 1), *z = copied(y, n);

        k->add(NULL, y, x, n);
        for (int64_t j = 0; j < n; j++)
            assert_true(y[j] == z[j] + x[j]);
        k->fill(NULL, z, DTYPE_F32, 0.1, n);
        for (int64_t j = 0; j < n; j++)
            assert_true(z[j] == 0.1f);
        k->copy(NULL, z, x, bytes);
        assert_memory_equal(z, x, bytes);
        k->zero(NULL, z, bytes);
        for (int64_t j = 0; j < n; j++)
            assert_true(z[j] == 0);
        free(x);
        free(y);
        free(z);
    }
}

/* Zeroed also where freed memory is used again; aligned; odd and huge sizes. */
static void test_memory(void **state)
{
    static const size_t sizes[] = {0, 1, 100, 65, 5000001, 5000001};
    const struct kernels *k = *state;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        unsigned char *buffer = k->allocate(sizes[i]);

        assert_non_null(buffer);
        assert_int_equal((uintptr_t)buffer % 64, 0);
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(buffer[j], 0);
        memset(buffer, 0xff, sizes[i]);
        k->release(buffer);
    }
    assert_null(k->allocate(SIZE_MAX - 100));
    k->release(NULL);
    assert_int_equal(k->stream_sync(NULL, NULL), 0);
}

/* p -= lr (m^ / (sqrt(v^) + eps) + decay p), all in double. */
static void adamw_reference(double *p, double *m, double *v, const float *grad, int64_t n,
                            const struct adamw *u)
{
    for (int64_t i = 0; i < n; i++) {
        double g = (double)grad[i] * u->grad_scale, m_hat, v_hat;

        m[i] = u->beta1 * m[i] + (1 - u->beta1) * g;
        v[i] = u->beta2 * v[i] + (1 - u->beta2) * g * g;
        m_hat = m[i] / (1 - pow(u->beta1, (double)u->step));
        v_hat = v[i] / (1 - pow(u->beta2, (double)u->step));
        p[i] -= u->lr * (m_hat / (sqrt(v_hat) + u->eps) + u->weight_decay * p[i]);
    }
}

static void test_adamw(void **state)
{
    enum { SIZE = 40003, STEPS = 6 };
    const struct kernels *k = *state;
    float *p = random_array(SIZE, 1), *m = random_array(SIZE, 0), *v = random_array(SIZE, 0);
    double *p_want = widened(p, SIZE), *m_want = widened(m, SIZE), *v_want = widened(v, SIZE);

    for (int step = 1; step <= STEPS; step++) {
        struct adamw update = {
            .lr = 1e-2 / step,
            .beta1 = 0.9,
            .beta2 = 0.95,
            .eps = 1e-6,
            .weight_decay = step == 3 ? 0 : 0.5,
            .grad_scale = 1.0 / step,
            .step = step,
        };
        float *grad = random_array(SIZE, 1e-3f);

        grad[0] = 0; /* stays at exactly the decay */
        grad[1] = 1e-9f;
        k->adamw(NULL, p, NULL, m, v, grad, SIZE, &update);
        adamw_reference(p_want, m_want, v_want, grad, SIZE, &update);
        free(grad);
    }
    check_close("adamw, weights", p, p_want, SIZE, 2e-6);
    check_close("adamw, first moments", m, m_want, SIZE, 2e-6);
    check_close("adamw, second moments", v, v_want, SIZE, 2e-6);
    assert_true(m[0] == 0 && v[0] == 0);
    free(p);
    free(m);
    free(v);
    free(p_want);
    free(m_want);
    free(v_want);
}

/* The vectors that the authors publish with their code (Random123, kat_vectors). */
static void test_philox(void **state)
{
    const uint32_t zeros[4] = {0}, ones[4] = {~0u, ~0u, ~0u, ~0u};
    const uint32_t want_zeros[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    const uint32_t want_ones[4] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
    uint32_t found[4];
    (void)state;

    philox(found, zeros, zeros);
    assert_memory_equal(found, want_zeros, sizeof(found));
    philox(found, ones, ones);
    assert_memory_equal(found, want_ones, sizeof(found));
}

/* Element i of the whole matrix by the mapping that philox.h documents. */
static double normal_reference(uint64_t i, uint64_t seed, uint64_t tensor)
{
    uint64_t group = i / 4;
    uint32_t counter[4] = {(uint32_t)group, (uint32_t)(group >> 32), (uint32_t)tensor,
                           (uint32_t)(tensor >> 32)};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, x[4];
    int pair = i % 4 < 2 ? 0 : 2;
    double radius, angle;

    philox(x, counter, key);
    radius = sqrt(-2 * log((x[pair] + 0.5) / 4294967296.0));
    angle = 2 * acos(-1) * ((x[pair + 1] + 0.5) / 4294967296.0);
    return radius * (i % 2 ? sin(angle) : cos(angle));
}

static void test_random_values(void **state)
{
    const uint64_t seed = 0x123456789abcdef0u, tensor = 0xfedcba9876543210u;
    const struct tile whole = {0, 61, 0, 77, 77}, far = {INT64_C(1) << 40, 2, 1, 6, 9};
    const struct kernels *k = *state;
    float w[61 * 77], tile_w[61 * 77], far_w[12];

    memset(w, 0xff, sizeof(w));
    k->random_normal(NULL, w, DTYPE_F32, &whole, 0.5, seed, tensor);
    for (int i = 0; i < 61 * 77; i++)
        assert_true(fabs((double)w[i] - 0.5 * normal_reference((uint64_t)i, seed, tensor)) < 1e-6);
    for (int trial = 0; trial < 50; trial++) {
        struct tile tile = {random_below(61), 0, random_below(77), 0, 77};

        tile.rows = 1 + random_below((int32_t)(61 - tile.row));
        tile.columns = 1 + random_below((int32_t)(77 - tile.column));
        memset(tile_w, 0xff, sizeof(tile_w));
        k->random_normal(NULL, tile_w, DTYPE_F32, &tile, 0.5, seed, tensor);
        for (int64_t row = 0; row < tile.rows; row++)
            assert_memory_equal(tile_w + row * tile.columns,
                                w + (tile.row + row) * 77 + tile.column,
                                (size_t)tile.columns * sizeof(float));
    }
    /* indices beyond 32 bits count too */
    k->random_normal(NULL, far_w, DTYPE_F32, &far, 1, seed, tensor);
    for (int64_t i = 0; i < 12; i++)
        assert_true(
            fabs((double)far_w[i] - normal_reference((uint64_t)((far.row + i / 6) * 9 + 1 + i % 6),
                                                     seed, tensor)) < 1e-5);
    k->random_normal(NULL, w, DTYPE_F32, &whole, 0, seed, tensor);
    for (int i = 0; i < 61 * 77; i++)
        assert_true(w[i] == 0);
}

/* Mean, spread and tails of what ought to be N(0, std^2); other tensors and seeds differ. */
static void test_random_distribution(void **state)
{
    enum { ROWS = 400, COLUMNS = 500, SIZE = ROWS * COLUMNS };
    const struct kernels *k = *state;
    const struct tile tile = {0, ROWS, 0, COLUMNS, COLUMNS};
    float *w = poisoned_array(SIZE), *other = poisoned_array(SIZE);
    double *wide, *wide_other, mean = 0, variance, beyond = 0, one[2] = {0};

    k->random_normal(NULL, w, DTYPE_F32, &tile, 0.02, 1, 2);
    wide = widened(w, SIZE);
    for (int i = 0; i < SIZE; i++) {
        mean += wide[i] / SIZE;
        beyond += fabs(wide[i]) > 0.04;
    }
    variance = dot(wide, wide, SIZE) / SIZE;
    assert_true(fabs(mean) < 5 * 0.02 / sqrt(SIZE));
    assert_true(fabs(variance / 4e-4 - 1) < 5 * sqrt(2.0 / SIZE));
    assert_true(fabs(beyond / SIZE - 0.0455) < 0.003);
    for (int trial = 0; trial < 2; trial++) {
        k->random_normal(NULL, other, DTYPE_F32, &tile, 0.02, trial ? 2 : 1, trial ? 2 : 3);
        wide_other = widened(other, SIZE);
        one[trial] = dot(wide, wide_other, SIZE) / SIZE / variance;
        assert_true(fabs(one[trial]) < 5 / sqrt(SIZE));
        free(wide_other);
    }
    free(w);
    free(other);
    free(wide);
}

int main(void)
{
    struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_add_fill_copy),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_philox),
        cmocka_unit_test(test_random_values),
        cmocka_unit_test(test_random_distribution),
    };

    for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); i++)
        tests[i].initial_state = (void *)kernels_cpu(THREADS);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
