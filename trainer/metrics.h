/* The metrics of a run: one table, from which the console line and metrics.jsonl are printed.
 *
 * Values are those of the whole world: whoever fills a row has reduced them already. One rank
 * writes. Losing a line of metrics never stops a training.
 */
#ifndef MTLLM_TRAINER_METRICS_H
#define MTLLM_TRAINER_METRICS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "trainer/outlier.h"

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
    METRIC(LOSS, "loss", "train", "nats", -1, METRIC_MEAN,                                         \
           "mean loss of the tokens of the step, or of a validation")                              \
    METRIC(LOSS_OUTLIER, "loss_outlier", "train", "", -1, METRIC_LAST,                             \
           "standard deviations above the mean of the steps before")                               \
    METRIC(PERPLEXITY, "perplexity", "train", "", -1, METRIC_LAST,                                 \
           "e to the loss; validation only")                                                       \
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
    METRIC(GRAD_NORM_OUTLIER, "grad_norm_outlier", "train", "", -1, METRIC_LAST,                   \
           "standard deviations above the mean of the steps before")                               \
    METRIC(LOSS_SCALE, "loss_scale", "train", "", -1, METRIC_LAST,                                 \
           "that the step was computed with; 1 but in fp16")                                       \
    METRIC(BATCH_SIZE, "batch_size", "data", "sequences", 0, METRIC_LAST, "of the step")           \
    METRIC(TOKENS, "tokens", "data", "tokens", 0, METRIC_LAST, "with a target, trained on so far") \
    METRIC(SAMPLES, "samples", "data", "sequences", 0, METRIC_LAST, "trained on so far")           \
    METRIC(TOKENS_PER_S, "tokens_per_s", "perf", "tokens/s", 1, METRIC_RATE,                       \
           "of all ranks together")                                                                \
    METRIC(TOKENS_PER_S_GPU, "tokens_per_s_gpu", "perf", "tokens/s", 1, METRIC_RATE, "a rank")     \
    METRIC(                                                                                        \
        TFLOPS, "tflops", "perf", "TFLOP/s", 5, METRIC_RATE,                                       \
        "a rank: model FLOPs, no recomputation; attention as a causal mask and a window leave it") \
    METRIC(TFLOPS_FULL, "tflops_full", "perf", "TFLOP/s", 5, METRIC_RATE,                          \
           "the same with attention of every token to all, as PaLM counts it")                     \
    METRIC(MFU, "mfu", "perf", "", 4, METRIC_RATE,                                                 \
           "share of the device's peak that is tflops; absent if unknown")                         \
    METRIC(MFU_FULL, "mfu_full", "perf", "", 4, METRIC_RATE, "the same of tflops_full")            \
    METRIC(STEP_S, "step_s", "perf", "s", 6, METRIC_MEAN, "duration of a step")                    \
    METRIC(DATA_WAIT_S, "data_wait_s", "perf", "s", 6, METRIC_MEAN,                                \
           "of step_s, waiting for data, mean of ranks")                                           \
    METRIC(FORWARD_S, "forward_s", "perf", "s", 6, METRIC_MEAN,                                    \
           "of step_s, forward, mean of ranks")                                                    \
    METRIC(BACKWARD_S, "backward_s", "perf", "s", 6, METRIC_MEAN,                                  \
           "of step_s, backward, mean of ranks")                                                   \
    METRIC(COMMUNICATION_S, "communication_s", "perf", "s", 6, METRIC_MEAN,                        \
           "of step_s, collectives that nothing is computed beside, mean of ranks")                \
    METRIC(OPTIMIZER_S, "optimizer_s", "perf", "s", 6, METRIC_MEAN,                                \
           "of step_s, the norm, agreement and update of rank 0")                                  \
    METRIC(PIPELINE_IDLE, "pipeline_idle", "perf", "", 4, METRIC_MEAN,                             \
           "share of step_s that ranks wait for other stages, mean of ranks")                      \
    METRIC(CHECKPOINT_S, "checkpoint_s", "perf", "s", 6, METRIC_SUM,                               \
           "how long saving has held up rank 0 since the step before")                             \
    METRIC(MEMORY_GIB, "memory_gib", "mem", "GiB", 3, METRIC_LAST,                                 \
           "taken of rank 0's GPU; on CPUs the most that its process has had")                     \
    METRIC(SKIPPED, "skipped", "train", "", 0, METRIC_LAST, "steps without an update so far")      \
    METRIC(NONFINITE, "nonfinite", "train", "", 0, METRIC_LAST,                                    \
           "steps whose loss or gradient was not finite so far")                                   \
    METRIC(ETA_S, "eta_s", "perf", "s", 0, METRIC_LAST,                                            \
           "time left, at the pace of the last steps")                                             \
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

/* What a training has seen of one of its token files, in the order of the settings. */
struct metrics_dataset {
    const char *name;      /* PREFIX */
    double tokens, epochs; /* with a target; times through */
};

/* A metric of the site (metrics_plugin.h). */
struct metrics_custom {
    const char *name;
    double value;
};

/* One line. Start from zeros; what is not set is not printed. */
struct metrics_row {
    const char *eval; /* the set's name in a validation line, NULL in a training step's */
    const struct metrics_dataset *datasets; /* [dataset_count] */
    int dataset_count;
    const struct metrics_custom *custom; /* [custom_count], of a validation */
    int custom_count;
    bool present[METRIC_COUNT];
    double values[METRIC_COUNT];
};

static inline void metrics_set(struct metrics_row *row, enum metric_id id, double value)
{
    row->present[id] = true;
    row->values[id] = isnan(value) ? NAN : value; /* whose sign nobody wants to see */
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

/* What the steps of a file tell those that follow. */
struct metrics_past {
    struct outlier loss, grad_norm;
    int64_t nonfinite; /* steps */
};

/* From where a run goes on. */
struct metrics_resume {
    int64_t step;
    const char *const *again; /* names of the validations it makes of that step, NULL behind them */
};

/* Open `path` to append to, made when missing. Lines are dropped that will be made again, those of
 * steps after `resume` and of its validations, and lines that are no JSON object with a step, such
 * as the last line of a run that was killed. The file is replaced as a whole or stays as it is.
 * Error: EXIT_STATUS_IO. */
int metrics_open(struct metrics **metrics, const char *path, const struct metrics_resume *resume,
                 struct error *error);
void metrics_close(struct metrics *metrics); /* NULL is nothing */
/* Of the lines that the file had when it was opened, and that stayed. */
const struct metrics_past *metrics_past(const struct metrics *metrics);

/* Append one JSON object and newline in one write; numbers that JSON has not are null. The first
 * failure is a warning, later ones are counted, and the file never holds part of a line. */
void metrics_write(struct metrics *metrics, const struct metrics_row *row);
/* Lines that could not be written. */
int64_t metrics_lost(const struct metrics *metrics);

/* Show every line of a metrics.jsonl as the row that it was written from, in order; nothing of a
 * device. A row's `eval` is valid during the call. Error: EXIT_STATUS_IO. */
int metrics_replay(const char *path, void (*see)(void *user, const struct metrics_row *row),
                   void *user, struct error *error);

/* One line of at most `size` bytes with its end, without newline, as metrics_write() has it; `size`
 * of metrics_json_size() is always enough. */
void metrics_format_json(const struct metrics_row *row, char *text, size_t size);
size_t metrics_json_size(const struct metrics_row *row);

/* A number as it stands there: "null" when it is not finite; 32 bytes are enough. */
void metrics_format_number(double value, int decimals, char *text, size_t size);
/* What is read back. */
double metrics_round(double value, int decimals);

/* The line for people, in Megatron's words and order: scripts that read its logs go on reading
 * ours. `steps`: of the whole training. */
void metrics_format_console(const struct metrics_row *row, int64_t steps, char *text, size_t size);
/* "2d03h", "3h12m", "12m05s", "42s" of seconds. */
void metrics_format_duration(double seconds, char *text, size_t size);

#endif
