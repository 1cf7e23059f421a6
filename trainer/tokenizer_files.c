#include "trainer/tokenizer_files.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/hf_config.h"

static int read_whole(struct checkpoint_file *file, const char *path, struct error *error)
{
    const char *slash = strrchr(path, '/');
    FILE *stream = fopen(path, "rb");
    struct stat status;
    int result = -1;

    if (!stream || fstat(fileno(stream), &status) != 0) {
        error_set_errno(error, "tokenizer: cannot read %s", path);
        error->status = EXIT_STATUS_DATA;
        goto out;
    }
    file->size = (size_t)status.st_size;
    file->name = strdup(slash ? slash + 1 : path);
    file->bytes = malloc(file->size ? file->size : 1);
    if (!file->name || !file->bytes)
        error_set(error, EXIT_STATUS_SYSTEM, "out of memory for %s", path);
    else if (fread(file->bytes, 1, file->size, stream) != file->size)
        error_set(error, EXIT_STATUS_DATA, "tokenizer: cannot read all of %s", path);
    else
        result = 0;
out:
    if (stream)
        fclose(stream);
    return result;
}

/* A file of the directory, if it has it. */
static int read_optional(struct tokenizer_files *files, const char *directory, const char *name,
                         struct error *error)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    if (access(path, F_OK) != 0)
        return 0;
    return read_whole(&files->list[files->count++], path, error);
}

static int read_directory(struct tokenizer_files *files, const char *path, struct error *error)
{
    for (const char *const *name = hf_tokenizer_files; *name; name++)
        if (read_optional(files, path, *name, error) < 0)
            return -1;
    if (files->count == 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "tokenizer=%s: no tokenizer.model or tokenizer.json in this directory",
                         path);
    return read_optional(files, path, "generation_config.json", error);
}

int tokenizer_files_read(struct tokenizer_files *files, const char *path, struct error *error)
{
    size_t names = 1; /* generation_config.json */
    struct stat status;
    int result;

    while (hf_tokenizer_files[names - 1])
        names++;
    *files = (struct tokenizer_files){.list = calloc(names, sizeof(*files->list))};
    if (!files->list)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (stat(path, &status) != 0) {
        result = error_set_errno(error, "tokenizer=%s", path);
        error->status = EXIT_STATUS_DATA;
    } else if (S_ISDIR(status.st_mode)) {
        result = read_directory(files, path, error);
    } else {
        files->count = 1;
        result = read_whole(&files->list[0], path, error);
    }
    if (result < 0)
        tokenizer_files_destroy(files);
    return result;
}

int tokenizer_files_copy(struct tokenizer_files *files, const struct checkpoint_state *state,
                         struct error *error)
{
    *files = (struct tokenizer_files){
        .list = calloc(state->file_count ? state->file_count : 1, sizeof(*files->list))};
    for (size_t i = 0; files->list && i < state->file_count; i++) {
        const struct checkpoint_file *from = &state->files[i];
        struct checkpoint_file *to = &files->list[files->count++];

        to->name = strdup(from->name);
        to->bytes = malloc(from->size ? from->size : 1);
        to->size = from->size;
        if (!to->name || !to->bytes)
            goto no_memory;
        memcpy(to->bytes, from->bytes, from->size);
    }
    if (files->list)
        return 0;
no_memory:
    tokenizer_files_destroy(files);
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for the tokenizer's files");
}

void tokenizer_files_destroy(struct tokenizer_files *files)
{
    for (size_t i = 0; i < files->count; i++) {
        free(files->list[i].name);
        free(files->list[i].bytes);
    }
    free(files->list);
    *files = (struct tokenizer_files){0};
}
