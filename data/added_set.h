/* The added tokens of a tokenizer.json: found in text before anything else is done to it. */
#ifndef MTLLM_DATA_ADDED_SET_H
#define MTLLM_DATA_ADDED_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "data/pieces.h"

struct added_token {
    char *text; /* what is looked for */
    size_t bytes;
    int32_t id;
    bool single_word, left_strip, right_strip;
};

/* All zeros is none. */
struct added_set {
    struct added_token *list; /* by first byte; of those, the longest first */
    size_t count;
    size_t first[257]; /* where the tokens of a first byte begin */
};

/* `token.text` is taken. -1: out of memory, and freed. */
int added_set_add(struct added_set *set, struct added_token token);
/* After the last was added. */
void added_set_sort(struct added_set *set);
void added_set_destroy(struct added_set *set);

/* The next token behind `from` in the text, the leftmost and of those the longest, with the spaces
 * that it takes in; those before `from` are taken already. `written`, unless NULL, says of each
 * byte that the text comes from whether it is no part of any token. False when there is none. */
bool added_set_find(const struct added_set *set, const struct piece *text, size_t from,
                    const uint8_t *written, size_t *begin, size_t *end, int32_t *id);

#endif
