/* mtllm-data show: a document of a token file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/commands.h"
#include "data/token_file.h"
#include "data/tokenizer.h"

static int64_t document_length(const struct token_file *file, int64_t document)
{
    int64_t tokens = 0;

    for (int64_t i = token_file_document(file, document);
         i < token_file_document(file, document + 1); i++)
        tokens += token_file_length(file, i);
    return tokens;
}

static int read_document(const struct token_file *file, int64_t document, struct token_list *list,
                         struct error *error)
{
    list->count = document_length(file, document);
    list->ids = calloc((size_t)list->count + 1, sizeof(*list->ids));
    if (!list->ids)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", token_file_prefix(file));
    for (int64_t i = token_file_document(file, document), at = 0;
         i < token_file_document(file, document + 1); i++) {
        token_file_read(file, i, 0, token_file_length(file, i), list->ids + at);
        at += token_file_length(file, i);
    }
    return 0;
}

static int print_text(const struct token_list *list, const char *tokenizer_path,
                      struct error *error)
{
    struct tokenizer *tokenizer;
    char *text = NULL;
    size_t bytes;
    int result = -1;

    if (tokenizer_open(&tokenizer, tokenizer_path, error) < 0)
        return -1;
    if (tokenizer_decode(tokenizer, list->ids, list->count, &text, &bytes, error) < 0) {
        error_prefix(error, "%s: is it the tokenizer of this file? ", tokenizer_path);
    } else {
        fwrite(text, 1, bytes, stdout);
        if (bytes == 0 || text[bytes - 1] != '\n')
            printf("\n");
        result = 0;
    }
    free(text);
    tokenizer_close(tokenizer);
    return result;
}

static int run_show(const struct command *command, const char *const *values, char *const *operands,
                    int operand_count, struct error *error)
{
    const char *tokenizer_path = option_value(command, values, "tokenizer");
    struct token_list list = {NULL, 0, 0};
    struct token_file *file;
    long long document;
    int result = -1;
    (void)operand_count;

    if (token_file_open(&file, operands[0], error) < 0)
        return -1;
    if (token_file_documents(file) == 0) {
        error_set(error, EXIT_STATUS_DATA, "%s: holds no document", operands[0]);
        goto out;
    }
    if (option_number("document", operands[1], 0, token_file_documents(file) - 1, &document,
                      error) < 0 ||
        read_document(file, document, &list, error) < 0)
        goto out;
    if (tokenizer_path) {
        result = print_text(&list, tokenizer_path, error);
    } else {
        for (int64_t i = 0; i < list.count; i++)
            printf(i ? " %d" : "%d", list.ids[i]);
        printf("\n");
        result = 0;
    }
out:
    free(list.ids);
    token_file_close(file);
    return result;
}

static const struct option_entry show_options[] = {
    {"tokenizer", "PATH", NULL, NULL, "print text instead of token ids"},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command command_show = {
    .name = "show",
    .operands = "PREFIX N",
    .least_operands = 2,
    .most_operands = 2,
    .help = "Print document N (from 0) of a token file.",
    .options = show_options,
    .run = run_show,
};
