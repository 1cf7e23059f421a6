#include "data/token_set.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

char *token_set_prefix(const char *prefix, int count, int which)
{
    const char *ending = count == 1 ? "" : which == 0 ? "-text" : "-role";
    char *name;

    return asprintf(&name, "%s%s", prefix, ending) < 0 ? NULL : name;
}

static int has_index(const char *prefix)
{
    char *path;
    int found;

    if (asprintf(&path, "%s.idx", prefix) < 0)
        return 0;
    found = access(path, F_OK) == 0;
    free(path);
    return found;
}

static int check_pair(const struct token_set *set, struct error *error)
{
    const struct token_file *text = set->files[0], *role = set->files[1];
    int64_t sequences = token_file_sequences(text), documents = token_file_documents(text), i = 0;

    if (token_file_sequences(role) != sequences || token_file_documents(role) != documents)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s has %lld sequences in %lld documents and %s %lld in %lld: they do not"
                         " belong together",
                         token_file_prefix(text), (long long)sequences, (long long)documents,
                         token_file_prefix(role), (long long)token_file_sequences(role),
                         (long long)token_file_documents(role));
    while (i < sequences && token_file_length(text, i) == token_file_length(role, i))
        i++;
    if (i < sequences)
        return error_set(error, EXIT_STATUS_DATA,
                         "sequence %lld has %d tokens in %s and %d in %s: they do not belong"
                         " together",
                         (long long)i, token_file_length(text, i), token_file_prefix(text),
                         token_file_length(role, i), token_file_prefix(role));
    return 0;
}

int token_set_open(struct token_set *set, const char *prefix, struct error *error)
{
    char *text = token_set_prefix(prefix, 2, 0);
    int result = 0;

    *set = (struct token_set){.count = 1};
    if (text && !has_index(prefix) && has_index(text))
        set->count = 2;
    free(text);
    for (int i = 0; i < set->count && result == 0; i++) {
        char *name = token_set_prefix(prefix, set->count, i);

        result = name ? token_file_open(&set->files[i], name, error)
                      : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        free(name);
    }
    if (result == 0 && set->count == 2)
        result = check_pair(set, error);
    if (result < 0)
        token_set_close(set);
    return result;
}

void token_set_close(struct token_set *set)
{
    for (int i = 0; i < set->count; i++)
        token_file_close(set->files[i]);
    *set = (struct token_set){.count = 0};
}
