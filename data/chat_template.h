/* Chat templates: how a conversation is written as one text for a model, and which of it the model
 * learns to write. A template is an ini file; mtllm-template(5) says what is in it.
 */
#ifndef MTLLM_DATA_CHAT_TEMPLATE_H
#define MTLLM_DATA_CHAT_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#include "core/error.h"
#include "data/chat_pattern.h"
#include "data/tokenizer.h"

struct chat_template;

/* `name` is a path if it has a slash or ends in .ini, else a template in $MTLLM_TEMPLATES or in the
 * installed directory. Its tokens are looked for in the tokenizer. Error: EXIT_STATUS_USAGE (there
 * is none), EXIT_STATUS_IO, EXIT_STATUS_DATA (it makes no sense; FILE:LINE is said),
 * EXIT_STATUS_CONFIGURATION (the tokenizer lacks a token). */
int chat_template_open(struct chat_template **chat_template, const char *name,
                       const struct tokenizer *tokenizer, struct error *error);
void chat_template_close(struct chat_template *chat_template);             /* NULL is allowed */
const char *chat_template_path(const struct chat_template *chat_template); /* of its file */

struct chat_message {
    const char *role, *content;
    size_t bytes; /* of the content */
    bool untrained;
};

/* Append the conversation. Error: EXIT_STATUS_DATA (it is none for this template: why is said, with
 * the number of the message), EXIT_STATUS_SYSTEM. */
int chat_template_render(const struct chat_template *chat_template,
                         const struct chat_message *messages, size_t count, struct chat_text *text,
                         struct error *error);

#endif
