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
    double warmup = schedule->warmup_samples, n = (double)samples, r;
    int64_t decay = schedule->decay_samples;

    if (warmup > 0 && n <= warmup)
        return schedule->max_lr * n / warmup;
    if (schedule->style == LR_CONSTANT)
        return schedule->max_lr;
    if (samples > decay)
        return schedule->min_lr;
    if (schedule->style == LR_INVERSE_SQUARE_ROOT)
        return fmax(schedule->min_lr, schedule->max_lr * sqrt(fmax(warmup, 1)) / sqrt(fmax(n, 1)));
    if (samples == decay)
        return schedule->min_lr;
    r = (n - warmup) / ((double)decay - warmup);
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

/* Where the run's length is counted in samples, so is what has a place in it. */
static bool counts_samples(const struct settings *settings)
{
    return setting_is_set(settings, SETTING_TRAIN_SAMPLES);
}

/* The setting for the run's end, or for the decay's. */
static enum setting_id end_of_run(const struct settings *settings)
{
    return counts_samples(settings) ? SETTING_TRAIN_SAMPLES : SETTING_STEPS;
}

static enum setting_id end_of_decay(const struct settings *settings)
{
    enum setting_id apart =
        counts_samples(settings) ? SETTING_LR_DECAY_SAMPLES : SETTING_LR_DECAY_STEPS;

    return setting_is_set(settings, apart) ? apart : end_of_run(settings);
}

static int samples_of(int64_t *samples, const struct settings *settings, enum setting_id id,
                      int64_t global_batch, const char *prefix, struct error *error)
{
    int64_t number = setting_integer(settings, id);

    if (counts_samples(settings))
        *samples = number;
    else if (__builtin_mul_overflow(number, global_batch, samples))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%s%s=%lld: with %lld sequences a step these are more samples than can be "
                         "counted; use fewer steps",
                         prefix, setting_table[id].name, (long long)number,
                         (long long)global_batch);
    return 0;
}

/* An unset number is 0. */
static bool is_given(const struct settings *settings, enum setting_id id)
{
    if (!setting_is_set(settings, id))
        return false;
    return setting_table[id].type == SETTING_TYPE_REAL ? setting_real(settings, id) > 0
                                                       : setting_integer(settings, id) > 0;
}

/* Nothing in steps where the run is counted in samples, nor the other way round; one warm-up. */
static int check_units(const struct settings *settings, const char *prefix, struct error *error)
{
    static const enum setting_id pairs[][2] = {
        {SETTING_LR_WARMUP_STEPS, SETTING_LR_WARMUP_SAMPLES},
        {SETTING_LR_DECAY_STEPS, SETTING_LR_DECAY_SAMPLES},
    };
    bool samples = counts_samples(settings);
    enum setting_id warmup = pairs[0][samples];

    for (size_t i = 0; i < sizeof(pairs) / sizeof(*pairs); i++) {
        enum setting_id wrong = pairs[i][!samples];

        if (is_given(settings, wrong))
            return error_set(error, EXIT_STATUS_CONFIGURATION,
                             "%s%s=%s: the run's length is counted in %s; use %s%s%s", prefix,
                             setting_table[wrong].name, setting_text(settings, wrong),
                             samples ? "samples" : "steps", prefix,
                             setting_table[pairs[i][samples]].name,
                             samples ? "" : ", or train-samples instead of steps");
    }
    if (is_given(settings, SETTING_LR_WARMUP_FRACTION) && is_given(settings, warmup))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%slr-warmup-fraction=%s: %s%s=%s says how long the warm-up is too; leave "
                         "one of them away",
                         prefix, setting_text(settings, SETTING_LR_WARMUP_FRACTION), prefix,
                         setting_table[warmup].name, setting_text(settings, warmup));
    return 0;
}

static int settle_warmup(struct lr_schedule *schedule, const struct settings *settings,
                         int64_t global_batch, const char *prefix, struct error *error)
{
    int64_t samples = 0;

    if (is_given(settings, SETTING_LR_WARMUP_FRACTION)) {
        schedule->warmup_samples =
            setting_real(settings, SETTING_LR_WARMUP_FRACTION) * (double)schedule->decay_samples;
        return 0;
    }
    if (samples_of(&samples, settings,
                   counts_samples(settings) ? SETTING_LR_WARMUP_SAMPLES : SETTING_LR_WARMUP_STEPS,
                   global_batch, prefix, error) < 0)
        return -1;
    schedule->warmup_samples = (double)samples;
    return 0;
}

static int refuse_endless_decay(const struct settings *settings, const char *prefix,
                                struct error *error)
{
    if (strcmp(setting_text(settings, SETTING_LR_SCHEDULE), "constant") == 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%slr-warmup-fraction=%s: a share of what? Set %ssteps or "
                         "%slr-decay-steps, or use %slr-warmup-steps",
                         prefix, setting_text(settings, SETTING_LR_WARMUP_FRACTION), prefix, prefix,
                         prefix);
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "%slr-schedule=%s: needs to know when the decay ends; set %ssteps or "
                     "%slr-decay-steps, or use %slr-schedule=constant",
                     prefix, setting_text(settings, SETTING_LR_SCHEDULE), prefix, prefix, prefix);
}

static int refuse_warmup(const struct settings *settings, enum setting_id end, const char *prefix,
                         struct error *error)
{
    bool samples = counts_samples(settings);
    enum setting_id warmup = is_given(settings, SETTING_LR_WARMUP_FRACTION)
                                 ? SETTING_LR_WARMUP_FRACTION
                             : samples ? SETTING_LR_WARMUP_SAMPLES
                                       : SETTING_LR_WARMUP_STEPS;

    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "%s%s=%s: the warm-up must end before the decay does, which is at %s %lld "
                     "(%s%s); use a shorter warm-up",
                     prefix, setting_table[warmup].name, setting_text(settings, warmup),
                     samples ? "sample" : "step", (long long)setting_integer(settings, end), prefix,
                     setting_table[end].name);
}

/* Nothing decays when no step is made, or nothing ever decays. */
int lr_schedule_from_settings(struct lr_schedule *schedule, const struct settings *settings,
                              int64_t global_batch, const char *prefix, struct error *error)
{
    enum setting_id run = end_of_run(settings), end = end_of_decay(settings);
    bool idle = setting_is_set(settings, run) && setting_integer(settings, run) == 0;
    bool decays, needs_end;

    *schedule = (struct lr_schedule){
        .style = style_from_settings(settings),
        .max_lr = setting_real(settings, SETTING_LR),
        .min_lr = setting_real(settings, SETTING_MIN_LR),
    };
    decays = schedule->style != LR_CONSTANT && !idle;
    needs_end = decays || is_given(settings, SETTING_LR_WARMUP_FRACTION);
    if (schedule->style != LR_CONSTANT && schedule->min_lr > schedule->max_lr)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%smin-lr=%s: above the peak, %slr=%s; use a smaller min-lr", prefix,
                         setting_text(settings, SETTING_MIN_LR), prefix,
                         setting_text(settings, SETTING_LR));
    if (check_units(settings, prefix, error) < 0)
        return -1;
    if (needs_end && !setting_is_set(settings, end))
        return refuse_endless_decay(settings, prefix, error);
    if (needs_end &&
        samples_of(&schedule->decay_samples, settings, end, global_batch, prefix, error) < 0)
        return -1;
    if (settle_warmup(schedule, settings, global_batch, prefix, error) < 0)
        return -1;
    return decays && schedule->warmup_samples >= (double)schedule->decay_samples
               ? refuse_warmup(settings, end, prefix, error)
               : 0;
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
    const enum setting_id needed[] = {SETTING_START_WEIGHT_DECAY, SETTING_END_WEIGHT_DECAY,
                                      end_of_run(settings)};
    const char *style = setting_text(settings, SETTING_WEIGHT_DECAY_SCHEDULE);
    double constant = setting_real(settings, SETTING_WEIGHT_DECAY);

    *schedule = (struct weight_decay_schedule){LR_CONSTANT, constant, constant, 0};
    if (strcmp(style, "constant") == 0) {
        for (int i = 0; i < 2; i++)
            if (setting_is_set(settings, needed[i]))
                return error_set(error, EXIT_STATUS_CONFIGURATION,
                                 "%s%s=%s: weight decay is constant; set "
                                 "%sweight-decay-schedule to linear or cosine, or leave it away",
                                 prefix, setting_table[needed[i]].name,
                                 setting_text(settings, needed[i]), prefix);
        return 0;
    }
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
    return samples_of(&schedule->samples, settings, end_of_run(settings), global_batch, prefix,
                      error);
}
