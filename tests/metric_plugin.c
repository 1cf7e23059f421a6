/* Metrics for tests/metrics_plugin.bats: some that mtllm has itself, by other means; and, with one
 * of the macros below, what a metric should not do. */
#include <math.h>
#include <mtllm-metric.h>
#include <stdlib.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION MTLLM_METRIC_VERSION
#endif

static double mean(const double *sums)
{
    return sums[0] / sums[1];
}

static int add_loss(const struct mtllm_metric_tokens *tokens, double *sums)
{
#ifdef CRASH
    *(volatile int *)0 = 1;
#endif
#ifdef WRITE
    ((float *)tokens->mask)[0] = 1;
#endif
#ifdef LEAVE
    exit(7);
#endif
#ifdef HANG
    pause();
#endif
#ifdef REFUSE
    return 3;
#endif
    for (int64_t i = 0; i < tokens->count; i++) {
        if (tokens->mask[i] == 0)
            continue;
        sums[0] += (double)tokens->mask[i] * (double)tokens->loss[i];
        sums[1] += (double)tokens->mask[i];
    }
    return 0;
}

static int add_hits(const struct mtllm_metric_tokens *tokens, double *sums)
{
    for (int64_t i = 0; i < tokens->count; i++) {
        if (tokens->mask[i] == 0)
            continue;
        sums[0] += tokens->argmax[i] == tokens->labels[i];
        sums[1]++;
    }
    return 0;
}

/* Where a label is the next token of the same document. */
static int add_followed(const struct mtllm_metric_tokens *tokens, double *sums)
{
    for (int64_t i = 0; i + 1 < tokens->count; i++) {
        if (tokens->labels[i] < 0 || tokens->positions[i + 1] != tokens->positions[i] + 1)
            continue;
        sums[0] += tokens->labels[i] == tokens->tokens[i + 1];
        sums[1]++;
    }
    return 0;
}

#ifdef LOGITS
static int add_logit_loss(const struct mtllm_metric_tokens *tokens, double *sums)
{
    for (int64_t i = 0; i < tokens->count; i++) {
        const float *logits = tokens->logits + i * tokens->vocabulary;
        double sum = 0;

        if (tokens->mask[i] == 0)
            continue;
        for (int64_t j = 0; j < tokens->vocabulary; j++)
            sum += exp((double)logits[j] - (double)logits[tokens->argmax[i]]);
        sums[0] += (double)tokens->mask[i] * (log(sum) + (double)logits[tokens->argmax[i]] -
                                              (double)logits[tokens->labels[i]]);
        sums[1] += (double)tokens->mask[i];
    }
    return 0;
}
#endif

#ifdef NOT_A_NUMBER
static double nothing(const double *sums)
{
    return 0 * sums[0] / 0.0;
}
#endif

static const struct mtllm_metric metrics[] = {
#ifdef TAKEN
    {.name = "loss", .unit = "", .help = "", .sums = 2, .add = add_loss, .value = mean},
#endif
#ifdef NOT_A_NUMBER
    {.name = "nothing", .unit = "", .help = "", .sums = 2, .add = add_loss, .value = nothing},
#endif
    {.name = "my_loss", .unit = "nats", .help = "", .sums = 2, .add = add_loss, .value = mean},
    {.name = "my_accuracy", .unit = "", .help = "", .sums = 2, .add = add_hits, .value = mean},
    {.name = "followed", .unit = "", .help = "", .sums = 2, .add = add_followed, .value = mean},
#ifdef LOGITS
    {.name = "logit_loss",
     .unit = "nats",
     .help = "",
     .wants_logits = 1,
     .sums = 2,
     .add = add_logit_loss,
     .value = mean},
#endif
};

extern const struct mtllm_metrics mtllm_metrics;
const struct mtllm_metrics mtllm_metrics = {VERSION, sizeof(metrics) / sizeof(*metrics), metrics};
