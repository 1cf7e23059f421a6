#include "data/source.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"

static int no_memory(const char *text, struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", text);
}

/* Whether PREFIX with that ending is a file; `name` gets its name without ".idx". */
static bool has_index(const char *prefix, const char *ending, char **name)
{
    char *path;
    bool found;

    if (asprintf(&path, "%s%s.idx", prefix, ending) < 0)
        return false;
    found = access(path, F_OK) == 0;
    path[strlen(path) - strlen(".idx")] = '\0';
    *name = path;
    return found;
}

static int check_pair(const struct data_part *part, struct error *error)
{
    const struct token_file *tokens = part->tokens, *roles = part->roles;

    if (token_file_sequences(tokens) != token_file_sequences(roles))
        return error_set(error, EXIT_STATUS_DATA,
                         "%s has %lld sequences and %s has %lld; they are no pair",
                         token_file_prefix(tokens), (long long)token_file_sequences(tokens),
                         token_file_prefix(roles), (long long)token_file_sequences(roles));
    for (int64_t i = 0; i < token_file_sequences(tokens); i++)
        if (token_file_length(tokens, i) != token_file_length(roles, i))
            return error_set(error, EXIT_STATUS_DATA,
                             "%s has %d tokens in sequence %lld and %s has %d; they are no pair",
                             token_file_prefix(tokens), token_file_length(tokens, i), (long long)i,
                             token_file_prefix(roles), token_file_length(roles, i));
    return 0;
}

int data_part_open(struct data_part *part, const char *prefix, struct error *error)
{
    char *plain = NULL, *text = NULL, *role = NULL;
    bool is_plain = has_index(prefix, "", &plain);
    bool is_pair = has_index(prefix, "-text", &text) && has_index(prefix, "-role", &role);
    int result;

    if (is_plain && is_pair)
        log_warning("%s.idx is read and the pair %s.idx and %s.idx, which is there too, is not: no "
                    "token has a role",
                    plain, text, role);
    if (is_pair && !is_plain) {
        result = token_file_open(&part->tokens, text, error);
        if (result == 0)
            result = token_file_open(&part->roles, role, error);
        if (result == 0)
            result = check_pair(part, error);
    } else {
        result = token_file_open(&part->tokens, prefix, error);
    }
    free(plain);
    free(text);
    free(role);
    if (result < 0)
        data_part_close(part);
    return result;
}

void data_part_close(struct data_part *part)
{
    token_file_close(part->tokens);
    token_file_close(part->roles);
    *part = (struct data_part){0};
}

/* The next word of *text, to be freed; NULL when there is none, or no memory. */
static char *next_word(const char **text)
{
    const char *begin = *text;

    while (isspace((unsigned char)*begin))
        begin++;
    *text = begin;
    while (**text && !isspace((unsigned char)**text))
        (*text)++;
    return *text > begin ? strndup(begin, (size_t)(*text - begin)) : NULL;
}

static int add_part(struct data_source *source, double weight, const char *prefix,
                    struct error *error)
{
    struct data_part *parts =
        realloc(source->parts, (size_t)(source->count + 1) * sizeof(*source->parts));

    if (!parts)
        return no_memory(prefix, error);
    source->parts = parts;
    parts[source->count] = (struct data_part){0};
    if (data_part_open(&parts[source->count], prefix, error) < 0)
        return -1;
    parts[source->count++].weight = weight;
    return 0;
}

/* One weight and one prefix; 0 at the end of the text. */
static int add_next(struct data_source *source, const char **text, struct error *error)
{
    char *number = next_word(text), *prefix = number ? next_word(text) : NULL, *end = NULL;
    double weight = number ? strtod(number, &end) : 0;
    int result = 0;

    if (number && (*end || !(weight > 0) || weight > 1e18))
        result = error_set(error, EXIT_STATUS_USAGE,
                           "\"%s\" stands where a weight is expected, a positive number: a mixture "
                           "is \"WEIGHT PREFIX WEIGHT PREFIX ...\"",
                           number);
    else if (number && !prefix)
        result = error_set(error, EXIT_STATUS_USAGE,
                           "no PREFIX follows the weight %s: a mixture is \"WEIGHT PREFIX WEIGHT "
                           "PREFIX ...\"",
                           number);
    else if (number)
        result = add_part(source, weight, prefix, error) < 0 ? -1 : 1;
    free(number);
    free(prefix);
    return result;
}

/* A name may hold spaces, if it is that of files. */
static bool is_one(const char *text)
{
    static const char *const endings[] = {"", "-text"};
    bool found = *text && !strpbrk(text, " \t\n\v\f\r");

    for (int i = 0; i < 2 && !found; i++) {
        char *name = NULL;

        found = has_index(text, endings[i], &name);
        free(name);
    }
    return found;
}

int data_source_open(struct data_source *source, const char *text, struct error *error)
{
    const char *at = text;
    double sum = 0;
    int result;

    *source = (struct data_source){0};
    if (is_one(text))
        result = add_part(source, 1, text, error);
    else
        while ((result = add_next(source, &at, error)) > 0)
            ;
    if (result == 0 && source->count == 0)
        result = error_set(error, EXIT_STATUS_USAGE,
                           "\"%s\" names no data: give a PREFIX or \"WEIGHT PREFIX WEIGHT PREFIX "
                           "...\"",
                           text);
    if (result < 0) {
        data_source_close(source);
        return -1;
    }
    for (int i = 0; i < source->count; i++)
        sum += source->parts[i].weight;
    for (int i = 0; i < source->count; i++)
        source->parts[i].weight /= sum;
    return 0;
}

void data_source_close(struct data_source *source)
{
    for (int i = 0; i < source->count; i++)
        data_part_close(&source->parts[i]);
    free(source->parts);
    *source = (struct data_source){0};
}
