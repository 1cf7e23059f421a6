/* New tokens of a vocabulary: their names, the ids that they get, and their place in the files of
 * its tokenizer.
 *
 * The first free id is one beyond the greatest that any of the files knows, so that no token there
 * changes its own. A token that is there already keeps its id.
 */
#ifndef MTLLM_CKPT_ADDED_TOKENS_H
#define MTLLM_CKPT_ADDED_TOKENS_H

#include <stddef.h>
#include <stdint.h>

#include "ckpt/kept_files.h"

struct added_token {
    char *text;
    int64_t id;
};

struct added_tokens {
    struct added_token *list;
    size_t count;
    int64_t first, end; /* the ids of those that are new are [first, end) */
};

/* From --add-tokens: TOKEN,TOKEN... or @FILE with one a line. Error: EXIT_STATUS_USAGE, or
 * EXIT_STATUS_DATA for the file. */
int added_tokens_parse(struct added_tokens *tokens, const char *option, struct error *error);

/* Give the tokens their ids and enter them into the files: added_tokens of tokenizer.json,
 * added_tokens_decoder of tokenizer_config.json and added_tokens.json where these are there, and
 * added_tokens.json in any case where there is no tokenizer.json. Tokens match as special ones do:
 * as they are, before text is split. Without a tokenizer, ids begin at `vocab_size`. Error:
 * EXIT_STATUS_DATA naming a file that cannot be understood. */
int added_tokens_enter(struct added_tokens *tokens, struct kept_files *files, int64_t vocab_size,
                       struct error *error);

void added_tokens_destroy(struct added_tokens *tokens);

#endif
