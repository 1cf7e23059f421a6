/* Input text for mtllm-data tokenize, in batches small enough to hold many of them at once. */
#ifndef MTLLM_DATA_CORPUS_H
#define MTLLM_DATA_CORPUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "data/tokenizer.h"

enum corpus_format { CORPUS_BY_NAME, CORPUS_TEXT, CORPUS_JSONL };

/* What is one document of plain text. */
enum corpus_documents { CORPUS_FILE, CORPUS_PARAGRAPH, CORPUS_LINE };

/* A line of JSON can hold documents of several token files. */
enum { STREAMS_MOST = 8 };

/* A whole document, or one part of it (see tokenizer.h), or a line of JSON. */
struct corpus_part {
    size_t offset, bytes; /* in the batch's text */
    bool first, last;     /* of its document */
    int64_t line;         /* where it begins in its file, from 1 */

    /* What a worker found. */
    int64_t tokens[STREAMS_MOST]; /* in each list of the batch; 0: nothing but white space */
    char *problem;                /* why this line of JSON is no document; NULL: it is one */
};

/* Parts of one input. */
struct corpus_batch {
    const char *path;
    bool json;
    char *text;
    size_t bytes, room;
    struct corpus_part *parts;
    int64_t count, capacity;
    struct token_list streams[STREAMS_MOST];
};

/* Free what the batch holds. */
void corpus_batch_clear(struct corpus_batch *batch);

struct corpus;

/* The inputs must outlive the corpus and all batches; "-" is standard input, which needs a format
 * other than CORPUS_BY_NAME. Every input is opened once to see that it can be read. `tokenizer`
 * says where a document may be divided. Error: EXIT_STATUS_USAGE, EXIT_STATUS_IO. */
int corpus_open(struct corpus **corpus, char *const *inputs, int count, enum corpus_format format,
                enum corpus_documents documents, const struct tokenizer *tokenizer,
                struct error *error);
void corpus_close(struct corpus *corpus);

/* Is any of the inputs plain text? */
bool corpus_has_text(const struct corpus *corpus);
/* Bytes of all inputs; -1 when that is not known (a pipe). */
int64_t corpus_bytes(const struct corpus *corpus);
/* Bytes read so far. */
int64_t corpus_bytes_read(const struct corpus *corpus);

/* Put the next parts into `batch` in place of what it holds. 1: done, 0: there is no more.
 * Error (-1): EXIT_STATUS_IO. */
int corpus_next(struct corpus *corpus, struct corpus_batch *batch, struct error *error);

#endif
