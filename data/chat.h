/* Conversations of JSON as tokens, and of each token whether the model learns to write it.
 *
 * A conversation is {"messages": [{"role": ..., "content": ...}, ...]}, or ShareGPT's
 * {"conversations": [{"from": ..., "value": ...}, ...]}, or Megatron-LLM's {"input": ..., "output":
 * ...}. It is written by a template, and tokenized as one text.
 */
#ifndef MTLLM_DATA_CHAT_H
#define MTLLM_DATA_CHAT_H

#include <stdbool.h>

#include <jansson.h>

#include "core/error.h"
#include "data/tokenizer.h"

struct chat;

struct chat_options {
    const char *template_name; /* of chat_template_open() */
    /* Members of a line without messages; each may be NULL: input, output, none. */
    const char *question_key, *answer_key, *system_key;
    bool text_messages; /* nothing in a message is a special token, whatever it looks like */
    bool bos, eod;      /* put the tokenizer's tokens around what the template makes, as markup */
};

/* Tokenizer and options must outlive the chat, which several threads may use at once. Errors as of
 * chat_template_open(). */
int chat_open(struct chat **chat, const struct chat_options *options,
              const struct tokenizer *tokenizer, struct error *error);
void chat_close(struct chat *chat);                      /* NULL is allowed */
const char *chat_template_file(const struct chat *chat); /* the template's path */

/* Append the tokens of a conversation, and as many roles: 2 for what the model learns to write, 1
 * for what others than it and the system wrote, 0 for all else. A token that holds some of several
 * has the greatest. Error: EXIT_STATUS_DATA (why the line is no conversation; nothing is appended),
 * EXIT_STATUS_SYSTEM. */
int chat_encode(const struct chat *chat, const json_t *line, struct token_list *tokens,
                struct token_list *roles, struct error *error);

#endif
