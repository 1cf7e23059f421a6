/* Megatron's sample order (its GPT dataset: doc_idx, sample_idx, shuffle_idx). One generator is
 * used for all draws, in the order of this file. */
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "data/dataset.h"
#include "data/random.h"

/* How often the documents are gone through, and how the last time is treated. */
struct epochs {
    int64_t tokens; /* of one epoch */
    int64_t count;
    int64_t full_samples; /* samples that end before the last epoch's tokens are needed */
    int64_t all_samples;
    bool last_apart; /* the last epoch is shuffled by itself, so that a small part of it is not
                        spread over the whole training */
};

static int count_epochs(struct epochs *epochs, const int32_t *sizes, int64_t first, int64_t last,
                        int64_t samples, int64_t seq_length, struct error *error)
{
    int64_t needed;

    assert(seq_length > 0 && first >= 0);
    memset(epochs, 0, sizeof(*epochs));
    for (int64_t i = first; i < last; i++)
        epochs->tokens += sizes[i];
    if (epochs->tokens <= seq_length)
        return error_set(error, EXIT_STATUS_DATA,
                         "%lld documents with %lld tokens, but one sample takes %lld",
                         (long long)(last > first ? last - first : 0), (long long)epochs->tokens,
                         (long long)seq_length + 1);
    if (__builtin_mul_overflow(samples, seq_length, &needed) ||
        __builtin_add_overflow(needed, epochs->tokens, &needed))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%lld samples of %lld tokens are more than can be counted",
                         (long long)samples, (long long)seq_length);
    /* The smallest count with (count * tokens - 1) / seq_length >= samples, at least one. */
    epochs->count = samples > 0 ? needed / epochs->tokens : 1;
    epochs->all_samples = (epochs->count * epochs->tokens - 1) / seq_length;
    epochs->full_samples = ((epochs->count - 1) * epochs->tokens - 1) / seq_length;
    if (epochs->count > 1) {
        int64_t in_last = samples - epochs->full_samples;
        int64_t in_each = (epochs->tokens - 1) / seq_length;

        epochs->last_apart = in_last < (int64_t)(0.80 * (double)in_each);
    }
    return 0;
}

static void order_documents(struct sample_index *index, const struct epochs *epochs, int64_t first,
                            int64_t last, struct random_state *random)
{
    int64_t documents = last - first;
    int64_t together = epochs->last_apart ? epochs->count - 1 : epochs->count;

    for (int64_t i = 0; i < index->document_count; i++)
        index->documents[i] = (int32_t)(first + i % documents);
    random_shuffle_i32(random, index->documents, together * documents);
    if (epochs->last_apart)
        random_shuffle_i32(random, index->documents + together * documents, documents);
}

/* Each sample takes seq_length + 1 tokens and the next begins at its last. */
static void cut_samples(struct sample_index *index, const int32_t *sizes, int64_t seq_length)
{
    int64_t position = 0, offset = 0;

    index->samples[0] = 0;
    index->samples[1] = 0;
    for (int64_t i = 1; i <= index->sample_count; i++) {
        int64_t needed = seq_length + 1;

        while (needed > 0) {
            int64_t available = sizes[index->documents[position]] - offset;

            needed -= available;
            if (needed <= 0) {
                offset += needed + available - 1;
            } else {
                position++;
                offset = 0;
            }
        }
        index->samples[2 * i] = position;
        index->samples[2 * i + 1] = offset;
    }
}

static void order_samples(struct sample_index *index, const struct epochs *epochs,
                          struct random_state *random)
{
    int64_t together = epochs->last_apart ? epochs->full_samples : epochs->all_samples;

    for (int64_t i = 0; i < index->sample_count; i++)
        index->shuffle[i] = i;
    random_shuffle_i64(random, index->shuffle, together);
    random_shuffle_i64(random, index->shuffle + together, index->sample_count - together);
}

int sample_index_build(struct sample_index *index, const int32_t *sizes, int64_t first,
                       int64_t last, int64_t samples, int64_t seq_length, uint32_t seed,
                       struct error *error)
{
    struct random_state random;
    struct epochs epochs;
    size_t bytes;

    memset(index, 0, sizeof(*index));
    if (count_epochs(&epochs, sizes, first, last, samples, seq_length, error) < 0)
        return -1;
    index->epochs = epochs.count;
    index->sample_count = epochs.all_samples;
    if (__builtin_mul_overflow(epochs.count, last - first, &index->document_count) ||
        __builtin_mul_overflow((size_t)index->document_count, sizeof(int32_t), &bytes) ||
        __builtin_mul_overflow((size_t)index->sample_count + 1, 2 * sizeof(int64_t), &bytes))
        goto no_memory;
    index->documents = malloc((size_t)index->document_count * sizeof(*index->documents));
    index->samples = malloc(bytes);
    index->shuffle = malloc((size_t)index->sample_count * sizeof(*index->shuffle));
    if (!index->documents || !index->samples || !index->shuffle)
        goto no_memory;
    random_seed(&random, seed);
    order_documents(index, &epochs, first, last, &random);
    cut_samples(index, sizes, seq_length);
    order_samples(index, &epochs, &random);
    return 0;
no_memory:
    error_set(error, EXIT_STATUS_SYSTEM,
              "out of memory for the order of %lld samples over %lld epochs",
              (long long)index->sample_count, (long long)epochs.count);
    sample_index_destroy(index);
    return -1;
}

void sample_index_destroy(struct sample_index *index)
{
    free(index->documents);
    free(index->samples);
    free(index->shuffle);
    memset(index, 0, sizeof(*index));
}

/* Three weights; those left out are 0. */
static int parse_weights(const char *split, double weights[3], struct error *error)
{
    const char *at = split;
    double sum = 0;
    int count = 0;

    memset(weights, 0, 3 * sizeof(*weights));
    for (;;) {
        char *end;
        double weight = strtod(at, &end);

        if (end == at || !isfinite(weight) || weight < 0 || count == 3)
            break;
        weights[count++] = weight;
        sum += weight;
        at = end;
        if (*at == '\0') {
            if (!(sum > 0) || !isfinite(sum))
                break;
            for (int i = 0; i < 3; i++)
                weights[i] /= sum;
            return 0;
        }
        if (*at != ',' && *at != '/')
            break;
        at++;
    }
    return error_set(error, EXIT_STATUS_USAGE,
                     "split \"%s\": expected up to three weights for training, validation and test,"
                     " not all zero, such as 969,30,1",
                     split);
}

/* Every share that has a weight gets a document, if there are enough of them. */
static void fill_empty(const double weights[3], int64_t bounds[4])
{
    int64_t counts[3];

    for (int i = 0; i < 3; i++)
        counts[i] = bounds[i + 1] - bounds[i];
    for (int i = 0; i < 3; i++) {
        int largest = 0;

        for (int j = 1; j < 3; j++)
            if (counts[j] > counts[largest])
                largest = j;
        if (weights[i] > 0 && counts[i] == 0 && counts[largest] > 1) {
            counts[largest]--;
            counts[i]++;
        }
    }
    for (int i = 0; i < 3; i++)
        bounds[i + 1] = bounds[i] + counts[i];
}

int dataset_split_bounds(const char *split, bool nonempty, int64_t documents, int64_t bounds[4],
                         struct error *error)
{
    double weights[3];
    int64_t over;

    if (parse_weights(split, weights, error) < 0)
        return -1;
    bounds[0] = 0;
    /* rint() rounds half to even, as Python's round() does. */
    for (int i = 0; i < 3; i++)
        bounds[i + 1] = bounds[i] + (int64_t)rint(weights[i] * (double)documents);
    over = bounds[3] - documents;
    /* Megatron lets a boundary fall below 0 here and then takes documents from the end twice. */
    for (int i = 1; i < 4; i++)
        bounds[i] = bounds[i] > over ? bounds[i] - over : 0;
    if (nonempty)
        fill_empty(weights, bounds);
    return 0;
}
