#include "trainer/schedule.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Share of max_lr - min_lr that is left at the share `r` in [0, 1] of the decay. */
static double decay_left(enum lr_style style, double r)
{
    return style == LR_LINEAR ? 1 - r : 0.5 * (cos(M_PI * r) + 1);
}

double lr_at(const struct lr_schedule *schedule, int64_t samples)
{
    int64_t warmup = schedule->warmup_samples, decay = schedule->decay_samples;
    double r;

    if (warmup > 0 && samples <= warmup)
        return schedule->max_lr * (double)samples / (double)warmup;
    if (schedule->style == LR_CONSTANT)
        return schedule->max_lr;
    if (samples > decay)
        return schedule->min_lr;
    if (schedule->style == LR_INVERSE_SQUARE_ROOT)
        return fmax(schedule->min_lr, schedule->max_lr * sqrt((double)(warmup > 1 ? warmup : 1)) /
                                          sqrt((double)(samples > 1 ? samples : 1)));
    if (samples == decay)
        return schedule->min_lr;
    r = (double)(samples - warmup) / (double)(decay - warmup);
    return schedule->min_lr +
           decay_left(schedule->style, r) * (schedule->max_lr - schedule->min_lr);
}

static enum lr_style style_from_settings(const struct settings *settings)
{
    const char *name = setting_text(settings, SETTING_LR_SCHEDULE);

    if (!strcmp(name, "constant"))
        return LR_CONSTANT;
    if (!strcmp(name, "linear"))
        return LR_LINEAR;
    if (!strcmp(name, "inverse-square-root"))
        return LR_INVERSE_SQUARE_ROOT;
    assert(!strcmp(name, "cosine"));
    return LR_COSINE;
}

static int samples_of(int64_t *samples, const struct settings *settings, enum setting_id id,
                      int64_t global_batch, const char *prefix, struct error *error)
{
    int64_t steps = setting_integer(settings, id);

    if (__builtin_mul_overflow(steps, global_batch, samples))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%s%s=%lld: with %lld sequences a step these are more samples than can be "
                         "counted; use fewer steps",
                         prefix, setting_table[id].name, (long long)steps, (long long)global_batch);
    return 0;
}

/* Nothing decays when no step is made, or nothing ever decays. */
static int check_decay(const struct settings *settings, enum setting_id end, const char *prefix,
                       struct error *error)
{
    int64_t warmup = setting_integer(settings, SETTING_LR_WARMUP_STEPS);

    if (!setting_is_set(settings, end))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%slr-schedule=%s: needs to know when the decay ends; set %ssteps or "
                         "%slr-decay-steps, or use %slr-schedule=constant",
                         prefix, setting_text(settings, SETTING_LR_SCHEDULE), prefix, prefix,
                         prefix);
    if (warmup >= setting_integer(settings, end))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%slr-warmup-steps=%lld: the warm-up must end before the decay does, "
                         "which is at step %lld (%s%s); use a shorter warm-up",
                         prefix, (long long)warmup, (long long)setting_integer(settings, end),
                         prefix, setting_table[end].name);
    return 0;
}

int lr_schedule_from_settings(struct lr_schedule *schedule, const struct settings *settings,
                              int64_t global_batch, const char *prefix, struct error *error)
{
    bool decays_apart = setting_is_set(settings, SETTING_LR_DECAY_STEPS);
    enum setting_id end = decays_apart ? SETTING_LR_DECAY_STEPS : SETTING_STEPS;
    bool idle =
        setting_is_set(settings, SETTING_STEPS) && setting_integer(settings, SETTING_STEPS) == 0;

    *schedule = (struct lr_schedule){
        .style = style_from_settings(settings),
        .max_lr = setting_real(settings, SETTING_LR),
        .min_lr = setting_real(settings, SETTING_MIN_LR),
    };
    if (schedule->style != LR_CONSTANT && schedule->min_lr > schedule->max_lr)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%smin-lr=%s: above the peak, %slr=%s; use a smaller min-lr", prefix,
                         setting_text(settings, SETTING_MIN_LR), prefix,
                         setting_text(settings, SETTING_LR));
    if (samples_of(&schedule->warmup_samples, settings, SETTING_LR_WARMUP_STEPS, global_batch,
                   prefix, error) < 0)
        return -1;
    if (schedule->style == LR_CONSTANT || idle)
        return 0;
    if (check_decay(settings, end, prefix, error) < 0)
        return -1;
    return samples_of(&schedule->decay_samples, settings, end, global_batch, prefix, error);
}

double weight_decay_at(const struct weight_decay_schedule *schedule, int64_t samples)
{
    double r;

    if (schedule->style == LR_CONSTANT || samples >= schedule->samples)
        return schedule->end;
    r = (double)samples / (double)schedule->samples;
    return schedule->start + decay_left(schedule->style, 1 - r) * (schedule->end - schedule->start);
}

int weight_decay_schedule_from_settings(struct weight_decay_schedule *schedule,
                                        const struct settings *settings, int64_t global_batch,
                                        const char *prefix, struct error *error)
{
    static const enum setting_id needed[] = {SETTING_START_WEIGHT_DECAY, SETTING_END_WEIGHT_DECAY,
                                             SETTING_STEPS};
    const char *style = setting_text(settings, SETTING_WEIGHT_DECAY_SCHEDULE);
    double constant = setting_real(settings, SETTING_WEIGHT_DECAY);

    *schedule = (struct weight_decay_schedule){LR_CONSTANT, constant, constant, 0};
    if (strcmp(style, "constant") == 0)
        return 0;
    for (size_t i = 0; i < sizeof(needed) / sizeof(*needed); i++)
        if (!setting_is_set(settings, needed[i]))
            return error_set(error, EXIT_STATUS_CONFIGURATION,
                             "%sweight-decay-schedule=%s: set %s%s too", prefix, style, prefix,
                             setting_table[needed[i]].name);
    schedule->style = strcmp(style, "linear") == 0 ? LR_LINEAR : LR_COSINE;
    schedule->start = setting_real(settings, SETTING_START_WEIGHT_DECAY);
    schedule->end = setting_real(settings, SETTING_END_WEIGHT_DECAY);
    if (schedule->end < schedule->start)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%send-weight-decay=%s: below %sstart-weight-decay=%s; weight decay does "
                         "not go down",
                         prefix, setting_text(settings, SETTING_END_WEIGHT_DECAY), prefix,
                         setting_text(settings, SETTING_START_WEIGHT_DECAY));
    return samples_of(&schedule->samples, settings, SETTING_STEPS, global_batch, prefix, error);
}
