#include "data/normal_form.h"

#include <stdlib.h>

#include "data/unicode.h"

/* Of [begin, end); to be freed. -1: out of memory. */
static utf8proc_ssize_t normal_form(utf8proc_option_t option, const struct piece *piece,
                                    size_t begin, size_t end, utf8proc_uint8_t **form)
{
    *form = NULL;
    return utf8proc_map((const utf8proc_uint8_t *)piece->text + begin,
                        (utf8proc_ssize_t)(end - begin), form, option);
}

static utf8proc_ssize_t normal_bytes(utf8proc_option_t option, const struct piece *piece,
                                     size_t begin, size_t end)
{
    utf8proc_uint8_t *form;
    utf8proc_ssize_t bytes = normal_form(option, piece, begin, end, &form);

    free(form);
    return bytes;
}

/* Before the first character behind the one at `begin` that takes no part in its normal form. */
static size_t composed_end(utf8proc_option_t option, const struct piece *piece, size_t begin,
                           size_t end)
{
    size_t at, next;

    next_character(piece->text, end, begin, &at);
    for (; at < end; at = next) {
        int32_t character = next_character(piece->text, end, at, &next);

        if (character < 0x300 ||
            (utf8proc_get_property(character)->combining_class == 0 &&
             normal_bytes(option, piece, begin, next) ==
                 normal_bytes(option, piece, begin, at) + normal_bytes(option, piece, at, next)))
            break;
    }
    return at;
}

/* Characters that the one at `at` is decomposed into, and where the next begins. */
static size_t decomposed(utf8proc_option_t option, const struct piece *piece, size_t at,
                         size_t *next)
{
    int32_t character = next_character(piece->text, piece->bytes, at, next);
    utf8proc_option_t parts = (option & (UTF8PROC_STABLE | UTF8PROC_COMPAT)) | UTF8PROC_DECOMPOSE;
    utf8proc_int32_t list[32]; /* U+FDFA has 18 */
    int boundary = 0;
    utf8proc_ssize_t count = utf8proc_decompose_char(character, list, 32, parts, &boundary);

    return count > 0 ? (size_t)count : 1;
}

/* What was made of [begin, end) is the text from `at` on. As tokenizers counts: all is decomposed,
 * and then as many parts as are missing are composed into the first. */
static void set_origins(utf8proc_option_t option, struct pieces *to, size_t at,
                        const struct piece *piece, size_t begin, size_t end)
{
    size_t parts = 0, made = 0, part = 0, behind, next; /* the part that the next character has */

    for (size_t i = begin; i < end; i = next)
        parts += decomposed(option, piece, i, &next);
    for (size_t i = at; i < to->bytes; i++)
        made += (to->text[i] & 0xc0) != 0x80;
    behind = decomposed(option, piece, begin, &next);
    for (size_t i = at, j = at; i < to->bytes; i = j, part++) {
        while (behind <= part && next < end) {
            begin = next;
            behind += decomposed(option, piece, begin, &next);
        }
        next_character(to->text, to->bytes, i, &j);
        for (size_t byte = i; byte < j; byte++)
            to->origins[byte] = piece->origins[begin];
        if (part == 0 && parts > made)
            part = parts - made;
    }
}

static int append_normal(utf8proc_option_t option, const struct piece *piece, size_t begin,
                         size_t end, struct pieces *to)
{
    utf8proc_uint8_t *form;
    utf8proc_ssize_t bytes = normal_form(option, piece, begin, end, &form);
    int rc = bytes < 0 ? -1 : pieces_append(to, (const char *)form, (size_t)bytes);

    free(form);
    return rc;
}

/* What is ASCII stays as it is, but for the last character, which a mark may follow. */
static size_t ascii_end(const struct piece *piece, size_t begin, size_t end)
{
    size_t at = begin;

    while (at < end && (unsigned char)piece->text[at] < 0x80)
        at++;
    return at > begin && at < end ? at - 1 : at;
}

/* Text without characters that are left alone. */
static int append_stretch(utf8proc_option_t option, const struct piece *piece, size_t begin,
                          size_t end, struct pieces *to)
{
    int rc = 0;

    if (!to->tracked)
        return append_normal(option, piece, begin, end, to);
    for (size_t at = to->bytes, next; rc == 0 && begin < end; begin = next, at = to->bytes) {
        next = ascii_end(piece, begin, end);
        if (next > begin) {
            rc = pieces_take(to, piece, begin, next);
            continue;
        }
        next = composed_end(option, piece, begin, end);
        rc = append_normal(option, piece, begin, next, to);
        if (rc == 0)
            set_origins(option, to, at, piece, begin, next);
    }
    return rc;
}

int normal_form_append(utf8proc_option_t option, const struct piece *piece, struct pieces *to)
{
    size_t begin = 0, next;
    int rc = 0;

    for (size_t at = 0; rc == 0 && at < piece->bytes; at = next) {
        next = at + 1;
        if ((unsigned char)piece->text[at] < 0xdf || /* U+07C0 */
            !is_later_mark(next_character(piece->text, piece->bytes, at, &next)))
            continue;
        rc = append_stretch(option, piece, begin, at, to);
        if (rc == 0)
            rc = pieces_take(to, piece, at, next);
        begin = next;
    }
    if (rc == 0)
        rc = append_stretch(option, piece, begin, piece->bytes, to);
    return rc < 0 ? -1 : pieces_end(to);
}
