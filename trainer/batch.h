/* One step's samples, as the ranks of one data-parallel replica see them.
 *
 * The samples of a global batch are consecutive; microbatch m of replica d holds samples
 * first + m * (micro_batch * dp) + d * micro_batch and following (Megatron's order).
 */
#ifndef MTLLM_TRAINER_BATCH_H
#define MTLLM_TRAINER_BATCH_H

#include <stdint.h>

#include "core/layout.h"
#include "data/dataset.h"
#include "kernels/kernels.h"

struct batch {
    const struct kernels *kernels; /* tokens, targets and weights are host memory of theirs */
    int64_t microbatches, micro_batch, seq_length;
    int32_t *tokens;  /* [microbatches, micro_batch, seq_length] */
    int32_t *targets; /* likewise: the token that follows; negative: no target */
    float *weights;   /* likewise: the target's weight in the loss */
    int32_t *sample;  /* [seq_length + 1] */
    double weight_sum;
};

/* Error: EXIT_STATUS_SYSTEM. */
int batch_create(struct batch *batch, const struct kernels *kernels, int64_t microbatches,
                 int64_t micro_batch, int64_t seq_length, struct error *error);
void batch_destroy(struct batch *batch);

/* Fill from the global batch that begins with sample `first`; every target weighs 1. Error:
 * EXIT_STATUS_DATA. */
int batch_read(struct batch *batch, const struct dataset *dataset, int64_t first,
               const struct layout *layout, int dp, int64_t vocab_size, struct error *error);

/* Multiply every weight: by 1 / (sum over the global batch) for the mean loss. */
void batch_scale_weights(struct batch *batch, double factor);

#endif
