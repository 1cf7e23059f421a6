/* What a tokenizer.json does to text before its model sees it: normalizers change it,
 * pre-tokenizers change it and cut it into pieces. Semantics are those of Hugging Face's
 * tokenizers; regular expressions are Oniguruma's, as there.
 */
#ifndef MTLLM_DATA_STEPS_H
#define MTLLM_DATA_STEPS_H

#include <stdbool.h>

#include <jansson.h>

#include "core/error.h"
#include "data/pieces.h"

struct steps;

/* From the member "normalizer" or "pre_tokenizer"; null makes no steps. Error: EXIT_STATUS_DATA
 * naming a type or a setting that is not supported. */
int steps_create_normalizer(struct steps **steps, json_t *json, struct error *error);
int steps_create_pre_tokenizer(struct steps **steps, json_t *json, struct error *error);
void steps_destroy(struct steps *steps); /* NULL is allowed */

/* Apply all steps to pair->now, which is pieces of UTF-8. `begins`: the first piece is the
 * beginning of the whole text. Where the pieces are tracked, so is what is made of them. Error:
 * EXIT_STATUS_SYSTEM, or EXIT_STATUS_DATA for a regular expression that gives up. */
int steps_apply(const struct steps *steps, struct pieces_pair *pair, bool begins,
                struct error *error);

#endif
