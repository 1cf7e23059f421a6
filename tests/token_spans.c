/* For tests: what tokenizer_encode_spans() makes of texts.
 *
 *     token_spans TOKENIZER < TEXTS
 *
 * A line of TEXTS is a JSON string; for each, one line with [[id, begin, end], ...].
 */
#include <stdio.h>
#include <stdlib.h>

#include <jansson.h>

#include "data/tokenizer.h"

static int print_spans(const struct tokenizer *tokenizer, const json_t *text, struct error *error)
{
    struct token_list list = {0};
    struct token_span *spans;
    int rc = tokenizer_encode_spans(tokenizer, json_string_value(text), json_string_length(text),
                                    NULL, &list, &spans, error);

    printf("[");
    for (int64_t i = 0; rc == 0 && i < list.count; i++)
        printf("%s[%d,%u,%u]", i > 0 ? "," : "", list.ids[i], spans[i].begin, spans[i].end);
    printf("]\n");
    free(list.ids);
    free(spans);
    return rc;
}

int main(int argc, char **argv)
{
    struct tokenizer *tokenizer;
    struct error error = {0};
    char *line = NULL;
    size_t room = 0;
    int rc;

    if (argc != 2) {
        fprintf(stderr, "usage: token_spans TOKENIZER < TEXTS\n");
        return EXIT_STATUS_USAGE;
    }
    if (tokenizer_open(&tokenizer, argv[1], &error) < 0)
        return error_print(&error);
    for (rc = 0; rc == 0 && getline(&line, &room, stdin) > 0;) {
        json_t *text = json_loads(line, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);

        rc = json_is_string(text)
                 ? print_spans(tokenizer, text, &error)
                 : error_set(&error, EXIT_STATUS_DATA, "not a JSON string on a line: %s", line);
        json_decref(text);
    }
    free(line);
    tokenizer_close(tokenizer);
    return rc < 0 ? error_print(&error) : EXIT_STATUS_OK;
}
