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
    char *problem;                /* why this is no document, or its document none; else NULL */
};

/* A place between two parts of the input. */
struct corpus_position {
    int64_t input;                  /* from 0 */
    int64_t offset;                 /* bytes of that input's text, before the place */
    int64_t line;                   /* of the next byte, from 1 */
    bool document_begun;            /* the place is within a document */
    int64_t text_bytes, file_bytes; /* of all inputs, before the place */
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
    struct corpus_position after; /* where the next batch begins */
};

/* Free what the batch holds. */
void corpus_batch_clear(struct corpus_batch *batch);

/* A line or a paragraph longer than this is no document; it is not held in memory. */
#define CORPUS_LINE_BYTES_MOST (256 << 20)

struct corpus_request {
    char *const *inputs; /* [count] "-" is standard input, which needs a format */
    int count;
    enum corpus_format format;
    enum corpus_documents documents;
    const struct tokenizer *tokenizer; /* says where a document may be divided */
};

struct corpus;

/* What the request points to must outlive the corpus and all batches. Every input is looked at, to
 * see that it can be read. Error: EXIT_STATUS_USAGE, EXIT_STATUS_IO, EXIT_STATUS_CONFIGURATION (a
 * kind of compression that was not built in). */
int corpus_open(struct corpus **corpus, const struct corpus_request *request, struct error *error);
void corpus_close(struct corpus *corpus);

/* Is any of the inputs plain text? */
bool corpus_has_text(const struct corpus *corpus);
/* Are all inputs regular files? Only then is there a corpus_seek(). */
bool corpus_has_files(const struct corpus *corpus);
/* Bytes of all input files, compressed or not; -1 when that is not known (a pipe). */
int64_t corpus_bytes(const struct corpus *corpus);

/* Put the next parts into `batch` in place of what it holds. 1: done, 0: there is no more.
 * Error (-1): EXIT_STATUS_IO, EXIT_STATUS_DATA (a compressed file that is damaged). */
int corpus_next(struct corpus *corpus, struct corpus_batch *batch, struct error *error);

/* Of a corpus just opened, go to the place behind a batch of an earlier run with the same request.
 * Errors as of corpus_next(). */
int corpus_seek(struct corpus *corpus, const struct corpus_position *position, struct error *error);

#endif
