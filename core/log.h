/* Messages to people, on standard error, one line each: "mtllm-train: TEXT".
 *
 * In a parallel run only the ranks that log_set_enabled() leaves on speak; what every rank
 * must be able to say (a failing disk, a bad shard) goes through log_warning_any_rank().
 */
#ifndef MTLLM_CORE_LOG_H
#define MTLLM_CORE_LOG_H

#include <stdbool.h>

void log_set_enabled(bool enabled);
/* Called before every line, to take away what stands where it is to be; NULL: nothing. */
void log_set_clear(void (*clear)(void));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning_any_rank(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
