/* A stage's way through the microbatches of a batch, in the order that pipeline_order.h gives. */
#ifndef MTLLM_TRAINER_PIPELINE_H
#define MTLLM_TRAINER_PIPELINE_H

#include "trainer/batch.h"
#include "trainer/stage.h"

/* Called on the last stage with logits of tokens [row, row + rows) of microbatch `microbatch`. */
typedef void (*pipeline_logits)(void *user, int64_t microbatch, int64_t row, int64_t rows,
                                const void *logits);

/* Forward and backward of every microbatch; the batch has no more than the stage was made for.
 * Gradients and loss_sum accumulate; in the last microbatch the gradients' sums over replicas
 * begin, which
 * stage_finish_gradients() ends. */
void pipeline_train(struct stage *stage, const struct batch *batch);

/* What an evaluation is of each token, in host memory of the kernels: [microbatches, rows of this
 * rank]. */
struct token_results {
    float *loss;   /* 0 without a target */
    int32_t *best; /* the token with the greatest logit, the first of several */
};

/* What an evaluation hands out, on the last stage, and the state that goes with it; any may be
 * NULL. */
struct pipeline_observer {
    struct token_results results; /* there when the stream is synchronized */
    pipeline_logits see;
    void *user;
};

/* Forward only; loss_sum accumulates. `observer` may be NULL. */
void pipeline_evaluate(struct stage *stage, const struct batch *batch,
                       const struct pipeline_observer *observer);

#endif
