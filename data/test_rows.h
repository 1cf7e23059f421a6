/* What tests of datasets share: small token files whose tokens tell where they are, and rows. */
#ifndef MTLLM_DATA_TEST_ROWS_H
#define MTLLM_DATA_TEST_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include "data/dataset.h"

/* Token k of document d. */
enum { DOCUMENT_STRIDE = 1000, TEST_VOCABULARY = 1 << 30 };
#define TEST_TOKEN(d, k) ((int32_t)((d)*DOCUMENT_STRIDE + (k)))
/* Its role, where there are roles: turns of three tokens. */
#define TEST_ROLE(d, k) ((int32_t)(((d) + (k) / 3) % 3))

/* Setup and teardown of a group of tests: it runs in a directory of its own, which is removed. */
int test_directory_enter(void **state);
int test_directory_leave(void **state);

/* Write documents of those lengths, each below DOCUMENT_STRIDE; with `roles` as a pair. */
void corpus_write(const char *prefix, const int32_t *lengths, int64_t count, bool roles);

/* The same and open it: a source to be closed. */
struct data_source corpus_open(const char *prefix, const int32_t *lengths, int64_t count,
                               bool roles);

/* dataset_open() that must succeed. */
struct dataset *dataset_of(const struct data_source *source, enum dataset_split which,
                           const struct dataset_options *options);

/* Memory for a row; row_destroy() frees it. */
void row_create(struct dataset_row *row, int64_t seq_length);
void row_destroy(struct dataset_row *row);

/* dataset_read() that must succeed. */
void row_read(struct dataset_row *row, const struct dataset *dataset, int64_t i);

/* A hash of everything in every row. */
uint64_t dataset_digest(const struct dataset *dataset, int64_t seq_length);

#endif
