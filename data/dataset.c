#include "data/dataset.h"

#include <stdlib.h>
#include <string.h>

static const char *const split_names[] = {"training", "validation", "test"};

struct dataset {
    const struct token_file *file;
    int64_t seq_length;
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

int dataset_open(struct dataset **result, const struct token_file *file, const char *split,
                 enum dataset_split which, int64_t samples, int64_t seq_length, uint32_t seed,
                 struct error *error)
{
    struct dataset *dataset = NULL;
    int64_t bounds[4];
    int32_t *lengths = NULL;
    int status = -1;

    *result = NULL;
    if (dataset_split_bounds(split, token_file_sequences(file), bounds, error) < 0)
        return -1;
    lengths = copy_lengths(file, error);
    if (!lengths || check_room(file, split, which, bounds, lengths, seq_length, error) < 0)
        goto out;
    dataset = calloc(1, sizeof(*dataset));
    if (!dataset) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", token_file_prefix(file));
        goto out;
    }
    dataset->file = file;
    dataset->seq_length = seq_length;
    if (sample_index_build(&dataset->index, lengths, bounds[which], bounds[which + 1], samples,
                           seq_length, seed, error) < 0) {
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

int64_t dataset_epochs(const struct dataset *dataset)
{
    return dataset->index.epochs;
}

static int check_tokens(const struct dataset *dataset, int64_t document, int64_t offset,
                        int64_t count, int64_t vocab_size, const int32_t *tokens,
                        struct error *error)
{
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

int dataset_read(const struct dataset *dataset, int64_t i, int64_t vocab_size, int32_t *tokens,
                 struct error *error)
{
    const struct sample_index *index = &dataset->index;
    const int64_t *row = index->samples + 2 * index->shuffle[i];
    int64_t position = row[0], offset = row[1], needed = dataset->seq_length + 1;

    while (needed > 0) {
        int64_t document = index->documents[position++];
        int64_t count = token_file_length(dataset->file, document) - offset;

        if (count > needed)
            count = needed;
        token_file_read(dataset->file, document, offset, count, tokens);
        if (check_tokens(dataset, document, offset, count, vocab_size, tokens, error) < 0)
            return -1;
        tokens += count;
        needed -= count;
        offset = 0;
    }
    return 0;
}
