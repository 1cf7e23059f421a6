#include "trainer/wandb.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/log.h"
#include "trainer/metrics_scalars.h"
#include "trainer/wandb_directory.h"
#include "trainer/wandb_file.h"

enum { SUMMARY_INTERVAL_S = 30 };

/* Field numbers of wandb/proto/wandb_internal.proto, by message. */
enum {
    RECORD_NUM = 1,
    RECORD_HISTORY = 2,
    RECORD_SUMMARY = 3,
    RECORD_CONFIG = 5,
    RECORD_FILES = 6,
    RECORD_RUN = 17,
    RECORD_EXIT = 18,
    RECORD_FINAL = 20,
    RECORD_FOOTER = 22,
};
enum { HISTORY_ITEM = 1, HISTORY_STEP = 2, STEP_NUM = 1 };
enum { UPDATE = 1 }; /* of config and summary */
enum { ITEM_KEY = 1, ITEM_VALUE_JSON = 16 };
enum {
    RUN_ID = 1,
    RUN_ENTITY = 2,
    RUN_PROJECT = 3,
    RUN_GROUP = 6,
    RUN_JOB_TYPE = 7,
    RUN_NAME = 8,
    RUN_NOTES = 9,
    RUN_TAGS = 10,
    RUN_HOST = 13,
    RUN_START_TIME = 17,
};
enum { TIMESTAMP_SECONDS = 1 };
enum { EXIT_CODE = 1, EXIT_RUNTIME = 2 };
enum { FILES_FILE = 1, FILE_PATH = 1, FILE_POLICY = 2, FILE_TYPE = 3 };
enum { POLICY_END = 1, TYPE_WANDB = 1 };

/* The latest value of a name. */
struct latest {
    char name[METRICS_NAME_SIZE], value[32];
};

struct wandb {
    struct wandb_directory directory;
    struct wandb_file file;
    struct protobuf record;
    int64_t records; /* in the file */
    int64_t resume_step, had_step, start_time;
    /* The step whose history is not written yet; -1: none. */
    int64_t step;
    double step_time;
    struct protobuf items;
    struct latest *latest;
    size_t latest_count;
    double summary_time; /* when it was written */
};

static double now_s(void)
{
    struct timespec time;

    clock_gettime(CLOCK_REALTIME, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* --- records --------------------------------------------------------------------------------- */

static size_t begin_record(struct wandb *w, int field)
{
    protobuf_clear(&w->record);
    protobuf_integer(&w->record, RECORD_NUM, w->records + 1);
    return protobuf_begin(&w->record, field);
}

static void end_record(struct wandb *w, size_t begun)
{
    protobuf_end(&w->record, begun);
    w->records += wandb_file_append(&w->file, &w->record);
}

static void put_item(struct protobuf *buffer, int field, const char *key, const char *json)
{
    size_t item = protobuf_begin(buffer, field);

    protobuf_text(buffer, ITEM_KEY, key);
    protobuf_text(buffer, ITEM_VALUE_JSON, json);
    protobuf_end(buffer, item);
}

/* W&B's JSON has the numbers that JSON has not. */
static void format_number(double value, int decimals, char *text, size_t size)
{
    if (isfinite(value))
        metrics_format_number(value, decimals, text, size);
    else
        snprintf(text, size, "%s", isnan(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity");
}

/* What W&B itself knows of a step. */
static struct latest *step_items(const struct wandb *w, struct latest items[3])
{
    snprintf(items[0].name, sizeof(items[0].name), "_step");
    snprintf(items[1].name, sizeof(items[1].name), "_runtime");
    snprintf(items[2].name, sizeof(items[2].name), "_timestamp");
    snprintf(items[0].value, sizeof(items[0].value), "%lld", (long long)w->step);
    format_number(w->step_time - (double)w->start_time, 3, items[1].value, sizeof(items->value));
    format_number(w->step_time, 3, items[2].value, sizeof(items->value));
    return items;
}

static void write_history(struct wandb *w)
{
    struct latest items[3];
    size_t history = begin_record(w, RECORD_HISTORY), step;

    /* First, so that keep_record() finds it at once. */
    step = protobuf_begin(&w->record, HISTORY_STEP);
    protobuf_integer(&w->record, STEP_NUM, w->step);
    protobuf_end(&w->record, step);
    protobuf_append(&w->record, w->items.bytes, w->items.length);
    step_items(w, items);
    for (int i = 0; i < 3; i++)
        put_item(&w->record, HISTORY_ITEM, items[i].name, items[i].value);
    w->record.failed |= w->items.failed;
    end_record(w, history);
}

static void write_member(FILE *stream, const struct latest *latest)
{
    json_t *string = json_string(latest->name); /* NULL if it is not UTF-8 */
    char *name = json_dumps(string, JSON_ENCODE_ANY);

    if (name)
        fprintf(stream, "%s: %s, ", name, latest->value);
    free(name);
    json_decref(string);
}

/* The values as one object, in files/wandb-summary.json. */
static void write_summary_file(struct wandb *w, const struct latest *of_step)
{
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    int failed = ENOMEM;

    if (!stream)
        return;
    fputs("{", stream);
    for (size_t i = 0; i < w->latest_count; i++)
        write_member(stream, &w->latest[i]);
    fprintf(stream, "\"%s\": %s, \"%s\": %s, \"%s\": %s}\n", of_step[0].name, of_step[0].value,
            of_step[1].name, of_step[1].value, of_step[2].name, of_step[2].value);
    if (fclose(stream) == 0)
        failed = wandb_directory_write(&w->directory, "wandb-summary.json", text);
    if (failed)
        appended_file_lose(&w->file.file, failed);
    free(text);
}

static void write_summary(struct wandb *w)
{
    struct latest items[3];
    size_t summary = begin_record(w, RECORD_SUMMARY);

    step_items(w, items);
    for (size_t i = 0; i < w->latest_count; i++)
        put_item(&w->record, UPDATE, w->latest[i].name, w->latest[i].value);
    for (int i = 0; i < 3; i++)
        put_item(&w->record, UPDATE, items[i].name, items[i].value);
    end_record(w, summary);
    write_summary_file(w, items);
    w->summary_time = now_s();
}

/* Write the step that is waiting for the next one. */
static void flush(struct wandb *w, bool summary)
{
    if (w->step < 0)
        return;
    write_history(w);
    if (summary || fabs(now_s() - w->summary_time) >= SUMMARY_INTERVAL_S)
        write_summary(w);
    protobuf_clear(&w->items);
    w->step = -1;
}

static void note_latest(struct wandb *w, const struct metrics_scalar *scalar, const char *value)
{
    struct latest *grown;
    size_t i;

    for (i = 0; i < w->latest_count && strcmp(w->latest[i].name, scalar->name) != 0; i++)
        ;
    if (i == w->latest_count) {
        grown = realloc(w->latest, (i + 1) * sizeof(*grown));
        if (!grown)
            return;
        w->latest = grown;
        w->latest_count++;
        memcpy(w->latest[i].name, scalar->name, sizeof(scalar->name));
    }
    snprintf(w->latest[i].value, sizeof(w->latest[i].value), "%s", value);
}

static void put_scalar(void *user, const struct metrics_scalar *scalar)
{
    struct wandb *w = user;
    char value[32];

    format_number(scalar->value, scalar->decimals, value, sizeof(value));
    note_latest(w, scalar, value);
    if (w->step >= 0)
        put_item(&w->items, HISTORY_ITEM, scalar->name, value);
}

void wandb_write(struct wandb *w, const struct metrics_row *row)
{
    int64_t step = (int64_t)row->values[METRIC_STEP];

    if (step > w->had_step && step != w->step) {
        flush(w, false);
        w->step = step;
        w->step_time = row->present[METRIC_TIME] ? row->values[METRIC_TIME] : now_s();
    }
    metrics_scalars(row, METRICS_NAMES_MTLLM, put_scalar, w);
}

/* --- beginning and end ----------------------------------------------------------------------- */

static void put_optional(struct protobuf *record, int field, const char *text)
{
    if (text && *text)
        protobuf_text(record, field, text);
}

static void put_tags(struct protobuf *record, const char *tags)
{
    while (*tags) {
        size_t length = strcspn(tags, ",");
        char tag[256];

        snprintf(tag, sizeof(tag), "%.*s", (int)length, tags);
        put_optional(record, RUN_TAGS, tag);
        tags += length + (tags[length] == ',');
    }
}

/* The last part of the run directory's path, whatever it is called by. */
static void put_default_name(struct protobuf *record, const char *run_directory)
{
    char path[PATH_MAX];

    if (realpath(run_directory, path))
        put_optional(record, RUN_NAME, basename(path));
}

static void write_run(struct wandb *w, const struct wandb_options *options)
{
    const struct settings *settings = options->settings;
    const char *name = wandb_setting(settings, SETTING_WANDB_NAME, "WANDB_NAME");
    const char *host = getenv("WANDB_HOST");
    char own_host[256] = "";
    size_t run = begin_record(w, RECORD_RUN), time;
    struct protobuf *record = &w->record;

    (void)gethostname(own_host, sizeof(own_host) - 1);
    protobuf_text(record, RUN_ID, w->directory.id);
    put_optional(record, RUN_ENTITY, wandb_setting(settings, SETTING_WANDB_ENTITY, "WANDB_ENTITY"));
    put_optional(record, RUN_PROJECT,
                 wandb_setting(settings, SETTING_WANDB_PROJECT, "WANDB_PROJECT"));
    put_optional(record, RUN_GROUP,
                 wandb_setting(settings, SETTING_WANDB_GROUP, "WANDB_RUN_GROUP"));
    put_optional(record, RUN_JOB_TYPE, getenv("WANDB_JOB_TYPE"));
    if (*name)
        protobuf_text(record, RUN_NAME, name);
    else
        put_default_name(record, options->run_directory);
    put_optional(record, RUN_NOTES, wandb_setting(settings, SETTING_WANDB_NOTES, "WANDB_NOTES"));
    put_tags(record, wandb_setting(settings, SETTING_WANDB_TAGS, "WANDB_TAGS"));
    put_optional(record, RUN_HOST, host && *host ? host : own_host);
    time = protobuf_begin(record, RUN_START_TIME);
    protobuf_integer(record, TIMESTAMP_SECONDS, w->start_time);
    protobuf_end(record, time);
    end_record(w, run);
}

static void write_config(struct wandb *w, const json_t *config)
{
    size_t record = begin_record(w, RECORD_CONFIG);
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)config, name, value)
    {
        char *json = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));

        if (json)
            put_item(&w->record, UPDATE, name, json);
        free(json);
    }
    end_record(w, record);
}

/* What is to be uploaded besides. The other files follow from the records. */
static void write_files(struct wandb *w)
{
    size_t files = begin_record(w, RECORD_FILES), file;

    file = protobuf_begin(&w->record, FILES_FILE);
    protobuf_text(&w->record, FILE_PATH, "wandb-metadata.json");
    protobuf_integer(&w->record, FILE_POLICY, POLICY_END);
    protobuf_integer(&w->record, FILE_TYPE, TYPE_WANDB);
    protobuf_end(&w->record, file);
    end_record(w, files);
}

static void write_end(struct wandb *w)
{
    double runtime = now_s() - (double)w->start_time;
    size_t record = begin_record(w, RECORD_EXIT);

    protobuf_integer(&w->record, EXIT_CODE, 0);
    protobuf_integer(&w->record, EXIT_RUNTIME, runtime > 0 ? (int64_t)runtime : 0);
    end_record(w, record);
    /* Older versions of wandb take the end for one only with these. */
    end_record(w, begin_record(w, RECORD_FINAL));
    end_record(w, begin_record(w, RECORD_FOOTER));
}

static int64_t integer_inside(const struct protobuf_field *message, int field, int inner)
{
    struct protobuf_field found, number;

    if (protobuf_find(message->bytes, message->length, field, &found) &&
        protobuf_find(found.bytes, found.length, inner, &number))
        return (int64_t)number.value;
    return 0;
}

/* Does this record of an earlier start stay? The end of a run that is being made longer does not.
 */
static bool keep_record(void *user, const unsigned char *record, size_t length)
{
    const unsigned char *at = record, *end = record + length;
    struct wandb *w = user;
    struct protobuf_field field;
    int64_t step;

    while (protobuf_next(&at, end, &field)) {
        if (field.number == RECORD_EXIT || field.number == RECORD_FINAL ||
            field.number == RECORD_FOOTER)
            return false;
        if (field.number == RECORD_RUN && field.bytes)
            w->start_time = integer_inside(&field, RUN_START_TIME, TIMESTAMP_SECONDS);
        if (field.number != RECORD_HISTORY || !field.bytes)
            continue;
        step = integer_inside(&field, HISTORY_STEP, STEP_NUM);
        /* Where steps are missing, because they could not be written, they can be now. */
        if (step >= w->resume_step || (w->had_step >= 0 && step > w->had_step + 1))
            return false;
        w->had_step = step;
    }
    w->records++;
    return true;
}

int wandb_open(struct wandb **result, const struct wandb_options *options, struct error *error)
{
    struct wandb *w = calloc(1, sizeof(*w));

    *result = NULL;
    if (!w)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    w->resume_step = options->resume_step;
    w->had_step = w->step = -1;
    w->start_time = time(NULL);
    if (wandb_directory_open(&w->directory, options->run_directory, error) < 0 ||
        wandb_directory_describe(&w->directory, options->config, error) < 0 ||
        wandb_file_open(&w->file, w->directory.file, keep_record, w, error) < 0) {
        wandb_close(w, false);
        return -1;
    }
    if (w->records == 0) {
        write_run(w, options);
        write_files(w);
    }
    write_config(w, options->config);
    *result = w;
    return 0;
}

void wandb_close(struct wandb *w, bool complete)
{
    if (!w)
        return;
    flush(w, true);
    if (complete) {
        write_end(w);
        if (!wandb_environment_is_true("WANDB_SILENT"))
            log_info("upload the run to W&B with: wandb sync %s", w->directory.path);
    }
    wandb_file_close(&w->file);
    protobuf_destroy(&w->record);
    protobuf_destroy(&w->items);
    free(w->latest);
    free(w);
}
