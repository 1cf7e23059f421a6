#include "report/history.h"

#include <errno.h>
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A run has some dozens of metrics and a few sets; a file of distinct names is not one of a run. */
enum { METRICS_MOST = 512, SETS_MOST = 64 };

static int no_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "no memory for the metrics");
}

const double *history_find(const struct history_records *records, const char *name)
{
    for (size_t i = 0; i < records->metric_count; i++)
        if (strcmp(records->metrics[i].name, name) == 0)
            return records->metrics[i].values;
    return NULL;
}

/* Room for one more record, with no value in it. */
static int make_room(struct history_records *records, struct error *error)
{
    size_t room = records->room ? 2 * records->room : 256;
    double *steps;

    if (records->count < records->room)
        return 0;
    steps = reallocarray(records->steps, room, sizeof(*steps));
    if (!steps)
        return no_memory(error);
    records->steps = steps;
    for (size_t i = 0; i < records->metric_count; i++) {
        double *values = reallocarray(records->metrics[i].values, room, sizeof(*values));

        if (!values)
            return no_memory(error);
        records->metrics[i].values = values;
    }
    records->room = room;
    return 0;
}

/* The metric of that name, made when missing: its index; METRICS_MOST when there are too many. Keys
 * come in the same order line by line, so `hint` is nearly always right. */
static int find_metric(struct history_records *records, const char *name, size_t hint,
                       size_t *index, struct error *error)
{
    struct history_metric *metrics = records->metrics;
    double *values;

    if (hint < records->metric_count && strcmp(metrics[hint].name, name) == 0) {
        *index = hint;
        return 0;
    }
    for (*index = 0; *index < records->metric_count; ++*index)
        if (strcmp(metrics[*index].name, name) == 0)
            return 0;
    if (*index == METRICS_MOST)
        return 0;
    metrics = reallocarray(metrics, *index + 1, sizeof(*metrics));
    if (!metrics)
        return no_memory(error);
    records->metrics = metrics;
    values = reallocarray(NULL, records->room, sizeof(*values));
    metrics[*index] = (struct history_metric){strdup(name), values};
    records->metric_count++;
    if (!values || !metrics[*index].name)
        return no_memory(error);
    for (size_t i = 0; i < records->count; i++)
        values[i] = NAN;
    return 0;
}

static double number_of(const json_t *value)
{
    double number = json_number_value(value);

    /* Sums and differences of what is drawn must not leave the range either. */
    return json_is_null(value) || fabs(number) > 1e290 ? INFINITY : number;
}

/* The numbers of an object of the line of this record. Of objects within it, such as "datasets",
 * the names are put together: "datasets/NAME/epochs". */
static int add_values(struct history_records *records, const char *prefix, json_t *object,
                      size_t *hint, struct error *error)
{
    const char *key;
    json_t *value;

    json_object_foreach(object, key, value)
    {
        char whole[256];
        const char *name = *prefix ? whole : key;
        size_t index;

        if (*prefix)
            snprintf(whole, sizeof(whole), "%s/%s", prefix, key);
        if (json_is_object(value) && add_values(records, name, value, hint, error) < 0)
            return -1;
        if ((!json_is_number(value) && !json_is_null(value)) || strcmp(name, "step") == 0)
            continue;
        if (find_metric(records, name, *hint, &index, error) < 0)
            return -1;
        if (index == METRICS_MOST)
            continue;
        records->metrics[index].values[records->count] = number_of(value);
        *hint = index + 1;
    }
    return 0;
}

static int add_record(struct history_records *records, json_t *object, json_int_t step,
                      struct error *error)
{
    size_t hint = 0;

    if (make_room(records, error) < 0)
        return -1;
    records->steps[records->count] = (double)step;
    for (size_t i = 0; i < records->metric_count; i++)
        records->metrics[i].values[records->count] = NAN;
    if (add_values(records, "", object, &hint, error) < 0)
        return -1;
    records->count++;
    return 0;
}

/* The records that a line with this "eval" belongs to; NULL without error when it has too many. */
static struct history_records *find_set(struct history *history, const char *set,
                                        struct error *error)
{
    struct history_records *sets = history->sets;

    for (size_t i = 0; i < history->set_count; i++)
        if (strcmp(sets[i].set, set) == 0)
            return &sets[i];
    if (history->set_count == SETS_MOST)
        return NULL;
    sets = reallocarray(sets, history->set_count + 1, sizeof(*sets));
    if (!sets) {
        no_memory(error);
        return NULL;
    }
    history->sets = sets;
    sets[history->set_count] = (struct history_records){.set = strdup(set)};
    if (!sets[history->set_count].set) {
        no_memory(error);
        return NULL;
    }
    return &sets[history->set_count++];
}

/* 1 when the line is a record. */
static int read_line(struct history *history, const char *line, size_t length, struct error *error)
{
    json_t *object = json_loadb(line, length, 0, NULL);
    json_t *step = json_object_get(object, "step"), *eval = json_object_get(object, "eval");
    struct history_records *records = &history->training;
    int result = 0;

    if (json_is_integer(step) && json_integer_value(step) >= 0 && (!eval || json_is_string(eval))) {
        if (eval)
            records = find_set(history, json_string_value(eval), error);
        if (records)
            result = add_record(records, object, json_integer_value(step), error) < 0 ? -1 : 1;
        else if (error->status)
            result = -1;
    }
    json_decref(object);
    return result;
}

/* --- order ----------------------------------------------------------------------------------- */

struct place {
    double step;
    size_t record; /* as it stood in the file */
};

static int compare_places(const void *a, const void *b)
{
    const struct place *one = a, *other = b;

    if (one->step != other->step)
        return one->step < other->step ? -1 : 1;
    return one->record < other->record ? -1 : one->record > other->record;
}

static bool in_order(const struct history_records *records)
{
    for (size_t i = 1; i < records->count; i++)
        if (records->steps[i] <= records->steps[i - 1])
            return false;
    return true;
}

static void take(double *values, const struct place *places, size_t count, double *scratch)
{
    for (size_t i = 0; i < count; i++)
        scratch[i] = values[places[i].record];
    memcpy(values, scratch, count * sizeof(*values));
}

/* Ascending steps, of each the record that came last. */
static int put_in_order(struct history_records *records, struct error *error)
{
    struct place *places;
    double *scratch;
    size_t kept = 0;

    if (in_order(records))
        return 0;
    places = reallocarray(NULL, records->count, sizeof(*places));
    scratch = reallocarray(NULL, records->count, sizeof(*scratch));
    if (!places || !scratch) {
        free(places);
        free(scratch);
        return no_memory(error);
    }
    for (size_t i = 0; i < records->count; i++)
        places[i] = (struct place){records->steps[i], i};
    qsort(places, records->count, sizeof(*places), compare_places);
    for (size_t i = 0; i < records->count; i++)
        if (i + 1 == records->count || places[i + 1].step != places[i].step)
            places[kept++] = places[i];
    take(records->steps, places, kept, scratch);
    for (size_t i = 0; i < records->metric_count; i++)
        take(records->metrics[i].values, places, kept, scratch);
    records->count = kept;
    free(places);
    free(scratch);
    return 0;
}

/* --- the file -------------------------------------------------------------------------------- */

static int read_lines(struct history *history, FILE *stream, const char *path, struct error *error)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    int result = 0;

    while (result >= 0 && (length = getline(&line, &capacity, stream)) > 0) {
        history->lines++;
        history->unfinished = line[length - 1] != '\n';
        result = read_line(history, line, (size_t)length, error);
        if (result != 0 || history->unfinished)
            continue;
        if (history->broken++ == 0)
            history->first_broken = history->lines;
    }
    if (result >= 0 && ferror(stream))
        result = error_set_errno(error, "cannot read %s", path);
    free(line);
    return result < 0 ? -1 : 0;
}

int history_read(struct history *history, const char *path, struct error *error)
{
    FILE *stream = fopen(path, "r");
    int result;

    *history = (struct history){0};
    if (!stream && errno == ENOENT)
        return 0;
    if (!stream)
        return error_set_errno(error, "cannot read %s", path);
    result = read_lines(history, stream, path, error);
    fclose(stream);
    if (result == 0)
        result = put_in_order(&history->training, error);
    for (size_t i = 0; i < history->set_count && result == 0; i++)
        result = put_in_order(&history->sets[i], error);
    if (result < 0)
        history_free(history);
    return result;
}

static void free_records(struct history_records *records)
{
    for (size_t i = 0; i < records->metric_count; i++) {
        free(records->metrics[i].name);
        free(records->metrics[i].values);
    }
    free(records->metrics);
    free(records->steps);
    free(records->set);
}

void history_free(struct history *history)
{
    free_records(&history->training);
    for (size_t i = 0; i < history->set_count; i++)
        free_records(&history->sets[i]);
    free(history->sets);
    *history = (struct history){0};
}
