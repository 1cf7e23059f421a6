/* Two metrics of a validation of your own. Build it where mtllm is installed:
 *
 *     cc -O2 -shared -fPIC -o metric.so metric.c -lm
 *     mtllm-train --metrics-plugin=./metric.so ...
 *
 * sure     share of the tokens that the model gave more than half of the probability
 * entropy  of the model's prediction, in nats, mean of the tokens; this one looks at logits, which
 *          take time and memory: leave it away if you do not need it
 *
 * Both count the tokens that have a part in the loss. See mtllm-metric(3).
 */
#include <math.h>
#include <mtllm-metric.h>

/* Sums over tokens: what is counted, and the tokens. */
enum { COUNTED, TOKENS };

static double mean(const double *sums)
{
    return sums[TOKENS] > 0 ? sums[COUNTED] / sums[TOKENS] : 0;
}

static int add_sure(const struct mtllm_metric_tokens *tokens, double *sums)
{
    for (int64_t i = 0; i < tokens->count; i++) {
        if (tokens->mask[i] == 0)
            continue;
        sums[COUNTED] += tokens->loss[i] < logf(2);
        sums[TOKENS]++;
    }
    return 0;
}

static double entropy_of(const float *logits, int64_t count, int32_t greatest)
{
    double sum = 0, weighted = 0;

    for (int64_t i = 0; i < count; i++) {
        double x = logits[i] - logits[greatest], e = exp(x);

        sum += e;
        weighted += e * x;
    }
    return log(sum) - weighted / sum;
}

static int add_entropy(const struct mtllm_metric_tokens *tokens, double *sums)
{
    for (int64_t i = 0; i < tokens->count; i++) {
        if (tokens->mask[i] == 0)
            continue;
        sums[COUNTED] += entropy_of(tokens->logits + i * tokens->vocabulary, tokens->vocabulary,
                                    tokens->argmax[i]);
        sums[TOKENS]++;
    }
    return 0;
}

static const struct mtllm_metric metrics[] = {
    {.name = "sure",
     .unit = "",
     .help = "share of tokens with a probability above one half",
     .sums = 2,
     .add = add_sure,
     .value = mean},
    {.name = "entropy",
     .unit = "nats",
     .help = "mean entropy of predictions",
     .wants_logits = 1,
     .sums = 2,
     .add = add_entropy,
     .value = mean},
};
MTLLM_METRICS(metrics);
