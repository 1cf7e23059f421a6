/* The documents that tokenizing makes: of one part of the input, some for each output. */
#ifndef MTLLM_DATA_STREAMS_H
#define MTLLM_DATA_STREAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "data/corpus.h"
#include "data/outputs.h"

struct streams {
    struct outputs outputs; /* one for each stream */
    int32_t bos, eod;       /* put around each document; -1: not */
    bool dropping;          /* the document being read has shown to be none */
    int64_t empty, bad;     /* documents left out */
};

/* Write what the batch holds. `report` is told of each document that is none, and can end it all.
 */
int streams_write(struct streams *streams, const struct corpus_batch *batch,
                  int (*report)(void *context, const struct corpus_batch *batch,
                                const struct corpus_part *part, struct error *error),
                  void *context, struct error *error);
int64_t streams_documents(const struct streams *streams);
int64_t streams_tokens(const struct streams *streams);

#endif
