#include "trainer/batch.h"

#include <stdlib.h>
#include <string.h>

int batch_create(struct batch *batch, const struct kernels *kernels, int64_t microbatches,
                 int64_t micro_batch, int64_t seq_length, struct error *error)
{
    size_t count = (size_t)(microbatches * micro_batch * seq_length);

    *batch = (struct batch){
        .kernels = kernels,
        .microbatches = microbatches,
        .micro_batch = micro_batch,
        .seq_length = seq_length,
        .tokens = kernels->host_allocate(count * sizeof(int32_t)),
        .targets = kernels->host_allocate(count * sizeof(int32_t)),
        .weights = kernels->host_allocate(count * sizeof(float)),
        .sample = malloc((size_t)(seq_length + 1) * sizeof(int32_t)),
    };
    if (batch->tokens && batch->targets && batch->weights && batch->sample)
        return 0;
    batch_destroy(batch);
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for a batch of %zu tokens", count);
}

void batch_destroy(struct batch *batch)
{
    if (batch->tokens)
        batch->kernels->host_release(batch->tokens);
    if (batch->targets)
        batch->kernels->host_release(batch->targets);
    if (batch->weights)
        batch->kernels->host_release(batch->weights);
    free(batch->sample);
    *batch = (struct batch){0};
}

int batch_read(struct batch *batch, const struct dataset *dataset, int64_t first,
               const struct layout *layout, int dp, int64_t vocab_size, struct error *error)
{
    size_t bytes = (size_t)batch->seq_length * sizeof(int32_t);

    for (int64_t m = 0; m < batch->microbatches; m++) {
        for (int64_t i = 0; i < batch->micro_batch; i++) {
            int64_t sample = first + (m * layout->dp + dp) * batch->micro_batch + i;
            int64_t at = (m * batch->micro_batch + i) * batch->seq_length;

            if (dataset_read(dataset, sample, vocab_size, batch->sample, error) < 0)
                return -1;
            memcpy(batch->tokens + at, batch->sample, bytes);
            memcpy(batch->targets + at, batch->sample + 1, bytes);
            for (int64_t t = 0; t < batch->seq_length; t++)
                batch->weights[at + t] = 1;
        }
    }
    batch->weight_sum = (double)(batch->microbatches * batch->micro_batch * batch->seq_length);
    return 0;
}

void batch_scale_weights(struct batch *batch, double factor)
{
    int64_t count = batch->microbatches * batch->micro_batch * batch->seq_length;

    for (int64_t i = 0; i < count; i++)
        batch->weights[i] = (float)(batch->weights[i] * factor);
    batch->weight_sum *= factor;
}
