/* The token files that a program writes, and what a signal makes of them.
 *
 * SIGINT, SIGTERM and SIGHUP remove what is unfinished, and then do what they always do; after
 * outputs_keep() they leave it and say how to go on. The writers are used by the main thread; other
 * threads keep these signals blocked. One set of outputs a program.
 */
#ifndef MTLLM_DATA_OUTPUTS_H
#define MTLLM_DATA_OUTPUTS_H

#include <stdbool.h>

#include "core/error.h"
#include "data/token_file.h"

enum { OUTPUTS_MOST = 8 };

struct outputs {
    struct token_writer *writers[OUTPUTS_MOST];
    int count;
};

/* Add a writer to outputs, which are all zeros at first; signals wait. `like` gives the type of
 * tokens (token_writer_open_like()); NULL: the vocabulary does, and what is there of an earlier
 * process stays until token_writer_begin() (token_writer_find()). Errors as of those. */
int outputs_add(struct outputs *outputs, const char *prefix, int64_t vocab_size,
                const struct token_file *like, struct error *error);
/* From now on what was written stays, whatever ends the process; a signal prints `message`, which
 * must outlive the outputs. NULL: nothing stays again. */
void outputs_keep(struct outputs *outputs, const char *message);
/* token_writer_commit_all(), then `record` is removed (NULL: none); signals wait. */
int outputs_commit(struct outputs *outputs, const char *record, struct error *error);
void outputs_close(struct outputs *outputs);

#endif
