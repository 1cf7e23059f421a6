#include "ckpt/kept_files.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/disk.h"
#include "ckpt/hf_config.h"

#define FILE_MAX ((size_t)256 << 20)

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for the tokenizer's files");
}

struct checkpoint_file *kept_files_find(const struct kept_files *files, const char *name)
{
    for (size_t i = 0; i < files->count; i++)
        if (strcmp(files->list[i].name, name) == 0)
            return &files->list[i];
    return NULL;
}

struct checkpoint_file *kept_files_sentencepiece(const struct kept_files *files)
{
    struct checkpoint_file *found = kept_files_find(files, "tokenizer.model");

    for (size_t i = 0; !found && i < files->count; i++)
        if (fnmatch("*.model", files->list[i].name, 0) == 0)
            found = &files->list[i];
    return found;
}

/* A new one of this name, which has nothing in it yet; NULL when memory runs out. */
static struct checkpoint_file *add(struct kept_files *files, const char *name)
{
    struct checkpoint_file *list = realloc(files->list, (files->count + 1) * sizeof(*list));

    if (!list)
        return NULL;
    files->list = list;
    list[files->count] = (struct checkpoint_file){.name = strdup(name)};
    return list[files->count].name ? &list[files->count++] : NULL;
}

int kept_files_put(struct kept_files *files, const char *name, void *bytes, size_t size,
                   struct error *error)
{
    struct checkpoint_file *file = kept_files_find(files, name);

    if (!file)
        file = add(files, name);
    if (!file) {
        free(bytes);
        return out_of_memory(error);
    }
    free(file->bytes);
    file->bytes = bytes;
    file->size = size;
    return 0;
}

static int read_file(struct kept_files *files, const char *path, const char *name,
                     struct error *error)
{
    void *bytes;
    size_t size;

    if (disk_read_file(path, FILE_MAX, &bytes, &size, error) < 0)
        return -1;
    return kept_files_put(files, name, bytes, size, error);
}

static int read_if_there(struct kept_files *files, const char *directory, const char *name,
                         struct error *error)
{
    char *path;
    int rc = 0;

    if (asprintf(&path, "%s/%s", directory, name) < 0)
        return out_of_memory(error);
    if (access(path, F_OK) == 0 || errno != ENOENT)
        rc = read_file(files, path, name, error);
    free(path);
    return rc;
}

int kept_files_read_directory(struct kept_files *files, const char *directory, struct error *error)
{
    for (const char *const *name = hf_tokenizer_files; *name; name++)
        if (read_if_there(files, directory, *name, error) < 0)
            return -1;
    return read_if_there(files, directory, "generation_config.json", error);
}

int kept_files_read_tokenizer(struct kept_files *files, const char *path, struct error *error)
{
    const char *slash = strrchr(path, '/');
    struct stat status;
    int rc;

    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode))
        rc = kept_files_read_directory(files, path, error);
    else
        rc = read_file(files, path, slash ? slash + 1 : path, error);
    if (rc < 0)
        return error_prefix(error, "tokenizer: ");
    for (size_t i = 0; i < files->count; i++)
        if (strcmp(files->list[i].name, "generation_config.json") != 0)
            return 0;
    return error_set(error, EXIT_STATUS_DATA,
                     "tokenizer=%s: no tokenizer.model or tokenizer.json in this directory", path);
}

int kept_files_copy(struct kept_files *files, const struct checkpoint_state *state,
                    struct error *error)
{
    for (size_t i = 0; i < state->file_count; i++) {
        const struct checkpoint_file *from = &state->files[i];
        void *bytes = malloc(from->size + 1);

        if (!bytes)
            return out_of_memory(error);
        memcpy(bytes, from->bytes, from->size);
        if (kept_files_put(files, from->name, bytes, from->size, error) < 0)
            return -1;
    }
    return 0;
}

void kept_files_destroy(struct kept_files *files)
{
    for (size_t i = 0; i < files->count; i++) {
        free(files->list[i].name);
        free(files->list[i].bytes);
    }
    free(files->list);
    *files = (struct kept_files){0};
}
