/* The time of one of the system's clocks, in seconds. */
#ifndef MTLLM_CORE_CLOCK_H
#define MTLLM_CORE_CLOCK_H

#include <time.h>

static inline double clock_now_s(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#endif
