/* Linear (Chen et al., 2023), dynamic NTK, YaRN (Peng et al., 2023) and Llama 3.1's. */
#include "core/rope.h"

#include <math.h>

static double base_frequency(double theta, int64_t i, int64_t dim)
{
    return pow(theta, -2.0 * (double)i / (double)dim);
}

/* Beyond the context the base grows with the length, so that the slowest pair turns as far as it
 * did. */
static double dynamic_theta(const struct model *model, int64_t seq_length)
{
    double dim = (double)model->head_dim, factor = model->rope.factor;
    double stretch = factor * (double)seq_length / (double)model->max_positions - (factor - 1);

    if (seq_length <= model->max_positions)
        return model->rope_theta;
    return model->rope_theta * pow(stretch, dim / (dim - 2));
}

/* Wavelengths below original / high stay, those above original / low are stretched, between them it
 * goes from one to the other. */
static double llama3_frequency(const struct rope_scaling *rope, double frequency)
{
    double turns = (double)rope->original_positions * frequency / (2 * M_PI);
    double low = rope->low_frequency_factor, high = rope->high_frequency_factor, smooth;

    if (turns > high)
        return frequency;
    if (turns < low)
        return frequency / rope->factor;
    smooth = (turns - low) / (high - low);
    return (1 - smooth) * frequency / rope->factor + smooth * frequency;
}

/* The dimension whose pair turns that many times in the original context. */
static double yarn_dimension(const struct model *model, double turns)
{
    return (double)model->head_dim *
           log((double)model->rope.original_positions / (turns * 2 * M_PI)) /
           (2 * log(model->rope_theta));
}

static double yarn_frequency(const struct model *model, double frequency, int64_t i)
{
    const struct rope_scaling *rope = &model->rope;
    double low = yarn_dimension(model, rope->beta_fast);
    double high = yarn_dimension(model, rope->beta_slow), ramp;

    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)(model->head_dim - 1));
    if (low == high)
        high += 0.001;
    ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
    return frequency / rope->factor * ramp + frequency * (1 - ramp);
}

static double yarn_scale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static double yarn_attention_factor(const struct rope_scaling *rope)
{
    if (rope->attention_factor > 0)
        return rope->attention_factor;
    if (rope->mscale > 0 && rope->mscale_all_dim > 0)
        return yarn_scale(rope->factor, rope->mscale) /
               yarn_scale(rope->factor, rope->mscale_all_dim);
    return yarn_scale(rope->factor, 1);
}

void rope_frequencies(const struct model *model, int64_t seq_length, double *frequencies,
                      double *attention_factor)
{
    const struct rope_scaling *rope = &model->rope;
    double theta =
        rope->kind == ROPE_DYNAMIC ? dynamic_theta(model, seq_length) : model->rope_theta;

    *attention_factor = rope->kind == ROPE_YARN ? yarn_attention_factor(rope) : 1;
    for (int64_t i = 0; i < model->head_dim / 2; i++) {
        double frequency = base_frequency(theta, i, model->head_dim);

        frequencies[i] = rope->kind == ROPE_LINEAR   ? frequency / rope->factor
                         : rope->kind == ROPE_LLAMA3 ? llama3_frequency(rope, frequency)
                         : rope->kind == ROPE_YARN   ? yarn_frequency(model, frequency, i)
                                                     : frequency;
    }
}
