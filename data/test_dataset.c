/* Guards: orders of samples, and splits are Megatron's, number for number; a conversation is
 * learned where its roles say so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "core/log.h"
#include "data/dataset.h"
#include "data/random.h"
#include "data/test_rows.h"
#include "data/test_sha256.h"
#include "data/token_file.h"

/* --- sample order ------------------------------------------------------------------------------*/

static void assert_i64(const int64_t *values, const int64_t *expected, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (values[i] != expected[i])
            fail_msg("element %zu is %lld, expected %lld", i, (long long)values[i],
                     (long long)expected[i]);
}

struct order {
    int64_t samples, epochs;
    int64_t documents[16], document_count;
    int64_t rows[40], row_count; /* rows of two */
    int64_t shuffle[20];
};

/* Documents of 5, 3, 7, 2 and 6 tokens, samples of 4, seed 1234. */
static const struct order orders[] = {
    {4, 1, {4, 0, 1, 2, 3}, 5, {0, 0, 0, 4, 1, 2, 2, 1, 3, 2, 3, 6}, 6, {3, 2, 1, 0, 4}},
    {8,
     2,
     {4, 0, 1, 2, 3, 3, 2, 1, 0, 4},
     10,
     {0, 0, 0, 4, 1, 2, 2, 1, 3, 2, 3, 6, 5, 1, 6, 3, 7, 0, 8, 1, 9, 0, 9, 4},
     12,
     {2, 0, 4, 3, 1, 6, 10, 7, 5, 9, 8}},
    {12,
     3,
     {2, 2, 4, 1, 0, 3, 4, 0, 1, 3, 0, 4, 3, 2, 1},
     15,
     {0, 0, 0, 4, 1, 1, 1,  5, 2,  2, 3,  0, 4,  1, 5,  0, 6,  2,
      7, 0, 7, 4, 9, 0, 10, 2, 11, 1, 11, 5, 13, 1, 13, 5, 14, 2},
     18,
     {3, 9, 2, 1, 7, 5, 4, 0, 8, 6, 10, 16, 12, 15, 14, 11, 13}},
};

static void test_order_small(void **state)
{
    static const int32_t sizes[] = {5, 3, 7, 2, 6};
    (void)state;

    for (size_t c = 0; c < sizeof(orders) / sizeof(orders[0]); c++) {
        const struct order *order = &orders[c];
        struct sample_index index;
        struct error error = {0};

        if (sample_index_build(&index, sizes, 0, 5, order->samples, 4, 1234, &error) < 0)
            fail_msg("%s", error.text);
        assert_int_equal(index.epochs, order->epochs);
        assert_int_equal(index.document_count, order->document_count);
        assert_int_equal(index.sample_count + 1, order->row_count);
        for (int64_t i = 0; i < index.document_count; i++)
            assert_int_equal(index.documents[i], order->documents[i]);
        assert_i64(index.samples, order->rows, (size_t)(2 * order->row_count));
        assert_i64(index.shuffle, order->shuffle, (size_t)index.sample_count);
        sample_index_destroy(&index);
    }
}

/* Digests of Megatron's arrays, which hold 32-bit numbers. */
static void test_order_large(void **state)
{
    enum { DOCUMENTS = 2000, ROWS = 5349 };
    static int32_t sizes[DOCUMENTS], rows[2 * ROWS];
    static uint32_t shuffle[ROWS - 1];
    struct random_state random;
    struct sample_index index;
    struct error error = {0};
    char hex[17];
    (void)state;

    sha256_prefix("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea"); /* the standard's own example */
    random_seed(&random, 7);
    for (int i = 0; i < DOCUMENTS; i++) /* randint(1, 3000) */
        sizes[i] = 1 + (int32_t)random_interval(&random, 2998);
    if (sample_index_build(&index, sizes, 100, 1900, 5000, 1024, 1234, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(index.epochs, 2);
    assert_int_equal(index.document_count, 3600);
    assert_int_equal(index.sample_count, ROWS - 1);
    for (int i = 0; i < 2 * ROWS; i++)
        rows[i] = (int32_t)index.samples[i];
    for (int i = 0; i < ROWS - 1; i++)
        shuffle[i] = (uint32_t)index.shuffle[i];
    sha256_prefix(index.documents, 3600 * sizeof(int32_t), hex);
    assert_string_equal(hex, "f19c0d31721b9d1f");
    sha256_prefix(rows, sizeof(rows), hex);
    assert_string_equal(hex, "ae95a7ca159f6b12");
    sha256_prefix(shuffle, sizeof(shuffle), hex);
    assert_string_equal(hex, "d04d272c9da406cb");
    sample_index_destroy(&index);
}

/* RandomState(5489) begins as the authors' reference output does; above 32 bits two words are
 * drawn, the high one first. */
static void test_random(void **state)
{
    struct random_state random, words;
    (void)state;

    random_seed(&random, 5489);
    assert_int_equal(random_next(&random), 3499211612u);
    assert_int_equal(random_next(&random), 581869302u);
    random_seed(&random, 5489);
    random_seed(&words, 5489);
    for (int i = 0; i < 1000; i++) {
        uint64_t last = UINT64_C(0x2000000000) + (uint64_t)i, value;

        do {
            value = (uint64_t)random_next(&words) << 32;
            value = (value | random_next(&words)) & UINT64_C(0x3fffffffff);
        } while (value > last);
        assert_true(random_interval(&random, last) == value);
    }
}

static void test_order_refuses(void **state)
{
    static const int32_t sizes[] = {5, 3, 7, 2, 6};
    struct sample_index index;
    struct error error = {0};
    (void)state;

    assert_int_equal(sample_index_build(&index, sizes, 0, 5, 1, 23, 1, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_int_equal(sample_index_build(&index, sizes, 2, 2, 1, 4, 1, &error), -1);
    assert_int_equal(sample_index_build(&index, sizes, 0, 5, INT64_MAX / 2, 4, 1, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_CONFIGURATION);
    assert_int_equal(sample_index_build(&index, sizes, 0, 5, 0, 22, 1, &error), 0);
    assert_int_equal(index.sample_count, 1);
    sample_index_destroy(&index);
}

static void test_splits(void **state)
{
    static const struct split_case {
        const char *split;
        int64_t documents, bounds[4];
    } cases[] = {
        {"969, 30, 1", 1000, {0, 969, 999, 1000}},
        {"90,5,5", 7, {0, 7, 7, 7}},
        {"969/30/1", 1000, {0, 969, 999, 1000}},
        {"1", 10, {0, 10, 10, 10}},
        {"0.5,0.5", 3, {0, 1, 3, 3}}, /* 1.5 rounds to 2, twice */
        {"0,1,1", 3, {0, 0, 1, 3}},   /* a boundary of -1 is 0 */
        {"98,2,0", 0, {0, 0, 0, 0}},
    };
    static const struct split_case nonempty[] = {
        {"969, 30, 1", 1000, {0, 969, 999, 1000}}, /* nothing to change */
        {"90,5,5", 7, {0, 5, 6, 7}},
        {"98,2,0", 7, {0, 6, 7, 7}},
        {"98,1,1", 2, {0, 1, 2, 2}},
        {"98,1,1", 1, {0, 1, 1, 1}},
        {"1,1,98", 3, {0, 1, 2, 3}},
    };
    static const char *const refused[] = {"",    "a",  "1,,1", "1,2,3,4", "0,0,0", "1,-1",
                                          "nan", "1,", "1 2",  "inf,1",   "1,2,3x"};
    struct error error = {0};
    int64_t bounds[4];
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (dataset_split_bounds(cases[i].split, false, cases[i].documents, bounds, &error) < 0)
            fail_msg("%s", error.text);
        assert_i64(bounds, cases[i].bounds, 4);
    }
    for (size_t i = 0; i < sizeof(nonempty) / sizeof(nonempty[0]); i++) {
        if (dataset_split_bounds(nonempty[i].split, true, nonempty[i].documents, bounds, &error) <
            0)
            fail_msg("%s", error.text);
        assert_i64(bounds, nonempty[i].bounds, 4);
    }
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        error.status = 0;
        assert_int_equal(dataset_split_bounds(refused[i], false, 10, bounds, &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_USAGE);
    }
}

/* --- datasets ----------------------------------------------------------------------------------*/

enum { FIVE_TOKENS = 23, FIVE_LENGTH = 4 };

static int open_five(struct dataset **dataset, const struct data_source *source, const char *split,
                     enum dataset_split which, int64_t seq_length, int64_t vocab_size,
                     struct error *error)
{
    struct dataset_options options = {
        .seq_length = seq_length,
        .vocab_size = vocab_size,
        .seed = 1234,
        .split = split,
        .samples = {4, 4, 4},
        .eod = -1,
    };

    return dataset_open(dataset, source, which, &options, error);
}

/* Sample i is what the index says, and the next sample begins with its last token. */
static void test_dataset(void **state)
{
    static const int32_t sizes[] = {5, 3, 7, 2, 6};
    int32_t document[8], stream[FIVE_TOKENS], tokens[FIVE_LENGTH], targets[FIVE_LENGTH],
        positions[FIVE_LENGTH], starts[FIVE_LENGTH];
    float weights[FIVE_LENGTH];
    struct dataset_row row = {tokens, targets, weights, positions, starts, 0, NULL};
    struct token_writer *writer;
    struct data_source source;
    struct dataset *dataset;
    struct sample_index index;
    struct error error = {0};
    int64_t used = 0;
    int refused = 0;
    (void)state;

    assert_int_equal(token_writer_open(&writer, "five", 1000, &error), 0);
    for (int d = 0; d < 5; d++) {
        for (int k = 0; k < sizes[d]; k++)
            document[k] = 10 * d + k;
        assert_int_equal(token_writer_add(writer, document, sizes[d], &error), 0);
    }
    assert_int_equal(token_writer_commit(writer, &error), 0);
    token_writer_close(writer);
    assert_int_equal(data_source_open(&source, "five", &error), 0);

    if (open_five(&dataset, &source, NULL, DATASET_TRAIN, FIVE_LENGTH, 47, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(dataset_samples(dataset), 5);
    assert_int_equal(sample_index_build(&index, sizes, 0, 5, 4, FIVE_LENGTH, 1234, &error), 0);
    for (int p = 0; p < 5; p++) /* the documents in the order of the golden vector */
        for (int k = 0; k < sizes[index.documents[p]]; k++)
            stream[used++] = 10 * index.documents[p] + k;
    for (int64_t i = 0; i < 5; i++) {
        if (dataset_read(dataset, i, &row, &error) < 0)
            fail_msg("%s", error.text);
        assert_memory_equal(tokens, stream + FIVE_LENGTH * index.shuffle[i], sizeof(tokens));
        assert_memory_equal(targets, stream + FIVE_LENGTH * index.shuffle[i] + 1, sizeof(targets));
        assert_int_equal(row.start_count, 1);
        for (int t = 0; t < FIVE_LENGTH; t++)
            assert_true(positions[t] == t && weights[t] == 1);
    }
    sample_index_destroy(&index);
    dataset_close(dataset);

    /* Token 46 is the highest; 45 of document 4 is then the first outside. */
    assert_int_equal(open_five(&dataset, &source, NULL, DATASET_TRAIN, FIVE_LENGTH, 45, &error), 0);
    for (int64_t i = 0; i < 5; i++) {
        error.status = 0;
        if (dataset_read(dataset, i, &row, &error) < 0) {
            refused++;
            assert_int_equal(error.status, EXIT_STATUS_DATA);
            assert_non_null(strstr(error.text, "five.bin: document 4 has token 45"));
            assert_non_null(strstr(error.text, "vocabulary is 45"));
        }
    }
    assert_in_range(refused, 1, 4);
    dataset_close(dataset);

    assert_int_equal(open_five(&dataset, &source, "1,0,0", DATASET_VALID, 4, 47, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, "five: split \"1,0,0\" gives validation 0 of 5 documents"));
    assert_int_equal(open_five(&dataset, &source, "4,1", DATASET_VALID, 6, 47, &error), -1);
    assert_non_null(strstr(error.text, "with 6 tokens, but one sample takes 7"));
    assert_int_equal(open_five(&dataset, &source, "4,1", DATASET_VALID, 5, 47, &error), 0);
    dataset_close(dataset);
    assert_int_equal(open_five(&dataset, &source, "four", DATASET_VALID, 5, 47, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_USAGE);
    data_source_close(&source);
}

/* --- conversations -----------------------------------------------------------------------------*/

/* Megatron-LLM's order, and the first document of every sample. */
static void assert_documents(const struct data_source *source, enum dataset_split which,
                             const struct dataset_options *options, const int *expected, int count)
{
    struct dataset *dataset = dataset_of(source, which, options);
    struct dataset_row row;

    row_create(&row, options->seq_length);
    assert_int_equal(dataset_samples(dataset), count);
    for (int i = 0; i < count; i++) {
        row_read(&row, dataset, i);
        assert_int_equal(row.tokens[0] / DOCUMENT_STRIDE, expected[i]);
    }
    row_destroy(&row);
    dataset_close(dataset);
}

static void test_conversation_order(void **state)
{
    static const int32_t lengths[10] = {9, 2, 7, 3, 8, 2, 4, 5, 6, 7};
    static const int train[] = {5, 8, 4, 7, 0, 1, 9, 2, 5, 1, 8, 2}, valid[] = {6, 6}, test[] = {3},
                     whole[] = {4, 0, 1, 2, 3, 3, 2};
    static const int even[3][6] = {{1, 7, 9, 2, 2}, {8, 5, 4, 0, 8, 5}, {3, 6, 6}};
    static const int64_t samples[3] = {5, 6, 3};
    struct dataset *none;
    struct error error = {0};
    struct data_source ten = corpus_open("ten", lengths, 10, true);
    struct data_source five = corpus_open("five-chat", lengths, 5, true);
    struct dataset_options options = {
        .seq_length = 8,
        .vocab_size = TEST_VOCABULARY,
        .seed = 1234,
        .split = "80,10,10",
        .samples = {12, 2, 1},
        .eod = -1,
    };
    (void)state;

    assert_documents(&ten, DATASET_TRAIN, &options, train, 12);
    assert_documents(&ten, DATASET_VALID, &options, valid, 2);
    assert_documents(&ten, DATASET_TEST, &options, test, 1);
    /* What the sets before have drawn tells; these are numpy's. */
    options.split = "4,4,2";
    memcpy(options.samples, samples, sizeof(samples));
    for (int which = DATASET_TRAIN; which <= DATASET_TEST; which++)
        assert_documents(&ten, (enum dataset_split)which, &options, even[which],
                         (int)samples[which]);
    options.split = "1,0,0";
    assert_int_equal(dataset_open(&none, &ten, DATASET_VALID, &options, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, "gives validation none of 10 documents"));
    options.split = NULL;
    for (int which = DATASET_TRAIN; which <= DATASET_TEST; which++) {
        memset(options.samples, 0, sizeof(options.samples));
        options.samples[which] = 7;
        assert_documents(&five, (enum dataset_split)which, &options, whole, 7);
    }
    data_source_close(&ten);
    data_source_close(&five);
}

/* Padded on the right or cut off there; learned where the target is the assistant's, whose answers
 * are what is left without tokens of the template. */
static void test_conversation_rows(void **state)
{
    enum { LENGTH = 8, DOCUMENTS = 5 };
    static const int32_t lengths[DOCUMENTS] = {5, 9, 10, 40, 1};
    static const uint8_t hidden[DOCUMENTS * DOCUMENT_STRIDE] = {
        [TEST_TOKEN(1, 3)] = 1, [TEST_TOKEN(2, 0)] = 2, [TEST_TOKEN(3, 6)] = 3};
    struct data_source source = corpus_open("rows", lengths, DOCUMENTS, true);
    struct dataset_options options = {
        .seq_length = LENGTH,
        .vocab_size = TEST_VOCABULARY,
        .seed = 1,
        .samples = {DOCUMENTS},
        .loss_mask_weight = 0.25,
        .eod = -1,
        .template_tokens = hidden,
    };
    struct dataset *dataset = dataset_of(&source, DATASET_TRAIN, &options);
    struct dataset_row row;
    int seen = 0;
    (void)state;

    row_create(&row, LENGTH);
    for (int64_t i = 0; i < DOCUMENTS; i++) {
        int32_t d, places;

        row_read(&row, dataset, i);
        d = row.targets[0] < 0 ? 4 : row.tokens[0] / DOCUMENT_STRIDE;
        places = lengths[d] - 1 < LENGTH ? lengths[d] - 1 : LENGTH;
        seen |= 1 << d;
        for (int32_t t = 0; t < LENGTH; t++) {
            bool padding = t >= places;

            assert_int_equal(row.tokens[t], padding ? 0 : TEST_TOKEN(d, t));
            assert_int_equal(row.targets[t], padding ? -1 : TEST_TOKEN(d, t + 1));
            assert_true(row.weights[t] == (padding                                 ? 0
                                           : TEST_ROLE(d, t + 1) == ROLE_ASSISTANT ? 1
                                                                                   : 0.25F));
            assert_int_equal(row.answers[t], !padding && TEST_ROLE(d, t + 1) == ROLE_ASSISTANT &&
                                                 !hidden[TEST_TOKEN(d, t + 1)] &&
                                                 hidden[TEST_TOKEN(d, t)] < 2 &&
                                                 (t < 1 || hidden[TEST_TOKEN(d, t - 1)] < 3));
            assert_int_equal(row.positions[t], t);
        }
        assert_int_equal(row.start_count, 1);
        assert_int_equal(row.starts[0], 0);
    }
    assert_int_equal(seen, (1 << DOCUMENTS) - 1);
    assert_true(dataset_fill(dataset) == (4 + 8 + 8 + 8 + 0) / (double)(DOCUMENTS * LENGTH));
    row_destroy(&row);
    dataset_close(dataset);
    data_source_close(&source);
}

static void test_roles_refused(void **state)
{
    static const int32_t lengths[] = {3, 3}, other[] = {3, 4}, tokens[] = {0, 3, 2};
    struct dataset_options options = {
        .seq_length = 4, .vocab_size = TEST_VOCABULARY, .samples = {2}, .eod = -1};
    struct token_writer *writer;
    struct data_source source;
    struct dataset *dataset;
    struct dataset_row row;
    struct error error = {0};
    int refused = 0;
    (void)state;

    corpus_write("wrong", lengths, 2, true);
    assert_int_equal(token_writer_open(&writer, "wrong-role", 10, &error), 0);
    assert_int_equal(token_writer_add(writer, tokens, 3, &error), 0);
    assert_int_equal(token_writer_commit(writer, &error), 0);
    assert_int_equal(data_source_open(&source, "wrong", &error), -1); /* one sequence against two */
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, "wrong-text has 2 sequences and wrong-role has 1"));
    token_writer_close(writer);
    assert_int_equal(token_writer_open(&writer, "wrong-role", 10, &error), 0);
    assert_int_equal(token_writer_add(writer, tokens, 3, &error), 0);
    assert_int_equal(token_writer_add(writer, tokens, 3, &error), 0);
    assert_int_equal(token_writer_commit(writer, &error), 0);
    token_writer_close(writer);

    assert_int_equal(data_source_open(&source, "wrong", &error), 0);
    dataset = dataset_of(&source, DATASET_TRAIN, &options);
    row_create(&row, 4);
    for (int64_t i = 0; i < 2; i++)
        refused += dataset_read(dataset, i, &row, &error) < 0;
    assert_int_equal(refused, 2);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, "wrong-role.bin: document"));
    assert_non_null(strstr(error.text, "role 3 at position 1"));
    row_destroy(&row);
    dataset_close(dataset);
    data_source_close(&source);

    corpus_write("wrong", lengths, 2, true);
    assert_int_equal(rename("wrong-role.idx", "kept.idx"), 0);
    assert_int_equal(rename("wrong-role.bin", "kept.bin"), 0);
    corpus_write("wrong", other, 2, true);
    assert_int_equal(rename("kept.idx", "wrong-role.idx"), 0);
    assert_int_equal(rename("kept.bin", "wrong-role.bin"), 0);
    assert_int_equal(data_source_open(&source, "wrong", &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, "4 tokens in sequence 1 and wrong-role has 3"));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_order_small),
        cmocka_unit_test(test_order_large),
        cmocka_unit_test(test_order_refuses),
        cmocka_unit_test(test_splits),
        cmocka_unit_test(test_dataset),
        cmocka_unit_test(test_conversation_order),
        cmocka_unit_test(test_conversation_rows),
        cmocka_unit_test(test_roles_refused),
    };

    log_set_enabled(false); /* warnings of conversations that are cut off */
    return cmocka_run_group_tests(tests, test_directory_enter, test_directory_leave);
}
