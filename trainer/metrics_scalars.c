#include "trainer/metrics_scalars.h"

#include <stdio.h>
#include <string.h>

/* Megatron-LM's training.py and torchtitan's components/metrics.py; `scale` turns our unit into
 * theirs. They have one validation set; the name of one that is not "valid" stands behind. */
static const struct {
    enum metrics_names names;
    bool eval;
    enum metric_id id;
    const char *name;
    double scale;
} known[] = {
    {METRICS_NAMES_MEGATRON, false, METRIC_LOSS, "lm loss", 1},
    {METRICS_NAMES_MEGATRON, false, METRIC_LR, "learning-rate", 1},
    {METRICS_NAMES_MEGATRON, false, METRIC_GRAD_NORM, "grad-norm", 1},
    {METRICS_NAMES_MEGATRON, false, METRIC_STEP_S, "iteration-time", 1},
    {METRICS_NAMES_MEGATRON, false, METRIC_TFLOPS, "throughput", 1},
    {METRICS_NAMES_MEGATRON, false, METRIC_BATCH_SIZE, "batch-size", 1},
    {METRICS_NAMES_MEGATRON, false, METRIC_LOSS_SCALE, "loss-scale", 1},
    {METRICS_NAMES_MEGATRON, true, METRIC_LOSS, "lm loss validation", 1},
    {METRICS_NAMES_MEGATRON, true, METRIC_PERPLEXITY, "lm loss validation ppl", 1},
    {METRICS_NAMES_TORCHTITAN, false, METRIC_LOSS, "loss_metrics/global_avg_loss", 1},
    {METRICS_NAMES_TORCHTITAN, false, METRIC_LR, "lr", 1},
    {METRICS_NAMES_TORCHTITAN, false, METRIC_GRAD_NORM, "grad_norm", 1},
    {METRICS_NAMES_TORCHTITAN, false, METRIC_TOKENS_PER_S_GPU, "throughput(tps)", 1},
    {METRICS_NAMES_TORCHTITAN, false, METRIC_TFLOPS, "tflops", 1},
    {METRICS_NAMES_TORCHTITAN, false, METRIC_MFU, "mfu(%)", 100},
    {METRICS_NAMES_TORCHTITAN, false, METRIC_STEP_S, "time_metrics/end_to_end(s)", 1},
    {METRICS_NAMES_TORCHTITAN, false, METRIC_DATA_WAIT_S, "time_metrics/data_loading(s)", 1},
    {METRICS_NAMES_TORCHTITAN, false, METRIC_TOKENS, "n_tokens_seen", 1},
    {METRICS_NAMES_TORCHTITAN, true, METRIC_LOSS, "validation_metrics/loss", 1},
};

static void name_scalar(struct metrics_scalar *scalar, const struct metrics_row *row, int id,
                        enum metrics_names names)
{
    const struct metric *metric = &metric_table[id];

    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
        if (known[i].names != names || (int)known[i].id != id ||
            known[i].eval != (row->eval != NULL))
            continue;
        if (!row->eval || strcmp(row->eval, "valid") == 0)
            snprintf(scalar->name, sizeof(scalar->name), "%s", known[i].name);
        else
            snprintf(scalar->name, sizeof(scalar->name), "%s %s", known[i].name, row->eval);
        if (known[i].scale != 1) {
            scalar->value *= known[i].scale;
            scalar->decimals = -1;
        }
        return;
    }
    if (row->eval)
        snprintf(scalar->name, sizeof(scalar->name), "val/%s/%s", row->eval, metric->name);
    else
        snprintf(scalar->name, sizeof(scalar->name), "%s/%s", metric->group, metric->name);
}

static void show_dataset(const struct metrics_dataset *dataset,
                         void (*see)(void *user, const struct metrics_scalar *scalar), void *user)
{
    const char *path = dataset->name + strspn(dataset->name, "/");
    struct metrics_scalar tokens = {.value = dataset->tokens, .decimals = 0};
    struct metrics_scalar epochs = {.value = dataset->epochs, .decimals = 6};

    snprintf(tokens.name, sizeof(tokens.name), "data/%s/tokens", path);
    snprintf(epochs.name, sizeof(epochs.name), "data/%s/epochs", path);
    see(user, &tokens);
    see(user, &epochs);
}

void metrics_scalars(const struct metrics_row *row, enum metrics_names names,
                     void (*see)(void *user, const struct metrics_scalar *scalar), void *user)
{
    for (int id = 0; id < METRIC_COUNT; id++) {
        const struct metric *metric = &metric_table[id];
        struct metrics_scalar scalar = {
            .value = row->values[id],
            .decimals = metric->decimals,
        };

        if (!row->present[id] || id == METRIC_STEP || id == METRIC_TIME ||
            (row->eval && strcmp(metric->group, "data") == 0))
            continue;
        name_scalar(&scalar, row, id, names);
        see(user, &scalar);
    }
    for (int i = 0; i < row->custom_count; i++) {
        struct metrics_scalar scalar = {.value = row->custom[i].value, .decimals = -1};

        snprintf(scalar.name, sizeof(scalar.name), "val/%s/%s", row->eval, row->custom[i].name);
        see(user, &scalar);
    }
    for (int i = 0; i < row->dataset_count; i++)
        show_dataset(&row->datasets[i], see, user);
}
