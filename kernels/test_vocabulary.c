/* Guards: embedding and softmax cross-entropy of the CPU backend, whole and shared out over
 * ranks: the same loss and gradients whatever the shares; padding columns, tokens that are
 * elsewhere and rows without a target take no part; NaN and infinity are never lost.
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

enum { THREADS = 3, MAX_RANKS = 4 };

static const double tolerance = 2e-6;

/* --- embedding ----------------------------------------------------------------------------- */

struct embedding {
    int64_t rows, columns, first, count;
    const int32_t *tokens;
    double *dy;
};

static double embedding_loss(const double *inputs, const void *problem)
{
    const struct embedding *p = problem;
    double loss = 0;

    for (int64_t row = 0; row < p->rows; row++) {
        int64_t token = p->tokens[row] - p->first;

        if (token >= 0 && token < p->count)
            loss += dot(inputs + token * p->columns, p->dy + row * p->columns, p->columns);
    }
    return loss;
}

/* Tokens 0 to 11 of which the middle ones are here, most of them several times. */
static void check_embedding(const struct kernels *k, int64_t rows, int64_t columns)
{
    enum { FIRST = 3, ROWS_HERE = 5, VOCABULARY = 12 };
    int64_t nw = ROWS_HERE * columns, ny = rows * columns;
    float *w = random_array(nw, 1), *y = poisoned_array(ny), *dy = random_array(ny, 1);
    float *dw = random_array(nw, 1), *again = copied(dw, nw), *gradient = copied(dw, nw);
    double *wide = widened(w, nw), *want = calloc((size_t)nw, sizeof(double));
    int32_t *tokens = calloc((size_t)rows, sizeof(*tokens));
    struct embedding problem = {rows, columns, FIRST, ROWS_HERE, tokens, widened(dy, ny)};

    for (int64_t row = 0; row < rows; row++)
        tokens[row] = random_below(VOCABULARY);
    k->embedding_forward(NULL, y, tokens, w, FIRST, ROWS_HERE, rows, columns);
    for (int64_t i = 0; i < ny; i++) {
        int64_t token = tokens[i / columns] - FIRST;
        bool here = token >= 0 && token < ROWS_HERE;

        assert_true(y[i] == (here ? w[token * columns + i % columns] : 0));
    }

    for (int64_t i = 0; i < nw; i++)
        want[i] = (double)dw[i];
    for (int64_t i = 0; i < ny; i++) {
        int64_t token = tokens[i / columns] - FIRST;

        if (token >= 0 && token < ROWS_HERE)
            want[token * columns + i % columns] += (double)dy[i];
    }
    k->embedding_backward(NULL, dw, tokens, dy, FIRST, ROWS_HERE, rows, columns);
    check_close("embedding_backward, accumulating", dw, want, nw, tolerance);
    k->embedding_backward(NULL, again, tokens, dy, FIRST, ROWS_HERE, rows, columns);
    assert_memory_equal(again, dw, (size_t)nw * sizeof(*dw));
    memset(gradient, 0, (size_t)nw * sizeof(*gradient));
    k->embedding_backward(NULL, gradient, tokens, dy, FIRST, ROWS_HERE, rows, columns);
    check_gradient("embedding", embedding_loss, &problem, wide, gradient, nw);
    free(w);
    free(y);
    free(dy);
    free(dw);
    free(again);
    free(gradient);
    free(wide);
    free(want);
    free(tokens);
    free(problem.dy);
}

static void test_embedding(void **state)
{
    check_embedding(*state, 1, 3);
    check_embedding(*state, 65, 1);
    check_embedding(*state, 65, 48);
    check_embedding(*state, 300, 67);
}

/* --- cross-entropy ------------------------------------------------------------------------- */

struct vocabulary {
    int64_t rows, count;
    const int32_t *targets;
    const float *weight;
};

/* What the kernels say of the whole vocabulary, put together from the ranks. */
struct outcome {
    float *loss, *logits; /* logits: gradients after backward */
    float *maximum, *sum;
    int32_t *best;
};

static double vocabulary_loss(const double *inputs, const void *problem)
{
    const struct vocabulary *p = problem;
    double loss = 0;

    for (int64_t row = 0; row < p->rows; row++)
        if (p->targets[row] >= 0)
            loss += (double)p->weight[row] *
                    reference_cross_entropy(inputs + row * p->count, p->targets[row], p->count);
    return loss;
}

static void outcome_free(struct outcome *outcome)
{
    free(outcome->loss);
    free(outcome->logits);
    free(outcome->maximum);
    free(outcome->sum);
    free(outcome->best);
}

/* One rank's share, [rows, count] and some columns of padding that hold NaN. */
struct share {
    int64_t first, count, stride;
    float *logits, *maximum, *sum, *target;
    int32_t *best;
};

static void share_open(struct share *share, const struct vocabulary *p, const float *logits,
                       int64_t first, int64_t count, int64_t padding)
{
    *share = (struct share){.first = first, .count = count, .stride = count + padding};
    share->logits = poisoned_array(p->rows * share->stride);
    share->maximum = poisoned_array(p->rows);
    share->sum = poisoned_array(p->rows);
    share->target = poisoned_array(p->rows);
    share->best = calloc((size_t)p->rows, sizeof(*share->best));
    assert_non_null(share->best);
    for (int64_t row = 0; row < p->rows; row++) {
        memcpy(share->logits + row * share->stride, logits + row * p->count + first,
               (size_t)count * sizeof(float));
        share->best[row] = -1;
    }
}

static void share_close(struct share *share)
{
    free(share->logits);
    free(share->maximum);
    free(share->sum);
    free(share->target);
    free(share->best);
}

/* The reductions that ranks make between the two parts. The target's logit ends in share 0. */
static void reduce_shares(const struct kernels *k, struct share *shares, int ranks, int64_t rows,
                          struct outcome *outcome)
{
    float *maxima = malloc((size_t)(ranks * rows) * sizeof(*maxima));
    int32_t *bests = malloc((size_t)(ranks * rows) * sizeof(*bests));

    assert_true(maxima && bests);
    for (int rank = 0; rank < ranks; rank++) {
        memcpy(maxima + rank * rows, shares[rank].maximum, (size_t)rows * sizeof(*maxima));
        memcpy(bests + rank * rows, shares[rank].best, (size_t)rows * sizeof(*bests));
    }
    k->cross_entropy_best(NULL, outcome->best, maxima, bests, ranks, rows);
    free(maxima);
    free(bests);
    for (int64_t row = 0; row < rows; row++) {
        outcome->maximum[row] = shares[0].maximum[row];
        for (int rank = 1; rank < ranks; rank++)
            if (shares[rank].maximum[row] > outcome->maximum[row])
                outcome->maximum[row] = shares[rank].maximum[row];
    }
    for (int rank = 0; rank < ranks; rank++)
        k->cross_entropy_rescale(NULL, shares[rank].sum, shares[rank].maximum, outcome->maximum,
                                 rows);
    for (int64_t row = 0; row < rows; row++) {
        outcome->sum[row] = 0;
        for (int rank = 0; rank < ranks; rank++) {
            outcome->sum[row] += shares[rank].sum[row];
            if (rank > 0)
                shares[0].target[row] += shares[rank].target[row];
        }
    }
}

/* ends[ranks]: where each rank's share of the vocabulary ends. */
static struct outcome run(const struct kernels *k, const struct vocabulary *p, const float *logits,
                          int ranks, const int64_t *ends, int64_t padding, bool backward)
{
    struct outcome outcome = {
        .loss = poisoned_array(p->rows),
        .logits = poisoned_array(p->rows * p->count),
        .maximum = poisoned_array(p->rows),
        .sum = poisoned_array(p->rows),
        .best = calloc((size_t)p->rows, sizeof(int32_t)),
    };
    struct share shares[MAX_RANKS];

    assert_non_null(outcome.best);
    for (int rank = 0; rank < ranks; rank++) {
        struct share *share = &shares[rank];
        int64_t first = rank > 0 ? ends[rank - 1] : 0;

        share_open(share, p, logits, first, ends[rank] - first, padding + rank);
        k->cross_entropy_partial(NULL, share->maximum, share->sum, share->target, share->best,
                                 share->logits, p->targets, share->first, share->count,
                                 share->stride, p->rows);
    }
    reduce_shares(k, shares, ranks, p->rows, &outcome);
    for (int rank = 0; rank < ranks; rank++) {
        struct share *share = &shares[rank];

        for (int64_t row = 0; row < p->rows; row++)
            outcome.loss[row] = NAN;
        k->cross_entropy_finish(NULL, outcome.loss, share->logits, p->targets, p->weight,
                                outcome.maximum, outcome.sum, shares[0].target, share->first,
                                share->count, share->stride, p->rows, backward);
        for (int64_t row = 0; row < p->rows; row++) {
            const float *from = share->logits + row * share->stride;

            memcpy(outcome.logits + row * p->count + share->first, from,
                   (size_t)share->count * sizeof(float));
            for (int64_t i = share->count; i < share->stride; i++)
                assert_true(backward ? from[i] == 0 : isnan(from[i]));
        }
    }
    for (int rank = 0; rank < ranks; rank++)
        share_close(&shares[rank]);
    return outcome;
}

static void check_forward(const struct vocabulary *p, const float *logits,
                          const struct outcome *found)
{
    double *wide = widened(logits, p->rows * p->count);

    for (int64_t row = 0; row < p->rows; row++) {
        const float *x = logits + row * p->count;
        double want = p->targets[row] < 0 ? 0
                                          : reference_cross_entropy(wide + row * p->count,
                                                                    p->targets[row], p->count);
        int64_t best = 0;

        for (int64_t i = 1; i < p->count; i++)
            if (x[i] > x[best])
                best = i;
        assert_int_equal(found->best[row], best);
        assert_true(found->maximum[row] == x[best]);
        if (!(fabs((double)found->loss[row] - want) <= 1e-6 * (1 + fabs((double)x[best]))))
            fail_msg("row %lld: loss %.9g, expected %.9g", (long long)row, (double)found->loss[row],
                     want);
    }
    free(wide);
}

static void check_cross_entropy(const struct kernels *k, int64_t rows, int64_t count, float spread,
                                int64_t padding)
{
    const int64_t whole[] = {count}, shared[] = {count / 3, count / 3, count - 1, count};
    float *logits = random_array(rows * count, spread), *weight = random_array(rows, 1);
    double *wide = widened(logits, rows * count), *one_rank;
    int32_t *targets = calloc((size_t)rows, sizeof(*targets));
    struct vocabulary problem = {rows, count, targets, weight};
    struct outcome forward, one, again, four;

    assert_non_null(targets);
    for (int64_t row = 0; row < rows; row++) {
        targets[row] = row % 5 == 3 ? -1 - random_below(100) : random_below((int32_t)count);
        if (row % 4 == 1) /* the same maximum twice: the first counts */
            logits[row * count + random_below((int32_t)count)] =
                logits[row * count + random_below((int32_t)count)] = 1.5f * spread;
        for (int64_t i = 0; i < count; i++)
            wide[row * count + i] = (double)logits[row * count + i];
    }
    forward = run(k, &problem, logits, 1, whole, padding, false);
    check_forward(&problem, logits, &forward);
    assert_memory_equal(forward.logits, logits, (size_t)(rows * count) * sizeof(float));
    one = run(k, &problem, logits, 1, whole, padding, true);
    check_forward(&problem, logits, &one);
    check_gradient("cross-entropy", vocabulary_loss, &problem, wide, one.logits, rows * count);
    again = run(k, &problem, logits, 1, whole, padding, true);
    assert_memory_equal(again.logits, one.logits, (size_t)(rows * count) * sizeof(float));
    assert_memory_equal(again.loss, one.loss, (size_t)rows * sizeof(float));
    four = run(k, &problem, logits, 4, shared, padding, true);
    check_forward(&problem, logits, &four);
    one_rank = widened(one.logits, rows * count);
    check_close("gradients of four ranks and of one", four.logits, one_rank, rows * count,
                tolerance);
    free(logits);
    free(weight);
    free(wide);
    free(one_rank);
    free(targets);
    outcome_free(&forward);
    outcome_free(&one);
    outcome_free(&again);
    outcome_free(&four);
}

static void test_cross_entropy(void **state)
{
    check_cross_entropy(*state, 1, 3, 1, 0);
    check_cross_entropy(*state, 7, 33, 4, 5);
    check_cross_entropy(*state, 65, 301, 10, 3);
    check_cross_entropy(*state, 9, 2500, 3, 1);
}

/* Logits that a plain exp() does not survive, and those that have no loss. */
static void test_cross_entropy_extremes(void **state)
{
    enum { COLUMNS = 6 };
    const float inf = INFINITY;
    const float logits[][COLUMNS] = {
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
    };
    const double want[] = {0, log(2), log(2), log(6), 0, NAN, NAN, NAN, NAN, NAN, NAN};
    enum { ROWS = sizeof(logits) / sizeof(*logits) };
    const int32_t targets[ROWS] = {0, 1, 4, 2, 5, 2, 2, 2, 2, 2, 1};
    const int64_t shares[2][4] = {{COLUMNS}, {0, 2, 3, COLUMNS}};
    float weight[ROWS];
    struct vocabulary problem = {ROWS, COLUMNS, targets, weight};

    for (int row = 0; row < ROWS; row++)
        weight[row] = 1;
    for (int split = 0; split < 2; split++) {
        struct outcome outcome =
            run(*state, &problem, &logits[0][0], split ? 4 : 1, shares[split], 2, true);

        for (int row = 0; row < ROWS; row++) {
            if (isnan(want[row]) ? !isnan(outcome.loss[row])
                                 : !(fabs((double)outcome.loss[row] - want[row]) < 1e-6))
                fail_msg("row %d in %d shares: loss %g, expected %g", row, split ? 4 : 1,
                         (double)outcome.loss[row], want[row]);
            if (!isnan(want[row]))
                for (int i = 0; i < COLUMNS; i++)
                    assert_true(fabsf(outcome.logits[row * COLUMNS + i]) <= 1);
        }
        assert_int_equal(outcome.best[4], 5);
        assert_int_equal(outcome.best[5], 5);
        assert_int_equal(outcome.best[6], 0);
        outcome_free(&outcome);
    }
}

int main(void)
{
    struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_cross_entropy_extremes),
    };

    for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); i++)
        tests[i].initial_state = (void *)kernels_cpu(THREADS);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
