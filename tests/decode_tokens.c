/* decode_tokens TOKENIZER PREFIX: the text of every document of a token file, a JSON string a
 * line. For tests that compare it with another program's. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "data/token_file.h"
#include "data/tokenizer.h"

static int print_text(const struct tokenizer *tokenizer, const struct token_list *list,
                      struct error *error)
{
    char *text;
    size_t bytes;
    json_t *json;
    int result;

    if (tokenizer_decode(tokenizer, list->ids, list->count, &text, &bytes, error) < 0)
        return -1;
    json = json_stringn(text, bytes);
    result = json ? json_dumpf(json, stdout, JSON_ENCODE_ANY)
                  : error_set(error, EXIT_STATUS_DATA, "the text is not UTF-8");
    printf("\n");
    json_decref(json);
    free(text);
    return result;
}

static int print_texts(const struct tokenizer *tokenizer, const struct token_file *file,
                       struct error *error)
{
    struct token_list list = {NULL, 0, 0};
    int result = 0;

    for (int64_t i = 0; i < token_file_sequences(file) && result == 0; i++) {
        int64_t length = token_file_length(file, i);

        list.count = 0;
        if (token_list_reserve(&list, length) < 0) {
            result = error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
            break;
        }
        token_file_read(file, i, 0, length, list.ids);
        list.count = length;
        result = print_text(tokenizer, &list, error);
        if (result < 0)
            error_prefix(error, "document %lld: ", (long long)i);
    }
    free(list.ids);
    return result;
}

int main(int argc, char **argv)
{
    struct tokenizer *tokenizer = NULL;
    struct token_file *file = NULL;
    struct error error = {0};
    int result;

    if (argc != 3) {
        fprintf(stderr, "usage: decode_tokens TOKENIZER PREFIX\n");
        return EXIT_STATUS_USAGE;
    }
    result = tokenizer_open(&tokenizer, argv[1], &error);
    if (result == 0)
        result = token_file_open(&file, argv[2], &error);
    if (result == 0)
        result = print_texts(tokenizer, file, &error);
    token_file_close(file);
    tokenizer_close(tokenizer);
    return result < 0 ? error_print(&error) : EXIT_STATUS_OK;
}
