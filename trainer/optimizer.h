/* From the gradients of this rank to new weights: global norm, clipping, AdamW. */
#ifndef MTLLM_TRAINER_OPTIMIZER_H
#define MTLLM_TRAINER_OPTIMIZER_H

#include "core/settings.h"
#include "trainer/stage.h"

struct optimizer {
    double beta1, beta2, eps;
    double clip;         /* largest global norm; 0: no clipping */
    uint64_t seed;       /* of stochastic rounding */
    double *sum_squares; /* device */
};

/* Error: EXIT_STATUS_SYSTEM. */
int optimizer_create(struct optimizer *optimizer, const struct settings *settings,
                     const struct stage *stage, struct error *error);
void optimizer_destroy(struct optimizer *optimizer, const struct stage *stage);

void optimizer_zero_gradients(struct stage *stage);

/* *squared = this rank's share of the squared global norm: every weight of the model counts on one
 * rank. Error: the device's. */
int optimizer_squared_norm(const struct optimizer *optimizer, const struct stage *stage,
                           double *squared, struct error *error);

/* One AdamW update at learning rate `lr` and that weight decay, the `update`th (from 1), of
 * gradients that are `loss_scale` times too large and whose global norm without that is `norm`. */
void optimizer_update(const struct optimizer *optimizer, struct stage *stage, double lr,
                      double weight_decay, int64_t update, double norm, double loss_scale);

#endif
