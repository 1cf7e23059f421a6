#include "report/markup.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

/* The length of the character that begins here, 0 if none does that XML 1.0 allows. */
static int character_length(const unsigned char *text)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    int length = text[0] < 0x80           ? 1
                 : (text[0] >> 5) == 0x06 ? 2
                 : (text[0] >> 4) == 0x0e ? 3
                 : (text[0] >> 3) == 0x1e ? 4
                                          : 0;
    uint32_t code = length == 1 ? text[0] : text[0] & (0x7f >> length);

    if (length == 1 && code < 0x20 && code != '\t' && code != '\n')
        return 0;
    for (int i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (text[i] & 0x3f);
    }
    if (length == 0 || code < least[length] || code > 0x10ffff || code == 0x7f ||
        (code >= 0x80 && code < 0xa0) || (code >= 0xd800 && code < 0xe000) ||
        (code & 0xfffe) == 0xfffe)
        return 0;
    return length;
}

void markup_text(const char *text, FILE *stream)
{
    const unsigned char *at = (const unsigned char *)text;

    while (*at) {
        int length = character_length(at);

        switch (*at) {
        case '&':
            fputs("&amp;", stream);
            break;
        case '<':
            fputs("&lt;", stream);
            break;
        case '>':
            fputs("&gt;", stream);
            break;
        case '"':
            fputs("&quot;", stream);
            break;
        case '\'':
            fputs("&#39;", stream);
            break;
        default:
            if (length == 0)
                fputs("\xef\xbf\xbd", stream);
            else
                fwrite(at, 1, (size_t)length, stream);
        }
        at += length ? length : 1;
    }
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
void markup_printf(FILE *stream, const char *format, ...)
{
    char text[1024];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    markup_text(text, stream);
}
#pragma GCC diagnostic pop
