#include "core/error.h"

#undef error_set
#undef error_set_errno
#undef error_prefix

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/log.h"

/* Names in messages come from files that somebody else may have made: none may begin a second line
 * or speak to the terminal. */
static void replace_controls(char *text)
{
    for (unsigned char *at = (unsigned char *)text; *at; at++) {
        bool wide = at[0] == 0xc2 && at[1] >= 0x80 && at[1] < 0xa0; /* C1 controls in UTF-8 */

        if (*at < ' ' || *at == 0x7f || wide)
            *at = '?';
        if (wide)
            at[1] = '?';
    }
}

static void format_text(struct error *error, const char *format, va_list arguments)
{
    char text[sizeof(error->text)];

    vsnprintf(text, sizeof(text), format, arguments);
    replace_controls(text);
    memcpy(error->text, text, sizeof(text));
}

int error_set(struct error *error, int status, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    format_text(error, format, arguments);
    va_end(arguments);
    error->status = status;
    return -1;
}

int error_set_errno(struct error *error, const char *format, ...)
{
    int saved = errno;
    va_list arguments;
    size_t used;

    va_start(arguments, format);
    format_text(error, format, arguments);
    va_end(arguments);
    used = strlen(error->text);
    snprintf(error->text + used, sizeof(error->text) - used, ": %s", strerror(saved));
    error->status = EXIT_STATUS_IO;
    return -1;
}

int error_prefix(struct error *error, const char *format, ...)
{
    char old[sizeof(error->text)];
    va_list arguments;
    size_t used;

    memcpy(old, error->text, sizeof(old));
    va_start(arguments, format);
    format_text(error, format, arguments);
    va_end(arguments);
    used = strlen(error->text);
    snprintf(error->text + used, sizeof(error->text) - used, "%s", old);
    return -1;
}

int error_print(const struct error *error)
{
    log_error("%s", error->text);
    return error->status;
}
