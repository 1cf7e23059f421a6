/* The bias of a product: added to every row, its gradient summed over them. The sum runs over fixed
 * blocks of rows for fixed slices of columns, so it does not depend on the number of threads. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/vector.h"

enum { SLICE_COLUMNS = 64, BLOCK_ROWS = 64 };

VECTORIZED static void add_row(float *y, const float *bias, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] += bias[i];
}

void cpu_bias_forward(struct stream *stream, void *y, const void *bias, int64_t rows,
                      int64_t columns)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (rows * columns > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++)
        add_row((float *)y + row * columns, bias, columns);
}

VECTORIZED static void sum_slice(float *dbias, const float *dy, int64_t rows, int64_t stride,
                                 int64_t n)
{
    double total[SLICE_COLUMNS] = {0};

    for (int64_t block = 0; block < rows; block += BLOCK_ROWS) {
        int64_t end = block + BLOCK_ROWS < rows ? block + BLOCK_ROWS : rows;
        float partial[SLICE_COLUMNS] = {0};

        for (int64_t row = block; row < end; row++) {
            const float *dy_row = dy + row * stride;

#pragma omp simd
            for (int64_t i = 0; i < n; i++)
                partial[i] += dy_row[i];
        }
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            total[i] += (double)partial[i];
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        dbias[i] = (float)(dbias[i] + total[i]);
}

void cpu_bias_backward(struct stream *stream, float *dbias, const void *dy, int64_t rows,
                       int64_t columns)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (rows * columns > PARALLEL_ELEMENTS)
    for (int64_t column = 0; column < columns; column += SLICE_COLUMNS)
        sum_slice(dbias + column, (const float *)dy + column, rows, columns,
                  columns - column < SLICE_COLUMNS ? columns - column : SLICE_COLUMNS);
}
