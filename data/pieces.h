/* Text in pieces: what goes from one step of a tokenizer to the next. */
#ifndef MTLLM_DATA_PIECES_H
#define MTLLM_DATA_PIECES_H

#include <stdbool.h>
#include <stddef.h>

#include "core/error.h"
#include "data/tokenizer.h"

/* UTF-8, cut into pieces; all zeros is none. */
struct pieces {
    char *text;
    size_t bytes, text_room;
    size_t *ends; /* [count] of the pieces, each where the next begins */
    size_t count, ends_room;
    bool tracked;               /* origins are wanted; set it while there is no text */
    struct token_span *origins; /* [bytes] what each comes from in the text that was begun with */
    size_t origins_room;
};

/* A part of a text that is read. */
struct piece {
    const char *text;
    size_t bytes;
    const struct token_span *origins; /* [bytes], or NULL: not tracked */
};

/* Bytes [begin, begin + bytes). */
struct piece pieces_slice(const struct pieces *pieces, size_t begin, size_t bytes);

/* All of these: to the last piece, without origins. -1: out of memory. */
int pieces_append(struct pieces *pieces, const char *text, size_t bytes);
int pieces_end(struct pieces *pieces); /* of the last piece */
/* Bytes [begin, end) of a piece as they are. */
int pieces_take(struct pieces *pieces, const struct piece *from, size_t begin, size_t end);
/* Text that comes from the byte `at` of a piece. */
int pieces_put(struct pieces *pieces, const char *text, size_t bytes, const struct piece *from,
               size_t at);
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
