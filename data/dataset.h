/* Training samples in Megatron's order: documents shuffled by epoch, cut into samples of
 * seq_length + 1 tokens, samples shuffled. Sample i is the same on every rank and after every
 * resume. Equal to Megatron's golden vectors.
 */
#ifndef MTLLM_DATA_DATASET_H
#define MTLLM_DATA_DATASET_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "data/source.h"

enum dataset_split { DATASET_TRAIN, DATASET_VALID, DATASET_TEST };

/* Documents [bounds[s], bounds[s + 1]) belong to split s. `split` is "969,30,1": weights separated
 * by commas or slashes. Shares are rounded as Megatron rounds them, which can leave one of few
 * documents without any; `nonempty` takes one from the largest then. Error: EXIT_STATUS_USAGE. */
int dataset_split_bounds(const char *split, bool nonempty, int64_t documents, int64_t bounds[4],
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

/* How samples are made of a source. */
struct dataset_options {
    int64_t seq_length, vocab_size;
    uint32_t seed;
    /* Shares of training, validation and test documents; NULL: the source is one of them whole. */
    const char *split;
    bool nonempty_splits; /* no share that is not 0 ends without a document */
    int64_t samples[3];   /* wanted of each of the three; 0: none */
    /* Whole documents share a row, none of them seeing another. Else text runs from row to row, and
     * a document with roles is padded to a row of its own. */
    bool packing;
    double loss_mask_weight; /* in the loss, of tokens that are not the assistant's */
    int32_t eod;             /* ends a document; -1: unknown */
    /* [vocab_size] of what a chat template puts around an answer: how many tokens from this one on
     * are the template's, although they have the assistant's role; 0: none. NULL: of all. */
    const uint8_t *template_tokens;
    /* Behind an end of document: no loss on what follows it, positions from 0 again, attention that
     * does not look back. */
    bool eod_mask_loss, reset_positions, reset_attention;
    const char *cache; /* directory for sample orders; NULL: they are made anew */
};

/* One row of a batch; all arrays are the caller's and [seq_length]. */
struct dataset_row {
    int32_t *tokens;
    int32_t *targets;   /* the token that follows; -1: none */
    float *weights;     /* of the target in the loss; 0 where there is none */
    int32_t *positions; /* for the rotary embedding, each below seq_length */
    int32_t *starts;    /* tokens that attention begins anew with, ascending; the first is 0 */
    int64_t start_count;
    uint8_t *answers; /* 1: the target is the assistant's word, not the template's; or NULL */
};

/* Sequences of a row at most, where documents of a row do not see each other: kernels take memory
 * by their number. Where an end of document would begin one more, attention goes on looking back.
 */
int64_t dataset_sequences_most(int64_t seq_length);

struct dataset;

/* At least options->samples[which] samples of `source`, which must outlive the dataset. The same
 * samples in the same order for the same files and options. Error: EXIT_STATUS_DATA,
 * EXIT_STATUS_USAGE (the split), EXIT_STATUS_CONFIGURATION (more samples than can be counted),
 * EXIT_STATUS_SYSTEM. */
int dataset_open(struct dataset **dataset, const struct data_source *source,
                 enum dataset_split which, const struct dataset_options *options,
                 struct error *error);
void dataset_close(struct dataset *dataset);
int64_t dataset_samples(const struct dataset *dataset);
/* Share of the places of all samples that have a target, what is left being padding. Looks at every
 * sample. */
double dataset_fill(const struct dataset *dataset);

/* The files that it is made of, of `part` PREFIX; those without documents for the set are left out.
 */
int dataset_parts(const struct dataset *dataset);
const char *dataset_part_name(const struct dataset *dataset, int part);

/* Add what samples [first, first + count) are of each part: tokens[part] with a target, and
 * epochs[part], how often they go through its documents. */
void dataset_count(const struct dataset *dataset, int64_t first, int64_t count, double *tokens,
                   double *epochs);

/* Sample i < dataset_samples(). Every token must be in [0, vocab_size): EXIT_STATUS_DATA naming
 * file, document and token otherwise. May be called by several threads at once. */
int dataset_read(const struct dataset *dataset, int64_t i, struct dataset_row *row,
                 struct error *error);

#endif
