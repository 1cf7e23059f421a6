/* A pattern of a chat template, such as "<|im_start|>user\n{content}<|im_end|>\n", and the text
 * that is made of it. mtllm-template(5) is the reference for what patterns may hold.
 */
#ifndef MTLLM_DATA_CHAT_PATTERN_H
#define MTLLM_DATA_CHAT_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "data/source.h"

/* Whose text it is, as the file of roles says it of each token. */
enum chat_role {
    CHAT_ROLE_MARKUP = ROLE_SYSTEM,
    CHAT_ROLE_USER = ROLE_USER,
    CHAT_ROLE_TRAINED = ROLE_ASSISTANT /* the greatest: it wins where a token holds several */
};

/* A token that stands in markup, not in what somebody wrote. */
struct chat_token {
    size_t begin, end; /* in the text */
    int32_t id;
};

/* A conversation as text; all zeros is an empty one. */
struct chat_text {
    char *text;
    uint8_t *roles;   /* [bytes] enum chat_role */
    uint8_t *written; /* [bytes] 1 for what messages say, 0 for the template's own */
    size_t bytes, room;
    struct chat_token *tokens;
    size_t token_count, token_room;
};

void chat_text_destroy(struct chat_text *text);

/* Tokens that patterns may name; all zeros is none. */
struct chat_words {
    struct chat_word {
        char *text;
        size_t bytes;
        int32_t id;
    } * list;
    size_t count;
    const char *bos, *eos; /* of the list; NULL where the tokenizer has none */
};

/* -1: out of memory. */
int chat_words_add(struct chat_words *words, const char *text, size_t bytes, int32_t id);
void chat_words_destroy(struct chat_words *words);

/* All zeros is an empty one. */
struct chat_pattern {
    struct chat_step *list;
    size_t count;
};

/* Error: EXIT_STATUS_DATA saying what is wrong with the text, EXIT_STATUS_CONFIGURATION for a token
 * that the tokenizer has not, EXIT_STATUS_SYSTEM. */
int chat_pattern_create(struct chat_pattern *pattern, const char *text,
                        const struct chat_words *words, struct error *error);
void chat_pattern_destroy(struct chat_pattern *pattern);
bool chat_pattern_is_trained(const struct chat_pattern *pattern); /* any of it */

/* What stands for {content} and {system}. */
struct chat_values {
    const char *content, *system;
    size_t content_bytes, system_bytes;
    enum chat_role role; /* of the content, where it is not trained */
    bool untrained;      /* whatever the pattern says */
};

/* Append the pattern with its values. -1: out of memory. */
int chat_pattern_expand(const struct chat_pattern *pattern, const struct chat_values *values,
                        struct chat_text *text);

/* Text in quotes as an ini file has it: with \n and the like; to be freed. Error:
 * EXIT_STATUS_DATA. */
char *chat_unescape(const char *text, struct error *error);

#endif
