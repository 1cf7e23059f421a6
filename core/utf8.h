/* Whether bytes are UTF-8 (RFC 3629): what is not is no text, and is never taken for any. */
#ifndef MTLLM_CORE_UTF8_H
#define MTLLM_CORE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* How many of the bytes, from the first, are whole characters of UTF-8: `bytes` if all are. */
size_t utf8_length(const char *text, size_t bytes);
/* Is all of the string? */
bool utf8_is_text(const char *string);

#endif
