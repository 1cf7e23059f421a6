#include "core/batch_ramp.h"

#include <errno.h>
#include <stdlib.h>

static int64_t increments(const struct batch_ramp *ramp)
{
    return (ramp->full - ramp->start) / ramp->increment;
}

/* Of one size. Rounded as Megatron rounds it, on which it depends where a size begins. */
static double samples_each(const struct batch_ramp *ramp)
{
    return (double)ramp->samples / (double)increments(ramp);
}

static bool is_full(const struct batch_ramp *ramp, int64_t consumed)
{
    return ramp->samples == 0 || consumed > ramp->samples;
}

int64_t batch_ramp_size(const struct batch_ramp *ramp, int64_t consumed)
{
    if (is_full(ramp, consumed))
        return ramp->full;
    return ramp->start + (int64_t)((double)consumed / samples_each(ramp)) * ramp->increment;
}

/* Steps from `consumed` on that surely have the size of the first; at least that one. */
static int64_t steps_alike(const struct batch_ramp *ramp, int64_t consumed, int64_t end)
{
    int64_t size = batch_ramp_size(ramp, consumed);
    int64_t next = (size - ramp->start) / ramp->increment + 1;
    double turn = (double)next * samples_each(ramp);
    int64_t count;

    if (turn < (double)end)
        end = (int64_t)turn;
    count = (end - consumed) / size - 1;
    return count > 1 ? count : 1;
}

int64_t batch_ramp_steps(const struct batch_ramp *ramp, int64_t consumed, int64_t end)
{
    int64_t steps = 0;

    while (!is_full(ramp, consumed)) {
        int64_t size = batch_ramp_size(ramp, consumed), count = steps_alike(ramp, consumed, end);

        if (size > end - consumed)
            return steps;
        steps += count;
        consumed += count * size;
    }
    return consumed < end ? steps + (end - consumed) / ramp->full : steps;
}

static bool parse_ramp(struct batch_ramp *ramp, const char *text)
{
    int64_t *const numbers[] = {&ramp->start, &ramp->increment, &ramp->samples};

    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
        char *end;

        errno = 0;
        *numbers[i] = strtoll(text, &end, 10);
        if (end == text || (*end && *end != ' ') || errno || *numbers[i] < 1)
            return false;
        text = end;
    }
    return *text == '\0';
}

static int check_ramp(const struct batch_ramp *ramp, const struct settings *settings,
                      const char *prefix, struct error *error)
{
    const char *text = setting_text(settings, SETTING_BATCH_SIZE_RAMP);

    if (setting_is_set(settings, SETTING_STEPS))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%sbatch-size-ramp=%s: its steps differ in size, so the run's length is "
                         "counted in samples; set %strain-samples instead of %ssteps",
                         prefix, text, prefix, prefix);
    if (ramp->start >= ramp->full)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%sbatch-size-ramp=%s: begins with %lld, and %sglobal-batch-size is %lld; "
                         "begin with less, or leave the ramp away",
                         prefix, text, (long long)ramp->start, prefix, (long long)ramp->full);
    if ((ramp->full - ramp->start) % ramp->increment != 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%sbatch-size-ramp=%s: from %lld it does not reach "
                         "%sglobal-batch-size=%lld by adding %lld; use an increment that divides "
                         "%lld",
                         prefix, text, (long long)ramp->start, prefix, (long long)ramp->full,
                         (long long)ramp->increment, (long long)(ramp->full - ramp->start));
    return 0;
}

/* Of the start, the size after it and the end: between these there is none that the others do not
 * vouch for. */
static int check_slices(const struct batch_ramp *ramp, const struct settings *settings, int dp,
                        const char *prefix, struct error *error)
{
    int64_t micro = setting_integer(settings, SETTING_MICRO_BATCH_SIZE), slice = micro * dp;

    for (int64_t i = 0; i < 2 && ramp->samples > 0; i++) {
        int64_t size = ramp->start + i * ramp->increment;

        if (size % slice != 0)
            return error_set(
                error, EXIT_STATUS_CONFIGURATION,
                "%sbatch-size-ramp=%s: on it is a batch of %lld, not a multiple of "
                "micro-batch-size x dp = %lld x %d = %lld; begin with a multiple of %lld and "
                "add multiples of %lld",
                prefix, setting_text(settings, SETTING_BATCH_SIZE_RAMP), (long long)size,
                (long long)micro, dp, (long long)slice, (long long)slice, (long long)slice);
    }
    if (ramp->full % slice != 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%sglobal-batch-size=%lld: not a multiple of micro-batch-size x dp = "
                         "%lld x %d = %lld; use a multiple of %lld",
                         prefix, (long long)ramp->full, (long long)micro, dp, (long long)slice,
                         (long long)slice);
    return 0;
}

int batch_ramp_from_settings(struct batch_ramp *ramp, const struct settings *settings,
                             const struct layout *layout, const char *prefix, struct error *error)
{
    const char *text = setting_text(settings, SETTING_BATCH_SIZE_RAMP);

    *ramp = (struct batch_ramp){.full = setting_is_set(settings, SETTING_GLOBAL_BATCH_SIZE)
                                            ? setting_integer(settings, SETTING_GLOBAL_BATCH_SIZE)
                                            : setting_integer(settings, SETTING_MICRO_BATCH_SIZE) *
                                                  layout->dp};
    if (setting_is_set(settings, SETTING_STEPS) && setting_is_set(settings, SETTING_TRAIN_SAMPLES))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%strain-samples=%s: %ssteps=%s says how long to train too; leave one of "
                         "them away",
                         prefix, setting_text(settings, SETTING_TRAIN_SAMPLES), prefix,
                         setting_text(settings, SETTING_STEPS));
    if (setting_is_set(settings, SETTING_BATCH_SIZE_RAMP)) {
        if (!parse_ramp(ramp, text))
            return error_set(error, EXIT_STATUS_USAGE,
                             "%sbatch-size-ramp=%s: not three whole numbers from 1 on; write "
                             "\"START INCREMENT SAMPLES\", such as \"16 8 300000\"",
                             prefix, text);
        if (check_ramp(ramp, settings, prefix, error) < 0)
            return -1;
    }
    return check_slices(ramp, settings, layout->dp, prefix, error);
}
