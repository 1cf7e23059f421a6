/* Many values as few columns of pixels, without losing what the eye would see.
 *
 * Of the values that fall into a column the first, the least, the greatest and the last are kept:
 * a line through those covers exactly the pixels that a line through all of them would cover (M4:
 * Jugel et al., "M4: A Visualization-Oriented Time Series Data Aggregation", VLDB 2014). A spike of
 * a single step among 100,000 stays as high as it was.
 */
#ifndef MTLLM_REPORT_DOWNSAMPLE_H
#define MTLLM_REPORT_DOWNSAMPLE_H

#include <stddef.h>

struct bucket {
    double first, least, greatest, last, mean;
    size_t count;   /* of finite values; with 0 the members above mean nothing */
    size_t lost;    /* values that are not finite */
    double lost_at; /* x of the first of those */
};

/* Share values y[count] at ascending x[count] out to buckets of equal width from `from` to `to`;
 * the values outside are left out, as are NANs, which stand for no value. */
void downsample(const double *x, const double *y, size_t count, double from, double to,
                struct bucket *buckets, size_t bucket_count);

/* The bucket of a position; from < to. */
size_t bucket_index(double x, double from, double to, size_t bucket_count);

/* The mean of y[at] and its neighbours: `reach` of them on both sides; near an end fewer, as many
 * on both sides, so that a slope stays one; but a quarter of `reach`, so that it does not end in
 * noise. Values that are not finite have no part in it; NAN where there is no other. */
double smooth(const double *y, size_t count, size_t at, size_t reach);

/* For qsort(): finite doubles, ascending. */
int compare_numbers(const void *a, const void *b);

#endif
