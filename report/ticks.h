/* Axes: their ends, the round numbers along them, and numbers as people write them. */
#ifndef MTLLM_REPORT_TICKS_H
#define MTLLM_REPORT_TICKS_H

#include <stdbool.h>
#include <stddef.h>

enum { TICKS_MOST = 16, NUMBER_SIZE = 32 };

struct axis {
    double least, most; /* least < most; of a logarithmic axis both are positive */
    bool logarithmic;
    int count;
    double ticks[TICKS_MOST]; /* ascending, within the ends */
    double step;              /* between ticks; of a logarithmic axis 0 */
};

/* An axis for values from least to most, both finite, least <= most, with about `wanted` ticks at
 * 1, 2 or 5 times a power of ten. `whole`: no tick between whole numbers. `nice`: the ends move
 * out to the next tick. Ends that are equal are moved apart. */
struct axis axis_linear(double least, double most, int wanted, bool whole, bool nice);
/* least > 0. Ticks at powers of ten; over less than two of them also between. */
struct axis axis_logarithmic(double least, double most, int wanted);
/* Where a value lies: 0 at the axis' least, 1 at its most. */
double axis_place(const struct axis *axis, double value);
/* An axis of `length` seconds with ticks at round durations. */
struct axis axis_duration(double length, int wanted);

/* A tick's label with as many digits as tell it from its neighbours: "2.35", "120k", "3e-4". */
const char *tick_text(const struct axis *axis, double value, char text[NUMBER_SIZE]);
/* A number to four digits: "12.34", "1.235M", "3e-4". */
const char *number_text(double value, char text[NUMBER_SIZE]);
/* "1,234,567" */
const char *count_text(double value, char text[NUMBER_SIZE]);
/* The two greatest units of it: "3 d 4 h", "12 min 5 s", "0.25 s". */
const char *duration_text(double seconds, char text[NUMBER_SIZE]);
/* "1.5 GiB" */
const char *bytes_text(double bytes, char text[NUMBER_SIZE]);
/* Seconds since 1970 as "2026-11-26 13:05 UTC". */
const char *time_text(double time, char text[NUMBER_SIZE]);

#endif
