/* Characters, as Hugging Face's tokenizers takes them. */
#ifndef MTLLM_DATA_UNICODE_H
#define MTLLM_DATA_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The character at text[at], and where the next begins; U+FFFD for a byte that is none. */
int32_t next_character(const char *text, size_t bytes, size_t at, size_t *next);

bool is_white_space(int32_t character); /* Unicode's White_Space */
bool is_numeric(int32_t character);     /* Nd, Nl, No */
bool is_punctuation(int32_t character); /* of ASCII, or P */

/* One that no normal form of tokenizers changes, nor moves anything across. */
bool is_later_mark(int32_t character);

/* A regular expression with the letters and numbers that Oniguruma may not know beside each \p{L}
 * and \p{N}; the caller frees it. NULL: out of memory. */
char *unicode_pattern(const char *pattern);

/* Of a byte-level vocabulary: what stands for the byte; the byte that a character stands for, or
 * -1. */
int32_t byte_character(unsigned char byte);
int character_byte(int32_t character);

#endif
