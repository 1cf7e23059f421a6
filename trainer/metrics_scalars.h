/* A row of metrics as what viewers take: names with a number each. */
#ifndef MTLLM_TRAINER_METRICS_SCALARS_H
#define MTLLM_TRAINER_METRICS_SCALARS_H

#include "trainer/metrics.h"

/* Whose names. What Megatron and torchtitan have no name for has mtllm's. */
enum metrics_names {
    METRICS_NAMES_MTLLM, /* GROUP/NAME, of validations val/SET/NAME */
    METRICS_NAMES_MEGATRON,
    METRICS_NAMES_TORCHTITAN,
};

enum { METRICS_NAME_SIZE = 128 };

struct metrics_scalar {
    char name[METRICS_NAME_SIZE];
    double value; /* in the unit of the name */
    int decimals; /* as in METRIC(); -1 where the unit is another one */
};

/* Show the row's scalars: all but step and time, which every viewer takes apart from the others,
 * and, of a validation, how much was trained on so far. */
void metrics_scalars(const struct metrics_row *row, enum metrics_names names,
                     void (*see)(void *user, const struct metrics_scalar *scalar), void *user);

#endif
