/* One line on a terminal's standard error: how far, how fast, how much longer. Nothing when
 * standard error is no terminal. */
#ifndef MTLLM_DATA_PROGRESS_H
#define MTLLM_DATA_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    bool enabled, shown;
    int64_t total_bytes; /* -1: not known */
    int64_t begun_bytes; /* done before */
    double started_s, last_s;
};

/* `done_bytes` of the total were done by an earlier process. */
void progress_begin(struct progress *progress, int64_t total_bytes, int64_t done_bytes);
/* `bytes` of the total are done now. Draws at most a few times a second. */
void progress_update(struct progress *progress, int64_t bytes, int64_t documents);
/* Take the line away, before something else is printed. */
void progress_clear(struct progress *progress);
/* Seconds since progress_begin(). */
double progress_elapsed_s(const struct progress *progress);

#endif
