/* Token writers of a program that a signal may end: SIGINT, SIGTERM and SIGHUP remove what has
 * been written and then do what they always do. Writers are used by the main thread; other threads
 * keep these signals blocked. */
#ifndef MTLLM_DATA_GUARD_H
#define MTLLM_DATA_GUARD_H

#include "data/token_file.h"

enum { GUARDED_WRITERS_MOST = 8 };

/* As the functions of token_writer. A signal waits until opening, committing or closing is done. */
int guard_open(struct token_writer **writer, const char *prefix, int64_t vocab_size,
               struct error *error);
int guard_commit(struct token_writer *writer, struct error *error);
void guard_close(struct token_writer *writer);

#endif
