/* metrics.jsonl: appended to a line at a time, cut back when a run resumes. */
#include "trainer/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "core/log.h"

struct metrics {
    int file;
    int64_t lost;
    char *path;
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

/* Is this a line of metrics of a step, or of a validation, that will not be run again? A run that
 * goes on from a step validates there first, if it is time. A step that stays is remembered in
 * `past`, unless that is NULL. */
static bool line_stays(const char *line, size_t length, int64_t resume_step,
                       struct metrics_past *past)
{
    json_t *object, *step;
    int64_t last = resume_step;
    bool stays;

    if (length == 0 || line[length - 1] != '\n')
        return false;
    object = json_loadb(line, length, 0, NULL);
    step = json_object_get(object, "step");
    if (json_object_get(object, "eval"))
        last--;
    stays = json_is_integer(step) && json_integer_value(step) <= last;
    if (stays && past && !json_object_get(object, "eval"))
        remember_step(past, object);
    json_decref(object);
    return stays;
}

/* Copies the lines that stay to `to` (NULL: only counts). Returns how many do not, -1 on an
 * error. */
static int64_t copy_lines(FILE *from, FILE *to, int64_t resume_step, struct metrics_past *past)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    int64_t dropped = 0;

    while ((length = getline(&line, &capacity, from)) > 0) {
        if (!line_stays(line, (size_t)length, resume_step, past))
            dropped++;
        else if (to && fwrite(line, (size_t)length, 1, to) != 1)
            break;
    }
    if (ferror(from) || (to && ferror(to)))
        dropped = -1;
    free(line);
    return dropped;
}

static int sync_directory_of(const char *path)
{
    char *copy = strdup(path);
    int directory = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    int result = directory < 0 ? -1 : fsync(directory);

    if (directory >= 0)
        close(directory);
    free(copy);
    return result;
}

/* Replace the file by one without the lines that do not stay. */
static int rewrite(FILE *from, const char *path, int64_t resume_step, struct error *error)
{
    char beside[PATH_MAX];
    FILE *to = NULL;
    int result = -1;

    if (snprintf(beside, sizeof(beside), "%s.tmp", path) >= (int)sizeof(beside))
        return error_set(error, EXIT_STATUS_IO, "%s: the path is too long", path);
    rewind(from);
    to = fopen(beside, "we");
    if (!to || copy_lines(from, to, resume_step, NULL) < 0 || fflush(to) != 0 ||
        fsync(fileno(to)) < 0) {
        error_set_errno(error, "%s: cannot write", beside);
        goto out;
    }
    if (rename(beside, path) < 0 || sync_directory_of(path) < 0) {
        error_set_errno(error, "%s: cannot replace", path);
        goto out;
    }
    result = 0;
out:
    if (to && fclose(to) != 0 && result == 0)
        result = error_set_errno(error, "%s: cannot write", path);
    if (result < 0)
        unlink(beside);
    return result;
}

static int cut_back(const char *path, int64_t resume_step, struct metrics_past *past,
                    struct error *error)
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
        dropped = copy_lines(from, NULL, resume_step, past);
        if (dropped < 0)
            result = error_set_errno(error, "%s: cannot read", path);
        else if (dropped > 0)
            result = rewrite(from, path, resume_step, error);
    }
    fclose(from);
    return result;
}

int metrics_open(struct metrics **result, const char *path, int64_t resume_step,
                 struct error *error)
{
    struct metrics *metrics = calloc(1, sizeof(*metrics));

    *result = NULL;
    if (!metrics)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    metrics->file = -1;
    metrics->path = strdup(path);
    if (!metrics->path) {
        error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        goto failed;
    }
    if (cut_back(path, resume_step, &metrics->past, error) < 0)
        goto failed;
    metrics->file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (metrics->file < 0) {
        error_set_errno(error, "%s: cannot write", path);
        goto failed;
    }
    *result = metrics;
    return 0;

failed:
    metrics_close(metrics);
    return -1;
}

void metrics_close(struct metrics *metrics)
{
    if (!metrics)
        return;
    if (metrics->lost > 0)
        log_warning_any_rank("%s: %lld lines were lost", metrics->path, (long long)metrics->lost);
    if (metrics->file >= 0)
        close(metrics->file);
    free(metrics->path);
    free(metrics);
}

const struct metrics_past *metrics_past(const struct metrics *metrics)
{
    return &metrics->past;
}

static void lose_line(struct metrics *metrics, int reason)
{
    if (metrics->lost++ == 0)
        log_warning_any_rank("%s: cannot write: %s; training goes on without these lines",
                             metrics->path, strerror(reason));
}

void metrics_write(struct metrics *metrics, const struct metrics_row *row)
{
    size_t size = metrics_json_size(row), length;
    char *line = malloc(size + 1);
    struct stat status;
    ssize_t written;

    if (!line) {
        lose_line(metrics, ENOMEM);
        return;
    }
    metrics_format_json(row, line, size);
    length = strlen(line);
    line[length++] = '\n';
    if (fstat(metrics->file, &status) < 0)
        status.st_size = -1;
    do
        written = write(metrics->file, line, length);
    while (written < 0 && errno == EINTR);
    free(line);
    if (written == (ssize_t)length)
        return;
    lose_line(metrics, written < 0 ? errno : ENOSPC);
    /* Part of a line would spoil the next one. Taking it back needs no space. */
    if (written > 0 && status.st_size >= 0 && ftruncate(metrics->file, status.st_size) < 0)
        log_warning_any_rank("%s: holds part of a line", metrics->path);
}

int64_t metrics_lost(const struct metrics *metrics)
{
    return metrics->lost;
}
