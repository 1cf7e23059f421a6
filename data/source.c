#include "data/source.h"

#include <stdlib.h>

int data_source_open(struct data_source *source, const char *text, struct error *error)
{
    *source = (struct data_source){.parts = calloc(1, sizeof(*source->parts)), .count = 1};
    if (!source->parts)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", text);
    source->parts[0].weight = 1;
    if (token_file_open(&source->parts[0].tokens, text, error) == 0)
        return 0;
    data_source_close(source);
    return -1;
}

void data_source_close(struct data_source *source)
{
    for (int i = 0; i < source->count; i++) {
        token_file_close(source->parts[i].tokens);
        token_file_close(source->parts[i].roles);
    }
    free(source->parts);
    *source = (struct data_source){0};
}
