/* Threads that turn batches of text into batches of token ids, in the order of the text. */
#ifndef MTLLM_DATA_ENCODER_H
#define MTLLM_DATA_ENCODER_H

#include "core/error.h"
#include "data/chat.h"
#include "data/corpus.h"
#include "data/tokenizer.h"

/* What becomes of the text. */
struct encoder_work {
    const struct tokenizer *tokenizer;
    char *const *keys; /* [streams] the member of a line of JSON that holds the text of a stream */
    int streams;       /* 1 for plain text */
    /* NULL, or lines of JSON are conversations: there are two streams, tokens and their roles. */
    const struct chat *chat;
};

struct encoder;

/* What `work` points to must outlive the encoder. Signals are left to the calling thread. Error:
 * EXIT_STATUS_SYSTEM. */
int encoder_start(struct encoder **encoder, const struct encoder_work *work, int threads,
                  struct error *error);
/* Also with batches on their way. NULL is nothing. */
void encoder_stop(struct encoder *encoder);

/* An empty batch for corpus_next(), to be given to encoder_submit(); NULL while all are on their
 * way. */
struct corpus_batch *encoder_vacant(struct encoder *encoder);
void encoder_submit(struct encoder *encoder);

/* Wait for the oldest batch submitted and not yet released: 1, and *batch; 0 when there is none.
 * Error (-1): what went wrong in encoding it. */
int encoder_oldest(struct encoder *encoder, struct corpus_batch **batch, struct error *error);
void encoder_release(struct encoder *encoder);

#endif
