/* mtllm-ckpt show: what is in a checkpoint. */
#include <fnmatch.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/command.h"
#include "ckpt/reader.h"

struct show {
    int as_json, settings, config, stats;
    char **patterns; /* NULL-terminated; none means all */
    struct checkpoint *checkpoint;
    float *values; /* [COMMAND_CHUNK] */
};

struct statistics {
    double minimum, maximum, mean, norm;
    int64_t not_finite; /* left out of the rest */
};

static bool wanted(const struct show *show, const char *name)
{
    if (!*show->patterns)
        return true;
    for (char **pattern = show->patterns; *pattern; pattern++)
        if (fnmatch(*pattern, name, 0) == 0)
            return true;
    return false;
}

static int compute(const struct show *show, const struct checkpoint_tensor *tensor,
                   enum checkpoint_kind kind, struct statistics *statistics, struct error *error)
{
    int64_t start[2], extent[2] = {0, 0}, finite = 0;
    double sum = 0, squares = 0, minimum = INFINITY, maximum = -INFINITY;

    while (command_chunk(tensor->shape, start, extent)) {
        if (checkpoint_read(show->checkpoint, tensor->name, kind, start, extent, DTYPE_F32,
                            show->values, error) < 0)
            return -1;
        for (int64_t i = 0; i < extent[0] * extent[1]; i++) {
            double value = (double)show->values[i];

            if (!isfinite(value))
                continue;
            finite++;
            sum += value;
            squares += value * value;
            minimum = fmin(minimum, value);
            maximum = fmax(maximum, value);
        }
    }
    *statistics = (struct statistics){
        .norm = sqrt(squares),
        .not_finite = tensor->shape[0] * tensor->shape[1] - finite,
    };
    if (finite) {
        statistics->minimum = minimum;
        statistics->maximum = maximum;
        statistics->mean = sum / (double)finite;
    }
    return 0;
}

static uint64_t total_bytes(const struct checkpoint *checkpoint)
{
    uint64_t bytes = checkpoint->manifest.index.size;

    for (size_t i = 0; i < checkpoint->manifest.shard_count; i++)
        bytes += checkpoint->manifest.shards[i].size;
    return bytes;
}

static void print_summary(const struct checkpoint *checkpoint)
{
    const struct checkpoint_state *state = &checkpoint->state;
    char size[32];

    printf("checkpoint  %s\n", checkpoint->directory);
    printf("step        %" PRId64 "\n", state->step);
    printf("samples     %" PRId64 "\n", state->samples);
    printf("tokens      %" PRId64 "\n", state->tokens);
    printf("skipped     %" PRId64 "\n", state->skipped);
    printf("loss scale  %g\n", state->loss_scale);
    printf("run         %s\n", state->run_id);
    printf("layout      %s\n", state->layout);
    printf("written     %s by %s\n", checkpoint->manifest.created, checkpoint->manifest.producer);
    printf("shards      %zu, %s\n", checkpoint->manifest.shard_count,
           command_size(total_bytes(checkpoint), size));
    for (size_t i = 0; i < state->file_count; i++)
        printf("%-10s  %s, %zu bytes\n", i == 0 ? "files" : "", state->files[i].name,
               state->files[i].size);
}

static void shape_text(const struct checkpoint_tensor *tensor, char text[48])
{
    if (tensor->dimensions == 1)
        snprintf(text, 48, "%" PRId64, tensor->shape[0]);
    else
        snprintf(text, 48, "%" PRId64 "x%" PRId64, tensor->shape[0], tensor->shape[1]);
}

static int print_tensor(const struct show *show, const struct checkpoint_tensor *tensor,
                        struct error *error)
{
    char shape[48];

    shape_text(tensor, shape);
    if (!show->stats) {
        printf("%-56s  %-14s", tensor->name, shape);
        for (int kind = 0; kind < CHECKPOINT_KINDS; kind++)
            printf("  %-10s", tensor->present[kind] ? dtype_name(tensor->dtype[kind]) : "-");
        printf("\n");
        return 0;
    }
    for (int kind = 0; kind < CHECKPOINT_KINDS; kind++) {
        struct statistics found;

        if (!tensor->present[kind])
            continue;
        if (compute(show, tensor, (enum checkpoint_kind)kind, &found, error) < 0)
            return -1;
        printf("%-56s  %-14s  %-10s  %-5s  %13.6g  %13.6g  %13.6g  %13.6g  %" PRId64 "\n",
               tensor->name, shape, checkpoint_kind_name((enum checkpoint_kind)kind),
               dtype_name(tensor->dtype[kind]), found.minimum, found.maximum, found.mean,
               found.norm, found.not_finite);
    }
    return 0;
}

static int print_text(const struct show *show, struct error *error)
{
    if (!*show->patterns) {
        print_summary(show->checkpoint);
        printf("\n");
    }
    if (show->stats)
        printf("%-56s  %-14s  %-10s  %-5s  %13s  %13s  %13s  %13s  %s\n", "TENSOR", "SHAPE", "KIND",
               "DTYPE", "MIN", "MAX", "MEAN", "NORM", "NOT FINITE");
    else
        printf("%-56s  %-14s  %-10s  %-10s  %-10s  %-10s\n", "TENSOR", "SHAPE", "WEIGHT", "MASTER",
               "EXP_AVG", "EXP_AVG_SQ");
    for (size_t i = 0; i < checkpoint_tensor_count(show->checkpoint); i++) {
        const struct checkpoint_tensor *tensor = checkpoint_get_tensor(show->checkpoint, i);

        if (wanted(show, tensor->name) && print_tensor(show, tensor, error) < 0)
            return -1;
    }
    return 0;
}

static json_t *kind_json(const struct show *show, const struct checkpoint_tensor *tensor,
                         enum checkpoint_kind kind, struct error *error)
{
    json_t *json = json_pack("{s:s}", "dtype", dtype_name(tensor->dtype[kind]));
    struct statistics found;

    if (!show->stats)
        return json;
    if (compute(show, tensor, kind, &found, error) < 0) {
        json_decref(json);
        return NULL;
    }
    json_object_update_new(json, json_pack("{s:f, s:f, s:f, s:f, s:I}", "min", found.minimum, "max",
                                           found.maximum, "mean", found.mean, "norm", found.norm,
                                           "not_finite", (json_int_t)found.not_finite));
    return json;
}

static json_t *tensor_json(const struct show *show, const struct checkpoint_tensor *tensor,
                           struct error *error)
{
    json_t *shape = json_pack("[I]", (json_int_t)tensor->shape[0]), *json;

    if (tensor->dimensions == 2)
        json_array_append_new(shape, json_integer(tensor->shape[1]));
    json = json_pack("{s:s, s:o}", "name", tensor->name, "shape", shape);
    for (int kind = 0; kind < CHECKPOINT_KINDS; kind++) {
        json_t *about;

        if (!tensor->present[kind])
            continue;
        about = kind_json(show, tensor, (enum checkpoint_kind)kind, error);
        if (!about) {
            json_decref(json);
            return NULL;
        }
        json_object_set_new(json, checkpoint_kind_name((enum checkpoint_kind)kind), about);
    }
    return json;
}

static int print_as_json(const struct show *show, struct error *error)
{
    const struct checkpoint *checkpoint = show->checkpoint;
    const struct checkpoint_state *state = &checkpoint->state;
    json_t *files = json_array(), *tensors = json_array(), *json;

    for (size_t i = 0; i < state->file_count; i++)
        json_array_append_new(files, json_pack("{s:s, s:I}", "name", state->files[i].name, "bytes",
                                               (json_int_t)state->files[i].size));
    json = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:s, s:s, s:s, s:I, s:I, s:o, s:o}",
                     "directory", checkpoint->directory, "step", (json_int_t)state->step, "samples",
                     (json_int_t)state->samples, "tokens", (json_int_t)state->tokens, "skipped",
                     (json_int_t)state->skipped, "trained_samples",
                     (json_int_t)state->trained_samples, "loss_scale", state->loss_scale, "run_id",
                     state->run_id, "layout", state->layout, "created",
                     checkpoint->manifest.created, "producer", checkpoint->manifest.producer,
                     "shards", (json_int_t)checkpoint->manifest.shard_count, "bytes",
                     (json_int_t)total_bytes(checkpoint), "files", files, "tensors", tensors);
    for (size_t i = 0; json && i < checkpoint_tensor_count(checkpoint); i++) {
        const struct checkpoint_tensor *tensor = checkpoint_get_tensor(checkpoint, i);
        json_t *about;

        if (!wanted(show, tensor->name))
            continue;
        about = tensor_json(show, tensor, error);
        if (!about) {
            json_decref(json);
            return -1;
        }
        json_array_append_new(tensors, about);
    }
    return command_print_json(json, error);
}

/* Every pattern names something. */
static int check_patterns(const struct show *show, struct error *error)
{
    for (char **pattern = show->patterns; *pattern; pattern++) {
        size_t i, count = checkpoint_tensor_count(show->checkpoint);

        for (i = 0; i < count; i++)
            if (fnmatch(*pattern, checkpoint_get_tensor(show->checkpoint, i)->name, 0) == 0)
                break;
        if (i == count)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: holds no tensor %s; mtllm-ckpt show lists those there are",
                             show->checkpoint->directory, *pattern);
    }
    return 0;
}

static int print(const struct show *show, struct error *error)
{
    if (show->settings)
        fputs(show->checkpoint->state.settings, stdout);
    if (show->config)
        fputs(show->checkpoint->state.config, stdout);
    if (show->settings || show->config)
        return 0;
    if (check_patterns(show, error) < 0)
        return -1;
    return show->as_json ? print_as_json(show, error) : print_text(show, error);
}

static int run(const struct command *command, int argc, char **argv, struct error *error)
{
    struct show show = {0};
    const struct option options[] = {
        {"json", no_argument, &show.as_json, 1},
        {"settings", no_argument, &show.settings, 1},
        {"config", no_argument, &show.config, 1},
        {"stats", no_argument, &show.stats, 1},
        {0},
    };
    int first = command_parse(command, argc, argv, options, NULL, 1, INT_MAX, error), result = -1;

    if (first <= 0)
        return first;
    show.patterns = argv + first + 1;
    show.values = malloc((size_t)COMMAND_CHUNK * sizeof(*show.values));
    if (!show.values)
        error_set(error, EXIT_STATUS_SYSTEM, "no memory to read tensors");
    else if (command_open(&show.checkpoint, argv[first], error) == 0)
        result = print(&show, error);
    checkpoint_close(show.checkpoint);
    free(show.values);
    return result;
}

const struct command command_show = {
    .name = "show",
    .usage = "Usage: mtllm-ckpt show [OPTION]... DIR [TENSOR]...\n"
             "Show what is in a checkpoint: the state of the training, and the tensors with\n"
             "their shapes and types. TENSOR may be a shell pattern.\n"
             "\n"
             "  --stats     read the tensors: least, largest and mean value, Euclidean norm\n"
             "  --settings  print the settings of the run that wrote it, and nothing else\n"
             "  --config    print the model as config.json, and nothing else\n"
             "  --json      print a JSON object\n"
             "  --help      print this and exit\n",
    .run = run,
};
