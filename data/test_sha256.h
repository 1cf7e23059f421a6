/* SHA-256 (FIPS 180-4), to compare large arrays with published digests. */
#ifndef MTLLM_DATA_TEST_SHA256_H
#define MTLLM_DATA_TEST_SHA256_H

#include <stddef.h>

/* The first 16 hexadecimal digits of the digest, and a zero byte. */
void sha256_prefix(const void *bytes, size_t size, char hex[17]);

#endif
