/* Guards: downsampling loses no extreme, no end and no number that is not finite; an axis covers
 * its values with ticks that are round, ascending, apart and told apart by their labels; whatever a
 * text holds, markup stays markup; metrics.jsonl is read as the trainer leaves it, torn and
 * repeated lines included.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "report/chart.h"
#include "report/downsample.h"
#include "report/history.h"
#include "report/markup.h"
#include "report/ticks.h"

/* Uniform in [0, 1), the same in every run (Knuth's MMIX generator). */
static double uniform(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(*seed >> 11) / 9007199254740992.0;
}

/* --- downsampling ---------------------------------------------------------------------------- */

enum { VALUES = 5000, BUCKETS = 97 };

static void fill_values(double *x, double *y, uint64_t *seed)
{
    double at = floor(1000 * uniform(seed));

    for (size_t i = 0; i < VALUES; i++) {
        double kind = uniform(seed);

        at += 1 + floor(3 * uniform(seed));
        x[i] = at;
        y[i] = kind < 0.01 ? INFINITY : kind < 0.1 ? NAN : 10 * uniform(seed) - 5;
    }
    y[(size_t)(VALUES * uniform(seed))] = 1e6; /* a spike */
}

static void test_downsample(void **state)
{
    static double x[VALUES], y[VALUES];
    struct bucket buckets[BUCKETS];
    uint64_t seed = 1;
    (void)state;

    for (int turn = 0; turn < 50; turn++) {
        size_t i = 0;

        fill_values(x, y, &seed);
        downsample(x, y, VALUES, x[0], x[VALUES - 1], buckets, BUCKETS);
        /* Against the plain way, bucket by bucket. */
        for (size_t b = 0; b < BUCKETS; b++) {
            double least = INFINITY, greatest = -INFINITY, first = NAN, last = NAN, sum = 0;
            size_t count = 0, lost = 0;

            for (; i < VALUES && bucket_index(x[i], x[0], x[VALUES - 1], BUCKETS) == b; i++) {
                if (isinf(y[i]) && lost++ == 0)
                    assert_true(buckets[b].lost_at == x[i]);
                if (!isfinite(y[i]))
                    continue;
                first = count++ == 0 ? y[i] : first;
                last = y[i];
                least = fmin(least, y[i]);
                greatest = fmax(greatest, y[i]);
                sum += y[i];
            }
            assert_int_equal(buckets[b].count, count);
            assert_int_equal(buckets[b].lost, lost);
            if (count == 0)
                continue;
            assert_true(buckets[b].first == first && buckets[b].last == last);
            assert_true(buckets[b].least == least && buckets[b].greatest == greatest);
            assert_true(fabs(buckets[b].mean - sum / (double)count) <= 1e-9 * fabs(greatest));
        }
        assert_int_equal(i, VALUES); /* buckets follow each other and leave nothing out */
    }
}

static void test_downsample_ends(void **state)
{
    const double x[] = {1, 2, 3}, y[] = {5, NAN, 7};
    struct bucket buckets[4];
    (void)state;

    downsample(x, y, 3, 1, 3, buckets, 4);
    assert_int_equal(buckets[0].count, 1);
    assert_int_equal(buckets[2].count, 0);
    assert_int_equal(buckets[3].count, 1);
    /* What lies outside is left out. */
    downsample(x, y, 3, 1.5, 2.5, buckets, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(buckets[i].count, 0);
}

static void test_smooth(void **state)
{
    enum { COUNT = 200, REACH = 16 };
    double y[COUNT];
    (void)state;

    /* A slope stays what it is, away from the ends. */
    for (size_t i = 0; i < COUNT; i++)
        y[i] = 3 * (double)i - 7;
    for (size_t i = REACH / 4; i < COUNT - REACH / 4; i++)
        assert_true(fabs(smooth(y, COUNT, i, REACH) - y[i]) < 1e-9);
    /* The ends are means, too, and not the last value alone. */
    assert_true(fabs(smooth(y, COUNT, COUNT - 1, REACH) - (y[COUNT - 1] - 6)) < 1e-9);
    assert_true(fabs(smooth(y, COUNT, 0, REACH) - (y[0] + 6)) < 1e-9);
    /* Numbers that are not finite have no part in it. */
    y[100] = INFINITY;
    y[101] = NAN;
    assert_true(isfinite(smooth(y, COUNT, 100, REACH)));
    assert_true(isnan(smooth(y + 100, 2, 0, REACH)));
    assert_true(smooth(y, 1, 0, REACH) == y[0]);
}

/* --- axes ------------------------------------------------------------------------------------ */

static void check_axis(const struct axis *axis, double least, double most)
{
    char text[NUMBER_SIZE], before[NUMBER_SIZE] = "";

    assert_true(axis->least <= least && axis->most >= most && axis->least < axis->most);
    assert_in_range(axis->count, 1, TICKS_MOST);
    for (int i = 0; i < axis->count; i++) {
        double place = axis_place(axis, axis->ticks[i]);

        assert_true(place >= -1e-9 && place <= 1 + 1e-9);
        if (i > 0)
            assert_true(axis->ticks[i] > axis->ticks[i - 1]);
        tick_text(axis, axis->ticks[i], text);
        if (strcmp(text, before) == 0)
            fail_msg("%s twice from %g to %g", text, least, most);
        snprintf(before, sizeof(before), "%s", text);
    }
}

/* A label says where its tick is, to a small part of the way to the next. */
static void check_labels(const struct axis *axis)
{
    char text[NUMBER_SIZE];

    for (int i = 0; i < axis->count; i++) {
        static const struct {
            char letter;
            double factor;
        } letters[] = {{'k', 1e3}, {'M', 1e6}, {'B', 1e9}, {'T', 1e12}};
        char *end;
        double value = strtod(tick_text(axis, axis->ticks[i], text), &end);

        for (size_t k = 0; k < sizeof(letters) / sizeof(*letters); k++)
            if (*end == letters[k].letter)
                value *= letters[k].factor;
        if (!(fabs(value - axis->ticks[i]) <= 0.01 * axis->step + 1e-12 * fabs(value)))
            fail_msg("%s for %.17g, step %g", text, axis->ticks[i], axis->step);
    }
}

static void test_linear_axis(void **state)
{
    uint64_t seed = 2;
    (void)state;

    for (int turn = 0; turn < 20000; turn++) {
        double size = pow(10, 18 * uniform(&seed) - 9);
        double least = (2 * uniform(&seed) - 1) * size * (turn % 3 == 0 ? 20 : 1);
        double most = least + size * uniform(&seed) + size * 1e-3;
        struct axis axis = axis_linear(least, most, 4, false, turn % 2);

        check_axis(&axis, least, most);
        check_labels(&axis);
        assert_in_range(axis.count, 2, 9);
    }
}

static void test_whole_axis(void **state)
{
    struct axis axis;
    (void)state;

    for (int most = 1; most < 2000; most++) {
        axis = axis_linear(0, most, 5, true, false);
        check_axis(&axis, 0, most);
        for (int i = 0; i < axis.count; i++)
            assert_true(axis.ticks[i] == floor(axis.ticks[i]));
    }
}

static void test_narrow_axes(void **state)
{
    static const double values[] = {0, 1, -1, 1e-300, 1e300, 3e-4, 12345678, -2.5e-7};
    (void)state;

    for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++) {
        struct axis axis = axis_linear(values[i], values[i], 4, false, true);

        check_axis(&axis, values[i], values[i]);
        if (values[i] > 0) {
            axis = axis_logarithmic(values[i], values[i], 5);
            assert_true(axis.least < values[i] && axis.most > values[i]);
        }
    }
}

static void test_logarithmic_axis(void **state)
{
    uint64_t seed = 3;
    (void)state;

    for (int turn = 0; turn < 20000; turn++) {
        double least = pow(10, 24 * uniform(&seed) - 12);
        double most = least * pow(10, 1 + 12 * uniform(&seed));
        struct axis axis = axis_logarithmic(least, most, 5);

        check_axis(&axis, least, most);
        assert_true(axis_place(&axis, sqrt(least) * sqrt(most)) > 0.499);
        assert_true(axis_place(&axis, sqrt(least) * sqrt(most)) < 0.501);
    }
}

static void test_duration_axis(void **state)
{
    (void)state;

    for (int power = -2; power < 400; power++) {
        struct axis axis = axis_duration(pow(1.06, power), 5);
        char text[NUMBER_SIZE], before[NUMBER_SIZE] = "";

        assert_in_range(axis.count, 2, TICKS_MOST);
        for (int i = 0; i < axis.count; i++) {
            assert_string_not_equal(duration_text(axis.ticks[i], text), before);
            snprintf(before, sizeof(before), "%s", text);
        }
    }
}

static void test_numbers(void **state)
{
    char text[NUMBER_SIZE];
    (void)state;

    assert_string_equal(number_text(2.34567, text), "2.346");
    assert_string_equal(number_text(1234567, text), "1.235M");
    assert_string_equal(number_text(3e-4, text), "3.00e-4");
    assert_string_equal(number_text(0, text), "0");
    assert_string_equal(number_text(-12.5, text), "-12.5");
    assert_string_equal(number_text(INFINITY, text), "not finite");
    assert_string_equal(count_text(1234567, text), "1,234,567");
    assert_string_equal(count_text(-123456, text), "-123,456");
    assert_string_equal(count_text(100, text), "100");
    assert_string_equal(duration_text(3661, text), "1 h 1 min");
    assert_string_equal(duration_text(86400, text), "1 d");
    assert_string_equal(duration_text(119.7, text), "2 min");
    assert_string_equal(duration_text(0.25, text), "0.25 s");
    assert_string_equal(bytes_text(1536, text), "1.5 KiB");
    assert_string_equal(time_text(1700000000, text), "2023-11-14 22:13 UTC");
    assert_string_equal(time_text(1e300, text), "unknown");
}

/* --- markup ---------------------------------------------------------------------------------- */

static char *markup_of(const char *text)
{
    char *markup = NULL;
    size_t size;
    FILE *stream = open_memstream(&markup, &size);

    assert_non_null(stream);
    markup_text(text, stream);
    assert_int_equal(fclose(stream), 0);
    return markup;
}

static void check_markup(const char *text, const char *expected)
{
    char *markup = markup_of(text);

    assert_string_equal(markup, expected);
    free(markup);
}

static void test_markup(void **state)
{
    (void)state;

    check_markup("</title><script>alert('1') & \"2\"</script>",
                 "&lt;/title&gt;&lt;script&gt;alert(&#39;1&#39;) &amp; &quot;2&quot;"
                 "&lt;/script&gt;");
    check_markup("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80",
                 "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80");
    check_markup("\x01\x1b[0m\x7f", "\xef\xbf\xbd\xef\xbf\xbd[0m\xef\xbf\xbd");
    check_markup("\xff", "\xef\xbf\xbd");
    check_markup("\xc3", "\xef\xbf\xbd");                                 /* cut short */
    check_markup("\xc0\xbc", "\xef\xbf\xbd\xef\xbf\xbd");                 /* "<" in two bytes */
    check_markup("\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"); /* a surrogate */
    check_markup("\xef\xbf\xbf", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"); /* U+FFFF */
}

/* Any bytes: nothing that could end a text or an attribute comes through. */
static void test_markup_of_anything(void **state)
{
    uint64_t seed = 4;
    (void)state;

    for (int turn = 0; turn < 20000; turn++) {
        char text[24], *markup;

        for (size_t i = 0; i + 1 < sizeof(text); i++)
            text[i] = (char)(1 + 254 * uniform(&seed));
        text[sizeof(text) - 1] = '\0';
        markup = markup_of(text);
        assert_null(strpbrk(markup, "<>\"'"));
        for (const char *at = markup; (at = strchr(at, '&')); at++)
            assert_true(strncmp(at, "&lt;", 4) == 0 || strncmp(at, "&gt;", 4) == 0 ||
                        strncmp(at, "&amp;", 5) == 0 || strncmp(at, "&quot;", 6) == 0 ||
                        strncmp(at, "&#39;", 5) == 0);
        for (const char *at = markup; *at; at++)
            assert_true((unsigned char)*at >= 0x20 || *at == '\t' || *at == '\n');
        free(markup);
    }
}

/* --- metrics.jsonl --------------------------------------------------------------------------- */

static void read_text(struct history *history, const char *text)
{
    char path[] = "history-XXXXXX";
    int file = mkstemp(path);
    struct error error = {0};

    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), (ssize_t)strlen(text));
    close(file);
    if (history_read(history, path, &error) < 0)
        fail_msg("%s", error.text);
    unlink(path);
}

static void test_history(void **state)
{
    struct history history;
    const struct history_records *training = &history.training;
    const double *loss, *extra;
    (void)state;

    read_text(&history, "{\"step\":1,\"loss\":5.5,\"lr\":1e-3}\n"
                        "{\"step\":2,\"loss\":null,\"lr\":2e-3}\n"
                        "not a record\n"
                        "{\"loss\":1}\n"
                        "{\"eval\":\"valid\",\"step\":2,\"loss\":4.5}\n"
                        "{\"step\":3,\"lr\":3e-3,\"extra\":7,\"note\":\"text\","
                        "\"datasets\":{\"a\":{\"epochs\":0.5},\"b\":{\"epochs\":2}}}\n"
                        "{\"step\":2,\"loss\":4.25}\n"
                        "{\"eval\":\"code\",\"step\":3,\"loss\":4}\n"
                        "{\"step\":4,\"loss\":3,\"l");
    assert_int_equal(history.lines, 9);
    assert_int_equal(history.broken, 2);
    assert_int_equal(history.first_broken, 3);
    assert_true(history.unfinished);
    assert_int_equal(training->count, 3);
    for (int i = 0; i < 3; i++)
        assert_true(training->steps[i] == i + 1);
    loss = history_find(training, "loss");
    extra = history_find(training, "extra");
    /* The last record of step 2 counts, and all of it. */
    assert_true(loss[0] == 5.5 && loss[1] == 4.25 && isnan(loss[2]));
    assert_true(isnan(history_find(training, "lr")[1]));
    assert_true(isnan(extra[0]) && isnan(extra[1]) && extra[2] == 7);
    assert_true(history_find(training, "datasets/a/epochs")[2] == 0.5);
    assert_true(history_find(training, "datasets/b/epochs")[2] == 2);
    assert_null(history_find(training, "note"));
    assert_null(history_find(training, "step"));
    assert_int_equal(history.set_count, 2);
    assert_string_equal(history.sets[0].set, "valid");
    assert_true(history_find(&history.sets[1], "loss")[0] == 4);
    history_free(&history);
}

static void test_history_of_null(void **state)
{
    struct history history;
    (void)state;

    read_text(&history, "{\"step\":1,\"loss\":null}\n{\"step\":2,\"loss\":1}");
    assert_true(isinf(history_find(&history.training, "loss")[0]));
    /* Whole, if without its end. */
    assert_int_equal(history.training.count, 2);
    assert_int_equal(history.broken, 0);
    history_free(&history);
}

static void test_history_of_nothing(void **state)
{
    struct history history;
    struct error error = {0};
    (void)state;

    read_text(&history, "");
    assert_int_equal(history.training.count, 0);
    assert_int_equal(history.lines, 0);
    history_free(&history);
    assert_int_equal(history_read(&history, "no-such-file", &error), 0);
    history_free(&history);
    assert_int_equal(history_read(&history, ".", &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_IO);
}

/* Steps in any order and number of times against a plain table. */
static void test_history_of_repeats(void **state)
{
    enum { STEPS = 50, LINES = 400 };
    uint64_t seed = 5;
    (void)state;

    for (int turn = 0; turn < 20; turn++) {
        double expected[STEPS];
        char text[LINES * 64];
        size_t used = 0, record = 0;
        struct history history;

        for (int i = 0; i < STEPS; i++)
            expected[i] = -1;
        for (int i = 0; i < LINES / (1 + turn); i++) {
            int step = (int)(STEPS * uniform(&seed));

            expected[step] = i;
            used += (size_t)snprintf(text + used, sizeof(text) - used,
                                     "{\"step\":%d,\"loss\":%d}\n", step, i);
        }
        read_text(&history, text);
        for (int i = 0; i < STEPS; i++) {
            if (expected[i] < 0)
                continue;
            assert_true(history.training.steps[record] == i);
            assert_true(history_find(&history.training, "loss")[record++] == expected[i]);
        }
        assert_int_equal(record, history.training.count);
        history_free(&history);
    }
}

/* --- charts ---------------------------------------------------------------------------------- */

/* A spike of one step among 100,000 reaches the height that it has. */
static void test_spike_stays(void **state)
{
    enum { COUNT = 100000 };
    static double x[COUNT], y[COUNT];
    struct chart_line line = {.label = "loss", .x = x, .y = y, .count = COUNT};
    struct chart chart = {.name = "loss",
                          .title = "Loss",
                          .unit = "",
                          .factor = 1,
                          .zero = true,
                          .lines = &line,
                          .line_count = 1};
    struct error error = {0};
    char *svg = NULL, *path;
    size_t size;
    long height = 0, least;
    FILE *stream = open_memstream(&svg, &size);
    (void)state;

    for (size_t i = 0; i < COUNT; i++) {
        x[i] = (double)i + 1;
        y[i] = 1;
    }
    y[61803] = 8; /* the axis goes from 0 to 8, the plot is 240 pixels high */
    assert_int_equal(chart_write_svg(&chart, stream, &error), 0);
    assert_int_equal(fclose(stream), 0);
    path = strstr(svg, "<path class=\"line s0\" d=\"M");
    assert_non_null(path);
    path = strchr(path, ' ');
    path = strstr(path, "d=\"M") + 4;
    strtod(path, &path);
    least = height = strtol(path, &path, 10);
    assert_int_equal(height, 2100); /* in tenths: 7 / 8 of the height from the top */
    /* All that follows are relative moves h, v and l. */
    while (*path != '"') {
        char move = *path++;

        if (move == 'h' || move == 'l')
            strtod(path, &path);
        if (move == 'v' || move == 'l')
            height += strtol(path, &path, 10);
        least = height < least ? height : least;
    }
    assert_int_equal(least, 0);
    assert_int_equal(height, 2100);
    free(svg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_downsample),
        cmocka_unit_test(test_downsample_ends),
        cmocka_unit_test(test_smooth),
        cmocka_unit_test(test_linear_axis),
        cmocka_unit_test(test_whole_axis),
        cmocka_unit_test(test_narrow_axes),
        cmocka_unit_test(test_logarithmic_axis),
        cmocka_unit_test(test_duration_axis),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_markup),
        cmocka_unit_test(test_markup_of_anything),
        cmocka_unit_test(test_history),
        cmocka_unit_test(test_history_of_null),
        cmocka_unit_test(test_history_of_nothing),
        cmocka_unit_test(test_history_of_repeats),
        cmocka_unit_test(test_spike_stays),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
