#include "ckpt/hf_directory.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/disk.h"
#include "core/log.h"

static bool matches(const char *name, const char *const *patterns)
{
    for (; *patterns; patterns++)
        if (fnmatch(*patterns, name, 0) == 0)
            return true;
    return false;
}

bool hf_file_is_model(const char *name)
{
    static const char *const patterns[] = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-*-of-*.safetensors",
        "model.safetensors.index.json",
        "model*.safetensors.tmp",
        "pytorch_model.bin",
        "pytorch_model-*-of-*.bin",
        "pytorch_model.bin.index.json",
        NULL,
    };

    return matches(name, patterns);
}

bool hf_file_is_tokenizer(const char *name)
{
    return matches(name, hf_tokenizer_files);
}

/* The absolute name of `path` with symbolic links followed; its last component need not exist. */
static char *resolve(const char *path, struct error *error)
{
    char *copy = strdup(path), *resolved = NULL, *parent, *slash;
    size_t length = copy ? strlen(copy) : 0;

    if (!copy) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
        return NULL;
    }
    while (length > 1 && copy[length - 1] == '/')
        copy[--length] = '\0';
    resolved = realpath(copy, NULL);
    if (resolved || errno != ENOENT || length == 0) {
        if (!resolved)
            error_set_errno(error, "%s", path);
        goto out;
    }
    slash = strrchr(copy, '/');
    if (slash)
        *slash = '\0';
    parent = realpath(!slash ? "." : *copy ? copy : "/", NULL);
    if (!parent)
        error_set_errno(error, "%s: the directory above it", path);
    else if (asprintf(&resolved, "%s/%s", strcmp(parent, "/") ? parent : "",
                      slash ? slash + 1 : copy) < 0)
        resolved = NULL;
    free(parent);
out:
    free(copy);
    return resolved;
}

/* Something stands under the final name already: may it be replaced? */
static int check_existing(struct hf_directory *directory, const char *path, bool force,
                          struct error *error)
{
    struct disk_names names;
    struct stat status;

    if (stat(directory->path, &status) < 0) {
        if (errno == ENOENT)
            return 0;
        return error_set_errno(error, "%s", path);
    }
    if (!S_ISDIR(status.st_mode))
        return error_set(error, EXIT_STATUS_USAGE, "%s: exists and is not a directory", path);
    if (disk_list(directory->path, &names, error) < 0)
        return -1;
    directory->exists = names.count > 0;
    disk_names_free(&names);
    if (directory->exists && !force)
        return error_set(error, EXIT_STATUS_USAGE,
                         "%s: exists and is not empty; name another directory, or give --force to "
                         "replace the model in it",
                         path);
    return 0;
}

/* Remove the files in the partial directory. Unless they are all `ours`, one that is no part of a
 * model is left alone: a run that was killed while it replaced a directory may have left it. */
static int empty_partial(const struct hf_directory *directory, bool ours, struct error *error)
{
    struct disk_names names;
    int rc = disk_list(directory->partial, &names, error);

    for (size_t i = 0; rc == 0 && i < names.count; i++) {
        const char *name = names.names[i];

        if (!ours && !hf_file_is_model(name) && !hf_file_is_tokenizer(name))
            rc = error_set(error, EXIT_STATUS_USAGE,
                           "%s/%s: left by a run that was stopped; move it to where it belongs and "
                           "try again",
                           directory->partial, name);
        else if (unlinkat(directory->lock, name, 0) < 0)
            rc = error_set_errno(error, "%s/%s: cannot be removed", directory->partial, name);
    }
    disk_names_free(&names);
    return rc;
}

/* The partial directory, empty and ours alone. One that a killed run left is used again. */
static int make_partial(struct hf_directory *directory, struct error *error)
{
    struct stat held, named;

    if (mkdir(directory->partial, 0777) < 0 && errno != EEXIST)
        return error_set_errno(error, "%s: creating", directory->partial);
    directory->lock = open(directory->partial, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory->lock < 0)
        return error_set_errno(error, "%s", directory->partial);
    /* Whoever held the lock before may have renamed the directory meanwhile. File systems without
     * locks are used without. */
    if ((flock(directory->lock, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) ||
        fstat(directory->lock, &held) < 0 || stat(directory->partial, &named) < 0 ||
        held.st_ino != named.st_ino || held.st_dev != named.st_dev) {
        close(directory->lock);
        directory->lock = -1;
        return error_set(error, EXIT_STATUS_IO, "%s: another process is writing it",
                         directory->path);
    }
    if (empty_partial(directory, false, error) == 0)
        return 0;
    close(directory->lock);
    directory->lock = -1; /* what is in it is not ours */
    return -1;
}

int hf_directory_begin(struct hf_directory *directory, const char *path, bool force,
                       struct error *error)
{
    char *name;

    *directory = (struct hf_directory){.lock = -1};
    directory->path = resolve(path, error);
    if (!directory->path)
        return -1;
    name = strrchr(directory->path, '/') + 1;
    if (check_existing(directory, path, force, error) < 0)
        goto fail;
    if (!*name) {
        error_set(error, EXIT_STATUS_USAGE, "%s: cannot be replaced", path);
        goto fail;
    }
    if (asprintf(&directory->partial, "%.*s.%s.partial", (int)(name - directory->path),
                 directory->path, name) < 0) {
        directory->partial = NULL;
        error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
        goto fail;
    }
    if (make_partial(directory, error) < 0)
        goto fail;
    return 0;
fail:
    if (directory->lock < 0) {
        free(directory->partial);
        directory->partial = NULL; /* not ours: leave it alone */
    }
    hf_directory_close(directory);
    return -1;
}

/* `old` holds what stood at `path`: what is no part of a model moves over, the rest goes. */
static int clear_old(const char *old, const char *path, struct error *error)
{
    struct disk_names names;
    int rc = disk_list(old, &names, error);

    for (size_t i = 0; rc == 0 && i < names.count; i++) {
        const char *name = names.names[i];
        char from[DISK_PATH_SIZE], to[DISK_PATH_SIZE];

        if (disk_path(from, error, "%s/%s", old, name) < 0 ||
            disk_path(to, error, "%s/%s", path, name) < 0)
            rc = -1;
        else if (hf_file_is_model(name) || hf_file_is_tokenizer(name) ||
                 faccessat(AT_FDCWD, to, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
            rc = disk_unlink(from, error);
        else
            rc = disk_rename(from, to, error);
    }
    disk_names_free(&names);
    if (rc == 0 && rmdir(old) < 0)
        rc = error_set_errno(error, "cannot be removed");
    return rc;
}

/* Where the file system cannot exchange two names, there is a moment without either. */
static int replace(const struct hf_directory *directory, struct error *error)
{
    struct error reason = {0};
    char old[DISK_PATH_SIZE];
    int exchanged = disk_exchange(directory->partial, directory->path, error);

    if (exchanged < 0 ||
        disk_path(old, error, "%s%s", directory->partial, exchanged ? "" : ".old") < 0)
        return -1;
    if (!exchanged) {
        if (disk_rename(directory->path, old, error) < 0)
            return -1;
        if (disk_rename(directory->partial, directory->path, error) < 0) {
            disk_rename(old, directory->path, &reason);
            return -1;
        }
    }
    /* The new model stands; what cannot be cleared away is no reason to fail. */
    if (clear_old(old, directory->path, &reason) < 0)
        log_warning("%s holds what is left of the old %s: %s", old, directory->path, reason.text);
    return 0;
}

int hf_directory_commit(struct hf_directory *directory, struct error *error)
{
    char *parent;
    int rc;

    if (disk_sync_directory(directory->partial, error) < 0)
        return -1;
    if (directory->exists)
        rc = replace(directory, error);
    else
        rc = disk_rename(directory->partial, directory->path, error);
    if (rc < 0)
        return -1;
    close(directory->lock);
    directory->lock = -1;
    parent = strndup(directory->path, (size_t)(strrchr(directory->path, '/') - directory->path));
    if (!parent)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", directory->path);
    rc = disk_sync_directory(*parent ? parent : "/", error);
    free(parent);
    return rc;
}

void hf_directory_close(struct hf_directory *directory)
{
    int saved = errno;

    if (directory->lock >= 0 && directory->partial) {
        struct error ignored;

        if (empty_partial(directory, true, &ignored) == 0)
            rmdir(directory->partial);
        close(directory->lock);
    }
    free(directory->partial);
    free(directory->path);
    *directory = (struct hf_directory){.lock = -1};
    errno = saved;
}
