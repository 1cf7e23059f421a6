#include "trainer/outlier.h"

#include <math.h>

double outlier_score(const struct outlier *outlier, double value)
{
    if (outlier->count < OUTLIER_LEAST || !(outlier->variance > 0) || !isfinite(value))
        return NAN;
    return (value - outlier->mean) / sqrt(outlier->variance);
}

void outlier_add(struct outlier *outlier, double value)
{
    double delta = value - outlier->mean, share;

    if (!isfinite(value))
        return;
    outlier->count++;
    share = 1.0 / (double)(outlier->count < OUTLIER_WINDOW ? outlier->count : OUTLIER_WINDOW);
    outlier->mean += share * delta;
    outlier->variance = (1 - share) * (outlier->variance + share * delta * delta);
}
