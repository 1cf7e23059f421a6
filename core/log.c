#include "core/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool log_enabled = true;
static void (*log_clear)(void);

/* Behind the lock, which is held while a line is copied. */
static pthread_mutex_t log_copy_lock = PTHREAD_MUTEX_INITIALIZER;
static void (*log_copy)(void *user, const char *line, size_t length);
static void *log_copy_user;

void log_set_enabled(bool enabled)
{
    log_enabled = enabled;
}

void log_set_clear(void (*clear)(void))
{
    log_clear = clear;
}

void log_set_copy(void (*copy)(void *user, const char *line, size_t length), void *user)
{
    pthread_mutex_lock(&log_copy_lock);
    log_copy = copy;
    log_copy_user = user;
    pthread_mutex_unlock(&log_copy_lock);
}

void log_copy_line(const char *line)
{
    pthread_mutex_lock(&log_copy_lock);
    if (log_copy)
        log_copy(log_copy_user, line, strlen(line));
    pthread_mutex_unlock(&log_copy_lock);
}

/* One write a line, so that the lines of several ranks do not mix. */
static void log_line(const char *level, const char *format, va_list arguments)
{
    char text[2048], line[2048 + 512];

    if (log_clear)
        log_clear();
    vsnprintf(text, sizeof(text), format, arguments);
    snprintf(line, sizeof(line), "%.255s: %s%s\n", program_invocation_short_name, level, text);
    fputs(line, stderr);
    log_copy_line(line);
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

void log_error(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    log_line("", format, arguments);
    va_end(arguments);
}
