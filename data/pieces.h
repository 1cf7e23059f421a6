/* What a tokenizer.json does to text before its model sees it: normalizers change it,
 * pre-tokenizers change it and cut it into pieces. Semantics are those of Hugging Face's
 * tokenizers; regular expressions are Oniguruma's, as there.
 */
#ifndef MTLLM_DATA_PIECES_H
#define MTLLM_DATA_PIECES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "core/error.h"

/* UTF-8, cut into pieces; all zeros is none. */
struct pieces {
    char *text;
    size_t bytes, text_room;
    size_t *ends; /* [count] of the pieces, each where the next begins */
    size_t count, ends_room;
};

/* -1: out of memory. */
int pieces_append(struct pieces *pieces, const char *text, size_t bytes); /* to the last piece */
int pieces_end(struct pieces *pieces);                                    /* of the last piece */
void pieces_clear(struct pieces *pieces);
void pieces_destroy(struct pieces *pieces);

/* How large these may become, and whether they are: without a bound, a few steps of a tokenizer
 * could make gigabytes of a line. Error: EXIT_STATUS_DATA. */
size_t pieces_growth(const struct pieces *pieces);
int pieces_check_growth(const struct pieces *pieces, size_t most, struct error *error);

/* Two of them: steps go from one to the other. */
struct pieces_pair {
    struct pieces now, next;
};

struct steps;

/* From the member "normalizer" or "pre_tokenizer"; null makes no steps. Error: EXIT_STATUS_DATA
 * naming a type or a setting that is not supported. */
int steps_create_normalizer(struct steps **steps, json_t *json, struct error *error);
int steps_create_pre_tokenizer(struct steps **steps, json_t *json, struct error *error);
void steps_destroy(struct steps *steps); /* NULL is allowed */

/* Apply all steps to pair->now, which is pieces of UTF-8. `begins`: the first piece is the
 * beginning of the whole text. Error: EXIT_STATUS_SYSTEM, or EXIT_STATUS_DATA for a regular
 * expression that gives up. */
int steps_apply(const struct steps *steps, struct pieces_pair *pair, bool begins,
                struct error *error);

/* As of Unicode's White_Space. */
bool is_white_space(int32_t character);

/* The character at text[at], and where the next begins. */
int32_t next_character(const char *text, size_t bytes, size_t at, size_t *next);

/* Of a byte-level vocabulary: what stands for the byte; the byte that a character stands for, or
 * -1. */
int32_t byte_character(unsigned char byte);
int character_byte(int32_t character);

#endif
