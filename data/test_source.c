/* Guards: a source is what its text names, or an error; mixtures are Megatron's, number for number,
 * and hold what their parts hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "core/log.h"
#include "data/blend.h"
#include "data/dataset.h"
#include "data/test_rows.h"

static void test_blend(void **state)
{
    static const double weights[] = {.5, .3, .2};
    static const int32_t golden[] = {0, 1, 2, 0, 1, 0, 2, 0, 1, 0, 0, 1, 2, 0, 1, 0, 2, 0, 1, 0};
    int32_t parts[20];
    int64_t locals[20], used[3] = {0};
    (void)state;

    assert_int_equal(blend_build(weights, 3, 20, parts, locals), 0);
    for (int t = 0; t < 20; t++) {
        assert_int_equal(parts[t], golden[t]);
        assert_int_equal(locals[t], used[golden[t]]++);
    }
    assert_int_equal(blend_share(1000, .75), 754);
    assert_int_equal(blend_share(1000, .25), 252);
}

static struct data_source open_text(const char *text)
{
    struct data_source source;
    struct error error = {0};

    if (data_source_open(&source, text, &error) < 0)
        fail_msg("%s", error.text);
    return source;
}

/* Every sample of a mixture is the next one of the part whose turn it is; running text, packed
 * rows and conversations alike. */
static void test_mixture(void **state)
{
    enum { LENGTH = 16, SAMPLES = 200 };
    static const char *const names[] = {"plain", "chat"};
    static int32_t lengths[60], parts[SAMPLES];
    static int64_t locals[SAMPLES];
    struct dataset_options options = {
        .seq_length = LENGTH, .vocab_size = TEST_VOCABULARY, .seed = 5, .eod = -1};
    struct data_source both, single[2];
    struct dataset_row row, expected;
    (void)state;

    for (int i = 0; i < 60; i++)
        lengths[i] = 1 + i % 23;
    for (int p = 0; p < 2; p++)
        single[p] = corpus_open(names[p], lengths, 60, p == 1);
    both = open_text(" 3 plain\n1\tchat ");
    assert_int_equal(both.count, 2);
    assert_true(both.parts[0].weight == .75 && both.parts[1].weight == .25);
    assert_true(!both.parts[0].roles && both.parts[1].roles);
    row_create(&row, LENGTH);
    row_create(&expected, LENGTH);
    assert_int_equal(blend_build((const double[]){.75, .25}, 2, SAMPLES, parts, locals), 0);
    for (int packing = 0; packing < 2; packing++) {
        struct dataset *mixed, *apart[2];

        options.packing = packing;
        options.samples[DATASET_TRAIN] = SAMPLES;
        mixed = dataset_of(&both, DATASET_TRAIN, &options);
        assert_int_equal(dataset_samples(mixed), SAMPLES);
        for (int p = 0; p < 2; p++) {
            options.samples[DATASET_TRAIN] = blend_share(SAMPLES, p ? .25 : .75);
            apart[p] = dataset_of(&single[p], DATASET_TRAIN, &options);
        }
        for (int i = 0; i < SAMPLES; i++) {
            row_read(&row, mixed, i);
            row_read(&expected, apart[parts[i]], locals[i]);
            assert_memory_equal(row.tokens, expected.tokens, LENGTH * sizeof(int32_t));
            assert_memory_equal(row.targets, expected.targets, LENGTH * sizeof(int32_t));
            assert_memory_equal(row.weights, expected.weights, LENGTH * sizeof(float));
            assert_int_equal(row.start_count, expected.start_count);
        }
        dataset_close(mixed);
        dataset_close(apart[0]);
        dataset_close(apart[1]);
    }
    row_destroy(&row);
    row_destroy(&expected);
    data_source_close(&both);
    data_source_close(&single[0]);
    data_source_close(&single[1]);
}

/* A part with nothing for a set is left out of it; the others share its weight. */
static void test_mixture_without_a_part(void **state)
{
    static int32_t lengths[50];
    struct dataset_options options = {.seq_length = 8,
                                      .vocab_size = TEST_VOCABULARY,
                                      .seed = 1234,
                                      .split = "90,10",
                                      .samples = {40, 40, 0},
                                      .eod = -1};
    struct data_source mixture, large, small;
    struct dataset *dataset, *alone;
    struct error error = {0};
    (void)state;

    for (int i = 0; i < 50; i++)
        lengths[i] = 20;
    large = corpus_open("large", lengths, 50, false);
    small = corpus_open("small", lengths, 3, false); /* 2.7 and 0.3 are rounded to 3 and 0 */
    mixture = open_text("1 large 1 small");
    dataset = dataset_of(&mixture, DATASET_VALID, &options);
    alone = dataset_of(&large, DATASET_VALID, &options);
    assert_true(dataset_digest(dataset, 8) == dataset_digest(alone, 8));
    dataset_close(dataset);
    dataset_close(alone);
    data_source_close(&mixture);
    mixture = open_text("1 small 2 small");
    assert_int_equal(dataset_open(&dataset, &mixture, DATASET_VALID, &options, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, "no part of the mixture has documents for validation"));
    options.nonempty_splits = true;
    dataset = dataset_of(&mixture, DATASET_VALID, &options);
    dataset_close(dataset);
    data_source_close(&mixture);
    data_source_close(&large);
    data_source_close(&small);
}

/* More parts than Megatron's 254: each gets its share. */
static void test_many_parts(void **state)
{
    enum { PARTS = 300 };
    static const int32_t lengths[] = {50, 50};
    static char text[PARTS * 16];
    struct dataset_options options = {
        .seq_length = 8, .vocab_size = TEST_VOCABULARY, .samples = {2 * PARTS}, .eod = -1};
    struct data_source source;
    struct dataset *dataset;
    (void)state;

    corpus_write("one", lengths, 2, false);
    for (int i = 0; i < PARTS; i++)
        strcat(text, "1 one ");
    source = open_text(text);
    assert_int_equal(source.count, PARTS);
    dataset = dataset_of(&source, DATASET_TRAIN, &options);
    assert_int_equal(dataset_samples(dataset), 2 * PARTS);
    assert_true(dataset_digest(dataset, 8) != 0); /* all can be read */
    dataset_close(dataset);
    data_source_close(&source);
}

static void test_source(void **state)
{
    static const char *const refused[] = {" ",         "1 ",        "x plain",
                                          "0 plain",   "-1 plain",  "nan plain",
                                          "1 plain 2", "inf plain", "1e19 plain"};
    static const int32_t lengths[] = {4};
    struct data_source source;
    struct error error = {0};
    (void)state;

    corpus_write("plain", lengths, 1, false);
    corpus_write("2 words", lengths, 1, false);
    corpus_write("words", lengths, 1, true);
    source = open_text("2 words"); /* a name, not a weight */
    assert_string_equal(token_file_prefix(source.parts[0].tokens), "2 words");
    assert_null(source.parts[0].roles);
    data_source_close(&source);
    source = open_text("2 words 2 plain");
    assert_int_equal(source.count, 2);
    assert_non_null(source.parts[0].roles);
    data_source_close(&source);
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        error.status = 0;
        assert_int_equal(data_source_open(&source, refused[i], &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_USAGE);
        assert_int_equal(source.count, 0);
    }
    assert_int_equal(data_source_open(&source, "1 plain 1 missing", &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_IO);
    assert_non_null(strstr(error.text, "missing"));
    data_source_close(&source);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_source),     cmocka_unit_test(test_blend),
        cmocka_unit_test(test_mixture),    cmocka_unit_test(test_mixture_without_a_part),
        cmocka_unit_test(test_many_parts),
    };

    log_set_enabled(false); /* warnings of parts that are left out */
    return cmocka_run_group_tests(tests, test_directory_enter, test_directory_leave);
}
