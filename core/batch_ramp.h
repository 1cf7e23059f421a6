/* How many sequences a step takes: global-batch-size, or what batch-size-ramp begins with until it
 * gets there, as Megatron's --rampup_batch_size.
 */
#ifndef MTLLM_CORE_BATCH_RAMP_H
#define MTLLM_CORE_BATCH_RAMP_H

#include "core/error.h"
#include "core/layout.h"
#include "core/settings.h"

struct batch_ramp {
    int64_t full;             /* where it ends; the largest */
    int64_t start, increment; /* start + n * increment = full for an n from 1 on */
    int64_t samples;          /* that it takes; 0: every step is full */
};

/* Sequences of the step that begins when `consumed` samples have been. */
int64_t batch_ramp_size(const struct batch_ramp *ramp, int64_t consumed);

/* Whole steps that sample `consumed` and those up to sample `end` are enough for. */
int64_t batch_ramp_steps(const struct batch_ramp *ramp, int64_t consumed, int64_t end);

/* Every size is a multiple of micro-batch-size x dp. `prefix` is how options are spelled.
 * Error: EXIT_STATUS_USAGE for what is no ramp at all; EXIT_STATUS_CONFIGURATION for one that does
 * not go with the layout, global-batch-size or steps. */
int batch_ramp_from_settings(struct batch_ramp *ramp, const struct settings *settings,
                             const struct layout *layout, const char *prefix, struct error *error);

#endif
