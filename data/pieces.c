#include "data/pieces.h"

#include <stdlib.h>
#include <string.h>

/* More than NFKC and bytes by characters make of a text. */
enum { GROWTH_MOST = 64 };

int pieces_append(struct pieces *pieces, const char *text, size_t bytes)
{
    if (pieces->bytes + bytes > pieces->text_room) {
        size_t room = 2 * (pieces->bytes + bytes) + 64;
        char *more = realloc(pieces->text, room);

        if (!more)
            return -1;
        pieces->text = more;
        pieces->text_room = room;
    }
    if (bytes > 0)
        memcpy(pieces->text + pieces->bytes, text, bytes);
    pieces->bytes += bytes;
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
    *pieces = (struct pieces){0};
}
