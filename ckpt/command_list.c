/* mtllm-ckpt list: what a run has saved, and which of it can be used. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/command.h"
#include "ckpt/directory.h"
#include "ckpt/disk.h"
#include "ckpt/format.h"
#include "ckpt/reader.h"

struct row {
    char directory[DISK_PATH_SIZE];
    int64_t step;
    char created[32], layout[32];
    uint64_t bytes;
    size_t tensors;
    bool described; /* the members above are known */
    bool latest;
    char fault[1024]; /* "" when it is complete */
};

static void keep_first(void *user, const char *text)
{
    struct row *row = user;

    if (!*row->fault)
        snprintf(row->fault, sizeof(row->fault), "%s", text);
}

/* The part of a complaint that the row does not say already. */
static void shorten(struct row *row)
{
    size_t length = strlen(row->directory);

    if (strncmp(row->fault, row->directory, length) == 0 && row->fault[length] == '/')
        memmove(row->fault, row->fault + length + 1, strlen(row->fault + length + 1) + 1);
}

static int fill(struct row *row, struct error *error)
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

static json_t *row_json(const struct row *row)
{
    json_t *json = json_pack("{s:I, s:s, s:b, s:b}", "step", (json_int_t)row->step, "directory",
                             row->directory, "complete", !*row->fault, "latest", row->latest);

    if (json && row->described)
        json_object_update_new(
            json, json_pack("{s:s, s:s, s:I, s:I}", "created", row->created, "layout", row->layout,
                            "bytes", (json_int_t)row->bytes, "tensors", (json_int_t)row->tensors));
    if (json && *row->fault)
        json_object_set_new(json, "fault", json_string(row->fault));
    return json;
}

static void print_row(const struct row *row)
{
    char size[32] = "-", tensors[24] = "-";

    if (row->described)
        command_size(row->bytes, size);
    if (row->tensors)
        snprintf(tensors, sizeof(tensors), "%zu", row->tensors);
    printf("%10lld  %-20s  %10s  %7s  %-16s  %s%s\n", (long long)row->step,
           row->described ? row->created : "-", size, tensors,
           row->described && *row->layout ? row->layout : "-",
           *row->fault ? row->fault : "complete", row->latest ? ", latest" : "");
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
    const struct row *one = a, *other = b;

    if (one->step != other->step)
        return one->step < other->step ? -1 : 1;
    return strcmp(other->directory, one->directory); /* the complete one of two first */
}

/* All checkpoints under a root, oldest first. */
static int collect(const char *root, struct row **rows, size_t *count, struct error *error)
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
        struct row *row = &(*rows)[*count];
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
            result = fill(row, error);
        else
            snprintf(row->fault, sizeof(row->fault), "unfinished: being written, or abandoned");
        ++*count;
    }
    disk_names_free(&names);
    if (result == 0)
        qsort(*rows, *count, sizeof(**rows), compare_rows);
    return result;
}

static int print_rows(const struct row *rows, size_t count, bool as_json, struct error *error)
{
    json_t *json;

    if (!as_json) {
        printf("%10s  %-20s  %10s  %7s  %-16s  %s\n", "STEP", "WRITTEN", "SIZE", "TENSORS",
               "LAYOUT", "STATE");
        for (size_t i = 0; i < count; i++)
            print_row(&rows[i]);
        return 0;
    }
    json = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(json, row_json(&rows[i]));
    return command_print_json(json, error);
}

static int run(const struct command *command, int argc, char **argv, struct error *error)
{
    int as_json = 0, first, result = -1;
    const struct option options[] = {{"json", no_argument, &as_json, 1}, {0}};
    char root[DISK_PATH_SIZE];
    struct row *rows = NULL;
    size_t count = 0;

    first = command_parse(command, argc, argv, options, NULL, 1, 1, error);
    if (first <= 0)
        return first;
    if (!disk_is_directory(argv[first]))
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: no such directory; name a run or the ckpt/ in it", argv[first]);
    if (checkpoint_is_one(argv[first])) {
        rows = calloc(1, sizeof(*rows));
        count = 1;
        if (!rows)
            return error_set(error, EXIT_STATUS_SYSTEM, "no memory");
        if (disk_path(rows->directory, error, "%s", argv[first]) == 0)
            result = fill(rows, error);
    } else {
        checkpoint_root(argv[first], root, sizeof(root));
        result = collect(root, &rows, &count, error);
    }
    if (result == 0)
        result = print_rows(rows, count, as_json, error);
    free(rows);
    return result;
}

const struct command command_list = {
    .name = "list",
    .usage = "Usage: mtllm-ckpt list [--json] DIR\n"
             "List the checkpoints of a run: step, when written, size, tensors, layout of the\n"
             "writer, and whether the checkpoint is complete or why not.\n"
             "\n"
             "  --json  print a JSON array\n"
             "  --help  print this and exit\n",
    .run = run,
};
