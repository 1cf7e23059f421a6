/* Whether bytes are UTF-8 (RFC 3629): what is not is no text, and is never taken for any. */
#ifndef MTLLM_DATA_UTF8_H
#define MTLLM_DATA_UTF8_H

#include <stddef.h>

/* How many of the bytes, from the first, are whole characters of UTF-8: `bytes` if all are. */
size_t utf8_length(const char *text, size_t bytes);

#endif
