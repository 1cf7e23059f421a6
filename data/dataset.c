#include "data/dataset.h"

#include <stdlib.h>
#include <string.h>

static const char *const split_names[] = {"training", "validation", "test"};

struct dataset {
    const struct token_file *file;
    struct dataset_options options;
    struct sample_index index;
};

/* Megatron's "documents" are the sequences of the file; it knows nothing above them. */
static int32_t *copy_lengths(const struct token_file *file, struct error *error)
{
    int64_t sequences = token_file_sequences(file);
    int32_t *lengths;

    if (sequences > INT32_MAX) {
        error_set(error, EXIT_STATUS_DATA, "%s: %lld documents, at most %d can be put in order",
                  token_file_prefix(file), (long long)sequences, INT32_MAX);
        return NULL;
    }
    lengths = malloc((size_t)sequences * sizeof(*lengths) + 1);
    if (!lengths) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory for %lld documents",
                  token_file_prefix(file), (long long)sequences);
        return NULL;
    }
    for (int64_t i = 0; i < sequences; i++)
        lengths[i] = token_file_length(file, i);
    return lengths;
}

static int check_room(const struct token_file *file, const char *split, enum dataset_split which,
                      const int64_t *bounds, const int32_t *lengths, int64_t seq_length,
                      struct error *error)
{
    int64_t first = bounds[which], last = bounds[which + 1], tokens = 0;

    for (int64_t i = first; i < last; i++)
        tokens += lengths[i];
    if (tokens > seq_length)
        return 0;
    return error_set(error, EXIT_STATUS_DATA,
                     "%s: split \"%s\" gives %s %lld of %lld documents with %lld tokens, but one"
                     " sample takes %lld (sequence length %lld and one more); give it a larger"
                     " share, use shorter sequences, more text, or documents that divide better"
                     " (mtllm-data tokenize --split-documents)",
                     token_file_prefix(file), split, split_names[which], (long long)(last - first),
                     (long long)token_file_sequences(file), (long long)tokens,
                     (long long)seq_length + 1, (long long)seq_length);
}

int dataset_open(struct dataset **result, const struct data_source *source,
                 enum dataset_split which, const struct dataset_options *options,
                 struct error *error)
{
    static const char *const whole[] = {"1,0,0", "0,1,0", "0,0,1"};
    const struct token_file *file = source->parts[0].tokens;
    const char *split = options->split ? options->split : whole[which];
    struct dataset *dataset = NULL;
    int64_t bounds[4];
    int32_t *lengths = NULL;
    int status = -1;

    *result = NULL;
    if (dataset_split_bounds(split, token_file_sequences(file), bounds, error) < 0)
        return -1;
    lengths = copy_lengths(file, error);
    if (!lengths || check_room(file, split, which, bounds, lengths, options->seq_length, error) < 0)
        goto out;
    dataset = calloc(1, sizeof(*dataset));
    if (!dataset) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", token_file_prefix(file));
        goto out;
    }
    dataset->file = file;
    dataset->options = *options;
    if (sample_index_build(&dataset->index, lengths, bounds[which], bounds[which + 1],
                           options->samples[which], options->seq_length, options->seed,
                           error) < 0) {
        error_prefix(error, "%s: ", token_file_prefix(file));
        goto out;
    }
    *result = dataset;
    dataset = NULL;
    status = 0;
out:
    dataset_close(dataset);
    free(lengths);
    return status;
}

void dataset_close(struct dataset *dataset)
{
    if (!dataset)
        return;
    sample_index_destroy(&dataset->index);
    free(dataset);
}

int64_t dataset_samples(const struct dataset *dataset)
{
    return dataset->index.sample_count;
}

/* Copy tokens [offset, offset + count) of a document. */
static int read_tokens(const struct dataset *dataset, int64_t document, int64_t offset,
                       int64_t count, int32_t *tokens, struct error *error)
{
    int64_t vocab_size = dataset->options.vocab_size;

    token_file_read(dataset->file, document, offset, count, tokens);
    for (int64_t k = 0; k < count; k++)
        if (tokens[k] < 0 || tokens[k] >= vocab_size)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s.bin: document %lld has token %d at position %lld, but the model's"
                             " vocabulary is %lld (0 to %lld); was it tokenized for another model?",
                             token_file_prefix(dataset->file), (long long)document, tokens[k],
                             (long long)offset + k, (long long)vocab_size,
                             (long long)vocab_size - 1);
    return 0;
}

int64_t dataset_sequences_most(int64_t seq_length)
{
    int64_t most = seq_length / 32 > 32 ? seq_length / 32 : 32;

    return most < seq_length ? most : seq_length;
}

/* What follows an end of document, where the options ask for it. */
static void apply_ends(const struct dataset_options *options, struct dataset_row *row)
{
    int64_t most = dataset_sequences_most(options->seq_length);
    int32_t position = 0;

    row->start_count = 1;
    row->starts[0] = 0;
    for (int64_t t = 0; t < options->seq_length; t++) {
        bool end = options->eod >= 0 && row->tokens[t] == options->eod;

        row->positions[t] = position++;
        row->weights[t] = end && options->eod_mask_loss ? 0 : 1;
        if (end && options->reset_positions)
            position = 0;
        if (end && options->reset_attention && t + 1 < options->seq_length &&
            row->start_count < most)
            row->starts[row->start_count++] = (int32_t)t + 1;
    }
}

int dataset_read(const struct dataset *dataset, int64_t i, struct dataset_row *row,
                 struct error *error)
{
    const struct sample_index *index = &dataset->index;
    const int64_t *cut = index->samples + 2 * index->shuffle[i];
    int64_t position = cut[0], offset = cut[1], length = dataset->options.seq_length;

    while (offset == token_file_length(dataset->file, index->documents[position])) {
        position++; /* an empty document */
        offset = 0;
    }
    /* The first token is no target and the last is nothing else. */
    if (read_tokens(dataset, index->documents[position], offset++, 1, row->tokens, error) < 0)
        return -1;
    for (int64_t t = 0; t < length; offset = 0) {
        int64_t document = index->documents[position++];
        int64_t count = token_file_length(dataset->file, document) - offset;

        if (count > length - t)
            count = length - t;
        if (read_tokens(dataset, document, offset, count, row->targets + t, error) < 0)
            return -1;
        t += count;
    }
    memcpy(row->tokens + 1, row->targets, (size_t)(length - 1) * sizeof(*row->tokens));
    apply_ends(&dataset->options, row);
    return 0;
}
