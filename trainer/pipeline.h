/* The order in which a stage works through the microbatches of a batch. */
#ifndef MTLLM_TRAINER_PIPELINE_H
#define MTLLM_TRAINER_PIPELINE_H

#include "trainer/batch.h"
#include "trainer/stage.h"

/* Called on the last stage with logits of tokens [row, row + rows) of microbatch `microbatch`. */
typedef void (*pipeline_logits)(void *user, int64_t microbatch, int64_t row, int64_t rows,
                                const void *logits);

/* Forward and backward of every microbatch, one forward one backward (1F1B): a stage runs
 * min(pp - stage - 1, microbatches) forwards ahead and then alternates, so that no more than
 * pp - stage microbatches are in flight (reference: PipeDream-Flush). Gradients and loss_sum
 * accumulate; in the last microbatch the gradients' sums over replicas begin, which
 * optimizer_reduce_gradients() ends. */
void pipeline_train(struct stage *stage, const struct batch *batch);

/* Forward only; loss_sum accumulates. `see` may be NULL. */
void pipeline_evaluate(struct stage *stage, const struct batch *batch, pipeline_logits see,
                       void *user);

#endif
