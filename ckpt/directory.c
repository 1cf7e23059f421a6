#include "ckpt/directory.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/checkpoint.h"
#include "ckpt/disk.h"
#include "ckpt/format.h"

int64_t directory_step(const char *name)
{
    char expected[FORMAT_NAME_SIZE];
    char *end;
    long long step;

    if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9')
        return -1;
    errno = 0;
    step = strtoll(name + 5, &end, 10);
    if (errno != 0 || *end != '\0')
        return -1;
    format_step_name(expected, step);
    return strcmp(name, expected) == 0 ? step : -1;
}

void checkpoint_path(const char *root, int64_t step, char *path, size_t size)
{
    char name[FORMAT_NAME_SIZE];

    format_step_name(name, step);
    snprintf(path, size, "%s/%s", root, name);
}

static int newest_first(const void *a, const void *b)
{
    int64_t one = *(const int64_t *)a, other = *(const int64_t *)b;

    return one > other ? -1 : one < other;
}

int checkpoint_list(const char *root, int64_t **steps, size_t *count, struct error *error)
{
    struct disk_names names;
    int result = -1;

    *steps = NULL;
    *count = 0;
    if (disk_list(root, &names, error) < 0)
        return -1;
    *steps = calloc(names.count + 1, sizeof(**steps));
    if (!*steps) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory to list it", root);
        goto out;
    }
    for (size_t i = 0; i < names.count; i++) {
        int64_t step = directory_step(names.names[i]);
        char path[DISK_PATH_SIZE];

        if (step >= 0 && disk_path(path, error, "%s/%s", root, names.names[i]) == 0 &&
            disk_is_directory(path))
            (*steps)[(*count)++] = step;
    }
    qsort(*steps, *count, sizeof(**steps), newest_first);
    result = 0;
out:
    disk_names_free(&names);
    return result;
}

int checkpoint_find(const char *root, bool deep, char *path, size_t size,
                    checkpoint_complaint complain, void *user, struct error *error)
{
    int64_t *steps;
    size_t count;
    int found = 0;

    if (checkpoint_list(root, &steps, &count, error) < 0)
        return -1;
    for (size_t i = 0; i < count && found == 0; i++) {
        struct checkpoint *checkpoint;
        struct error reason = {0};
        int faults = 0;

        checkpoint_path(root, steps[i], path, size);
        if (checkpoint_open(&checkpoint, path, &reason) < 0) {
            if (reason.status == EXIT_STATUS_SYSTEM) { /* tells nothing about the checkpoint */
                *error = reason;
                found = -1;
            } else if (complain) {
                complain(user, reason.text);
            }
            continue;
        }
        checkpoint_close(checkpoint);
        if (deep)
            faults = checkpoint_verify(path, complain, user, &reason);
        if (faults < 0 && complain)
            complain(user, reason.text);
        found = faults == 0;
    }
    free(steps);
    return found;
}

/* The step that `latest` names, or -1. */
static int64_t latest_step(const char *root)
{
    char path[DISK_PATH_SIZE], target[FORMAT_NAME_SIZE];
    struct error ignored;
    ssize_t length;

    if (disk_path(path, &ignored, "%s/%s", root, FORMAT_LATEST) < 0)
        return -1;
    length = readlink(path, target, sizeof(target) - 1);
    if (length < 0)
        return -1;
    target[length] = '\0';
    return directory_step(target);
}

static bool is_good(const char *root, int64_t step)
{
    char path[DISK_PATH_SIZE];
    struct checkpoint *checkpoint;
    struct error ignored = {0};

    checkpoint_path(root, step, path, sizeof(path));
    if (checkpoint_open(&checkpoint, path, &ignored) < 0)
        return false;
    checkpoint_close(checkpoint);
    return true;
}

/* Out of sight first, so that a crash leaves no half of it behind. */
static int discard(const char *root, int64_t step, struct error *error)
{
    char path[DISK_PATH_SIZE], trash[DISK_PATH_SIZE], name[FORMAT_NAME_SIZE];

    format_step_name(name, step);
    if (disk_path(path, error, "%s/%s", root, name) < 0 ||
        disk_path(trash, error, "%s/" DIRECTORY_TRASH "%s", root, name) < 0 ||
        disk_remove_tree(trash, error) < 0 || disk_rename(path, trash, error) < 0)
        return -1;
    return disk_remove_tree(trash, error);
}

int checkpoint_prune(const char *root, int keep, struct error *error)
{
    int64_t *steps, latest = latest_step(root);
    size_t count;
    int good = 0, result = 0;
    bool removed = false;

    if (checkpoint_list(root, &steps, &count, error) < 0)
        return -1;
    /* A run that fell back behind a damaged checkpoint goes on below it: what lies beyond `latest`
     * neither counts nor goes, or it would cost the ones that the run lives on. */
    if (latest >= 0 && !is_good(root, latest))
        latest = -1;
    for (size_t i = 0; i < count && result == 0; i++) {
        if (latest >= 0 && steps[i] > latest)
            continue;
        if (good >= keep && good > 0) {
            result = discard(root, steps[i], error);
            removed = true;
        } else if (is_good(root, steps[i])) {
            good++;
        }
    }
    if (removed && result == 0)
        result = disk_sync_directory(root, error);
    free(steps);
    return result;
}

static bool begins(const char *name, const char *with)
{
    return strncmp(name, with, strlen(with)) == 0;
}

static bool ends(const char *name, const char *with)
{
    size_t length = strlen(name), tail = strlen(with);

    return length >= tail && strcmp(name + length - tail, with) == 0;
}

/* A crash between the two renames of a replacement: the old one is still whole. */
static int restore_or_remove(const char *root, const char *name, struct error *error)
{
    char path[DISK_PATH_SIZE], final[DISK_PATH_SIZE];
    const char *step_name = name + strlen(DIRECTORY_REPLACED);

    if (disk_path(path, error, "%s/%s", root, name) < 0 ||
        disk_path(final, error, "%s/%s", root, step_name) < 0)
        return -1;
    if (directory_step(step_name) >= 0 && !disk_is_directory(final))
        return disk_rename(path, final, error);
    return disk_remove_tree(path, error);
}

int checkpoint_clean(const char *root, struct error *error)
{
    struct disk_names names;
    int result = 0;

    if (disk_list(root, &names, error) < 0)
        return -1;
    for (size_t i = 0; i < names.count && result == 0; i++) {
        const char *name = names.names[i];
        char path[DISK_PATH_SIZE];

        if (begins(name, DIRECTORY_REPLACED)) {
            result = restore_or_remove(root, name, error);
        } else if ((begins(name, ".step-") && ends(name, ".tmp")) ||
                   begins(name, DIRECTORY_TRASH) || strcmp(name, FORMAT_LATEST ".tmp") == 0) {
            result = disk_path(path, error, "%s/%s", root, name);
            if (result == 0)
                result = disk_remove_tree(path, error);
        }
    }
    disk_names_free(&names);
    return result;
}
