/* How far tokenizing has come: a small file beside the unfinished ones, from which the same command
 * goes on after whatever has ended it. */
#ifndef MTLLM_DATA_RESUME_H
#define MTLLM_DATA_RESUME_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "data/corpus.h"
#include "data/options.h"
#include "data/token_file.h"

struct resume {
    struct corpus_position position;
    bool dropping;
    int64_t empty, bad;
    int streams;
    struct token_writer_mark marks[STREAMS_MOST];
};

/* 32 hexadecimal digits and a NUL: a digest of all that the output depends on. */
enum { RESUME_DIGEST_SIZE = 33 };

struct resume_request {
    const struct command *command;
    const char *const *values;  /* of its options */
    const char *const *without; /* names of options that change nothing; NULL ends them */
    /* Files that are read beside the inputs, by their content; of a directory or a tokenizer.json,
     * those of its tokenizer. */
    const char *const *files; /* [file_count]; NULL is none */
    int file_count;
    char *const *inputs; /* [input_count] by name, size and time */
    int input_count;
};

/* Of the program and the request. Error: EXIT_STATUS_IO, EXIT_STATUS_SYSTEM. */
int resume_digest(char digest[RESUME_DIGEST_SIZE], const struct resume_request *request,
                  struct error *error);

/* True when the file at `path` is there, whole, and of the same digest and number of streams. */
bool resume_read(struct resume *resume, const char *path, const char *digest, int streams);

/* Replace the file in one step; it is on the disk when this returns. Error: EXIT_STATUS_IO. */
int resume_write(const struct resume *resume, const char *path, const char *digest,
                 struct error *error);

/* Nobody goes on from it any more, not even after a power failure. A missing one is fine. */
int resume_remove(const char *path, struct error *error);

#endif
