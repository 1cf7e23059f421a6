#include "trainer/loss_scale.h"

void loss_scale_from_settings(struct loss_scale *scale, const struct settings *settings, bool fp16)
{
    bool constant = setting_is_set(settings, SETTING_LOSS_SCALE);

    *scale = (struct loss_scale){
        .dynamic = fp16 && !constant,
        .initial = !fp16      ? 1
                   : constant ? setting_real(settings, SETTING_LOSS_SCALE)
                              : setting_real(settings, SETTING_INITIAL_LOSS_SCALE),
        .minimum = 1,
        .window = setting_integer(settings, SETTING_LOSS_SCALE_WINDOW),
        .hysteresis = setting_integer(settings, SETTING_LOSS_SCALE_HYSTERESIS),
    };
}

void loss_scale_begin(const struct loss_scale *scale, struct checkpoint_state *state)
{
    state->loss_scale = scale->initial;
    state->scale_clean_steps = 0;
    state->scale_overflows_left = scale->hysteresis;
}

void loss_scale_update(const struct loss_scale *scale, struct checkpoint_state *state,
                       bool overflow)
{
    if (!scale->dynamic)
        return;
    if (overflow) {
        state->scale_clean_steps = 0;
        if (state->scale_overflows_left > 0)
            state->scale_overflows_left--;
        if (state->scale_overflows_left == 0 && state->loss_scale / 2 >= scale->minimum)
            state->loss_scale /= 2;
    } else if (++state->scale_clean_steps == scale->window) {
        state->scale_clean_steps = 0;
        state->scale_overflows_left = scale->hysteresis;
        state->loss_scale *= 2;
    }
}
