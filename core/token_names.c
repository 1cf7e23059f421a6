#include "core/token_names.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* More than any vocabulary gets; each is compared with all others. */
enum { NAMES_MOST = 1 << 16 };

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

/* Bytes of the character that text begins with; 0 when it is none. */
static size_t character_bytes(const unsigned char *text, size_t bytes)
{
    size_t length = *text < 0x80 ? 1 : *text < 0xc2 ? 0 : *text < 0xe0 ? 2 : *text < 0xf0 ? 3 : 4;
    /* Of the second byte: no overlong forms, no surrogates, nothing beyond U+10FFFF. */
    unsigned char least = *text == 0xe0 ? 0xa0 : *text == 0xf0 ? 0x90 : 0x80;
    unsigned char most = *text == 0xed ? 0x9f : *text == 0xf4 ? 0x8f : 0xbf;

    if (*text > 0xf4 || length > bytes || (length > 1 && (text[1] < least || text[1] > most)))
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    return length;
}

static bool is_text(const char *text, size_t bytes)
{
    size_t length;

    for (size_t at = 0; at < bytes; at += length) {
        length = text[at] ? character_bytes((const unsigned char *)text + at, bytes - at) : 0;
        if (length == 0)
            return false;
    }
    return true;
}

static int add_name(struct token_names *names, const char *text, size_t length, struct error *error)
{
    char **list, *copy;

    if (length == 0 || !is_text(text, length))
        return error_set(error, EXIT_STATUS_USAGE, "add-tokens: token %zu is %s", names->count + 1,
                         length == 0 ? "empty" : "no UTF-8 text");
    if (names->count == NAMES_MOST)
        return error_set(error, EXIT_STATUS_USAGE, "add-tokens: more than %d tokens", NAMES_MOST);
    for (size_t i = 0; i < names->count; i++)
        if (strlen(names->list[i]) == length && memcmp(names->list[i], text, length) == 0)
            return error_set(error, EXIT_STATUS_USAGE, "add-tokens: \"%s\" is there twice",
                             names->list[i]);
    copy = strndup(text, length);
    list = realloc(names->list, (names->count + 1) * sizeof(*list));
    if (list)
        names->list = list;
    if (!list || !copy) {
        free(copy);
        return out_of_memory(error);
    }
    list[names->count++] = copy;
    return 0;
}

static int read_option(struct token_names *names, const char *text, struct error *error)
{
    for (const char *end;; text = end + 1) {
        end = strchrnul(text, ',');
        if (add_name(names, text, (size_t)(end - text), error) < 0)
            return -1;
        if (!*end)
            return 0;
    }
}

static int read_lines(struct token_names *names, FILE *stream, struct error *error)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    int rc = 0;

    while (rc == 0 && (length = getline(&line, &room, stream)) > 0) {
        length -= line[length - 1] == '\n';
        rc = add_name(names, line, (size_t)length, error);
    }
    free(line);
    if (rc == 0 && names->count == 0)
        rc = add_name(names, "", 0, error);
    return rc;
}

static int read_file(struct token_names *names, const char *path, struct error *error)
{
    FILE *stream = fopen(path, "r");
    int rc;

    if (!stream) {
        error_set_errno(error, "add-tokens: %s: cannot open", path);
        error->status = EXIT_STATUS_DATA;
        return -1;
    }
    rc = read_lines(names, stream, error);
    if (rc < 0) {
        error_prefix(error, "%s: ", path);
    } else if (ferror(stream)) {
        rc = error_set_errno(error, "add-tokens: %s: cannot read", path);
        error->status = EXIT_STATUS_DATA;
    }
    fclose(stream);
    return rc;
}

int token_names_parse(struct token_names *names, const char *option, struct error *error)
{
    int rc;

    *names = (struct token_names){0};
    rc = *option == '@' ? read_file(names, option + 1, error) : read_option(names, option, error);
    if (rc < 0)
        token_names_destroy(names);
    return rc;
}

void token_names_destroy(struct token_names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->list[i]);
    free(names->list);
    *names = (struct token_names){0};
}
