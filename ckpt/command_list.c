/* mtllm-ckpt list: what a run has saved, and which of it can be used. */
#include <stdio.h>
#include <stdlib.h>

#include "ckpt/command.h"
#include "ckpt/listing.h"

static json_t *row_json(const struct listing_row *row)
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

static void print_row(const struct listing_row *row)
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

static int print_rows(const struct listing_row *rows, size_t count, bool as_json,
                      struct error *error)
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
    struct listing_row *rows = NULL;
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
            result = listing_fill(rows, error);
    } else {
        checkpoint_root(argv[first], root, sizeof(root));
        result = listing_read(root, &rows, &count, error);
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
