/* The loss scale of fp16 training, as Megatron has it: the loss is multiplied by it, so that small
 * gradients do not vanish; a gradient that overflows is left out, and the scale shrinks.
 *
 * It halves when `hysteresis` overflows have come, and at every one after that, until `window`
 * updates in a row without one double it and allow as many overflows again.
 */
#ifndef MTLLM_TRAINER_LOSS_SCALE_H
#define MTLLM_TRAINER_LOSS_SCALE_H

#include <stdbool.h>

#include "ckpt/checkpoint.h"
#include "core/settings.h"

struct loss_scale {
    bool dynamic;
    double initial, minimum;
    int64_t window, hysteresis;
};

/* `fp16` false: the scale is 1 and stays so. */
void loss_scale_from_settings(struct loss_scale *scale, const struct settings *settings, bool fp16);

/* The state of a run that begins. */
void loss_scale_begin(const struct loss_scale *scale, struct checkpoint_state *state);

/* After an update, or one that was skipped because the gradient overflowed. */
void loss_scale_update(const struct loss_scale *scale, struct checkpoint_state *state,
                       bool overflow);

#endif
