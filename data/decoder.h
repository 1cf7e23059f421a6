/* What a tokenizer.json does to tokens to make text of them. */
#ifndef MTLLM_DATA_DECODER_H
#define MTLLM_DATA_DECODER_H

#include <jansson.h>

#include "core/error.h"
#include "data/pieces.h"

struct decoder;

/* From the member "decoder"; null joins tokens with spaces. Error: EXIT_STATUS_DATA naming a type
 * that is not supported. */
int decoder_create(struct decoder **decoder, json_t *json, struct error *error);
void decoder_destroy(struct decoder *decoder); /* NULL is allowed */

/* pair->now is one piece a token, and becomes the text. */
int decoder_apply(const struct decoder *decoder, struct pieces_pair *pair, struct error *error);

/* Append UTF-8, U+FFFD in the place of each part that is none, as Unicode recommends (and Rust
 * does). -1: out of memory. */
int append_lossy(struct pieces *pieces, const char *text, size_t bytes);

#endif
