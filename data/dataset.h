/* Training samples in Megatron's order: documents shuffled by epoch, cut into samples of
 * seq_length + 1 tokens, samples shuffled. Sample i is the same on every rank and after every
 * resume. Equal to Megatron's golden vectors.
 */
#ifndef MTLLM_DATA_DATASET_H
#define MTLLM_DATA_DATASET_H

#include <stdint.h>

#include "core/error.h"
#include "data/token_file.h"

enum dataset_split { DATASET_TRAIN, DATASET_VALID, DATASET_TEST };

/* Documents [bounds[s], bounds[s + 1]) belong to split s. `split` is "969,30,1": weights separated
 * by commas or slashes. Error: EXIT_STATUS_USAGE. */
int dataset_split_bounds(const char *split, int64_t documents, int64_t bounds[4],
                         struct error *error);

/* The three index arrays of Megatron's GPT dataset. */
struct sample_index {
    int32_t *documents; /* [document_count] order of documents, all epochs */
    int64_t document_count;
    int64_t *samples; /* [sample_count + 1][2]: position in documents, token offset */
    int64_t sample_count;
    int64_t *shuffle; /* [sample_count] */
    int64_t epochs;
};

/* sizes[i]: tokens of document i; documents [first, last) are used. Error: EXIT_STATUS_DATA when
 * they hold less than one sample. */
int sample_index_build(struct sample_index *index, const int32_t *sizes, int64_t first,
                       int64_t last, int64_t samples, int64_t seq_length, uint32_t seed,
                       struct error *error);
void sample_index_destroy(struct sample_index *index);

struct dataset;

/* At least `samples` samples of one split. The token file stays the caller's and must outlive the
 * dataset. */
int dataset_open(struct dataset **dataset, const struct token_file *file, const char *split,
                 enum dataset_split which, int64_t samples, int64_t seq_length, uint32_t seed,
                 struct error *error);
void dataset_close(struct dataset *dataset);
int64_t dataset_samples(const struct dataset *dataset);
int64_t dataset_epochs(const struct dataset *dataset);

/* tokens[seq_length + 1] of sample i < dataset_samples(). Every token must be in
 * [0, vocab_size): EXIT_STATUS_DATA naming file, document and token otherwise. */
int dataset_read(const struct dataset *dataset, int64_t i, int64_t vocab_size, int32_t *tokens,
                 struct error *error);

#endif
