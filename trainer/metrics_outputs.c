#include "trainer/metrics_outputs.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "core/log.h"
#include "trainer/metrics_scalars.h"
#include "trainer/tensorboard.h"
#include "trainer/wandb.h"
#include "trainer/wandb_directory.h"

struct metrics_outputs {
    struct metrics *metrics;
    struct tensorboard *tensorboard; /* NULL: not asked for, or failed */
    struct wandb *wandb;             /* likewise */
    bool complete;
};

static json_t *setting_json(const struct settings *settings, enum setting_id id)
{
    json_t *text;

    switch (setting_table[id].type) {
    case SETTING_TYPE_INTEGER:
    case SETTING_TYPE_DURATION:
        return json_integer(setting_integer(settings, id));
    case SETTING_TYPE_REAL:
        return json_real(setting_real(settings, id));
    case SETTING_TYPE_BOOLEAN:
        return json_boolean(setting_boolean(settings, id));
    default:
        text = json_string(setting_text(settings, id));
        return text ? text : json_string("?"); /* not UTF-8 */
    }
}

static json_t *settings_json(const struct settings *settings)
{
    json_t *object = json_object();

    for (int id = 0; id < SETTING_COUNT; id++)
        if (setting_is_set(settings, (enum setting_id)id) &&
            setting_table[id].group != SETTING_GROUP_PLAN)
            json_object_set_new(object, setting_table[id].name,
                                setting_json(settings, (enum setting_id)id));
    return object;
}

static void open_tensorboard(struct metrics_outputs *outputs,
                             const struct metrics_outputs_options *options, json_t *settings)
{
    const char *names = setting_text(options->settings, SETTING_TENSORBOARD_NAMES);
    char directory[PATH_MAX];
    struct tensorboard_options tensorboard = {
        .directory = directory,
        .names = strcmp(names, "megatron") == 0     ? METRICS_NAMES_MEGATRON
                 : strcmp(names, "torchtitan") == 0 ? METRICS_NAMES_TORCHTITAN
                                                    : METRICS_NAMES_MTLLM,
        .resume_step = options->resume.step,
        .settings = options->settings_text,
        .hyperparameters = settings,
    };
    struct error trouble = {0};

    snprintf(directory, sizeof(directory), "%s/tensorboard", options->run_directory);
    if (tensorboard_open(&outputs->tensorboard, &tensorboard, &trouble) < 0)
        log_warning_any_rank("tensorboard=yes: %s; training goes on without", trouble.text);
}

static void open_wandb(struct metrics_outputs *outputs,
                       const struct metrics_outputs_options *options, json_t *settings)
{
    json_t *model = json_loads(options->model_config, 0, NULL);
    struct wandb_options wandb = {
        .settings = options->settings,
        .run_directory = options->run_directory,
        .config = settings,
        .resume_step = options->resume.step,
    };
    struct error trouble = {0};

    if (model)
        json_object_set_new(settings, "model_config", model);
    if (wandb_open(&outputs->wandb, &wandb, &trouble) < 0)
        log_warning_any_rank("wandb=yes: %s; training goes on without", trouble.text);
}

static void show(void *user, const struct metrics_row *row)
{
    struct metrics_outputs *outputs = user;

    if (outputs->tensorboard)
        tensorboard_write(outputs->tensorboard, row);
    if (outputs->wandb)
        wandb_write(outputs->wandb, row);
}

int metrics_outputs_open(struct metrics_outputs **result,
                         const struct metrics_outputs_options *options, struct error *error)
{
    struct metrics_outputs *outputs = calloc(1, sizeof(*outputs));
    json_t *settings = settings_json(options->settings);
    struct error trouble = {0};

    *result = NULL;
    if (!outputs || !settings) {
        error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        goto failed;
    }
    if (metrics_open(&outputs->metrics, options->metrics, &options->resume, error) < 0)
        goto failed;
    if (setting_boolean(options->settings, SETTING_TENSORBOARD))
        open_tensorboard(outputs, options, settings);
    if (wandb_is_wanted(options->settings))
        open_wandb(outputs, options, settings);
    if ((outputs->tensorboard || outputs->wandb) &&
        metrics_replay(options->metrics, show, outputs, &trouble) < 0)
        log_warning_any_rank("%s", trouble.text);
    json_decref(settings);
    *result = outputs;
    return 0;
failed:
    json_decref(settings);
    free(outputs);
    return -1;
}

/* What is shown at once and what is read back from metrics.jsonl is to be the same. */
void metrics_outputs_write(struct metrics_outputs *outputs, const struct metrics_row *row)
{
    struct metrics_dataset *datasets;
    struct metrics_row rounded = *row;

    metrics_write(outputs->metrics, row);
    if (!outputs->tensorboard && !outputs->wandb)
        return;
    datasets = calloc((size_t)row->dataset_count + 1, sizeof(*datasets));
    for (int id = 0; id < METRIC_COUNT; id++)
        rounded.values[id] = metrics_round(row->values[id], metric_table[id].decimals);
    for (int i = 0; datasets && i < row->dataset_count; i++)
        datasets[i] = (struct metrics_dataset){row->datasets[i].name, row->datasets[i].tokens,
                                               metrics_round(row->datasets[i].epochs, 6)};
    rounded.datasets = datasets;
    rounded.dataset_count = datasets ? row->dataset_count : 0;
    show(outputs, &rounded);
    free(datasets);
}

const struct metrics_past *metrics_outputs_past(const struct metrics_outputs *outputs)
{
    return metrics_past(outputs->metrics);
}

void metrics_outputs_complete(struct metrics_outputs *outputs)
{
    if (outputs)
        outputs->complete = true;
}

void metrics_outputs_close(struct metrics_outputs *outputs)
{
    if (!outputs)
        return;
    metrics_close(outputs->metrics);
    tensorboard_close(outputs->tensorboard, outputs->complete);
    wandb_close(outputs->wandb, outputs->complete);
    free(outputs);
}
