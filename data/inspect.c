/* mtllm-data info: what is in a token file. */
#include <jansson.h>
#include <stdio.h>

#include "data/commands.h"
#include "data/token_file.h"

/* Tokens of a document. */
struct lengths {
    int64_t least, most;
    double mean;
};

static int64_t document_length(const struct token_file *file, int64_t document)
{
    int64_t tokens = 0;

    for (int64_t i = token_file_document(file, document);
         i < token_file_document(file, document + 1); i++)
        tokens += token_file_length(file, i);
    return tokens;
}

static struct lengths measure(const struct token_file *file)
{
    int64_t documents = token_file_documents(file);
    struct lengths lengths = {0, 0, 0};

    for (int64_t i = 0; i < documents; i++) {
        int64_t length = document_length(file, i);

        if (i == 0 || length < lengths.least)
            lengths.least = length;
        if (length > lengths.most)
            lengths.most = length;
    }
    if (documents > 0)
        lengths.mean = (double)token_file_tokens(file) / (double)documents;
    return lengths;
}

static void print_info(const struct token_file *file, const struct lengths *lengths)
{
    printf("prefix     %s\n", token_file_prefix(file));
    printf("documents  %lld\n", (long long)token_file_documents(file));
    printf("sequences  %lld\n", (long long)token_file_sequences(file));
    printf("tokens     %lld\n", (long long)token_file_tokens(file));
    printf("dtype      %s\n", token_file_dtype_name(file));
    printf("shortest   %lld tokens\n", (long long)lengths->least);
    printf("mean       %.1f tokens\n", lengths->mean);
    printf("longest    %lld tokens\n", (long long)lengths->most);
    printf("size       %lld bytes\n", (long long)token_file_size_bytes(file));
}

static int print_json(const struct token_file *file, const struct lengths *lengths,
                      struct error *error)
{
    json_t *object = json_pack(
        "{s:s, s:I, s:I, s:I, s:s, s:I, s:f, s:I, s:I}", "prefix", token_file_prefix(file),
        "documents", (json_int_t)token_file_documents(file), "sequences",
        (json_int_t)token_file_sequences(file), "tokens", (json_int_t)token_file_tokens(file),
        "dtype", token_file_dtype_name(file), "min_length", (json_int_t)lengths->least,
        "mean_length", lengths->mean, "max_length", (json_int_t)lengths->most, "size_bytes",
        (json_int_t)token_file_size_bytes(file));
    int result = 0;

    if (!object || json_dumpf(object, stdout, JSON_REAL_PRECISION(12)) < 0)
        result = error_set(error, EXIT_STATUS_IO,
                           "%s: cannot be printed as JSON (a name that is no UTF-8?)",
                           token_file_prefix(file));
    else
        printf("\n");
    json_decref(object);
    return result;
}

static int run_info(const struct command *command, const char *const *values, char *const *operands,
                    int operand_count, struct error *error)
{
    struct token_file *file;
    struct lengths lengths;
    int result = 0;
    (void)operand_count;

    if (token_file_open(&file, operands[0], error) < 0)
        return -1;
    lengths = measure(file);
    if (option_value(command, values, "json"))
        result = print_json(file, &lengths, error);
    else
        print_info(file, &lengths);
    token_file_close(file);
    return result;
}

static const struct option_entry info_options[] = {
    {"json", NULL, NULL, NULL, "as one JSON object"},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command command_info = {
    .name = "info",
    .operands = "PREFIX",
    .least_operands = 1,
    .most_operands = 1,
    .help = "Check a token file and say what it holds.",
    .options = info_options,
    .run = run_info,
};
