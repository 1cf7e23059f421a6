/* Names of tokens that a user adds to a vocabulary: the option --add-tokens. */
#ifndef MTLLM_CORE_TOKEN_NAMES_H
#define MTLLM_CORE_TOKEN_NAMES_H

#include <stddef.h>

#include "core/error.h"

struct token_names {
    char **list; /* UTF-8, none of them empty or there twice */
    size_t count;
};

/* `option` is TOKEN,TOKEN... or @FILE with one a line. Error: EXIT_STATUS_USAGE, or
 * EXIT_STATUS_DATA for a file that cannot be read. */
int token_names_parse(struct token_names *names, const char *option, struct error *error);
void token_names_destroy(struct token_names *names);

#endif
