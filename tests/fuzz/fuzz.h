/* What the targets of the fuzzer share. */
#ifndef MTLLM_TESTS_FUZZ_H
#define MTLLM_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/error.h"

#define check(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* A refusal is bad data, and names the file that it is about in one line of readable text. */
void check_refusal(const struct error *error, const char *path);
void write_file(const char *path, const void *bytes, size_t size);

extern char model_directory[200], run_directory[200]; /* for files; the latter is to be made */

/* Another JSON text of at most `room` bytes in place of data[0..size), by rand(). Returns its
 * bytes; `size` when there is none. In change_json.c. */
size_t change_json(uint8_t *data, size_t size, size_t room);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size,
                        size_t room); /* the fuzzer's own, of any bytes */

/* Is the conversation taken by the template before it, which goes to a file? In conversations.c. */
bool chat_accepts(const char *directory, const char *file, const uint8_t *data, size_t size);

/* Targets of corpora.c: was the input accepted? */
bool run_tokens(const uint8_t *data, size_t size);
bool run_corpus(const uint8_t *data, size_t size);
bool run_resume(const uint8_t *data, size_t size);
/* Targets of rows.c. */
bool run_order(const uint8_t *data, size_t size);
bool run_rows(const uint8_t *data, size_t size);

#endif
