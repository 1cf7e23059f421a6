/* RMSNorm (Zhang and Sennrich, 2019) and LayerNorm (Ba, Kiros and Hinton, 2016), with the residual
 * addition in front of them.
 *
 * RMSNorm, with r = 1 / sqrt(mean(s^2) + eps) and y = s r w:
 *   ds = r w dy - s r^3 sum(dy w s) / columns     (the sum over the row)
 *   dw = sum over rows of dy s r
 * LayerNorm, with n = (s - mean(s)) r, r = 1 / sqrt(mean((s - mean(s))^2) + eps), y = n w + b:
 *   ds = r (w dy - mean(w dy) - n mean(w dy n))
 *   dw = sum over rows of dy n, db = sum over rows of dy
 * Sums over a row are kept in double. The sum over rows runs over fixed blocks of rows for fixed
 * slices of columns, so it does not depend on the number of threads.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>

#include "kernels/cpu/vector.h"

enum { SLICE_COLUMNS = 64, BLOCK_ROWS = 64 };

/* --- RMSNorm ------------------------------------------------------------------------------- */

VECTORIZED static double add_row(float *sum, const float *x, const float *residual, int64_t n)
{
    double squares = 0;

    if (residual) {
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < n; i++) {
            float s = x[i] + residual[i];

            sum[i] = s;
            squares += (double)s * s;
        }
    } else {
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < n; i++)
            squares += (double)x[i] * x[i];
    }
    return squares;
}

VECTORIZED static void scale_row(float *y, const float *s, const float *w, float rstd, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = s[i] * rstd * w[i];
}

void cpu_rmsnorm_forward(struct stream *stream, void *y, float *rstd, void *sum, const void *x,
                         const void *residual, const void *w, double eps, int64_t rows,
                         int64_t columns)
{
    (void)stream;
    assert(columns > 0 && (!residual || sum));
#pragma omp parallel for schedule(static) if (rows * columns > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        const float *x_row = (const float *)x + row * columns;
        const float *residual_row = residual ? (const float *)residual + row * columns : NULL;
        float *sum_row = residual ? (float *)sum + row * columns : NULL;
        double squares = add_row(sum_row, x_row, residual_row, columns);

        rstd[row] = (float)(1 / sqrt(squares / (double)columns + eps));
        scale_row((float *)y + row * columns, residual ? sum_row : x_row, w, rstd[row], columns);
    }
}

VECTORIZED static double dot_row(const float *dy, const float *w, const float *s, int64_t n)
{
    double dot = 0;

#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < n; i++)
        dot += (double)(dy[i] * w[i]) * s[i];
    return dot;
}

VECTORIZED static void backward_row(float *dx, const float *dy, const float *w, const float *s,
                                    const float *dresidual, float rstd, float shift, int64_t n)
{
    if (dresidual) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dx[i] = (dy[i] * w[i] * rstd - s[i] * shift) + dresidual[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dx[i] = dy[i] * w[i] * rstd - s[i] * shift;
    }
}

/* Without `mean`, RMSNorm's. */
VECTORIZED static void backward_weight_slice(float *dw, const float *dy, const float *s,
                                             const float *mean, const float *rstd, int64_t rows,
                                             int64_t stride, int64_t n)
{
    double total[SLICE_COLUMNS] = {0};

    for (int64_t block = 0; block < rows; block += BLOCK_ROWS) {
        int64_t end = block + BLOCK_ROWS < rows ? block + BLOCK_ROWS : rows;
        float partial[SLICE_COLUMNS] = {0};

        for (int64_t row = block; row < end; row++) {
            const float *dy_row = dy + row * stride, *s_row = s + row * stride;
            float middle = mean ? mean[row] : 0, scale = rstd[row];

#pragma omp simd
            for (int64_t i = 0; i < n; i++)
                partial[i] += dy_row[i] * ((s_row[i] - middle) * scale);
        }
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            total[i] += (double)partial[i];
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        dw[i] = (float)(dw[i] + total[i]);
}

void cpu_rmsnorm_backward(struct stream *stream, void *dx, float *dw, void *y, const void *dy,
                          const void *s, const void *w, const float *rstd, const void *dresidual,
                          int64_t rows, int64_t columns)
{
    (void)stream;
    assert(columns > 0);
#pragma omp parallel if (rows * columns > PARALLEL_ELEMENTS)
    {
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < rows; row++) {
            const float *dy_row = (const float *)dy + row * columns;
            const float *s_row = (const float *)s + row * columns;
            double r = (double)rstd[row];
            double shift = dot_row(dy_row, w, s_row, columns) * r * r * r / (double)columns;

            backward_row((float *)dx + row * columns, dy_row, w, s_row,
                         dresidual ? (const float *)dresidual + row * columns : NULL, rstd[row],
                         (float)shift, columns);
        }
#pragma omp for schedule(static)
        for (int64_t column = 0; column < columns; column += SLICE_COLUMNS)
            backward_weight_slice(
                dw + column, (const float *)dy + column, (const float *)s + column, NULL, rstd,
                rows, columns, columns - column < SLICE_COLUMNS ? columns - column : SLICE_COLUMNS);
            /* Last, because it may take dy's place. */
#pragma omp for schedule(static)
        for (int64_t row = 0; row < (y ? rows : 0); row++)
            scale_row((float *)y + row * columns, (const float *)s + row * columns, w, rstd[row],
                      columns);
    }
}

/* --- LayerNorm ----------------------------------------------------------------------------- */

VECTORIZED static double add_row_total(float *sum, const float *x, const float *residual, int64_t n)
{
    double total = 0;

    if (residual) {
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < n; i++) {
            float s = x[i] + residual[i];

            sum[i] = s;
            total += (double)s;
        }
    } else {
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < n; i++)
            total += (double)x[i];
    }
    return total;
}

VECTORIZED static double squares_around(double mean, const float *s, int64_t n)
{
    double squares = 0;

#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; i++)
        squares += ((double)s[i] - mean) * ((double)s[i] - mean);
    return squares;
}

VECTORIZED static void normalize_row(float *y, const float *s, const float *w, const float *b,
                                     float mean, float rstd, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = (s[i] - mean) * rstd * w[i] + b[i];
}

void cpu_layernorm_forward(struct stream *stream, void *y, float *mean, float *rstd, void *sum,
                           const void *x, const void *residual, const void *w, const void *b,
                           double eps, int64_t rows, int64_t columns)
{
    (void)stream;
    assert(columns > 0 && (!residual || sum));
#pragma omp parallel for schedule(static) if (rows * columns > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        const float *x_row = (const float *)x + row * columns;
        const float *residual_row = residual ? (const float *)residual + row * columns : NULL;
        float *sum_row = residual ? (float *)sum + row * columns : NULL;
        const float *s = residual ? sum_row : x_row;
        double middle = add_row_total(sum_row, x_row, residual_row, columns) / (double)columns;
        double squares = squares_around(middle, s, columns);

        mean[row] = (float)middle;
        rstd[row] = (float)(1 / sqrt(squares / (double)columns + eps));
        normalize_row((float *)y + row * columns, s, w, b, mean[row], rstd[row], columns);
    }
}

/* Of w dy, and of w dy n. */
struct row_sums {
    double plain, normalized;
};

VECTORIZED static struct row_sums gradient_sums(const float *dy, const float *w, const float *s,
                                                float mean, float rstd, int64_t n)
{
    double plain = 0, normalized = 0;

#pragma omp simd reduction(+ : plain, normalized)
    for (int64_t i = 0; i < n; i++) {
        float gradient = dy[i] * w[i];

        plain += (double)gradient;
        normalized += (double)gradient * ((s[i] - mean) * rstd);
    }
    return (struct row_sums){plain, normalized};
}

/* With the means of w dy and of w dy n. */
VECTORIZED static void layer_backward_row(float *dx, const float *dy, const float *w,
                                          const float *s, const float *dresidual, float mean,
                                          float rstd, float plain, float normalized, int64_t n)
{
    if (dresidual) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dx[i] =
                rstd * (dy[i] * w[i] - plain - (s[i] - mean) * rstd * normalized) + dresidual[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dx[i] = rstd * (dy[i] * w[i] - plain - (s[i] - mean) * rstd * normalized);
    }
}

void cpu_layernorm_backward(struct stream *stream, void *dx, float *dw, float *db, void *y,
                            const void *dy, const void *s, const void *w, const void *b,
                            const float *mean, const float *rstd, const void *dresidual,
                            int64_t rows, int64_t columns)
{
    assert(columns > 0);
    cpu_bias_backward(stream, db, dy, rows, columns);
#pragma omp parallel if (rows * columns > PARALLEL_ELEMENTS)
    {
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < rows; row++) {
            const float *dy_row = (const float *)dy + row * columns;
            const float *s_row = (const float *)s + row * columns;
            struct row_sums sums = gradient_sums(dy_row, w, s_row, mean[row], rstd[row], columns);

            layer_backward_row((float *)dx + row * columns, dy_row, w, s_row,
                               dresidual ? (const float *)dresidual + row * columns : NULL,
                               mean[row], rstd[row], (float)(sums.plain / (double)columns),
                               (float)(sums.normalized / (double)columns), columns);
        }
#pragma omp for schedule(static)
        for (int64_t column = 0; column < columns; column += SLICE_COLUMNS)
            backward_weight_slice(
                dw + column, (const float *)dy + column, (const float *)s + column, mean, rstd,
                rows, columns, columns - column < SLICE_COLUMNS ? columns - column : SLICE_COLUMNS);
            /* Last, because it may take dy's place. */
#pragma omp for schedule(static)
        for (int64_t row = 0; row < (y ? rows : 0); row++)
            normalize_row((float *)y + row * columns, (const float *)s + row * columns, w, b,
                          mean[row], rstd[row], columns);
    }
}
