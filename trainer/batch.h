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

/* What attends to itself alone, within one microbatch: documents, or whole rows. */
struct batch_sequences {
    int count;
    int64_t longest; /* rows */
    /* [count + 1] of [micro_batch * seq_length + 1]: first row of each, then the end */
    int32_t *starts;
    int64_t first_row; /* of the microbatch among all rows of the run */
};

struct batch {
    const struct kernels *kernels; /* all arrays below are host memory of theirs */
    int64_t microbatches;          /* that are in use; at most those it was created with */
    int64_t micro_batch, seq_length;
    int32_t *tokens;                   /* [microbatches, micro_batch, seq_length] */
    int32_t *targets;                  /* likewise: the token that follows; negative: no target */
    float *weights;                    /* likewise: the target's weight in the loss */
    uint8_t *answers;                  /* likewise: 1: the target is the assistant's word */
    int32_t *positions;                /* likewise: for the rotary embedding */
    struct batch_sequences *sequences; /* [microbatches] */
    int32_t *starts;                   /* theirs */
    double weight_sum;
    int64_t target_count; /* tokens that have a target */
};

/* Every row one sequence, its positions 0, 1, ...; the rest zeros. `microbatches` at most, and in
 * use to begin with. Error: EXIT_STATUS_SYSTEM. */
int batch_create(struct batch *batch, const struct kernels *kernels, int64_t microbatches,
                 int64_t micro_batch, int64_t seq_length, struct error *error);
void batch_destroy(struct batch *batch);

/* Fill the microbatches in use from the global batch that begins with sample `first`. Error:
 * EXIT_STATUS_DATA. */
int batch_read(struct batch *batch, const struct dataset *dataset, int64_t first,
               const struct layout *layout, int dp, struct error *error);

/* Multiply every weight: by 1 / (sum over the global batch) for the mean loss. */
void batch_scale_weights(struct batch *batch, double factor);

#endif
