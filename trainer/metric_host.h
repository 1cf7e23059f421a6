/* The process in which a site's metrics run, so that what goes wrong there is not the training's
 * end: mtllm-train, started once more. It speaks with metrics_plugin.c through a socket that it
 * inherits, a message each way, and finds tokens in memory that both have mapped.
 */
#ifndef MTLLM_TRAINER_METRIC_HOST_H
#define MTLLM_TRAINER_METRIC_HOST_H

#include <stddef.h>

#include "trainer/mtllm-metric.h"

/* argv[1] of such a process; argv[2] is the shared object. */
#define METRIC_HOST_OPTION "--metric-host"

enum { METRIC_HOST_SOCKET = 3, METRIC_HOST_MEMORY = 4 }; /* descriptors that it inherits */

/* Its first message. */
struct metric_description {
    char trouble[256]; /* "": none */
    int count;
    struct {
        char name[MTLLM_METRIC_NAME_BYTES];
        int wants_logits, sums;
    } metrics[MTLLM_METRIC_MOST];
};

enum metric_request_kind { METRIC_REQUEST_ADD, METRIC_REQUEST_VALUES };

typedef double metric_sums[MTLLM_METRIC_MOST][MTLLM_METRIC_MOST_SUMS];

struct metric_request {
    enum metric_request_kind kind;
    int64_t count, vocabulary,
        capacity;     /* tokens in the memory, which is laid out for `capacity` */
    int logits;       /* are there */
    metric_sums sums; /* METRIC_REQUEST_VALUES: of all tokens */
};

/* To METRIC_REQUEST_ADD, what these tokens give; else the values, the first of each row. */
struct metric_answer {
    char trouble[256];
    metric_sums sums;
};

/* Where the arrays are in the memory of `capacity` tokens: bytes behind its beginning. */
struct metric_memory {
    size_t tokens, labels, mask, positions, loss, argmax, answers, logits, end;
};
struct metric_memory metric_memory(int64_t capacity, int64_t vocabulary, int logits);

/* Serve until the other end closes. Returns an exit status. */
int metric_host(const char *file);

#endif
