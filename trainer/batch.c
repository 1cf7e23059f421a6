#include "trainer/batch.h"

#include <stdlib.h>
#include <string.h>

static int64_t token_count(const struct batch *batch)
{
    return batch->microbatches * batch->micro_batch * batch->seq_length;
}

/* Begin to list the sequences of a microbatch. */
static void clear_sequences(struct batch_sequences *sequences)
{
    sequences->count = 0;
    sequences->longest = 0;
    sequences->starts[0] = 0;
}

/* A sequence ends, and another may begin, with this row. */
static void end_sequence(struct batch_sequences *sequences, int64_t row)
{
    int64_t length = row - sequences->starts[sequences->count];

    if (length > sequences->longest)
        sequences->longest = length;
    sequences->starts[++sequences->count] = (int32_t)row;
}

static void set_whole_rows(struct batch *batch)
{
    for (int64_t i = 0; i < token_count(batch); i++)
        batch->positions[i] = (int32_t)(i % batch->seq_length);
    for (int64_t m = 0; m < batch->microbatches; m++) {
        batch->sequences[m].starts =
            batch->starts + m * (batch->micro_batch * batch->seq_length + 1);
        clear_sequences(&batch->sequences[m]);
        for (int64_t i = 1; i <= batch->micro_batch; i++)
            end_sequence(&batch->sequences[m], i * batch->seq_length);
    }
}

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
        .answers = kernels->host_allocate(count),
        .positions = kernels->host_allocate(count * sizeof(int32_t)),
        .sequences = calloc((size_t)microbatches, sizeof(*batch->sequences)),
        .starts = kernels->host_allocate((count + (size_t)microbatches) * sizeof(int32_t)),
    };
    if (batch->tokens && batch->targets && batch->weights && batch->answers && batch->positions &&
        batch->sequences && batch->starts) {
        set_whole_rows(batch);
        return 0;
    }
    batch_destroy(batch);
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for a batch of %zu tokens", count);
}

void batch_destroy(struct batch *batch)
{
    void *const buffers[] = {batch->tokens,  batch->targets,   batch->weights,
                             batch->answers, batch->positions, batch->starts};

    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++)
        if (buffers[i])
            batch->kernels->host_release(buffers[i]);
    free(batch->sequences);
    *batch = (struct batch){0};
}

/* Row `i` of microbatch m. */
static int read_row(struct batch *batch, const struct dataset *dataset, int64_t sample, int64_t m,
                    int64_t i, struct error *error)
{
    struct batch_sequences *sequences = &batch->sequences[m];
    int64_t at = (m * batch->micro_batch + i) * batch->seq_length, begin = i * batch->seq_length;
    struct dataset_row row = {
        .tokens = batch->tokens + at,
        .targets = batch->targets + at,
        .weights = batch->weights + at,
        .positions = batch->positions + at,
        .starts = sequences->starts + sequences->count,
        .answers = batch->answers + at,
    };

    if (dataset_read(dataset, sample, &row, error) < 0)
        return -1;
    /* The row has put its starts, counted from its own beginning, where they have their place. */
    row.starts[0] = (int32_t)begin;
    for (int64_t s = 1; s < row.start_count; s++)
        end_sequence(sequences, begin + row.starts[s]);
    end_sequence(sequences, begin + batch->seq_length);
    for (int64_t t = 0; t < batch->seq_length; t++) {
        batch->weight_sum += (double)row.weights[t];
        batch->target_count += row.targets[t] >= 0;
    }
    return 0;
}

int batch_read(struct batch *batch, const struct dataset *dataset, int64_t first,
               const struct layout *layout, int dp, struct error *error)
{
    batch->weight_sum = 0;
    batch->target_count = 0;
    for (int64_t m = 0; m < batch->microbatches; m++) {
        int64_t sample = first + (m * layout->dp + dp) * batch->micro_batch;

        clear_sequences(&batch->sequences[m]);
        batch->sequences[m].first_row = sample * batch->seq_length;
        for (int64_t i = 0; i < batch->micro_batch; i++)
            if (read_row(batch, dataset, sample + i, m, i, error) < 0)
                return -1;
    }
    return 0;
}

void batch_scale_weights(struct batch *batch, double factor)
{
    for (int64_t i = 0; i < token_count(batch); i++)
        batch->weights[i] = (float)(batch->weights[i] * factor);
    batch->weight_sum *= factor;
}
