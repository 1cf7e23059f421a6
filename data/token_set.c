#include "data/token_set.h"

#include <stdio.h>

#include "data/source.h"

char *token_set_prefix(const char *prefix, int count, int which)
{
    const char *ending = count == 1 ? "" : which == 0 ? "-text" : "-role";
    char *name;

    return asprintf(&name, "%s%s", prefix, ending) < 0 ? NULL : name;
}

int token_set_open(struct token_set *set, const char *prefix, struct error *error)
{
    struct data_part part = {NULL, NULL, 0};

    *set = (struct token_set){.count = 0};
    if (data_part_open(&part, prefix, error) < 0)
        return -1;
    set->files[0] = part.tokens;
    set->files[1] = part.roles;
    set->count = part.roles ? 2 : 1;
    for (int64_t i = 0; i <= token_file_documents(part.tokens) && part.roles; i++)
        if (token_file_documents(part.roles) != token_file_documents(part.tokens) ||
            token_file_document(part.roles, i) != token_file_document(part.tokens, i)) {
            token_set_close(set);
            return error_set(error, EXIT_STATUS_DATA,
                             "%s-text and %s-role have not the same documents; they are no pair",
                             prefix, prefix);
        }
    return 0;
}

void token_set_close(struct token_set *set)
{
    for (int i = 0; i < set->count; i++)
        token_file_close(set->files[i]);
    *set = (struct token_set){.count = 0};
}
