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

/* Of the program, the options (but those named in `without`, a list that NULL ends), the content of
 * files that an option with a PATH names, of a tokenizer in such a directory, of a chat template
 * and of a list of tokens, and name, size and time of the inputs. Error: EXIT_STATUS_IO. */
int resume_digest(char digest[RESUME_DIGEST_SIZE], const struct command *command,
                  const char *const *values, const char *const *without, char *const *inputs,
                  int count, struct error *error);

/* True when the file at `path` is there, whole, and of the same digest and number of streams. */
bool resume_read(struct resume *resume, const char *path, const char *digest, int streams);

/* Replace the file in one step; it is on the disk when this returns. Error: EXIT_STATUS_IO. */
int resume_write(const struct resume *resume, const char *path, const char *digest,
                 struct error *error);

/* Nobody goes on from it any more, not even after a power failure. A missing one is fine. */
int resume_remove(const char *path, struct error *error);

#endif
