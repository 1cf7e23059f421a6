#include "data/added_set.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "data/unicode.h"

int added_set_add(struct added_set *set, struct added_token token)
{
    struct added_token *list = realloc(set->list, (set->count + 1) * sizeof(*list));

    if (!list) {
        free(token.text);
        return -1;
    }
    set->list = list;
    list[set->count++] = token;
    return 0;
}

static int compare(const void *a, const void *b)
{
    const struct added_token *left = a, *right = b;
    unsigned char first = (unsigned char)*left->text, second = (unsigned char)*right->text;

    if (first != second)
        return first < second ? -1 : 1;
    return (left->bytes < right->bytes) - (left->bytes > right->bytes);
}

void added_set_sort(struct added_set *set)
{
    size_t at = 0;

    if (set->count > 0)
        qsort(set->list, set->count, sizeof(*set->list), compare);
    for (int byte = 0; byte <= 256; byte++) {
        while (at < set->count && (unsigned char)*set->list[at].text < byte)
            at++;
        set->first[byte] = at;
    }
}

void added_set_destroy(struct added_set *set)
{
    for (size_t i = 0; i < set->count; i++)
        free(set->list[i].text);
    free(set->list);
    *set = (struct added_set){0};
}

/* As of the regular expression \w. */
static bool is_word(int32_t character)
{
    utf8proc_category_t category = utf8proc_category(character);

    return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) ||
           category == UTF8PROC_CATEGORY_PC;
}

static size_t character_before(const char *text, size_t at)
{
    at--;
    while (at > 0 && (text[at] & 0xc0) == 0x80)
        at--;
    return at;
}

static bool stands_alone(const char *text, size_t bytes, size_t begin, size_t end)
{
    size_t next;

    if (begin > 0 && is_word(next_character(text, bytes, character_before(text, begin), &next)))
        return false;
    return end >= bytes || !is_word(next_character(text, bytes, end, &next));
}

static bool is_written(const struct piece *text, size_t begin, size_t end, const uint8_t *written)
{
    while (begin < end && !written[text->origins[begin].begin])
        begin++;
    return begin < end;
}

/* The longest token that stands at text[at]; NULL when there is none. */
static const struct added_token *find_at(const struct added_set *set, const struct piece *text,
                                         size_t at, const uint8_t *written)
{
    unsigned char byte = (unsigned char)text->text[at];

    for (size_t i = set->first[byte]; i < set->first[byte + 1]; i++) {
        const struct added_token *token = &set->list[i];

        if (token->bytes <= text->bytes - at &&
            memcmp(token->text, text->text + at, token->bytes) == 0 &&
            !(written && is_written(text, at, at + token->bytes, written)))
            return token;
    }
    return NULL;
}

bool added_set_find(const struct added_set *set, const struct piece *piece, size_t from,
                    const uint8_t *written, size_t *begin, size_t *end, int32_t *id)
{
    const char *text = piece->text;
    size_t bytes = piece->bytes;

    if (set->count == 0)
        return false;
    for (size_t at = from; at < bytes;) {
        const struct added_token *token = find_at(set, piece, at, written);
        size_t next;

        if (!token) {
            at++;
            continue;
        }
        *begin = at;
        *end = at + token->bytes;
        *id = token->id;
        at = *end; /* one that is passed over still hides what overlaps it */
        if (token->single_word && !stands_alone(text, bytes, *begin, *end))
            continue;
        while (token->left_strip && *begin > from) {
            size_t before = character_before(text, *begin);

            if (!is_white_space(next_character(text, bytes, before, &next)))
                break;
            *begin = before;
        }
        while (token->right_strip && *end < bytes &&
               is_white_space(next_character(text, bytes, *end, &next)))
            *end = next;
        return true;
    }
    return false;
}
