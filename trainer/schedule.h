/* The learning rate and the weight decay as functions of the samples of updates made, as Megatron
 * has them.
 *
 * The update that consumes samples [n, n + batch) uses lr_at(n): with warm-up the very first update
 * has a learning rate of 0. That is Megatron's, kept so that curves can be compared.
 */
#ifndef MTLLM_TRAINER_SCHEDULE_H
#define MTLLM_TRAINER_SCHEDULE_H

#include <stdint.h>

#include "core/error.h"
#include "core/settings.h"

enum lr_style { LR_CONSTANT, LR_LINEAR, LR_COSINE, LR_INVERSE_SQUARE_ROOT };

struct lr_schedule {
    enum lr_style style;
    double max_lr, min_lr;
    double warmup_samples; /* whole unless they are a share */
    int64_t decay_samples; /* min_lr is reached here; LR_CONSTANT ignores it */
};

double lr_at(const struct lr_schedule *schedule, int64_t samples);

/* Steps of the settings become samples of `global_batch` sequences a step; with train-samples they
 * are samples. `prefix` is how options are spelled. Error: EXIT_STATUS_CONFIGURATION when settings
 * in steps and in samples are mixed, warm-up does not end before the decay, the decay has no end
 * (neither its own nor the run's is set), or min-lr is above lr. */
int lr_schedule_from_settings(struct lr_schedule *schedule, const struct settings *settings,
                              int64_t global_batch, const char *prefix, struct error *error);

struct weight_decay_schedule {
    enum lr_style style; /* LR_CONSTANT, LR_LINEAR or LR_COSINE */
    double start, end;   /* alike when constant; start <= end */
    int64_t samples;     /* `end` is reached here */
};

double weight_decay_at(const struct weight_decay_schedule *schedule, int64_t samples);

/* Over the samples of the run. Error: EXIT_STATUS_CONFIGURATION when one that is not constant lacks
 * its start, its end or the run's, or goes down. */
int weight_decay_schedule_from_settings(struct weight_decay_schedule *schedule,
                                        const struct settings *settings, int64_t global_batch,
                                        const char *prefix, struct error *error);

#endif
