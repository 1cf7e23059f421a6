/* mtllm-data split: the documents of one token file in up to three, as mtllm-train divides them. */
#include <stdio.h>
#include <stdlib.h>

#include "data/commands.h"
#include "data/dataset.h"
#include "data/outputs.h"
#include "data/token_set.h"

enum { PARTS = 3 };

struct part {
    char *prefix;
    int64_t begin, end; /* documents */
};

static int name_parts(struct part *parts, const char *split, const char *prefix, int64_t documents,
                      struct error *error)
{
    static const char *const endings[PARTS] = {"train", "valid", "test"};
    int64_t bounds[PARTS + 1];

    if (dataset_split_bounds(split, false, documents, bounds, error) < 0)
        return -1;
    for (int i = 0; i < PARTS; i++) {
        parts[i].begin = bounds[i];
        parts[i].end = bounds[i + 1];
        if (asprintf(&parts[i].prefix, "%s_%s", prefix, endings[i]) < 0) {
            parts[i].prefix = NULL;
            return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        }
    }
    return 0;
}

/* A part without documents is no file. */
static bool is_empty(const struct part *part)
{
    return part->begin == part->end;
}

static int write_part(struct outputs *outputs, const struct part *part, const struct token_set *set,
                      struct error *error)
{
    for (int i = 0; i < set->count && !is_empty(part); i++) {
        char *name = token_set_prefix(part->prefix, set->count, i);
        int result = name ? outputs_add(outputs, name, 0, set->files[i], error)
                          : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");

        free(name);
        if (result < 0 ||
            token_writer_copy(outputs->writers[outputs->count - 1], set->files[i], part->begin,
                              part->end, token_file_divides(set->files[i]), error) < 0)
            return -1;
    }
    return 0;
}

/* The outputs have one writer, or two, for each part that has documents. */
static void print_parts(const struct outputs *outputs, const struct part *parts, int files)
{
    int written = 0;

    for (int i = 0; i < PARTS; i++) {
        if (is_empty(&parts[i])) {
            printf("%s: no document, not written\n", parts[i].prefix);
            continue;
        }
        printf("%s: %lld documents, %lld tokens\n", parts[i].prefix,
               (long long)(parts[i].end - parts[i].begin),
               (long long)token_writer_tokens(outputs->writers[written]));
        written += files;
    }
}

static int run(const struct command *command, const char *const *values, char *const *operands,
               int operand_count, struct error *error)
{
    const char *prefix = option_value(command, values, "output");
    const char *split = option_value(command, values, "split");
    struct part parts[PARTS] = {{NULL, 0, 0}};
    struct outputs outputs = {.count = 0};
    struct token_set set = {.count = 0};
    int result = -1;
    (void)operand_count;

    if (!split)
        return error_set(error, EXIT_STATUS_USAGE,
                         "--split=TRAIN,VALID,TEST is missing, such as --split=969,30,1");
    if (token_set_open(&set, operands[0], error) < 0 ||
        name_parts(parts, split, prefix ? prefix : operands[0], token_file_documents(set.files[0]),
                   error) < 0)
        goto out;
    for (int i = 0; i < PARTS; i++)
        if (write_part(&outputs, &parts[i], &set, error) < 0)
            goto out;
    if (outputs_commit(&outputs, NULL, error) < 0)
        goto out;
    print_parts(&outputs, parts, set.count);
    result = 0;
out:
    outputs_close(&outputs);
    token_set_close(&set);
    for (int i = 0; i < PARTS; i++)
        free(parts[i].prefix);
    return result;
}

static const struct option_entry options[] = {
    {"split", "TRAIN,VALID,TEST", NULL, NULL, "shares of the documents, such as 969,30,1"},
    {"output", "PREFIX", NULL, NULL, "write PREFIX_train, ...; the input's prefix if unset"},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command command_split = {
    .name = "split",
    .operands = "PREFIX",
    .least_operands = 1,
    .most_operands = 1,
    .help =
        "Divide the documents of a token file into PREFIX_train, PREFIX_valid and PREFIX_test.\n"
        "The documents are those that mtllm-train gives to each with the same --split.",
    .options = options,
    .run = run,
};
