/* Token files: Megatron's PREFIX.bin and PREFIX.idx (version 1), memory-mapped.
 *
 * The reference for the bytes is mtllm-data(1), section FILES. One sequence a document.
 */
#ifndef MTLLM_DATA_TOKEN_FILE_H
#define MTLLM_DATA_TOKEN_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

struct token_file;
struct token_dtype; /* token_format.h */

/* Map PREFIX.bin and PREFIX.idx and check that they fit each other: magic, version, dtype, every
 * size and offset inside the file. Error: EXIT_STATUS_DATA (damaged) or EXIT_STATUS_IO, naming
 * the file, what was found and what was expected. */
int token_file_open(struct token_file **file, const char *prefix, struct error *error);
void token_file_close(struct token_file *file);

const char *token_file_prefix(const struct token_file *file);
int64_t token_file_sequences(const struct token_file *file);
int64_t token_file_documents(const struct token_file *file);
int64_t token_file_tokens(const struct token_file *file);
int token_file_bytes_per_token(const struct token_file *file);
/* "uint16", "int32", ... */
const char *token_file_dtype_name(const struct token_file *file);
/* XXH3 of the whole index. */
uint64_t token_file_index_hash(const struct token_file *file);
/* Of both files together. */
int64_t token_file_size_bytes(const struct token_file *file);
/* Tokens of sequence i. */
int32_t token_file_length(const struct token_file *file, int64_t i);
/* First sequence of document i; i == documents gives the number of sequences. */
int64_t token_file_document(const struct token_file *file, int64_t i);
/* Has a document other than one sequence? */
bool token_file_divides(const struct token_file *file);
/* Copy tokens [offset, offset + count) of sequence i, widened. */
void token_file_read(const struct token_file *file, int64_t i, int64_t offset, int64_t count,
                     int32_t *tokens);

/* The same as they are in the file: bytes_per_token x length bytes, little-endian. */
const void *token_file_bytes(const struct token_file *file, int64_t i);
/* For token_writer_open_like(). */
const struct token_dtype *token_file_dtype(const struct token_file *file);

/* Writes PREFIX.bin and PREFIX.idx. They grow as PREFIX.bin.partial and PREFIX.idx.partial and have
 * their names when token_writer_commit() succeeds. One writer at a time for a prefix: another is
 * refused (EXIT_STATUS_CONFIGURATION). */
struct token_writer;

/* uint16 below a vocabulary of 65500, else int32. */
int token_writer_open(struct token_writer **writer, const char *prefix, int64_t vocab_size,
                      struct error *error);
/* For tokens of the type that `file` has, whatever they are. */
int token_writer_open_like(struct token_writer **writer, const char *prefix,
                           const struct token_file *file, struct error *error);

int token_writer_add(struct token_writer *writer, const int32_t *tokens, int64_t count,
                     struct error *error);
/* The same in parts: any number of appends, then the end. */
int token_writer_append(struct token_writer *writer, const int32_t *tokens, int64_t count,
                        struct error *error);
int token_writer_end_document(struct token_writer *writer, struct error *error);
/* Forget what was appended since the last end. */
int token_writer_drop_document(struct token_writer *writer, struct error *error);

/* Documents [begin, end) of a file with the same type of token. `divided`: a document may have any
 * number of sequences; the same in all calls of a writer. */
int token_writer_copy(struct token_writer *writer, const struct token_file *file, int64_t begin,
                      int64_t end, bool divided, struct error *error);

int64_t token_writer_documents(const struct token_writer *writer); /* ended ones */
int64_t token_writer_tokens(const struct token_writer *writer);
int64_t token_writer_open_tokens(const struct token_writer *writer); /* of a document not ended */
const char *token_writer_prefix(const struct token_writer *writer);
const char *token_writer_dtype_name(const struct token_writer *writer);
/* Temporary name of the data (0) or the index (1); NULL once it has its final name. */
const char *token_writer_partial_path(const struct token_writer *writer, int which);

int token_writer_commit(struct token_writer *writer, struct error *error);
/* Of several writers: at no moment do new and older files stand side by side. */
int token_writer_commit_all(struct token_writer *const *writers, int count, struct error *error);
/* Also without commit: then nothing is left behind, unless it was told to keep it. */
void token_writer_close(struct token_writer *writer);
void token_writer_keep(struct token_writer *writer, bool keep);

/* A place where writing can go on after the process has ended. */
struct token_writer_mark {
    int64_t tokens, sequences;
    int64_t open_tokens; /* of the tokens, those of a document not ended */
};

/* Everything written so far is on the disk, up to *mark. */
int token_writer_sync(struct token_writer *writer, struct token_writer_mark *mark,
                      struct error *error);
/* As token_writer_open(), but what an earlier writer left stays. token_writer_begin() is next. */
int token_writer_find(struct token_writer **writer, const char *prefix, int64_t vocab_size,
                      struct error *error);
/* Is everything up to the mark there? */
bool token_writer_holds(const struct token_writer *writer, const struct token_writer_mark *mark);
/* Go on behind a mark that the writer holds; NULL: begin anew. */
int token_writer_begin(struct token_writer *writer, const struct token_writer_mark *mark,
                       struct error *error);

#endif
