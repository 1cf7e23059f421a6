/* metrics.jsonl: appended to a line at a time, cut back when a run resumes. */
#include "trainer/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "trainer/appended_file.h"
#include "trainer/replacement.h"

struct metrics {
    struct appended_file file;
    struct metrics_past past;
};

static void remember(struct outlier *outlier, const json_t *value)
{
    if (json_is_number(value))
        outlier_add(outlier, json_number_value(value));
}

static void remember_step(struct metrics_past *past, const json_t *object)
{
    remember(&past->loss, json_object_get(object, "loss"));
    remember(&past->grad_norm, json_object_get(object, "grad_norm"));
    past->nonfinite = json_integer_value(json_object_get(object, "nonfinite"));
}

static bool is_made_again(const char *eval, const char *const *again)
{
    while (*again && strcmp(*again, eval) != 0)
        again++;
    return *again;
}

/* Is this a line of metrics of a step, or of a validation, that will not be run again? A step that
 * stays is remembered in `past`, unless that is NULL. */
static bool line_stays(const char *line, size_t length, const struct metrics_resume *resume,
                       struct metrics_past *past)
{
    json_t *object, *step;
    const char *eval;
    int64_t last = resume->step;
    bool stays;

    if (length == 0 || line[length - 1] != '\n')
        return false;
    object = json_loadb(line, length, 0, NULL);
    step = json_object_get(object, "step");
    eval = json_string_value(json_object_get(object, "eval"));
    if (eval && is_made_again(eval, resume->again))
        last--;
    stays = json_is_integer(step) && json_integer_value(step) <= last;
    if (stays && past && !eval)
        remember_step(past, object);
    json_decref(object);
    return stays;
}

/* Copies the lines that stay to `to` (NULL: only counts). Returns how many do not, -1 on an
 * error. */
static int64_t copy_lines(FILE *from, FILE *to, const struct metrics_resume *resume,
                          struct metrics_past *past)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    int64_t dropped = 0;

    while ((length = getline(&line, &capacity, from)) > 0) {
        if (!line_stays(line, (size_t)length, resume, past))
            dropped++;
        else if (to && fwrite(line, (size_t)length, 1, to) != 1)
            break;
    }
    if (ferror(from) || (to && ferror(to)))
        dropped = -1;
    free(line);
    return dropped;
}

/* Replace the file by one without the lines that do not stay. */
static int rewrite(FILE *from, const char *path, const struct metrics_resume *resume,
                   struct error *error)
{
    struct replacement file;
    int result = 0;

    if (replacement_open(&file, path, NULL, error) < 0)
        return -1;
    rewind(from);
    if (copy_lines(from, file.stream, resume, NULL) < 0)
        result = error_set_errno(error, "%s: cannot be copied", path);
    return replacement_close(&file, result, true, error);
}

static int cut_back(const char *path, const struct metrics_resume *resume,
                    struct metrics_past *past, struct error *error)
{
    struct stat status;
    FILE *from;
    int64_t dropped;
    int result = 0;

    if (stat(path, &status) < 0 && errno == ENOENT)
        return 0;
    from = fopen(path, "re");
    if (!from)
        return error_set_errno(error, "%s: cannot read", path);
    /* A device has no past. */
    if (fstat(fileno(from), &status) == 0 && S_ISREG(status.st_mode)) {
        dropped = copy_lines(from, NULL, resume, past);
        if (dropped < 0)
            result = error_set_errno(error, "%s: cannot read", path);
        else if (dropped > 0)
            result = rewrite(from, path, resume, error);
    }
    fclose(from);
    return result;
}

int metrics_open(struct metrics **result, const char *path, const struct metrics_resume *resume,
                 struct error *error)
{
    struct metrics *metrics = calloc(1, sizeof(*metrics));

    *result = NULL;
    if (!metrics)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (cut_back(path, resume, &metrics->past, error) < 0 ||
        appended_file_open(&metrics->file, path, false, error) < 0) {
        free(metrics);
        return -1;
    }
    *result = metrics;
    return 0;
}

void metrics_close(struct metrics *metrics)
{
    if (metrics)
        appended_file_close(&metrics->file);
    free(metrics);
}

const struct metrics_past *metrics_past(const struct metrics *metrics)
{
    return &metrics->past;
}

void metrics_write(struct metrics *metrics, const struct metrics_row *row)
{
    size_t size = metrics_json_size(row), length;
    char *line = malloc(size + 1);

    if (!line) {
        appended_file_lose(&metrics->file, ENOMEM);
        return;
    }
    metrics_format_json(row, line, size);
    length = strlen(line);
    line[length++] = '\n';
    (void)appended_file_write(&metrics->file, line, length);
    free(line);
}

int64_t metrics_lost(const struct metrics *metrics)
{
    return metrics->file.lost;
}

static double number_of(const json_t *value)
{
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static void add_dataset(struct metrics_row *row, struct metrics_dataset *datasets, const char *name,
                        const json_t *seen)
{
    datasets[row->dataset_count++] =
        (struct metrics_dataset){name, number_of(json_object_get(seen, "tokens")),
                                 number_of(json_object_get(seen, "epochs"))};
}

static bool is_in_table(const char *name)
{
    int id = 0;

    while (id < METRIC_COUNT && strcmp(metric_table[id].name, name) != 0)
        id++;
    return id < METRIC_COUNT;
}

/* Numbers of a validation that are not in the table are the site's. */
static void add_custom(struct metrics_row *row, struct metrics_custom *custom, json_t *object)
{
    const char *name;
    json_t *value;

    json_object_foreach(object, name, value)
    {
        if ((json_is_number(value) || json_is_null(value)) && !is_in_table(name))
            custom[row->custom_count++] = (struct metrics_custom){name, number_of(value)};
    }
}

/* What metrics_format_json() wrote; it wrote null for numbers that are not finite. `datasets` and
 * `custom` have room for those of the row. */
static void row_from_json(struct metrics_row *row, struct metrics_dataset *datasets,
                          struct metrics_custom *custom, json_t *object)
{
    json_t *value;
    const char *name;

    *row = (struct metrics_row){.eval = json_string_value(json_object_get(object, "eval")),
                                .datasets = datasets,
                                .custom = custom};
    for (int id = 0; id < METRIC_COUNT; id++) {
        value = json_object_get(object, metric_table[id].name);
        if (value)
            metrics_set(row, (enum metric_id)id, number_of(value));
    }
    json_object_foreach(json_object_get(object, "datasets"), name, value)
    {
        add_dataset(row, datasets, name, value);
    }
    if (row->eval)
        add_custom(row, custom, object);
}

static int show_line(const char *line, size_t length,
                     void (*see)(void *user, const struct metrics_row *row), void *user)
{
    json_t *object = json_loadb(line, length, 0, NULL);
    size_t sets = json_object_size(json_object_get(object, "datasets"));
    struct metrics_dataset *datasets = calloc(sets + 1, sizeof(*datasets));
    struct metrics_custom *custom = calloc(json_object_size(object) + 1, sizeof(*custom));
    struct metrics_row row;
    int result = -1;

    if (datasets && custom) {
        row_from_json(&row, datasets, custom, object);
        if (row.present[METRIC_STEP])
            see(user, &row);
        result = 0;
    }
    json_decref(object);
    free(datasets);
    free(custom);
    return result;
}

int metrics_replay(const char *path, void (*see)(void *user, const struct metrics_row *row),
                   void *user, struct error *error)
{
    FILE *stream = fopen(path, "re");
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    struct stat status;
    int result = 0;

    if (!stream)
        return error_set_errno(error, "%s: cannot read", path);
    /* A device has no past. */
    if (fstat(fileno(stream), &status) == 0 && S_ISREG(status.st_mode))
        while (result == 0 && (length = getline(&line, &capacity, stream)) > 0)
            result = show_line(line, (size_t)length, see, user);
    if (result < 0)
        error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    else if (ferror(stream))
        result = error_set_errno(error, "%s: cannot read", path);
    free(line);
    fclose(stream);
    return result;
}
