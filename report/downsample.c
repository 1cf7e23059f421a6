#include "report/downsample.h"

#include <math.h>

size_t bucket_index(double x, double from, double to, size_t bucket_count)
{
    double place = (x - from) / (to - from) * (double)bucket_count;

    if (!(place > 0))
        return 0;
    return place >= (double)bucket_count ? bucket_count - 1 : (size_t)place;
}

static void add(struct bucket *bucket, double x, double y)
{
    if (isinf(y)) {
        if (bucket->lost++ == 0)
            bucket->lost_at = x;
        return;
    }
    if (bucket->count == 0)
        bucket->first = bucket->least = bucket->greatest = y;
    bucket->count++;
    bucket->least = fmin(bucket->least, y);
    bucket->greatest = fmax(bucket->greatest, y);
    bucket->last = y;
    bucket->mean += (y - bucket->mean) / (double)bucket->count;
}

void downsample(const double *x, const double *y, size_t count, double from, double to,
                struct bucket *buckets, size_t bucket_count)
{
    for (size_t i = 0; i < bucket_count; i++)
        buckets[i] = (struct bucket){0};
    for (size_t i = 0; i < count; i++)
        if (x[i] >= from && x[i] <= to && !isnan(y[i]))
            add(&buckets[bucket_index(x[i], from, to, bucket_count)], x[i], y[i]);
}

double smooth(const double *y, size_t count, size_t at, size_t reach)
{
    size_t before = at, after = count - 1 - at, room = before < after ? before : after;
    size_t half = room < reach / 4 ? reach / 4 : room < reach ? room : reach, finite = 0;
    size_t begin = before < half ? 0 : at - half, end = after < half ? count : at + half + 1;
    double sum = 0;

    for (size_t i = begin; i < end; i++)
        if (isfinite(y[i])) {
            sum += y[i];
            finite++;
        }
    return finite > 0 ? sum / (double)finite : NAN;
}

int compare_numbers(const void *a, const void *b)
{
    double one = *(const double *)a, other = *(const double *)b;

    return one < other ? -1 : one > other;
}
