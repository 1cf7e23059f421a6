/* mtllm-data merge: several token files in one, document behind document. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/commands.h"
#include "data/guard.h"

enum { COPY_TOKENS = 1 << 16 };

static int copy_document(const struct token_file *file, int64_t i, struct token_writer *writer,
                         struct error *error)
{
    static int32_t tokens[COPY_TOKENS];
    int64_t length = token_file_length(file, i);

    for (int64_t done = 0; done < length;) {
        int64_t count = length - done < COPY_TOKENS ? length - done : COPY_TOKENS;

        token_file_read(file, i, done, count, tokens);
        if (token_writer_append(writer, tokens, count, error) < 0)
            return -1;
        done += count;
    }
    return token_writer_end_document(writer, error);
}

/* What the writer cannot give again is refused rather than changed. */
static int check_input(const struct token_file *file, const struct token_file *first,
                       struct error *error)
{
    const char *dtype = token_file_dtype_name(file);

    if (strcmp(dtype, token_file_dtype_name(first)) != 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s holds %s and %s holds %s: they come from different tokenizers",
                         token_file_prefix(first), token_file_dtype_name(first),
                         token_file_prefix(file), dtype);
    if (strcmp(dtype, "uint16") != 0 && strcmp(dtype, "int32") != 0)
        return error_set(error, EXIT_STATUS_DATA, "%s: %s tokens; only uint16 and int32 are merged",
                         token_file_prefix(file), dtype);
    if (token_file_sequences(file) != token_file_documents(file))
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: %lld sequences in %lld documents; only files with one sequence a"
                         " document are merged",
                         token_file_prefix(file), (long long)token_file_sequences(file),
                         (long long)token_file_documents(file));
    return 0;
}

static int run(const struct command *command, const char *const *values, char *const *operands,
               int operand_count, struct error *error)
{
    const char *output = option_value(command, values, "output");
    struct token_file **files = calloc((size_t)operand_count, sizeof(struct token_file *));
    struct token_writer *writer = NULL;
    int64_t vocab_size;
    int result = -1;

    if (!files)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (!output || !*output) {
        error_set(error, EXIT_STATUS_USAGE,
                  "--output=PREFIX is missing: PREFIX.bin and PREFIX.idx will be written");
        goto out;
    }
    for (int i = 0; i < operand_count; i++)
        if (token_file_open(&files[i], operands[i], error) < 0 ||
            check_input(files[i], files[0], error) < 0)
            goto out;
    /* The largest vocabulary of the inputs' type. */
    vocab_size = token_file_bytes_per_token(files[0]) == 2 ? 65499 : INT32_MAX;
    if (guard_open(&writer, output, vocab_size, error) < 0)
        goto out;
    for (int f = 0; f < operand_count; f++)
        for (int64_t i = 0; i < token_file_sequences(files[f]); i++)
            if (copy_document(files[f], i, writer, error) < 0) {
                error_prefix(error, "%s: ", operands[f]);
                goto out;
            }
    if (guard_commit(writer, error) < 0)
        goto out;
    printf("%s: %lld documents, %lld tokens of %d files\n", output,
           (long long)token_writer_documents(writer), (long long)token_writer_tokens(writer),
           operand_count);
    result = 0;
out:
    guard_close(writer);
    for (int i = 0; i < operand_count; i++)
        token_file_close(files[i]);
    free(files);
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
    .help = "Put the documents of several token files into one, in the order given.",
    .options = options,
    .run = run,
};
