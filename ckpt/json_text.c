#include "ckpt/json_text.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Whether the text has more than `most` places for a value. Each place follows a bracket or a
 * comma; *line is the one where there were too many. */
static bool holds_more(const char *text, size_t length, size_t most, int *line)
{
    bool in_string = false;
    size_t places = 0;

    *line = 1;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];

        if (c == '\n')
            (*line)++;
        else if (c == '"')
            in_string = !in_string;
        else if (c == '\\' && in_string)
            i++;
        else if (!in_string && (c == '{' || c == '[' || c == ',') && ++places > most)
            return true;
    }
    return false;
}

/* jansson does not say which key it met twice, if it is longer than a few letters; it stopped
 * right behind it. */
static void name_duplicate(const char *text, size_t length, json_error_t *reason)
{
    static const char words[] = "duplicate object key";
    size_t end = (size_t)reason->position, begin = end - 1;

    if (strncmp(reason->text, words, strlen(words)) != 0 || reason->position < 2 || end > length)
        return;
    do
        begin--;
    while (begin > 0 && (text[begin] != '"' || text[begin - 1] == '\\'));
    snprintf(reason->text, sizeof(reason->text), "%s %.*s", words,
             end - begin < 130 ? (int)(end - begin) : 130, text + begin);
}

json_t *json_text_parse(const char *text, size_t length, size_t most, size_t flags,
                        json_error_t *reason)
{
    json_t *json;
    int line;

    if (!holds_more(text, length, most, &line)) {
        json = json_loadb(text, length, flags, reason);
        if (!json && reason)
            name_duplicate(text, length, reason);
        return json;
    }
    if (reason) {
        *reason = (json_error_t){.line = line};
        snprintf(reason->text, sizeof(reason->text),
                 "holds more than %zu values, more than any model needs", most);
    }
    return NULL;
}

char *json_text_dump(const json_t *json, size_t flags)
{
    char *text = json ? json_dumps(json, JSON_INDENT(2) | flags) : NULL, *line = NULL;

    if (text && asprintf(&line, "%s\n", text) < 0)
        line = NULL;
    free(text);
    return line;
}
