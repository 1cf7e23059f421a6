#include "data/blend.h"

#include <math.h>
#include <stdlib.h>

int blend_build(const double *weights, int part_count, int64_t count, int32_t *parts,
                int64_t *locals)
{
    int64_t *used = calloc((size_t)part_count, sizeof(*used));

    if (!used)
        return -1;
    for (int64_t t = 0; t < count; t++) {
        double most = -INFINITY;
        int chosen = 0;

        for (int i = 0; i < part_count; i++) {
            double behind = weights[i] * (double)(t > 1 ? t : 1) - (double)used[i];

            if (behind > most) {
                most = behind;
                chosen = i;
            }
        }
        parts[t] = chosen;
        locals[t] = used[chosen]++;
    }
    free(used);
    return 0;
}

int64_t blend_share(int64_t samples, double weight)
{
    return (int64_t)ceil((double)samples * weight * 1.005);
}
