#include "data/pieces.h"

#include <stdlib.h>
#include <string.h>

/* More than NFKC and bytes by characters make of a text. */
enum { GROWTH_MOST = 64 };

struct piece pieces_slice(const struct pieces *pieces, size_t begin, size_t bytes)
{
    return (struct piece){pieces->text + begin, bytes,
                          pieces->tracked ? pieces->origins + begin : NULL};
}

static int grow(struct pieces *pieces, size_t bytes)
{
    size_t room = 2 * bytes + 64;

    if (bytes > pieces->text_room) {
        char *more = realloc(pieces->text, room);

        if (!more)
            return -1;
        pieces->text = more;
        pieces->text_room = room;
    }
    if (pieces->tracked && bytes > pieces->origins_room) {
        struct token_span *more = realloc(pieces->origins, room * sizeof(*more));

        if (!more)
            return -1;
        pieces->origins = more;
        pieces->origins_room = room;
    }
    return 0;
}

int pieces_append(struct pieces *pieces, const char *text, size_t bytes)
{
    size_t all = pieces->bytes + bytes;

    if ((all > pieces->text_room || (pieces->tracked && all > pieces->origins_room)) &&
        grow(pieces, all) < 0)
        return -1;
    if (bytes > 0)
        memcpy(pieces->text + pieces->bytes, text, bytes);
    pieces->bytes = all;
    return 0;
}

int pieces_take(struct pieces *pieces, const struct piece *from, size_t begin, size_t end)
{
    size_t at = pieces->bytes;

    if (pieces_append(pieces, from->text + begin, end - begin) < 0)
        return -1;
    if (pieces->tracked && end > begin)
        memcpy(pieces->origins + at, from->origins + begin, (end - begin) * sizeof(*from->origins));
    return 0;
}

int pieces_put(struct pieces *pieces, const char *text, size_t bytes, const struct piece *from,
               size_t at)
{
    if (pieces_append(pieces, text, bytes) < 0)
        return -1;
    for (size_t i = pieces->bytes - bytes; pieces->tracked && i < pieces->bytes; i++)
        pieces->origins[i] = from->origins[at];
    return 0;
}

int pieces_end(struct pieces *pieces)
{
    size_t begin = pieces->count > 0 ? pieces->ends[pieces->count - 1] : 0;

    if (pieces->bytes == begin)
        return 0;
    if (pieces->count == pieces->ends_room) {
        size_t room = 2 * pieces->ends_room + 64;
        size_t *more = realloc(pieces->ends, room * sizeof(*more));

        if (!more)
            return -1;
        pieces->ends = more;
        pieces->ends_room = room;
    }
    pieces->ends[pieces->count++] = pieces->bytes;
    return 0;
}

void pieces_clear(struct pieces *pieces)
{
    pieces->bytes = 0;
    pieces->count = 0;
}

size_t pieces_growth(const struct pieces *pieces)
{
    return GROWTH_MOST * (pieces->bytes + 1);
}

int pieces_check_growth(const struct pieces *pieces, size_t most, struct error *error)
{
    if (pieces->bytes <= most)
        return 0;
    return error_set(error, EXIT_STATUS_DATA,
                     "the tokenizer makes more than %d times as much of a text", GROWTH_MOST);
}

void pieces_destroy(struct pieces *pieces)
{
    free(pieces->text);
    free(pieces->ends);
    free(pieces->origins);
    *pieces = (struct pieces){0};
}
