/* Products with weights, stored as Hugging Face stores them: [out, in]. All is CBLAS. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <cblas.h>
#include <limits.h>

static int dimension(int64_t n)
{
    assert(n >= 0 && n <= INT_MAX);
    return (int)n;
}

void cpu_linear_forward(struct stream *stream, void *y, const void *x, const void *w, int64_t rows,
                        int64_t in, int64_t out, bool accumulate)
{
    (void)stream;
    if (rows == 0)
        return;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, dimension(rows), dimension(out),
                dimension(in), 1, x, dimension(in), w, dimension(in), accumulate ? 1 : 0, y,
                dimension(out));
}

void cpu_linear_backward_input(struct stream *stream, void *dx, const void *dy, const void *w,
                               int64_t rows, int64_t in, int64_t out, bool accumulate)
{
    (void)stream;
    if (rows == 0)
        return;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, dimension(rows), dimension(in),
                dimension(out), 1, dy, dimension(out), w, dimension(in), accumulate ? 1 : 0, dx,
                dimension(in));
}

void cpu_linear_backward_weight(struct stream *stream, float *dw, const void *dy, const void *x,
                                int64_t rows, int64_t in, int64_t out)
{
    (void)stream;
    if (rows == 0)
        return;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, dimension(out), dimension(in),
                dimension(rows), 1, dy, dimension(out), x, dimension(in), 1, dw, dimension(in));
}
