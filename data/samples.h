/* The samples of one part of a source: which they are, and how one becomes a row.
 *
 * Three kinds: text that runs from row to row, in the order of Megatron's GPT dataset; documents
 * with roles in rows of their own, in the order of Megatron-LLM's instruction dataset; packed rows.
 */
#ifndef MTLLM_DATA_SAMPLES_H
#define MTLLM_DATA_SAMPLES_H

#include "data/dataset.h"
#include "data/order.h"

/* "training", "validation", "test", by enum dataset_split. */
extern const char *const samples_set_names[3];

struct samples {
    const struct data_part *part;
    bool running; /* text that runs from row to row */
    struct order order;
    int64_t count;
    double epoch; /* tokens, or documents with roles, or places of packed text in one */
};

/* Documents that a part has for a set. Error (-1): EXIT_STATUS_USAGE (the split), EXIT_STATUS_DATA
 * when they are more than can be put in order. */
int64_t samples_documents(const struct data_part *part, enum dataset_split which,
                          const struct dataset_options *options, struct error *error);

/* At least options->samples[which] of them. What it takes to find the order is kept in
 * options->cache. Error: EXIT_STATUS_USAGE (the split), EXIT_STATUS_DATA when the documents are too
 * few, EXIT_STATUS_SYSTEM. */
int samples_open(struct samples *samples, const struct data_part *part, enum dataset_split which,
                 const struct dataset_options *options, struct error *error);
void samples_close(struct samples *samples);

/* Places of sample i that have a target. */
int64_t samples_places(const struct samples *samples, int64_t i, int64_t seq_length);

/* What sample i is of an epoch. */
double samples_epochs(const struct samples *samples, int64_t i, int64_t seq_length);

/* As dataset_read(). */
int samples_read(const struct samples *samples, int64_t i, const struct dataset_options *options,
                 struct dataset_row *row, struct error *error);

#endif
