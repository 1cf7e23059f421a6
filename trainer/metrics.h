/* The metrics of a run: one table, from which the console line and metrics.jsonl are printed.
 *
 * Values are those of the whole world: whoever fills a row has reduced them already. One rank
 * writes. Losing a line of metrics never stops a training.
 */
#ifndef MTLLM_TRAINER_METRICS_H
#define MTLLM_TRAINER_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

/* How the values of several steps become one. */
enum metric_over_steps {
    METRIC_LAST,
    METRIC_SUM,
    METRIC_MEAN, /* of the steps that have it */
    METRIC_RATE, /* something a second: mean weighted by step_s */
};

/* METRIC(id, name, group, unit, decimals, over_steps, help)
 *
 * group: "train", "perf", "mem" or "data": where a viewer with sections shows it
 * decimals: digits behind the point; -1: as many as it takes to read back the same number. Whole
 * numbers are exact up to 2^53. The order is that of the keys in metrics.jsonl. */
#define METRICS(METRIC)                                                                            \
    METRIC(STEP, "step", "train", "", 0, METRIC_LAST, "updates made, this one included")           \
    METRIC(LOSS, "loss", "train", "nats", -1, METRIC_MEAN, "mean loss of the tokens of the step")  \
    METRIC(PERPLEXITY, "perplexity", "train", "", -1, METRIC_LAST, "exp(loss); validation only")   \
    METRIC(ACCURACY, "accuracy", "train", "", -1, METRIC_LAST,                                     \
           "share of the tokens with a loss that are the model's first choice; validation only")   \
    METRIC(INSTRUCT_ACCURACY, "instruct_accuracy", "train", "", -1, METRIC_LAST,                   \
           "the same of the assistant's words, without tokens of the template; validation only")   \
    METRIC(COUNT_LOSS_MASK, "count_loss_mask", "train", "tokens", -1, METRIC_LAST,                 \
           "with a loss, a sequence; validation only")                                             \
    METRIC(COUNT_INSTRUCT_MASK, "count_instruct_mask", "train", "tokens", -1, METRIC_LAST,         \
           "of the assistant's words, a sequence; validation only")                                \
    METRIC(LR, "lr", "train", "", -1, METRIC_LAST, "learning rate of this update")                 \
    METRIC(GRAD_NORM, "grad_norm", "train", "", -1, METRIC_LAST, "global norm before clipping")    \
    METRIC(TOKENS, "tokens", "data", "tokens", 0, METRIC_LAST, "with a target, trained on so far") \
    METRIC(SAMPLES, "samples", "data", "sequences", 0, METRIC_LAST, "trained on so far")           \
    METRIC(TOKENS_PER_S, "tokens_per_s", "perf", "tokens/s", 1, METRIC_RATE,                       \
           "of all ranks together")                                                                \
    METRIC(TFLOPS, "tflops", "perf", "TFLOP/s", 5, METRIC_RATE,                                    \
           "a rank: model FLOPs, no recomputation")                                                \
    METRIC(MFU, "mfu", "perf", "", 4, METRIC_RATE,                                                 \
           "share of the device's peak; absent if unknown")                                        \
    METRIC(STEP_S, "step_s", "perf", "s", 6, METRIC_MEAN, "duration of a step")                    \
    METRIC(DATA_WAIT_S, "data_wait_s", "perf", "s", 6, METRIC_MEAN,                                \
           "of it waiting for data, mean of ranks")                                                \
    METRIC(PIPELINE_IDLE, "pipeline_idle", "perf", "", 4, METRIC_MEAN,                             \
           "share of it waiting for other stages, mean of ranks; on CPUs")                         \
    METRIC(SKIPPED, "skipped", "train", "", 0, METRIC_LAST, "steps without an update so far")      \
    METRIC(TIME, "time", "train", "s", 3, METRIC_LAST, "when: seconds since 1970")

enum metric_id {
#define METRIC(id, ...) METRIC_##id,
    METRICS(METRIC)
#undef METRIC
        METRIC_COUNT
};

struct metric {
    const char *name, *group, *unit;
    int decimals;
    enum metric_over_steps over_steps;
    const char *help;
};

extern const struct metric metric_table[METRIC_COUNT];

/* One line. Start from zeros; what is not set is not printed. */
struct metrics_row {
    const char *eval; /* "valid" in a validation line, NULL in a training step's */
    bool present[METRIC_COUNT];
    double values[METRIC_COUNT];
};

static inline void metrics_set(struct metrics_row *row, enum metric_id id, double value)
{
    row->present[id] = true;
    row->values[id] = value;
}

/* Several steps as one row, for a console line every few steps. Starts from zeros. */
struct metrics_interval {
    int64_t steps;
    int64_t counts[METRIC_COUNT];
    double sums[METRIC_COUNT];
    double weights[METRIC_COUNT];
};

/* A loss that is not finite is left out of the mean, as Megatron does with skipped updates. */
void metrics_interval_add(struct metrics_interval *interval, const struct metrics_row *row);
/* The steps added since the last call as one row; the interval begins anew. */
void metrics_interval_take(struct metrics_interval *interval, struct metrics_row *row);

struct metrics; /* an open metrics.jsonl */

/* Open `path` to append to, made when missing. Lines of steps after `resume_step` are dropped, and
 * of validations from it on: they will be run again; so are lines that are no JSON object with a
 * step, such as the last line of a run that was killed. The file is replaced as a whole or stays as
 * it is. Error: EXIT_STATUS_IO. */
int metrics_open(struct metrics **metrics, const char *path, int64_t resume_step,
                 struct error *error);
void metrics_close(struct metrics *metrics); /* NULL is nothing */

/* Append one JSON object and newline in one write; numbers that JSON has not are null. The first
 * failure is a warning, later ones are counted, and the file never holds part of a line. */
void metrics_write(struct metrics *metrics, const struct metrics_row *row);
/* Lines that could not be written. */
int64_t metrics_lost(const struct metrics *metrics);

/* One line of at most `size` bytes with its end, without newline, as metrics_write() has it. */
void metrics_format_json(const struct metrics_row *row, char *text, size_t size);

/* The line for people, on standard output, in Megatron's words and order: scripts that read its
 * logs go on reading ours. `steps`: of the whole training. */
void metrics_print(const struct metrics_row *row, int64_t steps, int64_t global_batch);
void metrics_format_console(const struct metrics_row *row, int64_t steps, int64_t global_batch,
                            char *text, size_t size);

#endif
