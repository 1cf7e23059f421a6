/* The token files that tokenizing writes: one for each stream of the text. */
#ifndef MTLLM_DATA_OUTPUTS_H
#define MTLLM_DATA_OUTPUTS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "data/corpus.h"
#include "data/token_file.h"

struct outputs {
    struct output_stream {
        struct token_writer *writer;
        bool document_open; /* tokens of an unfinished document were written */
    } streams[STREAMS_MOST];
    int count;
    int32_t bos, eod; /* put around each document; -1: not */
    int64_t empty;    /* documents of nothing but white space */
};

/* All zeros are no outputs; each call adds one. Errors as of token_writer_open(). */
int outputs_add(struct outputs *outputs, const char *prefix, int64_t vocab_size,
                struct error *error);
/* The tokens of one part; tokens[i] is moved behind those of stream i. */
int outputs_write(struct outputs *outputs, const struct corpus_part *part, const int32_t **tokens,
                  struct error *error);
int64_t outputs_documents(const struct outputs *outputs);
int64_t outputs_tokens(const struct outputs *outputs);
int outputs_commit(struct outputs *outputs, struct error *error);
/* Also without commit: then nothing is left behind. */
void outputs_close(struct outputs *outputs);

#endif
