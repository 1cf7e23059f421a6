#include "data/decoder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/steps.h"
#include "data/unicode.h"

enum part_type {
    PART_REPLACE,
    PART_BYTE_FALLBACK,
    PART_FUSE,
    PART_STRIP,
    PART_BYTES,
    PART_METASPACE
};

struct part {
    enum part_type type;
    struct steps *replace;
    char *text; /* the character to strip, or that stands for a space */
    size_t start, stop;
    bool drops_first; /* the space that was put in front of the text */
};

struct decoder {
    struct part *parts;
    size_t count;
    bool joins_with_spaces;
};

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

/* --- UTF-8 ------------------------------------------------------------------------------------ */

/* Bytes of the character at `text`, or of what looks like the beginning of one; *valid tells. */
static size_t measure(const unsigned char *text, size_t bytes, bool *valid)
{
    unsigned char first = text[0], low = 0x80, high = 0xbf;
    size_t more = first < 0x80                     ? 0
                  : first >= 0xc2 && first <= 0xdf ? 1
                  : (first & 0xf0) == 0xe0         ? 2
                  : first >= 0xf0 && first <= 0xf4 ? 3
                                                   : SIZE_MAX;

    *valid = false;
    if (more == SIZE_MAX)
        return 1;
    if (first == 0xe0)
        low = 0xa0;
    if (first == 0xed)
        high = 0x9f;
    if (first == 0xf0)
        low = 0x90;
    if (first == 0xf4)
        high = 0x8f;
    for (size_t i = 1; i <= more; i++) {
        if (i >= bytes || text[i] < low || text[i] > high)
            return i;
        low = 0x80;
        high = 0xbf;
    }
    *valid = true;
    return more + 1;
}

int append_lossy(struct pieces *pieces, const char *text, size_t bytes)
{
    size_t good = 0, at = 0;

    while (at < bytes) {
        bool valid;
        size_t length = measure((const unsigned char *)text + at, bytes - at, &valid);

        if (!valid && (pieces_append(pieces, text + good, at - good) < 0 ||
                       pieces_append(pieces, "\xef\xbf\xbd", 3) < 0))
            return -1;
        at += length;
        if (!valid)
            good = at;
    }
    return at > good ? pieces_append(pieces, text + good, at - good) : 0;
}

static bool is_utf8(const char *text, size_t bytes)
{
    bool valid = true;

    for (size_t at = 0; valid && at < bytes;)
        at += measure((const unsigned char *)text + at, bytes - at, &valid);
    return valid;
}

/* --- parts ------------------------------------------------------------------------------------ */

/* A run of bytes ends. */
static int flush_bytes(struct pieces *run, struct pieces *to)
{
    int rc = 0;

    if (is_utf8(run->text, run->bytes))
        rc = pieces_append(to, run->text, run->bytes);
    else
        for (size_t i = 0; rc == 0 && i < run->bytes; i++)
            rc = pieces_append(to, "\xef\xbf\xbd", 3);
    run->bytes = 0;
    return rc < 0 ? -1 : pieces_end(to);
}

/* The byte of <0xNN>, -1 for other tokens. */
static int byte_of(const char *text, size_t bytes)
{
    char digits[3], *end;
    long byte;

    if (bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    memcpy(digits, text + 3, 2);
    digits[2] = '\0';
    byte = strtol(digits, &end, 16);
    return end == digits + 2 ? (int)byte : -1;
}

static int join_bytes(const struct pieces *from, struct pieces *to)
{
    struct pieces run = {0};
    size_t begin = 0;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < from->count; begin = from->ends[i++]) {
        size_t bytes = from->ends[i] - begin;
        int byte = byte_of(from->text + begin, bytes);
        char one = (char)byte;

        if (byte >= 0) {
            rc = pieces_append(&run, &one, 1);
            continue;
        }
        if (flush_bytes(&run, to) < 0 || pieces_append(to, from->text + begin, bytes) < 0 ||
            pieces_end(to) < 0)
            rc = -1;
    }
    if (rc == 0)
        rc = flush_bytes(&run, to);
    pieces_destroy(&run);
    return rc;
}

/* Tokens of a byte-level vocabulary; a token that cannot be one is text. */
static int unmap_token(const char *text, size_t bytes, struct pieces *to)
{
    size_t before = to->bytes;

    for (size_t at = 0; at < bytes;) {
        int byte = character_byte(next_character(text, bytes, at, &at));
        char one = (char)byte;

        if (byte < 0) {
            to->bytes = before;
            return pieces_append(to, text, bytes);
        }
        if (pieces_append(to, &one, 1) < 0)
            return -1;
    }
    return 0;
}

static int unmap_bytes(const struct pieces *from, struct pieces *to)
{
    struct pieces all = {0};
    size_t begin = 0;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < from->count; begin = from->ends[i++])
        rc = unmap_token(from->text + begin, from->ends[i] - begin, &all);
    if (rc == 0)
        rc = append_lossy(to, all.text, all.bytes);
    pieces_destroy(&all);
    return rc < 0 ? -1 : pieces_end(to);
}

static int strip_token(const struct part *part, const char *text, size_t bytes, struct pieces *to)
{
    size_t length = strlen(part->text);

    for (size_t i = 0; i < part->start && bytes >= length && memcmp(text, part->text, length) == 0;
         i++) {
        text += length;
        bytes -= length;
    }
    for (size_t i = 0; i < part->stop && bytes >= length &&
                       memcmp(text + bytes - length, part->text, length) == 0;
         i++)
        bytes -= length;
    return pieces_append(to, text, bytes);
}

static int unspace_token(const struct part *part, const char *text, size_t bytes, bool first,
                         struct pieces *to)
{
    size_t length = strlen(part->text);

    for (size_t at = 0; at < bytes;) {
        bool space = bytes - at >= length && memcmp(text + at, part->text, length) == 0;

        if (!space && pieces_append(to, text + at, 1) < 0)
            return -1;
        if (space && !(first && part->drops_first) && pieces_append(to, " ", 1) < 0)
            return -1;
        at += space ? length : 1;
    }
    return 0;
}

static int apply_to_tokens(const struct part *part, const struct pieces *from, struct pieces *to)
{
    size_t begin = 0;

    for (size_t i = 0; i < from->count; begin = from->ends[i++]) {
        const char *text = from->text + begin;
        size_t bytes = from->ends[i] - begin;
        int rc = part->type == PART_STRIP ? strip_token(part, text, bytes, to)
                                          : unspace_token(part, text, bytes, i == 0, to);

        if (rc < 0 || pieces_end(to) < 0)
            return -1;
    }
    return 0;
}

static int apply_part(const struct part *part, const struct pieces *from, struct pieces *to)
{
    switch (part->type) {
    case PART_BYTE_FALLBACK:
        return join_bytes(from, to);
    case PART_BYTES:
        return unmap_bytes(from, to);
    case PART_FUSE:
        return pieces_append(to, from->text, from->bytes) < 0 ? -1 : pieces_end(to);
    default:
        return apply_to_tokens(part, from, to);
    }
}

int decoder_apply(const struct decoder *decoder, struct pieces_pair *pair, struct error *error)
{
    size_t begin = 0, most = pieces_growth(&pair->now);

    for (size_t i = 0; i < decoder->count; i++) {
        struct pieces swap = pair->now;

        if (decoder->parts[i].type == PART_REPLACE) {
            if (steps_apply(decoder->parts[i].replace, pair, false, error) < 0 ||
                pieces_check_growth(&pair->now, most, error) < 0)
                return -1;
            continue;
        }
        pieces_clear(&pair->next);
        if (apply_part(&decoder->parts[i], &pair->now, &pair->next) < 0)
            return out_of_memory(error);
        pair->now = pair->next;
        pair->next = swap;
    }
    if (!decoder->joins_with_spaces)
        return 0;
    pieces_clear(&pair->next);
    for (size_t i = 0; i < pair->now.count; begin = pair->now.ends[i++])
        if ((i > 0 && pieces_append(&pair->next, " ", 1) < 0) ||
            pieces_append(&pair->next, pair->now.text + begin, pair->now.ends[i] - begin) < 0)
            return out_of_memory(error);
    {
        struct pieces swap = pair->now;

        pair->now = pair->next;
        pair->next = swap;
    }
    return 0;
}

/* --- reading ---------------------------------------------------------------------------------- */

static int read_part(struct decoder *decoder, json_t *json, struct error *error)
{
    static const struct {
        const char *type;
        enum part_type part;
    } types[] = {
        {"Replace", PART_REPLACE}, {"ByteFallback", PART_BYTE_FALLBACK},
        {"Fuse", PART_FUSE},       {"Strip", PART_STRIP},
        {"ByteLevel", PART_BYTES}, {"Metaspace", PART_METASPACE},
    };
    const char *type = json_string_value(json_object_get(json, "type")), *text;
    struct part *parts = realloc(decoder->parts, (decoder->count + 1) * sizeof(*parts)), *part;
    size_t i;

    if (!parts)
        return out_of_memory(error);
    decoder->parts = parts;
    for (i = 0; type && i < sizeof(types) / sizeof(*types); i++)
        if (strcmp(type, types[i].type) == 0)
            break;
    if (!type || i == sizeof(types) / sizeof(*types))
        return error_set(error, EXIT_STATUS_DATA, "decoder of type %.100s is not supported",
                         type ? type : "(none)");
    part = &parts[decoder->count++];
    *part = (struct part){.type = types[i].part};
    if (part->type == PART_REPLACE)
        return steps_create_normalizer(&part->replace, json, error);
    text = json_string_value(
        json_object_get(json, part->type == PART_STRIP ? "content" : "replacement"));
    part->text = strdup(text && *text ? text : part->type == PART_STRIP ? " " : "\xe2\x96\x81");
    if (!part->text)
        return out_of_memory(error);
    part->start = (size_t)json_integer_value(json_object_get(json, "start"));
    part->stop = (size_t)json_integer_value(json_object_get(json, "stop"));
    text = json_string_value(json_object_get(json, "prepend_scheme"));
    part->drops_first = text ? strcmp(text, "never") != 0
                             : !json_is_false(json_object_get(json, "add_prefix_space"));
    return 0;
}

int decoder_create(struct decoder **decoder, json_t *json, struct error *error)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    struct decoder *new = calloc(1, sizeof(*new));
    json_t *part;
    size_t i;
    int rc = 0;

    *decoder = NULL;
    if (!new)
        return out_of_memory(error);
    if (!json || json_is_null(json)) {
        new->joins_with_spaces = true;
    } else if (!type || strcmp(type, "Sequence") != 0) {
        rc = read_part(new, json, error);
    } else {
        json_array_foreach(json_object_get(json, "decoders"), i, part)
        {
            if (rc == 0)
                rc = read_part(new, part, error);
        }
    }
    if (rc == 0)
        *decoder = new;
    else
        decoder_destroy(new);
    return rc;
}

void decoder_destroy(struct decoder *decoder)
{
    if (!decoder)
        return;
    for (size_t i = 0; i < decoder->count; i++) {
        steps_destroy(decoder->parts[i].replace);
        free(decoder->parts[i].text);
    }
    free(decoder->parts);
    free(decoder);
}
