#include "core/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

static bool log_enabled = true;
static void (*log_clear)(void);

void log_set_enabled(bool enabled)
{
    log_enabled = enabled;
}

void log_set_clear(void (*clear)(void))
{
    log_clear = clear;
}

/* One write a line, so that the lines of several ranks do not mix. */
static void log_line(const char *level, const char *format, va_list arguments)
{
    char text[2048];

    if (log_clear)
        log_clear();
    vsnprintf(text, sizeof(text), format, arguments);
    fprintf(stderr, "%s: %s%s\n", program_invocation_short_name, level, text);
}

void log_info(const char *format, ...)
{
    va_list arguments;

    if (!log_enabled)
        return;
    va_start(arguments, format);
    log_line("", format, arguments);
    va_end(arguments);
}

void log_warning(const char *format, ...)
{
    va_list arguments;

    if (!log_enabled)
        return;
    va_start(arguments, format);
    log_line("warning: ", format, arguments);
    va_end(arguments);
}

void log_warning_any_rank(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    log_line("warning: ", format, arguments);
    va_end(arguments);
}
