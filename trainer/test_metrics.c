/* Guards: metrics.jsonl is valid JSON line by line, whatever the values and whatever becomes of the
 * disk; numbers read back as they were; a resumed run loses exactly the lines that it will write
 * again; the console line keeps Megatron's words; an interval reduces as the table says;
 * outlier scores are those of the formula, and a resumed run has those of one that never stopped.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "trainer/metrics.h"

static struct metrics *open_metrics(const char *path, int64_t resume_step)
{
    static const char *const again[] = {"valid", NULL};
    struct metrics *metrics;
    struct error error = {0};

    if (metrics_open(&metrics, path, &(struct metrics_resume){resume_step, again}, &error) < 0)
        fail_msg("%s", error.text);
    return metrics;
}

static void write_file(const char *path, const char *text)
{
    FILE *stream = fopen(path, "w");

    assert_non_null(stream);
    assert_true(fputs(text, stream) >= 0);
    assert_int_equal(fclose(stream), 0);
}

static void check_file(const char *path, const char *expected)
{
    char text[4096];
    FILE *stream = fopen(path, "r");
    size_t length;

    assert_non_null(stream);
    length = fread(text, 1, sizeof(text) - 1, stream);
    text[length] = '\0';
    fclose(stream);
    assert_string_equal(text, expected);
}

static void write_step(struct metrics *metrics, int64_t step)
{
    struct metrics_row row = {0};

    metrics_set(&row, METRIC_STEP, (double)step);
    metrics_write(metrics, &row);
}

/* Every number that is printed in full comes back as the same number; what JSON has not is null. */
static void test_numbers(void **state)
{
    static const double values[] = {0,
                                    0.1,
                                    3e-4,
                                    1.0 / 3,
                                    9.9999999999999995e-7,
                                    1e300,
                                    5e-324,
                                    -2.5,
                                    0.1f,
                                    10.825317382812499,
                                    INFINITY,
                                    NAN,
                                    123456789,
                                    9007199254740991};
    (void)state;

    for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++) {
        struct metrics_row row = {.eval = "valid"};
        char text[4096];
        json_t *object, *loss;

        for (int id = 0; id < METRIC_COUNT; id++)
            metrics_set(&row, (enum metric_id)id, values[i]);
        assert_true(metrics_json_size(&row) <= sizeof(text));
        metrics_format_json(&row, text, metrics_json_size(&row));
        object = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
        if (!object)
            fail_msg("not JSON: %s", text);
        assert_int_equal(json_object_size(object), METRIC_COUNT + 1);
        loss = json_object_get(object, "loss");
        if (isfinite(values[i]))
            assert_true(json_number_value(loss) == values[i]);
        else
            assert_true(json_is_null(loss));
        assert_string_equal(json_string_value(json_object_get(object, "eval")), "valid");
        json_decref(object);
    }
}

static void test_line(void **state)
{
    struct metrics *metrics;
    struct metrics_row row = {0};
    (void)state;

    unlink("line.jsonl");
    metrics = open_metrics("line.jsonl", 0);
    metrics_set(&row, METRIC_STEP, 7);
    metrics_set(&row, METRIC_LOSS, 2.5);
    metrics_set(&row, METRIC_LR, 3e-4);
    metrics_set(&row, METRIC_TOKENS, 15e12);
    metrics_set(&row, METRIC_TIME, 1700000000.1234);
    metrics_write(metrics, &row);
    row = (struct metrics_row){.eval = "valid"};
    metrics_set(&row, METRIC_STEP, 7);
    metrics_set(&row, METRIC_LOSS, 0);
    metrics_set(&row, METRIC_PERPLEXITY, 1);
    metrics_write(metrics, &row);
    assert_int_equal(metrics_lost(metrics), 0);
    metrics_close(metrics);
    check_file("line.jsonl", "{\"step\":7,\"loss\":2.5,\"lr\":0.0003,\"tokens\":15000000000000,"
                             "\"time\":1700000000.123}\n"
                             "{\"eval\":\"valid\",\"step\":7,\"loss\":0,\"perplexity\":1}\n");
    metrics_close(NULL);
}

/* Killed in the middle of the line of step 5; the newest checkpoint is of step 3, of which there is
 * an evaluation that is not made again. */
static void test_resume(void **state)
{
    struct metrics *metrics;
    struct stat before, after;
    (void)state;

    write_file("resume.jsonl", "{\"step\":1}\n{\"eval\":\"valid\",\"step\":1}\n{\"step\":3}\n"
                               "{\"eval\":\"valid\",\"step\":3}\n"
                               "{\"eval\":\"test\",\"step\":3}\n"
                               "{\"step\":4}\nnonsense\n{\"loss\":1}\n{\"step\":2.5}\n{\"step\":");
    metrics = open_metrics("resume.jsonl", 3);
    write_step(metrics, 4);
    metrics_close(metrics);
    check_file("resume.jsonl", "{\"step\":1}\n{\"eval\":\"valid\",\"step\":1}\n{\"step\":3}\n"
                               "{\"eval\":\"test\",\"step\":3}\n{\"step\":4}\n");
    assert_int_not_equal(access("resume.jsonl.tmp", F_OK), 0);
    /* Nothing to drop: the file is not written again. */
    assert_int_equal(stat("resume.jsonl", &before), 0);
    metrics_close(open_metrics("resume.jsonl", 4));
    assert_int_equal(stat("resume.jsonl", &after), 0);
    assert_true(before.st_ino == after.st_ino);
    /* A whole last line that only lacks its end was torn too. */
    write_file("torn.jsonl", "{\"step\":1}\n{\"step\":2}");
    metrics = open_metrics("torn.jsonl", 2);
    metrics_close(metrics);
    check_file("torn.jsonl", "{\"step\":1}\n");
    /* From the beginning. */
    metrics_close(open_metrics("resume.jsonl", 0));
    check_file("resume.jsonl", "");
}

static void test_unwritable(void **state)
{
    static const char *const paths[] = {"absent/metrics.jsonl", "directory.jsonl"};
    (void)state;

    mkdir("directory.jsonl", 0777);
    for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++) {
        struct metrics *metrics;
        struct error error = {0};

        assert_int_equal(metrics_open(&metrics, paths[i], &(struct metrics_resume){0}, &error), -1);
        assert_null(metrics);
        assert_int_equal(error.status, EXIT_STATUS_IO);
        assert_non_null(strstr(error.text, paths[i]));
    }
}

/* No room at all, then room for part of a line only: lines are lost whole, and counted. */
static void test_full_disk(void **state)
{
    struct metrics *metrics = open_metrics("/dev/full", 0);
    struct rlimit limit, old;
    (void)state;

    for (int step = 1; step <= 3; step++)
        write_step(metrics, step);
    assert_int_equal(metrics_lost(metrics), 3);
    metrics_close(metrics);

    unlink("limited.jsonl");
    metrics = open_metrics("limited.jsonl", 0);
    write_step(metrics, 1);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = 15; /* a line has 11 */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    write_step(metrics, 2);
    write_step(metrics, 3);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    write_step(metrics, 4);
    assert_int_equal(metrics_lost(metrics), 2);
    metrics_close(metrics);
    check_file("limited.jsonl", "{\"step\":1}\n{\"step\":4}\n");
}

static void test_console(void **state)
{
    struct metrics_row row = {0};
    char text[1024];
    (void)state;

    metrics_set(&row, METRIC_STEP, 5);
    metrics_set(&row, METRIC_SAMPLES, 40);
    metrics_set(&row, METRIC_STEP_S, 0.0123);
    metrics_set(&row, METRIC_TOKENS_PER_S, 83333.333);
    metrics_set(&row, METRIC_LR, 3e-4);
    metrics_set(&row, METRIC_LOSS, 10.5);
    metrics_set(&row, METRIC_GRAD_NORM, 1.25);
    metrics_set(&row, METRIC_BATCH_SIZE, 8);
    metrics_set(&row, METRIC_LOSS_SCALE, 65536);
    metrics_set(&row, METRIC_SKIPPED, 0);
    metrics_set(&row, METRIC_NONFINITE, 2);
    metrics_set(&row, METRIC_MFU, 0.4123);
    metrics_set(&row, METRIC_ETA_S, 11520);
    metrics_set(&row, METRIC_TIME, 1);
    metrics_format_console(&row, 100, text, sizeof(text));
    assert_string_equal(
        text, " iteration        5/     100 | consumed samples:           40 |"
              " elapsed time per iteration (ms): 12.3 | rate (tokens/sec): 83333.33 | MFU: 41.2% |"
              " learning rate: 3.000E-04 | global batch size:     8 |"
              " lm loss: 1.050000E+01 | loss scale: 65536.0 | grad norm: 1.250 |"
              " number of skipped iterations:   0 |"
              " number of nan iterations:   2 | time left: 3h12m |");
    row.eval = "valid";
    metrics_set(&row, METRIC_PERPLEXITY, exp(10.5));
    metrics_format_console(&row, 100, text, sizeof(text));
    assert_string_equal(text, " validation loss at iteration 5 | lm loss value: 1.050000E+01 |"
                              " lm loss PPL: 3.631550E+04 |");
    row.eval = "code";
    metrics_set(&row, METRIC_ACCURACY, 0.5);
    metrics_set(&row, METRIC_INSTRUCT_ACCURACY, 0.25);
    metrics_set(&row, METRIC_COUNT_LOSS_MASK, 7);
    metrics_set(&row, METRIC_COUNT_INSTRUCT_MASK, 3);
    metrics_format_console(&row, 100, text, sizeof(text));
    assert_string_equal(text, " validation loss at iteration 5 | set: code |"
                              " lm loss value: 1.050000E+01 | lm loss PPL: 3.631550E+04 |"
                              " lm accuracy value: 5.000000E-01 |"
                              " instruct accuracy value: 2.500000E-01 |"
                              " count loss mask value: 7.000000E+00 |"
                              " count instruct mask value: 3.000000E+00 |");
    /* A NaN has no sign, whatever it came from. */
    row = (struct metrics_row){.eval = "valid"};
    metrics_set(&row, METRIC_STEP, 5);
    metrics_set(&row, METRIC_LOSS, copysign(NAN, -1));
    metrics_format_console(&row, 100, text, sizeof(text));
    assert_string_equal(text, " validation loss at iteration 5 | lm loss value: NAN |");
    metrics_format_console(&row, 100, text, 20);
    assert_string_equal(text, " validation loss at");
}

/* Three steps of 1, 1 and 2 seconds with 100 tokens each; the second was skipped. */
static void test_interval(void **state)
{
    static const double loss[] = {4, NAN, 2}, seconds[] = {1, 1, 2};
    struct metrics_interval interval = {0};
    struct metrics_row row;
    (void)state;

    for (int i = 0; i < 3; i++) {
        row = (struct metrics_row){0};
        metrics_set(&row, METRIC_STEP, i + 1);
        metrics_set(&row, METRIC_LOSS, loss[i]);
        metrics_set(&row, METRIC_STEP_S, seconds[i]);
        metrics_set(&row, METRIC_TOKENS_PER_S, 100 / seconds[i]);
        metrics_set(&row, METRIC_TOKENS, 100 * (i + 1));
        metrics_interval_add(&interval, &row);
    }
    assert_int_equal(interval.steps, 3);
    metrics_interval_take(&interval, &row);
    assert_int_equal(interval.steps, 0);
    assert_true(row.values[METRIC_STEP] == 3);
    assert_true(row.values[METRIC_LOSS] == 3);
    assert_true(fabs(row.values[METRIC_STEP_S] - 4.0 / 3) < 1e-12);
    assert_true(row.values[METRIC_TOKENS_PER_S] == 75);
    assert_true(row.values[METRIC_TOKENS] == 300);
    assert_false(row.present[METRIC_MFU]);
    /* Nothing but skipped steps has no mean. */
    row = (struct metrics_row){0};
    metrics_set(&row, METRIC_LOSS, NAN);
    metrics_interval_add(&interval, &row);
    metrics_interval_take(&interval, &row);
    assert_true(row.present[METRIC_LOSS] && isnan(row.values[METRIC_LOSS]));
}

/* Names of any kind, and as many as there are. */
static void test_datasets(void **state)
{
    enum { COUNT = 300 };
    struct metrics_dataset datasets[COUNT];
    struct metrics_row row = {.datasets = datasets, .dataset_count = COUNT};
    struct metrics *metrics;
    char names[COUNT][32], line[COUNT * 128];
    json_t *object, *last;
    FILE *stream;
    (void)state;

    for (int i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof(names[i]), "a \"b\"\\\n\x01/%d", i);
        datasets[i] = (struct metrics_dataset){names[i], 1e12 + i, 0.25 * i};
    }
    snprintf(names[0], sizeof(names[0]), "no UTF-8: \xc3(\xff");
    unlink("datasets.jsonl");
    metrics = open_metrics("datasets.jsonl", 0);
    metrics_set(&row, METRIC_STEP, 1);
    metrics_write(metrics, &row);
    metrics_close(metrics);
    stream = fopen("datasets.jsonl", "r");
    assert_non_null(stream);
    assert_non_null(fgets(line, sizeof(line), stream));
    assert_null(fgets(names[1], sizeof(names[1]), stream));
    fclose(stream);
    object = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(object);
    assert_int_equal(json_object_size(json_object_get(object, "datasets")), COUNT);
    assert_non_null(json_object_get(json_object_get(object, "datasets"), "no UTF-8: ?(?"));
    last = json_object_get(json_object_get(object, "datasets"), names[COUNT - 1]);
    assert_int_equal(json_integer_value(json_object_get(last, "tokens")), 1000000000299);
    assert_true(json_number_value(json_object_get(last, "epochs")) == 74.75);
    json_decref(object);
}

static void test_duration(void **state)
{
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {{0.4, "0s"},       {59.4, "59s"},    {59.6, "1m00s"},
                 {3599, "59m59s"},  {3600, "1h00m"},  {11539, "3h12m"},
                 {86399, "23h59m"}, {93600, "1d02h"}, {INFINITY, "11574074d01h"}};
    char text[32];
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        metrics_format_duration(cases[i].seconds, text, sizeof(text));
        assert_string_equal(text, cases[i].text);
    }
}

/* Against the plain formulas, first of all values, later exponentially weighted. */
static void test_outlier(void **state)
{
    struct outlier outlier = {0};
    double values[OUTLIER_WINDOW], sum = 0, squares = 0, mean, variance;
    (void)state;

    for (int i = 0; i < OUTLIER_WINDOW; i++) {
        values[i] = 3 + sin(i * 1.7);
        assert_true(isnan(outlier_score(&outlier, 1)) == (i < OUTLIER_LEAST));
        outlier_add(&outlier, values[i]);
        outlier_add(&outlier, NAN);
        outlier_add(&outlier, INFINITY);
        sum += values[i];
    }
    mean = sum / OUTLIER_WINDOW;
    for (int i = 0; i < OUTLIER_WINDOW; i++)
        squares += (values[i] - mean) * (values[i] - mean);
    variance = squares / OUTLIER_WINDOW;
    assert_int_equal(outlier.count, OUTLIER_WINDOW);
    assert_true(fabs(outlier_score(&outlier, mean + 5 * sqrt(variance)) - 5) < 1e-9);
    assert_true(isnan(outlier_score(&outlier, NAN)));
    /* One more weighs 1/128. */
    outlier_add(&outlier, mean + 12.8);
    assert_true(fabs(outlier.mean - (mean + 0.1)) < 1e-9);
    variance = variance * 127 / 128 + 12.7 * 12.7 / 128 + 0.1 * 0.1 * 127 / 128;
    assert_true(fabs(outlier.variance - variance) < 1e-9);
    /* All alike: there is nothing to measure by. */
    outlier = (struct outlier){0};
    for (int i = 0; i < 2 * OUTLIER_WINDOW; i++)
        outlier_add(&outlier, 2.5);
    assert_true(isnan(outlier_score(&outlier, 3)));
}

/* What a file tells is what the steps that stay in it told when they were made. */
static void test_past(void **state)
{
    struct metrics_past made = {0};
    struct metrics *metrics;
    (void)state;

    unlink("past.jsonl");
    metrics = open_metrics("past.jsonl", 0);
    assert_int_equal(metrics_past(metrics)->loss.count, 0);
    for (int step = 1; step <= 50; step++) {
        struct metrics_row row = {0};
        double loss = step == 20 ? NAN : 1 / (3.0 + step),
               norm = step == 20 ? INFINITY : 0.1 * step;

        metrics_set(&row, METRIC_STEP, step);
        metrics_set(&row, METRIC_LOSS, loss);
        metrics_set(&row, METRIC_GRAD_NORM, norm);
        metrics_set(&row, METRIC_NONFINITE, step >= 20);
        metrics_write(metrics, &row);
        row.eval = "valid";
        metrics_set(&row, METRIC_LOSS, 100);
        metrics_write(metrics, &row);
        if (step <= 40) {
            outlier_add(&made.loss, loss);
            outlier_add(&made.grad_norm, norm);
        }
    }
    metrics_close(metrics);
    made.nonfinite = 1;
    metrics = open_metrics("past.jsonl", 40);
    assert_int_equal(made.loss.count, 39);
    assert_memory_equal(metrics_past(metrics), &made, sizeof(made));
    metrics_close(metrics);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),   cmocka_unit_test(test_line),
        cmocka_unit_test(test_resume),    cmocka_unit_test(test_unwritable),
        cmocka_unit_test(test_full_disk), cmocka_unit_test(test_console),
        cmocka_unit_test(test_interval),  cmocka_unit_test(test_datasets),
        cmocka_unit_test(test_duration),  cmocka_unit_test(test_outlier),
        cmocka_unit_test(test_past),
    };
    char directory[] = "/tmp/mtllm-test-metrics-XXXXXX", command[64];
    int failed;

    if (!mkdtemp(directory) || chdir(directory) != 0)
        return 99;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof(command), "rm -r %s", directory);
    return system(command) == 0 ? failed : 99;
}
