/* Rows of several documents: first-fit decreasing, epoch by epoch. */
#ifndef MTLLM_DATA_PACKING_H
#define MTLLM_DATA_PACKING_H

#include <stdint.h>

#include "core/error.h"
#include "data/order.h"
#include "data/random.h"
#include "data/source.h"

/* A document, or a part of it, in a row. It takes a place for each of its tokens but the last,
 * which is nothing but a target. */
struct piece {
    int32_t document; /* a sequence of the token file */
    int32_t offset;   /* its first token */
};

/* order->arrays[0]: where each row's pieces begin, int64[rows + 1]; arrays[1]: struct piece[]. */
enum { ROW_STARTS, ROW_PIECES };

/* Tokens of a piece in rows of that length: to the end of its document, but one more than a row at
 * most. */
int64_t piece_tokens(const struct data_part *part, const struct piece *piece, int64_t seq_length);

/* At least `samples` rows of these documents, of whole epochs. Within an epoch every document comes
 * once: the longest first, those of one length in random order, each goes into the first row that
 * has room for it and fewer than `most` pieces; then rows are shuffled. Documents of fewer than two
 * tokens are left out; longer ones than a row are divided, or with roles cut off. Error:
 * EXIT_STATUS_DATA when there is nothing to pack, EXIT_STATUS_SYSTEM. */
int packing_build(struct order *order, const struct data_part *part, const int32_t *documents,
                  int64_t count, int64_t samples, int64_t seq_length, int64_t most,
                  struct random_state *random, struct error *error);

#endif
