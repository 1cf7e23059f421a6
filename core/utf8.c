#include "core/utf8.h"

#include <stdint.h>
#include <string.h>

/* Of 16 bytes at once. */
static bool is_ascii(const unsigned char *text)
{
    uint64_t words[2];

    memcpy(words, text, sizeof(words));
    return ((words[0] | words[1]) & UINT64_C(0x8080808080808080)) == 0;
}

/* Bytes of the character at `text`, of `left` bytes; 0 when it is none. The second byte has the
 * narrower range where the first alone would allow an overlong form, a surrogate or a character
 * beyond U+10FFFF. */
static size_t character_length(const unsigned char *text, size_t left)
{
    unsigned char first = text[0], least = 0x80, most = 0xbf;
    size_t length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;

    if (length == 1)
        return 1;
    if (first < 0xc2 || first > 0xf4 || left < length)
        return 0;
    least = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : least;
    most = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : most;
    if (text[1] < least || text[1] > most)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    return length;
}

size_t utf8_length(const char *text, size_t bytes)
{
    const unsigned char *at = (const unsigned char *)text, *end = at + bytes;

    while (at < end) {
        size_t length;

        while (end - at >= 16 && is_ascii(at))
            at += 16;
        if (at == end)
            break;
        length = character_length(at, (size_t)(end - at));
        if (length == 0)
            break;
        at += length;
    }
    return bytes - (size_t)(end - at);
}

bool utf8_is_text(const char *string)
{
    size_t bytes = strlen(string);

    return utf8_length(string, bytes) == bytes;
}
