/* mtllm-data merge: several token files in one, document behind document. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/commands.h"
#include "data/outputs.h"
#include "data/token_set.h"

static int check_input(const struct token_set *set, const struct token_set *first,
                       struct error *error)
{
    if (set->count != first->count)
        return error_set(
            error, EXIT_STATUS_DATA, "%s is %s and %s is %s: only files of a kind are merged",
            token_file_prefix(first->files[0]), first->count == 2 ? "of a pair" : "by itself",
            token_file_prefix(set->files[0]), set->count == 2 ? "of a pair" : "by itself");
    for (int i = 0; i < set->count; i++) {
        const struct token_file *file = set->files[i], *like = first->files[i];

        if (token_file_dtype(file) != token_file_dtype(like))
            return error_set(error, EXIT_STATUS_DATA,
                             "%s holds %s and %s holds %s: they come from different tokenizers",
                             token_file_prefix(like), token_file_dtype_name(like),
                             token_file_prefix(file), token_file_dtype_name(file));
    }
    return 0;
}

/* Has any file documents of other than one sequence? Then all documents have to be begun. */
static bool divided(const struct token_set *sets, int count)
{
    for (int i = 0; i < count; i++)
        if (token_file_divides(sets[i].files[0]))
            return true;
    return false;
}

static int merge(struct outputs *outputs, const struct token_set *sets, int count,
                 struct error *error)
{
    bool explicit = divided(sets, count);

    for (int s = 0; s < count; s++)
        for (int i = 0; i < sets[s].count; i++)
            if (token_writer_copy(outputs->writers[i], sets[s].files[i], 0,
                                  token_file_documents(sets[s].files[i]), explicit, error) < 0)
                return -1;
    return outputs_commit(outputs, NULL, error);
}

static int open_outputs(struct outputs *outputs, const char *prefix, const struct token_set *like,
                        struct error *error)
{
    for (int i = 0; i < like->count; i++) {
        char *name = token_set_prefix(prefix, like->count, i);
        int result = name ? outputs_add(outputs, name, 0, like->files[i], error)
                          : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");

        free(name);
        if (result < 0)
            return -1;
    }
    return 0;
}

static int run(const struct command *command, const char *const *values, char *const *operands,
               int operand_count, struct error *error)
{
    const char *prefix = option_value(command, values, "output");
    struct token_set *sets = calloc((size_t)operand_count, sizeof(*sets));
    struct outputs outputs = {.count = 0};
    int result = -1;

    if (!sets)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (!prefix || !*prefix) {
        error_set(error, EXIT_STATUS_USAGE,
                  "--output=PREFIX is missing: PREFIX.bin and PREFIX.idx will be written");
        goto out;
    }
    for (int i = 0; i < operand_count; i++)
        if (token_set_open(&sets[i], operands[i], error) < 0 ||
            check_input(&sets[i], &sets[0], error) < 0)
            goto out;
    if (open_outputs(&outputs, prefix, &sets[0], error) < 0 ||
        merge(&outputs, sets, operand_count, error) < 0)
        goto out;
    printf("%s: %lld documents, %lld tokens of %d files\n", prefix,
           (long long)token_writer_documents(outputs.writers[0]),
           (long long)token_writer_tokens(outputs.writers[0]), operand_count);
    result = 0;
out:
    outputs_close(&outputs);
    for (int i = 0; i < operand_count; i++)
        token_set_close(&sets[i]);
    free(sets);
    return result;
}

static const struct option_entry options[] = {
    {"output", "PREFIX", NULL, NULL, "write PREFIX.bin and PREFIX.idx"},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command command_merge = {
    .name = "merge",
    .operands = "PREFIX...",
    .least_operands = 1,
    .most_operands = 1 << 30,
    .help = "Put the documents of several token files into one, in the order given.\n"
            "A pair PREFIX-text and PREFIX-role is merged as a pair.",
    .options = options,
    .run = run,
};
