/* Messages to people, on standard error, one line each: "mtllm-train: TEXT".
 *
 * In a parallel run only the ranks that log_set_enabled() leaves on speak; what every rank
 * must be able to say (a failing disk, a bad shard) goes through log_warning_any_rank().
 */
#ifndef MTLLM_CORE_LOG_H
#define MTLLM_CORE_LOG_H

#include <stdbool.h>
#include <stddef.h>

void log_set_enabled(bool enabled);
/* Called before every line, to take away what stands where it is to be; NULL: nothing. */
void log_set_clear(void (*clear)(void));
/* Called with every line, newline included, one at a time whatever threads speak; NULL: nothing,
 * and then no call goes on. What is called may say nothing itself. */
void log_set_copy(void (*copy)(void *user, const char *line, size_t length), void *user);
/* Hand on a line, with its newline, that is no message: one of standard output. */
void log_copy_line(const char *line);
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning_any_rank(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What ends the program, as error_print() says it; on any rank. */
void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
