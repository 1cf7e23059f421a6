#include "ckpt/listing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/directory.h"
#include "ckpt/format.h"
#include "ckpt/reader.h"

static void keep_first(void *user, const char *text)
{
    struct listing_row *row = user;

    if (!*row->fault)
        snprintf(row->fault, sizeof(row->fault), "%s", text);
}

/* The part of a complaint that the row does not say already. */
static void shorten(struct listing_row *row)
{
    size_t length = strlen(row->directory);

    if (strncmp(row->fault, row->directory, length) == 0 && row->fault[length] == '/')
        memmove(row->fault, row->fault + length + 1, strlen(row->fault + length + 1) + 1);
}

int listing_fill(struct listing_row *row, struct error *error)
{
    struct checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    bool index_good;
    int faults;

    if (!checkpoint)
        return error_set(error, EXIT_STATUS_SYSTEM, "no memory");
    faults = reader_check(checkpoint, row->directory, &index_good, keep_first, row, error);
    if (faults >= 0) {
        const struct manifest *manifest = &checkpoint->manifest;

        shorten(row);
        row->described = manifest->shards != NULL;
        row->step = row->described ? manifest->step : row->step;
        row->bytes = manifest->index.size;
        for (size_t i = 0; row->described && i < manifest->shard_count; i++)
            row->bytes += manifest->shards[i].size;
        row->tensors = checkpoint->index.table.tensor_count;
        snprintf(row->created, sizeof(row->created), "%s", manifest->created);
        snprintf(row->layout, sizeof(row->layout), "%s", manifest->layout);
    }
    reader_release(checkpoint);
    free(checkpoint);
    return faults < 0 ? -1 : 0;
}

/* An attempt that did not end, or has not yet: .step-NNNNNNNN.tmp. */
static int64_t unfinished_step(const char *name)
{
    char step_name[FORMAT_NAME_SIZE];
    size_t length = strlen(name);

    if (length < 6 || length - 5 >= sizeof(step_name) || name[0] != '.' ||
        strcmp(name + length - 4, ".tmp") != 0)
        return -1;
    memcpy(step_name, name + 1, length - 5);
    step_name[length - 5] = '\0';
    return directory_step(step_name);
}

static int compare_rows(const void *a, const void *b)
{
    const struct listing_row *one = a, *other = b;

    if (one->step != other->step)
        return one->step < other->step ? -1 : 1;
    return strcmp(other->directory, one->directory); /* the complete one of two first */
}

int listing_read(const char *root, struct listing_row **rows, size_t *count, struct error *error)
{
    char link[DISK_PATH_SIZE], latest[DISK_PATH_SIZE] = "";
    struct disk_names names;
    ssize_t length;
    int result = 0;

    *rows = NULL;
    *count = 0;
    if (disk_path(link, error, "%s/%s", root, FORMAT_LATEST) < 0 ||
        disk_list(root, &names, error) < 0)
        return -1;
    length = readlink(link, latest, sizeof(latest) - 1);
    latest[length < 0 ? 0 : length] = '\0';
    *rows = calloc(names.count + 1, sizeof(**rows));
    if (!*rows)
        result = error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory to list it", root);
    for (size_t i = 0; i < names.count && result == 0; i++) {
        struct listing_row *row = &(*rows)[*count];
        int64_t step = directory_step(names.names[i]);
        int64_t unfinished = unfinished_step(names.names[i]);

        if (step < 0 && unfinished < 0)
            continue;
        row->step = step < 0 ? unfinished : step;
        row->latest = strcmp(names.names[i], latest) == 0;
        result = disk_path(row->directory, error, "%s/%s", root, names.names[i]);
        if (result == 0 && !disk_is_directory(row->directory))
            continue;
        if (result == 0 && step >= 0)
            result = listing_fill(row, error);
        else
            snprintf(row->fault, sizeof(row->fault), "unfinished: being written, or abandoned");
        ++*count;
    }
    disk_names_free(&names);
    if (result == 0)
        qsort(*rows, *count, sizeof(**rows), compare_rows);
    return result;
}
