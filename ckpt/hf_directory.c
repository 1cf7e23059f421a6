#include "ckpt/hf_directory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/file.h"
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

const char *const hf_tokenizer_files[] = {
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    NULL,
};

bool hf_file_is_tokenizer(const char *name)
{
    return matches(name, hf_tokenizer_files);
}

/* Calls `visit` for every entry but . and .. until it returns other than 0, and returns that. */
static int each_entry(const char *path, int (*visit)(void *user, const char *name), void *user)
{
    DIR *stream = opendir(path);
    struct dirent *entry;
    int rc = 0;

    if (!stream)
        return -1;
    while (rc == 0 && (entry = readdir(stream)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            rc = visit(user, entry->d_name);
    closedir(stream);
    return rc;
}

static int any(void *user, const char *name)
{
    (void)user;
    (void)name;
    return 1;
}

static int unlink_in(void *user, const char *name)
{
    unlinkat(*(int *)user, name, 0);
    return 0;
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
    struct stat status;

    if (stat(directory->path, &status) < 0) {
        if (errno == ENOENT)
            return 0;
        return error_set_errno(error, "%s", path);
    }
    if (!S_ISDIR(status.st_mode))
        return error_set(error, EXIT_STATUS_USAGE, "%s: exists and is not a directory", path);
    directory->exists = each_entry(directory->path, any, NULL) != 0;
    if (directory->exists && !force)
        return error_set(error, EXIT_STATUS_USAGE,
                         "%s: exists and is not empty; name another directory, or give --force to "
                         "replace the model in it",
                         path);
    return 0;
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
    each_entry(directory->partial, unlink_in, &directory->lock);
    if (each_entry(directory->partial, any, NULL) != 0)
        return error_set(error, EXIT_STATUS_IO, "%s: is in the way and cannot be emptied",
                         directory->partial);
    return 0;
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

/* The old directory and the one that took its place. */
struct replacement {
    int old, new;
};

static int keep_or_remove(void *user, const char *name)
{
    const struct replacement *replacement = user;

    if (hf_file_is_model(name) || hf_file_is_tokenizer(name) ||
        faccessat(replacement->new, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        unlinkat(replacement->old, name, 0);
    else
        renameat(replacement->old, name, replacement->new, name);
    return 0;
}

/* `old` holds what stood at `path`: what is no part of a model moves over, the rest goes. */
static void clear_old(const char *old, const char *path)
{
    struct replacement replacement = {
        .old = open(old, O_RDONLY | O_DIRECTORY | O_CLOEXEC),
        .new = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC),
    };

    if (replacement.old >= 0 && replacement.new >= 0)
        each_entry(old, keep_or_remove, &replacement);
    if (replacement.old >= 0)
        close(replacement.old);
    if (replacement.new >= 0)
        close(replacement.new);
    if (rmdir(old) < 0)
        log_warning("%s: left over from what was in %s before: %s", old, path, strerror(errno));
}

/* Where the file system cannot exchange two names, there is a moment without either. */
static int replace(const struct hf_directory *directory, struct error *error)
{
    char *old;
    int rc = -1;

    if (renameat2(AT_FDCWD, directory->partial, AT_FDCWD, directory->path, RENAME_EXCHANGE) == 0) {
        clear_old(directory->partial, directory->path);
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP)
        return error_set_errno(error, "%s: renaming %s to it", directory->path, directory->partial);
    if (asprintf(&old, "%s.old", directory->partial) < 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", directory->path);
    if (rename(directory->path, old) < 0) {
        error_set_errno(error, "%s: renaming to %s", directory->path, old);
    } else if (rename(directory->partial, directory->path) < 0) {
        error_set_errno(error, "%s: renaming %s to it", directory->path, directory->partial);
        rename(old, directory->path);
    } else {
        clear_old(old, directory->path);
        rc = 0;
    }
    free(old);
    return rc;
}

int hf_directory_commit(struct hf_directory *directory, struct error *error)
{
    char *parent;
    int rc;

    if (file_sync_directory(directory->partial, error) < 0)
        return -1;
    if (directory->exists)
        rc = replace(directory, error);
    else if ((rc = rename(directory->partial, directory->path)) < 0)
        error_set_errno(error, "%s: renaming %s to it", directory->path, directory->partial);
    if (rc < 0)
        return -1;
    close(directory->lock);
    directory->lock = -1;
    parent = strndup(directory->path, (size_t)(strrchr(directory->path, '/') - directory->path));
    if (!parent)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", directory->path);
    rc = file_sync_directory(*parent ? parent : "/", error);
    free(parent);
    return rc;
}

void hf_directory_close(struct hf_directory *directory)
{
    int saved = errno;

    if (directory->lock >= 0) {
        each_entry(directory->partial, unlink_in, &directory->lock);
        rmdir(directory->partial);
        close(directory->lock);
    }
    free(directory->partial);
    free(directory->path);
    *directory = (struct hf_directory){.lock = -1};
    errno = saved;
}
