/* Softmax cross-entropy over a vocabulary that several ranks share out by columns.
 *
 * NaN must come out as a NaN loss. A maximum that compares would lose it (and a maximum over ranks
 * may), so the maximum passes over NaN and the sum carries it: exp(NaN - maximum) is NaN. An
 * infinite logit makes infinity - infinity in the sum, NaN as well: its loss has no value.
 * Columns that are all -infinity, or none at all, are maximum -infinity and sum 0: another rank may
 * have the rest.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/vector.h"

/* Small enough for the first cache, and for sums of that many in fp32. */
enum { BLOCK_COLUMNS = 1024 };

VECTORIZED static float block_maximum(const float *x, int64_t n)
{
    float maximum = -INFINITY;

#pragma omp simd reduction(max : maximum)
    for (int64_t i = 0; i < n; i++)
        maximum = x[i] > maximum ? x[i] : maximum;
    return maximum;
}

VECTORIZED static float block_sum_exp(const float *x, float maximum, int64_t n)
{
    float sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += exp_vector(x[i] - maximum);
    return sum;
}

/* One pass: block by block, with the sum rescaled whenever a block raises the maximum. */
static void partial_row(float *maximum, float *sum, int32_t *best, const float *x, int64_t first,
                        int64_t count)
{
    float highest = -INFINITY;
    double total = 0;
    int64_t best_block = 0, column;

    for (int64_t begin = 0; begin < count; begin += BLOCK_COLUMNS) {
        int64_t n = count - begin < BLOCK_COLUMNS ? count - begin : BLOCK_COLUMNS;
        float block = block_maximum(x + begin, n);

        if (block > highest) {
            total *= exp((double)highest - (double)block);
            highest = block;
            best_block = begin;
        }
        /* With nothing finite so far, subtract 0: -infinity adds 0 and NaN stays NaN. */
        total += (double)block_sum_exp(x + begin, highest == -INFINITY ? 0 : highest, n);
    }
    for (column = best_block; column < count && x[column] != highest; column++)
        ;
    *maximum = highest;
    *sum = (float)total;
    *best = (int32_t)(first + (column < count ? column : 0));
}

void cpu_cross_entropy_partial(struct stream *stream, float *maximum, float *sum, float *target,
                               int32_t *best, const void *logits, const int32_t *targets,
                               int64_t first, int64_t count, int64_t stride, int64_t rows)
{
    (void)stream;
    assert(count >= 0 && count <= stride);
#pragma omp parallel for schedule(static) if (rows * count > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        const float *x = (const float *)logits + row * stride;
        int64_t column = targets[row] - first;

        partial_row(&maximum[row], &sum[row], &best[row], x, first, count);
        target[row] = targets[row] >= 0 && column >= 0 && column < count ? x[column] : 0;
    }
}

void cpu_cross_entropy_rescale(struct stream *stream, float *sum, const float *local_maximum,
                               const float *maximum, int64_t rows)
{
    (void)stream;
    for (int64_t row = 0; row < rows; row++)
        sum[row] = (float)(sum[row] * exp((double)local_maximum[row] - (double)maximum[row]));
}

void cpu_cross_entropy_best(struct stream *stream, int32_t *best, const float *maxima,
                            const int32_t *bests, int ranks, int64_t rows)
{
    (void)stream;
    for (int64_t row = 0; row < rows; row++) {
        int64_t highest = row;

        for (int64_t at = row + rows; at < ranks * rows; at += rows)
            if (maxima[at] > maxima[highest])
                highest = at;
        best[row] = bests[highest];
    }
}

VECTORIZED static void gradient_row(float *x, float maximum, float scale, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        x[i] = exp_vector(x[i] - maximum) * scale;
}

void cpu_cross_entropy_finish(struct stream *stream, float *loss, void *logits,
                              const int32_t *targets, const float *weight, const float *maximum,
                              const float *sum, const float *target, int64_t first, int64_t count,
                              int64_t stride, int64_t rows, bool backward)
{
    (void)stream;
    assert(count >= 0 && count <= stride);
#pragma omp parallel for schedule(static) if (rows * count > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        float *x = (float *)logits + row * stride;
        int64_t column = targets[row] - first;
        int64_t live = targets[row] >= 0 ? count : 0;

        loss[row] = 0;
        if (live)
            loss[row] = (float)((double)maximum[row] - (double)target[row] + log((double)sum[row]));
        if (!backward)
            continue;
        if (live) {
            gradient_row(x, maximum[row], weight[row] / sum[row], count);
            if (column >= 0 && column < count)
                x[column] -= weight[row];
        }
        memset(x + live, 0, (size_t)(stride - live) * sizeof(float));
    }
}
