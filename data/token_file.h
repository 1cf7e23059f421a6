/* Token files: Megatron's PREFIX.bin and PREFIX.idx (version 1), memory-mapped.
 *
 * The reference for the bytes is mtllm-data(1), section FILES. One sequence a document.
 */
#ifndef MTLLM_DATA_TOKEN_FILE_H
#define MTLLM_DATA_TOKEN_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

struct token_file;

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
/* Copy tokens [offset, offset + count) of sequence i, widened. */
void token_file_read(const struct token_file *file, int64_t i, int64_t offset, int64_t count,
                     int32_t *tokens);

struct token_writer;

/* Write PREFIX.bin and PREFIX.idx beside their final names; they appear when token_writer_commit()
 * succeeds. uint16 below a vocabulary of 65500, else int32. */
int token_writer_open(struct token_writer **writer, const char *prefix, int64_t vocab_size,
                      struct error *error);
int token_writer_add(struct token_writer *writer, const int32_t *tokens, int64_t count,
                     struct error *error);
/* The same in parts: any number of appends, then the end. */
int token_writer_append(struct token_writer *writer, const int32_t *tokens, int64_t count,
                        struct error *error);
int token_writer_end_document(struct token_writer *writer, struct error *error);
int64_t token_writer_documents(const struct token_writer *writer); /* ended ones */
int64_t token_writer_tokens(const struct token_writer *writer);
/* Temporary name of the data (0) or the index (1); NULL once it has its final name. */
const char *token_writer_partial_path(const struct token_writer *writer, int which);
const char *token_writer_dtype_name(const struct token_writer *writer);
int token_writer_commit(struct token_writer *writer, struct error *error);
/* Also without commit: then nothing is left behind. */
void token_writer_close(struct token_writer *writer);

#endif
