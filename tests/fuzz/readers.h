/* What the targets of the fuzzer share. */
#ifndef MTLLM_TESTS_FUZZ_READERS_H
#define MTLLM_TESTS_FUZZ_READERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define check(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

void write_file(const char *path, const void *bytes, size_t size);

/* Is the conversation taken by the template before it, which goes to a file? In conversations.c. */
bool chat_accepts(const char *directory, const char *file, const uint8_t *data, size_t size);

#endif
