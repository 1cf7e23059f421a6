/* How far a value is from those before it: the outlier scores of loss and gradient norm. */
#ifndef MTLLM_TRAINER_OUTLIER_H
#define MTLLM_TRAINER_OUTLIER_H

#include <stdint.h>

/* Values that there must be before a score means anything, and that weigh as much as older ones all
 * together: mean and variance are plain ones of so many, then exponentially weighted. */
enum { OUTLIER_LEAST = 16, OUTLIER_WINDOW = 128 };

/* Starts from zeros. */
struct outlier {
    int64_t count;
    double mean, variance;
};

/* Standard deviations that `value` is above the mean of those added so far; NaN while they are too
 * few or all the same, and for a value that is not finite. */
double outlier_score(const struct outlier *outlier, double value);
/* Values that are not finite are passed over. */
void outlier_add(struct outlier *outlier, double value);

#endif
