#include "data/test_rows.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <unistd.h>

int test_directory_enter(void **state)
{
    static char directory[] = "test_rows.XXXXXX";

    if (!mkdtemp(directory) || chdir(directory) < 0)
        return -1;
    *state = directory;
    return 0;
}

int test_directory_leave(void **state)
{
    char command[64];

    snprintf(command, sizeof(command), "rm -rf ../%s", (const char *)*state);
    return system(command);
}

static void write_file(const char *prefix, const char *ending, const int32_t *lengths,
                       int64_t count, bool roles)
{
    int32_t tokens[DOCUMENT_STRIDE];
    struct token_writer *writer;
    struct error error = {0};
    char name[256];

    snprintf(name, sizeof(name), "%s%s", prefix, ending);
    if (token_writer_open(&writer, name, roles ? 3 : TEST_VOCABULARY, &error) < 0)
        fail_msg("%s", error.text);
    for (int64_t d = 0; d < count; d++) {
        for (int32_t k = 0; k < lengths[d]; k++)
            tokens[k] = roles ? TEST_ROLE(d, k) : TEST_TOKEN(d, k);
        if (token_writer_add(writer, tokens, lengths[d], &error) < 0)
            fail_msg("%s", error.text);
    }
    if (token_writer_commit(writer, &error) < 0)
        fail_msg("%s", error.text);
    token_writer_close(writer);
}

void corpus_write(const char *prefix, const int32_t *lengths, int64_t count, bool roles)
{
    write_file(prefix, roles ? "-text" : "", lengths, count, false);
    if (roles)
        write_file(prefix, "-role", lengths, count, true);
}

struct data_source corpus_open(const char *prefix, const int32_t *lengths, int64_t count,
                               bool roles)
{
    struct data_source source;
    struct error error = {0};

    corpus_write(prefix, lengths, count, roles);
    if (data_source_open(&source, prefix, &error) < 0)
        fail_msg("%s", error.text);
    return source;
}

struct dataset *dataset_of(const struct data_source *source, enum dataset_split which,
                           const struct dataset_options *options)
{
    struct dataset *dataset;
    struct error error = {0};

    if (dataset_open(&dataset, source, which, options, &error) < 0)
        fail_msg("%s", error.text);
    return dataset;
}

void row_create(struct dataset_row *row, int64_t seq_length)
{
    size_t count = (size_t)seq_length;

    *row = (struct dataset_row){
        .tokens = calloc(count, sizeof(*row->tokens)),
        .targets = calloc(count, sizeof(*row->targets)),
        .weights = calloc(count, sizeof(*row->weights)),
        .positions = calloc(count, sizeof(*row->positions)),
        .starts = calloc(count, sizeof(*row->starts)),
        .answers = calloc(count, sizeof(*row->answers)),
    };
    assert_true(row->tokens && row->targets && row->weights && row->positions && row->starts &&
                row->answers);
}

void row_destroy(struct dataset_row *row)
{
    free(row->tokens);
    free(row->targets);
    free(row->weights);
    free(row->positions);
    free(row->starts);
    free(row->answers);
}

void row_read(struct dataset_row *row, const struct dataset *dataset, int64_t i)
{
    struct error error = {0};

    if (dataset_read(dataset, i, row, &error) < 0)
        fail_msg("sample %lld: %s", (long long)i, error.text);
}

/* FNV-1a. */
static uint64_t hash(uint64_t value, const void *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        value = (value ^ ((const uint8_t *)bytes)[i]) * UINT64_C(0x100000001b3);
    return value;
}

uint64_t dataset_digest(const struct dataset *dataset, int64_t seq_length)
{
    uint64_t value = UINT64_C(0xcbf29ce484222325);
    size_t bytes = (size_t)seq_length * sizeof(int32_t);
    struct dataset_row row;

    row_create(&row, seq_length);
    for (int64_t i = 0; i < dataset_samples(dataset); i++) {
        row_read(&row, dataset, i);
        value = hash(value, row.tokens, bytes);
        value = hash(value, row.targets, bytes);
        value = hash(value, row.weights, bytes);
        value = hash(value, row.positions, bytes);
        value = hash(value, row.starts, (size_t)row.start_count * sizeof(*row.starts));
    }
    row_destroy(&row);
    return value;
}
