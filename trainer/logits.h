/* Whole logits of what is evaluated, in host memory: every tensor-parallel rank has some columns.
 */
#ifndef MTLLM_TRAINER_LOGITS_H
#define MTLLM_TRAINER_LOGITS_H

#include "trainer/training.h"

struct logits {
    const struct training *training;
    int64_t kept;   /* microbatches */
    int64_t widest; /* columns of the widest vocabulary shard */
    float *parts;   /* [tp, rows, widest] */
    float *padded;  /* [rows, widest] */
    float *piece;   /* [head_rows, vocab_count] */
    float *whole;   /* [kept, rows, vocab_size] on the last stage's ranks of tp 0; one elsewhere */
    void *device;   /* that parts fit */
};

/* `kept` is 1, or all microbatches of a batch. logits_close() belongs to a failure too. Error:
 * EXIT_STATUS_SYSTEM. */
int logits_open(struct logits *logits, const struct training *training, int64_t kept,
                struct error *error);
void logits_close(struct logits *logits);

/* Of a microbatch, which is the last one seen unless all are kept: [rows, vocab_size]. */
float *logits_of(const struct logits *logits, int64_t microbatch);
int64_t logits_count(const struct training *training); /* rows x vocab_size */

/* A pipeline_logits of pipeline.h, whose user is a struct logits. */
void logits_see(void *user, int64_t microbatch, int64_t row, int64_t rows, const void *values);

#endif
