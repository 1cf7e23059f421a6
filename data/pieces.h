/* Text in pieces: what goes from one step of a tokenizer to the next. */
#ifndef MTLLM_DATA_PIECES_H
#define MTLLM_DATA_PIECES_H

#include <stddef.h>

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

#endif
