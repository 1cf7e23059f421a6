#include "trainer/tensorboard.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ckpt/disk.h"
#include "core/clock.h"
#include "trainer/appended_file.h"
#include "trainer/protobuf.h"
#include "trainer/replacement.h"

#define TFEVENTS "tfevents." /* before the time, in the name of a file */

/* Field numbers, by message. */
enum {
    EVENT_WALL_TIME = 1,
    EVENT_STEP,
    EVENT_FILE_VERSION,
    EVENT_SUMMARY = 5,
    EVENT_SESSION_LOG = 7
};
enum { SESSION_STATUS = 1 };
enum { SUMMARY_VALUE = 1 };
enum { VALUE_TAG = 1, VALUE_SIMPLE = 2, VALUE_TENSOR = 8, VALUE_METADATA = 9 };
enum { METADATA_PLUGIN = 1, METADATA_CLASS = 4 };
enum { PLUGIN_NAME = 1, PLUGIN_CONTENT = 2 };
enum { TENSOR_TYPE = 1, TENSOR_SHAPE = 2, TENSOR_STRING = 8 };
enum { SHAPE_DIM = 2, DIM_SIZE = 1 };
enum { HPARAMS_SESSION_START = 3, HPARAMS_SESSION_END = 4 };
enum { START_HPARAMS = 1, START_TIME = 5 };
enum { END_STATUS = 1, END_TIME = 2 };
enum { MAP_KEY = 1, MAP_VALUE = 2 };
enum { GOOGLE_NUMBER = 2, GOOGLE_STRING = 3, GOOGLE_BOOL = 4 };
/* Their enumerators. */
enum {
    SESSION_LOG_START = 1,
    DATA_CLASS_TENSOR = 2,
    TYPE_FLOAT = 1,
    TYPE_STRING = 7,
    STATUS_SUCCESS = 1
};

enum { RECORD_HEADER = 12, RECORD_FOOTER = 4 };

struct tensorboard {
    struct appended_file file;
    struct protobuf event, record;
    enum metrics_names names;
    int64_t had_step, last_step; /* the last one of the files before; of all */
    int64_t newest_time;         /* in the names of the files before, s; 0: none */
};

/* --- TFRecord -------------------------------------------------------------------------------- */

static void put_little_endian(unsigned char *bytes, size_t count, uint64_t value)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (unsigned char)(value >> (8 * i));
}

static uint64_t get_little_endian(const unsigned char *bytes, size_t count)
{
    uint64_t value = 0;

    for (size_t i = 0; i < count; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

/* A checksum of data that themselves hold checksums is masked. */
static uint32_t masked_crc(const void *bytes, size_t length)
{
    uint32_t crc = crc32_castagnoli(bytes, length);

    return (crc >> 15 | crc << 17) + 0xa282ead8;
}

static bool write_event(struct tensorboard *t)
{
    unsigned char header[RECORD_HEADER], footer[RECORD_FOOTER];

    put_little_endian(header, 8, t->event.length);
    put_little_endian(header + 8, 4, masked_crc(header, 8));
    put_little_endian(footer, 4, masked_crc(t->event.bytes, t->event.length));
    protobuf_clear(&t->record);
    protobuf_append(&t->record, header, sizeof(header));
    protobuf_append(&t->record, t->event.bytes, t->event.length);
    protobuf_append(&t->record, footer, sizeof(footer));
    if (t->event.failed || t->record.failed) {
        appended_file_lose(&t->file, ENOMEM);
        return false;
    }
    return appended_file_write(&t->file, t->record.bytes, t->record.length);
}

/* The next record of a file, all of it; the event inside is *event. False at the end and where a
 * record is torn or damaged: then *torn. */
static bool read_record(FILE *stream, int64_t left, struct protobuf *record, bool *torn)
{
    unsigned char header[RECORD_HEADER], piece[4096];
    size_t got = fread(header, 1, sizeof(header), stream);
    uint64_t rest;

    *torn = got > 0;
    protobuf_clear(record);
    if (got < sizeof(header) || get_little_endian(header + 8, 4) != masked_crc(header, 8))
        return false;
    rest = get_little_endian(header, 8) + RECORD_FOOTER;
    if (left < RECORD_HEADER || rest > (uint64_t)left - RECORD_HEADER)
        return false;
    protobuf_append(record, header, sizeof(header));
    for (size_t part; rest > 0; rest -= part) {
        part = rest < sizeof(piece) ? (size_t)rest : sizeof(piece);
        if (fread(piece, 1, part, stream) != part)
            return false;
        protobuf_append(record, piece, part);
    }
    if (record->failed)
        return false;
    *torn =
        get_little_endian(record->bytes + record->length - RECORD_FOOTER, 4) !=
        masked_crc(record->bytes + RECORD_HEADER, record->length - RECORD_HEADER - RECORD_FOOTER);
    return !*torn;
}

/* --- the files that are there ---------------------------------------------------------------- */

/* What becomes of a file. */
struct cut {
    int64_t resume_step;
    int64_t last_step;  /* of what stays */
    int64_t stay, drop; /* events with a step, and what is to go */
    bool torn;          /* one of the files */
};

static bool has_scalars(const unsigned char *event, size_t length)
{
    struct protobuf_field summary, value, number;

    return protobuf_find(event, length, EVENT_SUMMARY, &summary) &&
           protobuf_find(summary.bytes, summary.length, SUMMARY_VALUE, &value) &&
           protobuf_find(value.bytes, value.length, VALUE_SIMPLE, &number);
}

static bool event_stays(struct cut *cut, const struct protobuf *record)
{
    const unsigned char *event = record->bytes + RECORD_HEADER;
    size_t length = record->length - RECORD_HEADER - RECORD_FOOTER;
    struct protobuf_field field;
    bool scalars = has_scalars(event, length);
    int64_t step;

    if (protobuf_find(event, length, EVENT_FILE_VERSION, &field))
        return true;
    step = protobuf_find(event, length, EVENT_STEP, &field) ? (int64_t)field.value : 0;
    /* Where steps are missing, because they could not be written, they can be now. */
    if (scalars && cut->last_step >= 0 && step > cut->last_step + 1 && step < cut->resume_step)
        cut->resume_step = cut->last_step + 1;
    if (step >= cut->resume_step)
        return false;
    if (scalars && step > cut->last_step)
        cut->last_step = step;
    cut->stay++;
    return true;
}

/* Copies what stays to `to`; NULL: only looks. */
static int copy_events(FILE *from, FILE *to, struct cut *cut)
{
    struct protobuf record = {0};
    struct stat status;
    int64_t left;
    bool torn, failed;

    if (fstat(fileno(from), &status) < 0)
        return -1;
    cut->stay = cut->drop = 0;
    for (left = status.st_size; read_record(from, left, &record, &torn);
         left -= (int64_t)record.length) {
        if (!event_stays(cut, &record))
            cut->drop++;
        else if (to && fwrite(record.bytes, record.length, 1, to) != 1)
            break;
    }
    cut->drop += torn;
    cut->torn |= torn;
    failed = record.failed || ferror(from) || (to && ferror(to));
    protobuf_destroy(&record);
    return failed ? -1 : 0;
}

/* What a file is replaced by; a name unlike those that are read. */
static int replacement_path(char path[DISK_PATH_SIZE], const char *directory, struct error *error)
{
    return disk_path(path, error, "%s/cut-back.tmp", directory);
}

static int replace_file(FILE *from, const char *path, const char *directory, struct cut *cut,
                        struct error *error)
{
    char beside[DISK_PATH_SIZE];
    struct replacement file;
    int result = 0;

    if (replacement_path(beside, directory, error) < 0 ||
        replacement_open(&file, path, beside, error) < 0)
        return -1;
    rewind(from);
    if (copy_events(from, file.stream, cut) < 0)
        result = error_set_errno(error, "%s: cannot be copied", path);
    return replacement_close(&file, result, true, error);
}

static int cut_file(const char *directory, const char *name, struct cut *cut, struct error *error)
{
    char path[DISK_PATH_SIZE];
    FILE *from;
    int result = 0;

    if (disk_path(path, error, "%s/%s", directory, name) < 0)
        return -1;
    from = fopen(path, "re");
    if (!from)
        return errno == ENOENT ? 0 : error_set_errno(error, "%s: cannot read", path);
    if (copy_events(from, NULL, cut) < 0)
        result = error_set_errno(error, "%s: cannot read", path);
    else if (cut->stay == 0)
        result = disk_unlink(path, error);
    else if (cut->drop > 0)
        result = replace_file(from, path, directory, cut, error);
    fclose(from);
    return result;
}

/* The time in the name of an event file; 0: in none of ours. */
static int64_t file_time(const char *name)
{
    const char *found = strstr(name, TFEVENTS);
    long long seconds = found ? strtoll(found + strlen(TFEVENTS), NULL, 10) : 0;

    return seconds > 0 && seconds < 9999999999 ? seconds : 0;
}

static int cut_files(struct tensorboard *t, const struct tensorboard_options *options,
                     struct error *error)
{
    struct cut cut = {.resume_step = options->resume_step};
    char left_over[DISK_PATH_SIZE];
    struct disk_names names;
    int result = 0;

    if (replacement_path(left_over, options->directory, error) < 0 ||
        disk_unlink(left_over, error) < 0 || disk_list(options->directory, &names, error) < 0)
        return -1;
    do {
        cut.last_step = -1;
        cut.torn = false;
        for (size_t i = 0; result == 0 && i < names.count; i++) {
            if (!strstr(names.names[i], TFEVENTS))
                continue;
            result = cut_file(options->directory, names.names[i], &cut, error);
            if (file_time(names.names[i]) > t->newest_time)
                t->newest_time = file_time(names.names[i]);
        }
        /* Of the last step some events may be what was torn off. */
        cut.resume_step = cut.last_step;
    } while (cut.torn && result == 0);
    disk_names_free(&names);
    t->had_step = t->last_step = cut.last_step;
    return result;
}

/* --- events ---------------------------------------------------------------------------------- */

static void begin_event(struct tensorboard *t, double time, int64_t step)
{
    protobuf_clear(&t->event);
    protobuf_double(&t->event, EVENT_WALL_TIME, time);
    if (step != 0)
        protobuf_integer(&t->event, EVENT_STEP, step);
}

static void put_metadata(struct protobuf *event, const char *plugin, const struct protobuf *content)
{
    size_t metadata = protobuf_begin(event, VALUE_METADATA), data;

    data = protobuf_begin(event, METADATA_PLUGIN);
    protobuf_text(event, PLUGIN_NAME, plugin);
    if (content)
        protobuf_bytes(event, PLUGIN_CONTENT, content->bytes, content->length);
    protobuf_end(event, data);
    protobuf_integer(event, METADATA_CLASS, DATA_CLASS_TENSOR);
    protobuf_end(event, metadata);
}

/* A vector of one string, or of no number. */
static void put_tensor(struct protobuf *event, const char *string)
{
    size_t tensor = protobuf_begin(event, VALUE_TENSOR), shape, dim;

    protobuf_integer(event, TENSOR_TYPE, string ? TYPE_STRING : TYPE_FLOAT);
    shape = protobuf_begin(event, TENSOR_SHAPE);
    dim = protobuf_begin(event, SHAPE_DIM);
    if (string)
        protobuf_integer(event, DIM_SIZE, 1);
    protobuf_end(event, dim);
    protobuf_end(event, shape);
    if (string)
        protobuf_text(event, TENSOR_STRING, string);
    protobuf_end(event, tensor);
}

static void put_text(struct protobuf *event, const char *tag, const char *text)
{
    size_t value = protobuf_begin(event, SUMMARY_VALUE);

    protobuf_text(event, VALUE_TAG, tag);
    put_metadata(event, "text", NULL);
    put_tensor(event, text);
    protobuf_end(event, value);
}

static void put_hparams(struct protobuf *event, const char *tag, const struct protobuf *content)
{
    size_t value = protobuf_begin(event, SUMMARY_VALUE);

    protobuf_text(event, VALUE_TAG, tag);
    put_metadata(event, "hparams", content);
    put_tensor(event, NULL);
    protobuf_end(event, value);
}

static void put_hyperparameter(struct protobuf *content, const char *name, const json_t *json)
{
    size_t entry = protobuf_begin(content, START_HPARAMS), value;

    protobuf_text(content, MAP_KEY, name);
    value = protobuf_begin(content, MAP_VALUE);
    if (json_is_number(json))
        protobuf_double(content, GOOGLE_NUMBER, json_number_value(json));
    else if (json_is_boolean(json))
        protobuf_integer(content, GOOGLE_BOOL, json_is_true(json));
    else
        protobuf_text(content, GOOGLE_STRING, json_string_value(json));
    protobuf_end(content, value);
    protobuf_end(content, entry);
}

static void put_session_start(struct protobuf *event, json_t *hyperparameters)
{
    struct protobuf content = {0};
    size_t start = protobuf_begin(&content, HPARAMS_SESSION_START);
    const char *name;
    json_t *value;

    json_object_foreach(hyperparameters, name, value)
    {
        put_hyperparameter(&content, name, value);
    }
    protobuf_double(&content, START_TIME, clock_now_s(CLOCK_REALTIME));
    protobuf_end(&content, start);
    put_hparams(event, "_hparams_/session_start_info", &content);
    event->failed |= content.failed;
    protobuf_destroy(&content);
}

static void put_session_end(struct protobuf *event)
{
    struct protobuf content = {0};
    size_t end = protobuf_begin(&content, HPARAMS_SESSION_END);

    protobuf_integer(&content, END_STATUS, STATUS_SUCCESS);
    protobuf_double(&content, END_TIME, clock_now_s(CLOCK_REALTIME));
    protobuf_end(&content, end);
    put_hparams(event, "_hparams_/session_end_info", &content);
    event->failed |= content.failed;
    protobuf_destroy(&content);
}

/* Text is Markdown: four spaces make a block of code. */
static char *indent(const char *text)
{
    char *block = NULL;
    size_t size;
    FILE *stream = open_memstream(&block, &size);

    if (!stream)
        return NULL;
    while (*text) {
        int length = (int)strcspn(text, "\n");

        fprintf(stream, "    %.*s\n", length, text);
        text += length + (text[length] == '\n');
    }
    if (fclose(stream) == 0)
        return block;
    free(block);
    return NULL;
}

/* What stands before the scalars of a file. */
static int write_head(struct tensorboard *t, const struct tensorboard_options *options,
                      struct error *error)
{
    char *settings = indent(options->settings);
    size_t inside;

    if (!settings)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    begin_event(t, clock_now_s(CLOCK_REALTIME), 0);
    protobuf_text(&t->event, EVENT_FILE_VERSION, "brain.Event:2");
    write_event(t);
    if (options->resume_step > 0) {
        /* A TensorBoard that is watching drops what it has read of this step and later ones. */
        begin_event(t, clock_now_s(CLOCK_REALTIME), options->resume_step);
        inside = protobuf_begin(&t->event, EVENT_SESSION_LOG);
        protobuf_integer(&t->event, SESSION_STATUS, SESSION_LOG_START);
        protobuf_end(&t->event, inside);
        write_event(t);
    }
    begin_event(t, clock_now_s(CLOCK_REALTIME), options->resume_step);
    inside = protobuf_begin(&t->event, EVENT_SUMMARY);
    put_text(&t->event, "settings/text_summary", settings);
    put_session_start(&t->event, options->hyperparameters);
    protobuf_end(&t->event, inside);
    write_event(t);
    free(settings);
    return 0;
}

/* --- the interface --------------------------------------------------------------------------- */

/* A new file. Files are read by the order of their names, so its time is later than the others',
 * also where the clock is not. */
static int create_file(struct tensorboard *t, const char *directory, struct error *error)
{
    char host[256] = "localhost", path[DISK_PATH_SIZE];
    long long now = time(NULL);

    (void)gethostname(host, sizeof(host) - 1);
    if (disk_path(path, error, "%s/events.out." TFEVENTS "%010lld.%s.%d.0", directory,
                  now > t->newest_time ? now : (long long)t->newest_time + 1, host,
                  (int)getpid()) < 0)
        return -1;
    return appended_file_open(&t->file, path, true, error);
}

int tensorboard_open(struct tensorboard **result, const struct tensorboard_options *options,
                     struct error *error)
{
    struct tensorboard *t = calloc(1, sizeof(*t));

    *result = NULL;
    if (!t)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    t->names = options->names;
    if (disk_make_directory(options->directory, error) < 0 || cut_files(t, options, error) < 0 ||
        create_file(t, options->directory, error) < 0 || write_head(t, options, error) < 0) {
        tensorboard_close(t, false);
        return -1;
    }
    *result = t;
    return 0;
}

static void put_scalar(void *user, const struct metrics_scalar *scalar)
{
    struct protobuf *event = user;
    size_t value = protobuf_begin(event, SUMMARY_VALUE);

    protobuf_text(event, VALUE_TAG, scalar->name);
    protobuf_float(event, VALUE_SIMPLE, (float)scalar->value);
    protobuf_end(event, value);
}

void tensorboard_write(struct tensorboard *t, const struct metrics_row *row)
{
    int64_t step = (int64_t)row->values[METRIC_STEP];
    size_t summary;

    if (step <= t->had_step)
        return;
    begin_event(t,
                row->present[METRIC_TIME] ? row->values[METRIC_TIME] : clock_now_s(CLOCK_REALTIME),
                step);
    summary = protobuf_begin(&t->event, EVENT_SUMMARY);
    metrics_scalars(row, t->names, put_scalar, &t->event);
    protobuf_end(&t->event, summary);
    write_event(t);
    t->last_step = step;
}

void tensorboard_close(struct tensorboard *t, bool complete)
{
    if (!t)
        return;
    if (complete) {
        size_t summary;

        begin_event(t, clock_now_s(CLOCK_REALTIME), t->last_step < 0 ? 0 : t->last_step);
        summary = protobuf_begin(&t->event, EVENT_SUMMARY);
        put_session_end(&t->event);
        protobuf_end(&t->event, summary);
        write_event(t);
    }
    appended_file_close(&t->file);
    protobuf_destroy(&t->event);
    protobuf_destroy(&t->record);
    free(t);
}
