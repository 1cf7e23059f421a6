/* One token file, or two that belong together: PREFIX-text with the tokens of conversations and
 * PREFIX-role with who speaks each. */
#ifndef MTLLM_DATA_TOKEN_SET_H
#define MTLLM_DATA_TOKEN_SET_H

#include "core/error.h"
#include "data/token_file.h"

enum { TOKEN_SET_MOST = 2 };

struct token_set {
    struct token_file *files[TOKEN_SET_MOST]; /* the tokens, the roles */
    int count;
};

/* Errors as of data_part_open(), and EXIT_STATUS_DATA for a pair with other documents in the one
 * than in the other. */
int token_set_open(struct token_set *set, const char *prefix, struct error *error);
void token_set_close(struct token_set *set); /* all zeros is nothing */

/* The prefix of one of `count` files, to be freed. NULL: no memory. */
char *token_set_prefix(const char *prefix, int count, int which);

#endif
