#include <time.h>

#include "trainer/profile.h"

int64_t profile_now_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Rank b's clock against rank a's, in one round. */
static void narrow(const struct profile_clock *a, const struct profile_clock *b, int round,
                   int64_t *lower_ns, int64_t *upper_ns)
{
    int64_t lower = b->entered_ns[round] - a->left_ns[round];
    int64_t upper = b->left_ns[round] - a->entered_ns[round];

    if (lower > *lower_ns)
        *lower_ns = lower;
    if (upper < *upper_ns)
        *upper_ns = upper;
}

int64_t profile_clock_ahead(const struct profile_clock *clocks, int ranks, int rank,
                            int64_t *error_ns)
{
    int64_t lower = INT64_MIN, upper = INT64_MAX;

    *error_ns = 0;
    if (clocks[rank].node == clocks[0].node)
        return 0;
    for (int a = 0; a < ranks; a++)
        for (int b = 0; b < ranks && clocks[a].node == clocks[0].node; b++)
            for (int i = 0; i < PROFILE_CLOCK_ROUNDS && clocks[b].node == clocks[rank].node; i++)
                narrow(&clocks[a], &clocks[b], i, &lower, &upper);
    /* Clocks that run apart during the barriers can leave nothing between the bounds. */
    *error_ns = upper > lower ? (upper - lower) / 2 : (lower - upper) / 2;
    return lower + (upper - lower) / 2;
}
