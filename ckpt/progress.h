/* A line that says how far a long copy is, on a terminal only; and a way to stop it. */
#ifndef MTLLM_CKPT_PROGRESS_H
#define MTLLM_CKPT_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"

struct progress {
    bool shown; /* standard error is a terminal */
    int64_t total_bytes, done_bytes;
    double start_s, printed_s;
};

/* From here on SIGINT, SIGTERM and SIGHUP make progress_add() fail instead of ending the process,
 * so that nothing half-written stays behind. */
void progress_begin(struct progress *progress, int64_t total_bytes);

/* `bytes` more are done. Error: 128 + signal when the process was told to stop. */
int progress_add(struct progress *progress, int64_t bytes, struct error *error);

/* Wipe the line. */
void progress_end(struct progress *progress);

#endif
