/* mtllm-data show: a document of a token file, and what of a conversation is learned. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/commands.h"
#include "data/source.h"
#include "data/token_file.h"
#include "data/tokenizer.h"

struct document {
    struct token_list tokens, roles; /* the latter empty where there are none */
};

static bool is_learned(const struct document *document, int64_t i)
{
    return document->roles.count > 0 && document->roles.ids[i] == ROLE_ASSISTANT;
}

static int read_document(const struct token_file *file, int64_t document, struct token_list *list,
                         struct error *error)
{
    for (int64_t i = token_file_document(file, document);
         i < token_file_document(file, document + 1); i++) {
        int32_t length = token_file_length(file, i);

        if (token_list_reserve(list, length) < 0)
            return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        token_file_read(file, i, 0, length, list->ids + list->count);
        list->count += length;
    }
    return 0;
}

/* Of PREFIX, or of PREFIX-text and PREFIX-role. */
static int read_files(const char *prefix, const char *number, struct document *document,
                      struct error *error)
{
    struct data_part part = {0};
    long long i;
    int result = -1;

    if (data_part_open(&part, prefix, error) < 0)
        return -1;
    if (token_file_documents(part.tokens) == 0)
        error_set(error, EXIT_STATUS_DATA, "%s: holds no document", token_file_prefix(part.tokens));
    else if (option_number("document", number, 0, token_file_documents(part.tokens) - 1, &i,
                           error) == 0 &&
             read_document(part.tokens, i, &document->tokens, error) == 0)
        result = part.roles ? read_document(part.roles, i, &document->roles, error) : 0;
    data_part_close(&part);
    return result;
}

/* --- printing --------------------------------------------------------------------------------- */

/* What is learned is coloured on a terminal, else it stands between brackets. */
struct printer {
    const char *begin, *end;
    bool inside;
    char last; /* character */
};

static void print_mark(struct printer *printer, bool learned)
{
    if (learned != printer->inside)
        fputs(learned ? printer->begin : printer->end, stdout);
    printer->inside = learned;
}

static void print_part(struct printer *printer, const char *text, size_t bytes, bool learned)
{
    print_mark(printer, learned);
    fwrite(text, 1, bytes, stdout);
    if (bytes > 0)
        printer->last = text[bytes - 1];
}

static void print_ids(struct printer *printer, const struct document *document)
{
    for (int64_t i = 0; i < document->tokens.count; i++) {
        bool learned = is_learned(document, i);

        if (!learned)
            print_mark(printer, false);
        if (i > 0)
            printf(" ");
        print_mark(printer, learned);
        printf("%d", document->tokens.ids[i]);
    }
}

/* Tokens [begin, end), which are decoded as one text: what is decoded up to a change of roles is
 * how far the text before it goes. */
static int print_stretch(struct printer *printer, const struct tokenizer *tokenizer,
                         const struct document *document, int64_t begin, int64_t end,
                         struct error *error)
{
    size_t printed = 0;

    for (int64_t i = begin, next; i < end; i = next) {
        bool learned = is_learned(document, i);
        char *text;
        size_t bytes;

        for (next = i + 1; next < end && is_learned(document, next) == learned;)
            next++;
        if (tokenizer_decode(tokenizer, document->tokens.ids + begin, next - begin, &text, &bytes,
                             error) < 0)
            return -1;
        if (bytes > printed) {
            print_part(printer, text + printed, bytes - printed, learned);
            printed = bytes;
        }
        free(text);
    }
    return 0;
}

/* SentencePiece does not show the tokens that begin and end a text; in a conversation they divide
 * it, and are learned or not. */
static bool divides(const struct tokenizer *tokenizer, const struct document *document, int64_t i)
{
    int32_t id = document->tokens.ids[i];

    return document->roles.count > 0 && !tokenizer_sees_tokens(tokenizer) &&
           (id == tokenizer_bos(tokenizer) || id == tokenizer_eos(tokenizer));
}

static int print_text(struct printer *printer, const struct tokenizer *tokenizer,
                      const struct document *document, struct error *error)
{
    int64_t count = document->tokens.count;

    for (int64_t i = 0, end; i < count; i = end) {
        size_t bytes;

        for (end = i; end < count && !divides(tokenizer, document, end);)
            end++;
        if (print_stretch(printer, tokenizer, document, i, end, error) < 0)
            return -1;
        if (end < count) {
            const char *text = tokenizer_text(tokenizer, document->tokens.ids[end], &bytes);

            print_part(printer, text, bytes, is_learned(document, end));
            end++;
        }
    }
    return 0;
}

static int print_document(const struct document *document, const char *tokenizer_path,
                          const char *add_tokens, struct error *error)
{
    struct printer printer = {.begin = "\u27e6", .end = "\u27e7"};
    struct tokenizer *tokenizer;
    int result;

    if (isatty(STDOUT_FILENO)) {
        printer.begin = "\033[1;32m";
        printer.end = "\033[0m";
    }
    if (!tokenizer_path) {
        print_ids(&printer, document);
        result = 0;
    } else {
        if (tokenizer_open(&tokenizer, tokenizer_path, error) < 0)
            return -1;
        result = add_tokens ? tokenizer_add_tokens(tokenizer, add_tokens, error) : 0;
        if (result == 0)
            result = print_text(&printer, tokenizer, document, error);
        if (result < 0)
            error_prefix(error, "%s: is it the tokenizer of this file? ", tokenizer_path);
        tokenizer_close(tokenizer);
    }
    print_mark(&printer, false);
    if (printer.last != '\n')
        printf("\n");
    return result;
}

static int run_show(const struct command *command, const char *const *values, char *const *operands,
                    int operand_count, struct error *error)
{
    struct document document = {{NULL, 0, 0}, {NULL, 0, 0}};
    int result = -1;
    (void)operand_count;

    if (read_files(operands[0], operands[1], &document, error) == 0)
        result = print_document(&document, option_value(command, values, "tokenizer"),
                                option_value(command, values, "add-tokens"), error);
    free(document.tokens.ids);
    free(document.roles.ids);
    return result;
}

static const struct option_entry show_options[] = {
    {"tokenizer", "PATH", NULL, NULL, "print text instead of token ids"},
    {"add-tokens", "TOKENS", NULL, NULL, "as they were given to tokenize"},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command command_show = {
    .name = "show",
    .operands = "PREFIX N",
    .least_operands = 2,
    .most_operands = 2,
    .help =
        "Print document N (from 0) of a token file; what is learned of a conversation is marked.",
    .options = show_options,
    .run = run_show,
};
