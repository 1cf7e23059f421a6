/* mtllm-metric.h: a site's own metrics of a validation, as a shared object.
 *
 *     #include <mtllm-metric.h>
 *
 *     static int add(const struct mtllm_metric_tokens *tokens, double *sums);
 *     static double value(const double *sums);
 *
 *     static const struct mtllm_metric metrics[] = {
 *         {.name = "sure", .unit = "", .help = "...", .sums = 2, .add = add, .value = value},
 *     };
 *     MTLLM_METRICS(metrics);
 *
 *     cc -shared -fPIC -o metric.so metric.c
 *     mtllm-train --metrics-plugin=./metric.so ...
 *
 * See mtllm-metric(3). This header needs nothing else of mtllm.
 */
#ifndef MTLLM_METRIC_H
#define MTLLM_METRIC_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Goes up when an object built before would be misunderstood. */
#define MTLLM_METRIC_VERSION 1

enum {
    MTLLM_METRIC_MOST = 16,      /* metrics of one object */
    MTLLM_METRIC_MOST_SUMS = 16, /* numbers that one adds up */
    MTLLM_METRIC_NAME_BYTES = 48 /* of a name, with its end */
};

/* Some tokens of a validation, and what the model said of what follows each. */
struct mtllm_metric_tokens {
    int64_t count;
    int64_t vocabulary;
    const int32_t *tokens; /* [count] */
    const int32_t *labels; /* [count] the token that follows; negative: none */
    const float *mask;     /* [count] the label's weight in the loss; 0: it has no part in it */
    const uint8_t
        *answers; /* [count] 1: the label is the assistant's own word, in a conversation */
    const int32_t *positions; /* [count] in the document, from 0 */
    const float *loss;        /* [count] nats: -log of the label's probability, not weighted; 0
                                 without a label */
    const int32_t *argmax;    /* [count] the token with the greatest logit, the first of several */
    const float *logits;      /* [count, vocabulary]; NULL unless the metric wants them */
};

struct mtllm_metric {
    const char *name; /* in every place: letters, digits and _, and no metric of mtllm's own */
    const char *unit; /* "" for none */
    const char *help; /* one line */
    int wants_logits; /* 1: they are collected for it, which takes time and memory */
    int sums;         /* 1 to MTLLM_METRIC_MOST_SUMS */
    /* Add to sums[] what these tokens contribute. Each token of the validation is seen once, by
     * some rank, in no particular order. 0, or anything else to be switched off. */
    int (*add)(const struct mtllm_metric_tokens *tokens, double *sums);
    /* The metric, from the sums over all tokens of all ranks. A value that is not finite switches
     * the metric off. */
    double (*value)(const double *sums);
};

/* What the object exports as mtllm_metrics. */
struct mtllm_metrics {
    int version; /* MTLLM_METRIC_VERSION of its build */
    int count;   /* 1 to MTLLM_METRIC_MOST */
    const struct mtllm_metric *list;
};

#define MTLLM_METRICS(list)                                                                        \
    extern const struct mtllm_metrics mtllm_metrics;                                               \
    __attribute__((visibility("default"))) const struct mtllm_metrics mtllm_metrics = {            \
        MTLLM_METRIC_VERSION, (int)(sizeof(list) / sizeof(*(list))), list}

#ifdef __cplusplus
}
#endif

#endif
