#include "report/run.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/checkpoint.h"

static int no_memory(const struct run *run, struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory", run->path);
}

/* 1: open; 0: there is none. */
static int open_part(const struct run *run, const char *name, FILE **stream, struct error *error)
{
    char path[DISK_PATH_SIZE];

    if (disk_path(path, error, "%s/%s", run->path, name) < 0)
        return -1;
    *stream = fopen(path, "r");
    if (!*stream && errno != ENOENT)
        return error_set_errno(error, "cannot read %s", path);
    return *stream != NULL;
}

/* Does it look like something of a run? */
static int check_kind(const struct run *run, struct error *error)
{
    static const char *const parts[] = {"metrics.jsonl", "settings.ini", "ckpt"};
    char path[DISK_PATH_SIZE];

    if (!disk_is_directory(run->path))
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: no such directory; name the directory of a "
                         "run (mtllm-train --run-dir)",
                         run->path);
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
        if (disk_path(path, error, "%s/%s", run->path, parts[i]) < 0)
            return -1;
        if (access(path, F_OK) == 0)
            return 0;
    }
    return error_set(error, EXIT_STATUS_DATA,
                     "%s: not a run: it has no metrics.jsonl, settings.ini or ckpt/", run->path);
}

/* --- settings -------------------------------------------------------------------------------- */

static void trim_end(char *text)
{
    size_t length = strlen(text);

    while (length > 0 && (text[length - 1] == ' ' || text[length - 1] == '\n'))
        text[--length] = '\0';
}

/* "NAME = VALUE   ; ORIGIN", as settings_write() has it. Settings of any version are shown, so
 * core's table of them is not asked. */
static bool parse_setting(char *line, struct run_setting *setting)
{
    char *value = strstr(line, " = "), *origin = NULL;

    if (*line == ';' || *line == '[' || !value)
        return false;
    *value = '\0';
    value += 3;
    for (char *at = value - 1; (at = strstr(at, " ; ")); at++)
        origin = at;
    if (origin) {
        *origin = '\0';
        origin += 3;
        trim_end(origin);
    }
    trim_end(value);
    snprintf(setting->name, sizeof(setting->name), "%s", line);
    snprintf(setting->value, sizeof(setting->value), "%s", value);
    snprintf(setting->origin, sizeof(setting->origin), "%s", origin ? origin : "");
    return true;
}

static int read_settings(struct run *run, struct error *error)
{
    FILE *stream;
    char *line = NULL;
    size_t capacity = 0;
    int result = open_part(run, "settings.ini", &stream, error);

    if (result <= 0)
        return result;
    result = 0;
    while (result == 0 && getline(&line, &capacity, stream) > 0) {
        struct run_setting setting, *settings;

        if (!parse_setting(line, &setting))
            continue;
        settings = reallocarray(run->settings, run->setting_count + 1, sizeof(*settings));
        if (!settings) {
            result = no_memory(run, error);
            break;
        }
        run->settings = settings;
        settings[run->setting_count++] = setting;
    }
    free(line);
    fclose(stream);
    return result;
}

const char *run_setting(const struct run *run, const char *name)
{
    for (size_t i = 0; i < run->setting_count; i++)
        if (strcmp(run->settings[i].name, name) == 0)
            return run->settings[i].value;
    return "";
}

/* --- starts ---------------------------------------------------------------------------------- */

static int add_start(struct run *run, const struct run_start *start, struct error *error)
{
    struct run_start *starts = reallocarray(run->starts, run->start_count + 1, sizeof(*starts));

    if (!starts)
        return no_memory(run, error);
    run->starts = starts;
    starts[run->start_count++] = *start;
    return 0;
}

/* A line of starts.jsonl; what is no such line is passed over. */
static int read_start(struct run *run, const char *line, size_t length, struct error *error)
{
    json_t *object = json_loadb(line, length, 0, NULL);
    json_t *step = json_object_get(object, "step"), *time = json_object_get(object, "time");
    const char *job = json_string_value(json_object_get(object, "job"));
    const char *layout = json_string_value(json_object_get(object, "layout"));
    struct run_start start = {.time = json_number_value(time), .step = json_number_value(step)};
    int result = 0;

    snprintf(start.job, sizeof(start.job), "%s", job ? job : "");
    snprintf(start.layout, sizeof(start.layout), "%s", layout ? layout : "");
    if (json_is_number(step) && json_is_number(time))
        result = add_start(run, &start, error);
    json_decref(object);
    return result;
}

/* Was there a validation after this step? */
static bool validated(const struct run *run, double step)
{
    for (size_t i = 0; i < run->history.set_count; i++)
        for (size_t k = 0; k < run->history.sets[i].count; k++)
            if (run->history.sets[i].steps[k] == step)
                return true;
    return false;
}

/* Without a record of starts: where much more time passed between two steps than the second took,
 * and it was not spent on a validation. Checkpoints take time there, too, so it must be a lot. */
static int guess_starts(struct run *run, struct error *error)
{
    const struct history_records *records = &run->history.training;
    const double *time = history_find(records, "time"), *step_s = history_find(records, "step_s");
    double mean_s = 0;

    if (!time || records->count == 0)
        return 0;
    mean_s = (time[records->count - 1] - time[0]) / (double)records->count;
    run->starts_guessed = true;
    for (size_t i = 0; i < records->count; i++) {
        struct run_start start = {.time = time[i], .step = records->steps[i] - 1};
        double took_s = step_s && isfinite(step_s[i]) ? step_s[i] : 0;

        if (!isfinite(time[i]) ||
            (run->start_count > 0 && (!(time[i] - took_s - time[i - 1] > fmax(60, 20 * mean_s)) ||
                                      validated(run, records->steps[i - 1]))))
            continue;
        start.time -= took_s;
        if (add_start(run, &start, error) < 0)
            return -1;
    }
    return 0;
}

/* A run whose first start was not recorded, by a trainer that did not know how: it began when its
 * first step did. */
static int complete_starts(struct run *run, struct error *error)
{
    const struct history_records *records = &run->history.training;
    const double *time = history_find(records, "time"), *step_s = history_find(records, "step_s");
    struct run_start start = {0};

    if (run->start_count == 0 || records->count == 0 || !time || !(time[0] < run->starts[0].time))
        return 0;
    start.time = time[0] - (step_s && isfinite(step_s[0]) ? step_s[0] : 0);
    if (add_start(run, &start, error) < 0)
        return -1;
    memmove(run->starts + 1, run->starts, (run->start_count - 1) * sizeof(start));
    run->starts[0] = start;
    return 0;
}

static int read_starts(struct run *run, struct error *error)
{
    FILE *stream;
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    int result = open_part(run, "starts.jsonl", &stream, error);

    if (result <= 0)
        return result < 0 ? -1 : guess_starts(run, error);
    result = 0;
    while (result == 0 && (length = getline(&line, &capacity, stream)) > 0)
        result = read_start(run, line, (size_t)length, error);
    free(line);
    fclose(stream);
    return result < 0 ? -1 : complete_starts(run, error);
}

/* Steps that were run twice left only their last records: what counts is the time. */
static void find_start_records(struct run *run)
{
    const struct history_records *records = &run->history.training;
    const double *time = history_find(records, "time");

    for (size_t i = 0; i < run->start_count; i++) {
        const struct run_start *start = &run->starts[i];
        size_t record = 0;

        while (record < records->count &&
               (records->steps[record] <= start->step ||
                (time && isfinite(time[record]) && time[record] < start->time)))
            record++;
        run->starts[i].record = record;
    }
}

double run_begin_time(const struct run *run)
{
    const struct history_records *records = &run->history.training;
    const double *time = history_find(records, "time");
    double begin = NAN;

    for (size_t i = 0; time && i < records->count && isnan(begin); i++)
        if (isfinite(time[i]))
            begin = time[i];
    return run->start_count > 0 ? run->starts[0].time : begin;
}

static int derive_elapsed(struct run *run, struct error *error)
{
    const struct history_records *records = &run->history.training;
    const double *time = history_find(records, "time");
    double begin = run_begin_time(run), last = 0;

    if (!time || isnan(begin))
        return 0;
    run->elapsed = reallocarray(NULL, records->count + 1, sizeof(*run->elapsed));
    if (!run->elapsed)
        return no_memory(run, error);
    /* Clocks of nodes differ a little; a curve does not go back. */
    for (size_t i = 0; i < records->count; i++) {
        if (isfinite(time[i]))
            last = fmax(last, time[i] - begin);
        run->elapsed[i] = last;
    }
    return 0;
}

/* --- the whole ------------------------------------------------------------------------------- */

static char *last_part(const char *path)
{
    char *resolved = realpath(path, NULL), *slash = resolved ? strrchr(resolved, '/') : NULL;
    char *name = strdup(slash && slash[1] ? slash + 1 : path);

    free(resolved);
    return name;
}

static int read_checkpoints(struct run *run, struct error *error)
{
    char root[DISK_PATH_SIZE];

    if (disk_path(root, error, "%s/ckpt", run->path) < 0)
        return -1;
    if (!disk_is_directory(root))
        return 0;
    return listing_read(root, &run->checkpoints, &run->checkpoint_count, error);
}

int run_load(struct run *run, const char *path, struct error *error)
{
    char metrics[DISK_PATH_SIZE];

    *run = (struct run){.path = strdup(path), .name = last_part(path)};
    if (!run->path || !run->name)
        return error_set(error, EXIT_STATUS_SYSTEM, "no memory");
    if (check_kind(run, error) < 0 || disk_path(metrics, error, "%s/metrics.jsonl", path) < 0 ||
        history_read(&run->history, metrics, error) < 0 || read_settings(run, error) < 0 ||
        read_starts(run, error) < 0 || read_checkpoints(run, error) < 0)
        return -1;
    find_start_records(run);
    return derive_elapsed(run, error);
}

void run_free(struct run *run)
{
    history_free(&run->history);
    free(run->path);
    free(run->name);
    free(run->settings);
    free(run->starts);
    free(run->checkpoints);
    free(run->elapsed);
}
