#include "trainer/wandb.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/log.h"
#include "trainer/metrics_scalars.h"
#include "trainer/wandb_directory.h"
#include "trainer/wandb_file.h"

enum { SUMMARY_INTERVAL_S = 30, NUMBER_SIZE = 32 };

/* Field numbers of wandb/proto/wandb_internal.proto, by message. */
enum {
    RECORD_NUM = 1,
    RECORD_HISTORY = 2,
    RECORD_SUMMARY = 3,
    RECORD_CONFIG = 5,
    RECORD_FILES = 6,
    RECORD_OUTPUT_RAW = 13,
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
enum { OUTPUT_TYPE = 1, OUTPUT_LINE = 3, STDOUT = 1 };

struct wandb {
    struct wandb_directory directory;
    struct wandb_file file;
    struct appended_file output; /* files/output.log; threads write to it */
    atomic_int output_trouble;   /* an errno, until it is said */
    struct protobuf record;
    int64_t records; /* in the file */
    int64_t resume_step, had_step, start_time;
    /* The step whose history is not written yet; -1: none. */
    int64_t step;
    double step_time;
    struct protobuf items;
    struct metrics_scalar *latest; /* of each name */
    size_t latest_count, latest_next;
    double summary_time; /* when it was written */
};

/* --- records --------------------------------------------------------------------------------- */

static size_t begin_record(struct wandb *w, int field)
{
    protobuf_clear(&w->record);
    protobuf_integer(&w->record, RECORD_NUM, w->records + 1);
    return protobuf_begin(&w->record, field);
}

/* Here, since what copies a line may say nothing itself. */
static void tell_output_trouble(struct wandb *w)
{
    int reason = atomic_exchange(&w->output_trouble, 0);

    if (reason)
        appended_file_lose_beside(&w->file.file, w->output.path, reason);
}

static void end_record(struct wandb *w, size_t begun)
{
    protobuf_end(&w->record, begun);
    w->records += wandb_file_append(&w->file, &w->record);
    tell_output_trouble(w);
}

static void put_item(struct protobuf *buffer, int field, const char *key, const char *json)
{
    size_t item = protobuf_begin(buffer, field);

    protobuf_text(buffer, ITEM_KEY, key);
    protobuf_text(buffer, ITEM_VALUE_JSON, json);
    protobuf_end(buffer, item);
}

/* W&B's JSON has the numbers that JSON has not. */
static const char *number_text(const struct metrics_scalar *scalar, char text[NUMBER_SIZE])
{
    if (!isfinite(scalar->value))
        return isnan(scalar->value) ? "NaN" : scalar->value > 0 ? "Infinity" : "-Infinity";
    metrics_format_number(scalar->value, scalar->decimals, text, NUMBER_SIZE);
    return text;
}

static void put_number(struct protobuf *buffer, int field, const struct metrics_scalar *scalar)
{
    char text[NUMBER_SIZE];

    put_item(buffer, field, scalar->name, number_text(scalar, text));
}

/* What W&B itself knows of a step. */
enum { STEP_SCALARS = 3 };

static void step_scalars(const struct wandb *w, struct metrics_scalar scalars[STEP_SCALARS])
{
    scalars[0] = (struct metrics_scalar){"_step", (double)w->step, 0};
    scalars[1] = (struct metrics_scalar){"_runtime", w->step_time - (double)w->start_time, 3};
    scalars[2] = (struct metrics_scalar){"_timestamp", w->step_time, 3};
}

static void write_history(struct wandb *w)
{
    struct metrics_scalar scalars[STEP_SCALARS];
    size_t history = begin_record(w, RECORD_HISTORY), step;

    /* First, so that keep_record() finds it at once. */
    step = protobuf_begin(&w->record, HISTORY_STEP);
    protobuf_integer(&w->record, STEP_NUM, w->step);
    protobuf_end(&w->record, step);
    protobuf_append(&w->record, w->items.bytes, w->items.length);
    step_scalars(w, scalars);
    for (int i = 0; i < STEP_SCALARS; i++)
        put_number(&w->record, HISTORY_ITEM, &scalars[i]);
    w->record.failed |= w->items.failed;
    end_record(w, history);
}

static void write_members(FILE *stream, const struct metrics_scalar *scalars, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        json_t *string = json_string(scalars[i].name); /* NULL if it is not UTF-8 */
        char *name = json_dumps(string, JSON_ENCODE_ANY), number[NUMBER_SIZE];

        if (name)
            fprintf(stream, "%s: %s, ", name, number_text(&scalars[i], number));
        free(name);
        json_decref(string);
    }
}

/* The values as one object, in files/wandb-summary.json. */
static void write_summary_file(struct wandb *w, const struct metrics_scalar *of_step)
{
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    struct error error;

    if (!stream)
        return;
    fputs("{", stream);
    write_members(stream, w->latest, w->latest_count);
    write_members(stream, of_step, STEP_SCALARS);
    fprintf(stream, "\"_wandb\": {}}\n");
    if (fclose(stream) != 0 ||
        wandb_directory_write(&w->directory, "wandb-summary.json", text, &error) < 0)
        appended_file_lose(&w->file.file, errno);
    free(text);
}

static void write_summary(struct wandb *w)
{
    struct metrics_scalar scalars[STEP_SCALARS];
    size_t summary = begin_record(w, RECORD_SUMMARY);

    step_scalars(w, scalars);
    for (size_t i = 0; i < w->latest_count; i++)
        put_number(&w->record, UPDATE, &w->latest[i]);
    for (int i = 0; i < STEP_SCALARS; i++)
        put_number(&w->record, UPDATE, &scalars[i]);
    end_record(w, summary);
    write_summary_file(w, scalars);
    w->summary_time = clock_now_s(CLOCK_REALTIME);
}

/* Write the step that is waiting for the next one. */
static void flush(struct wandb *w, bool summary)
{
    if (w->step < 0)
        return;
    write_history(w);
    if (summary || fabs(clock_now_s(CLOCK_REALTIME) - w->summary_time) >= SUMMARY_INTERVAL_S)
        write_summary(w);
    protobuf_clear(&w->items);
    w->step = -1;
}

/* Names mostly come in the same order, so that `next`, behind the one before, is the first guess.
 */
static void note_latest(struct wandb *w, const struct metrics_scalar *scalar)
{
    struct metrics_scalar *grown;
    size_t i = w->latest_next, looked;

    for (looked = 0; looked < w->latest_count; looked++, i++) {
        i = i < w->latest_count ? i : 0;
        if (strcmp(w->latest[i].name, scalar->name) == 0)
            break;
    }
    if (looked == w->latest_count) {
        grown = realloc(w->latest, (w->latest_count + 1) * sizeof(*grown));
        if (!grown)
            return;
        w->latest = grown;
        i = w->latest_count++;
    }
    w->latest[i] = *scalar;
    w->latest_next = i + 1;
}

static void put_scalar(void *user, const struct metrics_scalar *scalar)
{
    struct wandb *w = user;

    note_latest(w, scalar);
    if (w->step >= 0)
        put_number(&w->items, HISTORY_ITEM, scalar);
}

void wandb_write(struct wandb *w, const struct metrics_row *row)
{
    int64_t step = (int64_t)row->values[METRIC_STEP];

    if (step > w->had_step && step != w->step) {
        flush(w, false);
        w->step = step;
        w->step_time =
            row->present[METRIC_TIME] ? row->values[METRIC_TIME] : clock_now_s(CLOCK_REALTIME);
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
    const char *name = wandb_setting(settings, SETTING_WANDB_NAME);
    const char *host = getenv("WANDB_HOST");
    char own_host[256] = "";
    size_t run = begin_record(w, RECORD_RUN), time;
    struct protobuf *record = &w->record;

    (void)gethostname(own_host, sizeof(own_host) - 1);
    protobuf_text(record, RUN_ID, w->directory.id);
    put_optional(record, RUN_ENTITY, wandb_setting(settings, SETTING_WANDB_ENTITY));
    put_optional(record, RUN_PROJECT, wandb_setting(settings, SETTING_WANDB_PROJECT));
    put_optional(record, RUN_GROUP, wandb_setting(settings, SETTING_WANDB_GROUP));
    put_optional(record, RUN_JOB_TYPE, getenv("WANDB_JOB_TYPE"));
    if (*name)
        protobuf_text(record, RUN_NAME, name);
    else
        put_default_name(record, options->run_directory);
    put_optional(record, RUN_NOTES, wandb_setting(settings, SETTING_WANDB_NOTES));
    put_tags(record, wandb_setting(settings, SETTING_WANDB_TAGS));
    put_optional(record, RUN_HOST, host && *host ? host : own_host);
    time = protobuf_begin(record, RUN_START_TIME);
    protobuf_integer(record, TIMESTAMP_SECONDS, w->start_time);
    protobuf_end(record, time);
    end_record(w, run);
}

static void write_config(struct wandb *w, json_t *config)
{
    size_t record = begin_record(w, RECORD_CONFIG);
    const char *name;
    json_t *value;

    json_object_foreach(config, name, value)
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
    static const char *const names[] = {"wandb-metadata.json", "output.log"};
    size_t files = begin_record(w, RECORD_FILES), file;

    for (int i = 0; i < 2; i++) {
        file = protobuf_begin(&w->record, FILES_FILE);
        protobuf_text(&w->record, FILE_PATH, names[i]);
        protobuf_integer(&w->record, FILE_POLICY, POLICY_END);
        protobuf_integer(&w->record, FILE_TYPE, TYPE_WANDB);
        protobuf_end(&w->record, file);
    }
    end_record(w, files);
}

static void copy_line(void *user, const char *line, size_t length)
{
    struct wandb *w = user;
    int reason = appended_file_try(&w->output, line, length);

    if (reason)
        atomic_store(&w->output_trouble, reason);
}

/* The run is worth having without it. */
static void open_output(struct wandb *w)
{
    char path[DISK_PATH_SIZE];
    struct error trouble = {0};

    if (disk_path(path, &trouble, "%s/files/output.log", w->directory.path) < 0 ||
        appended_file_open(&w->output, path, false, &trouble) < 0) {
        log_warning_any_rank("wandb=yes: %s; training goes on without it", trouble.text);
        return;
    }
    /* W&B leaves it so where it wrote it anew. */
    if (appended_file_ends_within_line(path))
        copy_line(w, "\n", 1);
    log_set_copy(copy_line, w);
}

static void close_output(struct wandb *w)
{
    log_set_copy(NULL, NULL);
    appended_file_close(&w->output);
}

/* A record a line of the whole output.log: W&B's page of logs shows these, not the file. They come
 * last, all at once, because `wandb sync` begins output.log anew from them: with those of one start
 * alone it would lose the lines of the others. */
static void write_output(struct wandb *w)
{
    FILE *stream = w->output.size > 0 ? fopen(w->output.path, "re") : NULL;
    char *line = NULL;
    size_t size = 0;

    while (stream && getline(&line, &size, stream) > 0) {
        size_t record = begin_record(w, RECORD_OUTPUT_RAW);

        protobuf_integer(&w->record, OUTPUT_TYPE, STDOUT);
        protobuf_text(&w->record, OUTPUT_LINE, line);
        end_record(w, record);
    }
    free(line);
    if (stream)
        fclose(stream);
}

/* A command that a shell takes as it is. */
static void say_upload(const char *path)
{
    char inside[4 * DISK_PATH_SIZE], *to = inside;
    const char *quote = path[strcspn(path, " \t\n!\"#$&'()*;<=>?[\\]^`{|}~")] ? "'" : "";

    for (; *path; path++) {
        *to++ = *path;
        if (*path == '\'')
            to = stpcpy(to, "\\''");
    }
    *to = '\0';
    log_info("upload the run to W&B with: wandb sync %s%s%s", quote, inside, quote);
}

static void write_end(struct wandb *w)
{
    double runtime = clock_now_s(CLOCK_REALTIME) - (double)w->start_time;
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
    bool is_run = false;
    int64_t step;

    while (protobuf_next(&at, end, &field)) {
        if (field.number == RECORD_OUTPUT_RAW || field.number == RECORD_EXIT ||
            field.number == RECORD_FINAL || field.number == RECORD_FOOTER)
            return false;
        if (field.number == RECORD_RUN && field.bytes) {
            w->start_time = integer_inside(&field, RUN_START_TIME, TIMESTAMP_SECONDS);
            is_run = true;
        }
        if (field.number != RECORD_HISTORY || !field.bytes)
            continue;
        step = integer_inside(&field, HISTORY_STEP, STEP_NUM);
        /* Where steps are missing, because they could not be written, they can be now. */
        if (step >= w->resume_step || (w->had_step >= 0 && step > w->had_step + 1))
            return false;
        w->had_step = step;
    }
    /* Without the run, which comes first, W&B takes no other record. */
    if (w->records == 0 && !is_run)
        return false;
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
    open_output(w);
    *result = w;
    return 0;
}

void wandb_close(struct wandb *w, bool complete)
{
    if (!w)
        return;
    flush(w, true);
    if (complete) {
        if (!wandb_environment_is_true("WANDB_SILENT"))
            say_upload(w->directory.path);
        write_output(w);
        write_end(w);
    }
    tell_output_trouble(w);
    wandb_file_close(&w->file);
    close_output(w);
    protobuf_destroy(&w->record);
    protobuf_destroy(&w->items);
    free(w->latest);
    free(w);
}
