/* The job's comment: its text, and how it gets to commands that are scripts here. */
#include "trainer/job_comment.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/clock.h"
#include "core/log.h"

static char directory[] = "/tmp/test_job_comment.XXXXXX";

static struct metrics_row step_row(double step, double loss)
{
    struct metrics_row row = {0};

    metrics_set(&row, METRIC_STEP, step);
    metrics_set(&row, METRIC_LOSS, loss);
    return row;
}

/* --- text ------------------------------------------------------------------------------------- */

static void check_text(const struct metrics_row *row, const char *state, const char *expected)
{
    char text[JOB_COMMENT_BYTES];

    job_comment_format(row, 5000, state, text, sizeof(text));
    assert_string_equal(text, expected);
}

static void test_format(void **state)
{
    struct metrics_row row = step_row(1200, 2.3101);

    (void)state;
    check_text(&row, "", "step 1200/5000 loss 2.31");
    metrics_set(&row, METRIC_ETA_S, 172.2);
    check_text(&row, "", "step 1200/5000 loss 2.31 ETA 2m52s");
    metrics_set(&row, METRIC_MFU, 0.4149);
    metrics_set(&row, METRIC_ETA_S, 11520);
    check_text(&row, "", "step 1200/5000 loss 2.31 41% MFU ETA 3h12m");
    check_text(&row, "done", "done step 1200/5000 loss 2.31 41% MFU");
    check_text(&row, "stopped", "stopped step 1200/5000 loss 2.31 41% MFU");
    row = step_row(3, 0.01234);
    check_text(&row, "", "step 3/5000 loss 0.0123");
    row = step_row(3, NAN);
    check_text(&row, "", "step 3/5000 loss nan");
}

static void check_own(const char *comment, const char *expected)
{
    char own[JOB_COMMENT_BYTES];

    job_comment_own(comment, own, sizeof(own));
    assert_string_equal(own, expected);
}

static void test_own(void **state)
{
    (void)state;
    check_own("", "");
    check_own("step 1200/5000 loss 2.31 41% MFU ETA 3h12m", "");
    check_own("done step 5000/5000 loss 2.31", "");
    check_own("stopped step 7/5000 loss nan", "");
    check_own("project=abc", "project=abc");
    check_own("project=abc | step 1200/5000 loss 2.31", "project=abc");
    check_own("a | b | done step 1/1 loss 2.31", "a | b");
    check_own("step by step", "step by step");
    check_own("step 3/4 of the plan", "step 3/4 of the plan");
}

/* --- commands --------------------------------------------------------------------------------- */

/* A command that is a script: what stands in `body` has $calls and $comment, files. */
static void make_command(const char *name, const char *body)
{
    char path[256];
    FILE *stream;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    stream = fopen(path, "w");
    assert_non_null(stream);
    fprintf(stream, "#!/bin/sh\ncalls=%s/calls comment=%s/comment\n%s\n", directory, directory,
            body);
    assert_int_equal(fclose(stream), 0);
    assert_int_equal(chmod(path, 0755), 0);
}

static const char squeue[] =
    "echo 'squeue: error: retrying' >&2; [ -s $comment ] && cat $comment || echo '(null)'";
static const char scontrol[] = "echo \"$@\" >> $calls; printf '%s\\n' \"${3#Comment=}\" > $comment";

static void begin(const char *comment)
{
    char path[256];
    FILE *stream;

    make_command("squeue", squeue);
    make_command("scontrol", scontrol);
    snprintf(path, sizeof(path), "%s/calls", directory);
    (void)unlink(path);
    snprintf(path, sizeof(path), "%s/comment", directory);
    stream = fopen(path, "w");
    assert_non_null(stream);
    fputs(comment, stream);
    assert_int_equal(fclose(stream), 0);
}

/* The file's text, or "" while there is none. Not for two threads. */
static const char *content(const char *name)
{
    static char text[8192];
    char path[256];
    size_t size = 0;
    FILE *stream;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    stream = fopen(path, "r");
    if (stream) {
        size = fread(text, 1, sizeof(text) - 1, stream);
        (void)fclose(stream);
    }
    text[size] = '\0';
    return text;
}

static void wait_for_text(const char *name, const char *text)
{
    double end_s = clock_now_s(CLOCK_MONOTONIC) + 20;

    while (!strstr(content(name), text)) {
        assert_true(clock_now_s(CLOCK_MONOTONIC) < end_s);
        usleep(10000);
    }
}

static int line_count(const char *text)
{
    int count = 0;

    for (; *text; text++)
        count += *text == '\n';
    return count;
}

static struct job_comment *open_comment(const struct job_comment_times *times)
{
    struct job_comment *comment;
    struct error error = {0};

    assert_int_equal(job_comment_open(&comment, "120_4", 1000, times, &error), 0);
    return comment;
}

static void step(struct job_comment *comment, int number)
{
    struct metrics_row row = step_row(number, 2);

    job_comment_step(comment, &row);
}

/* The first text at once, then nothing until the interval is over, the last one always. */
static void test_interval(void **state)
{
    static const struct job_comment_times times = {3600, 20, 20};
    struct job_comment *comment;

    (void)state;
    begin("");
    comment = open_comment(&times);
    step(comment, 1);
    wait_for_text("calls", "update JobId=120_4 Comment=step 1/1000 loss 2.00\n");
    for (int i = 2; i <= 100; i++)
        step(comment, i);
    usleep(200000);
    assert_int_equal(line_count(content("calls")), 1);
    job_comment_end(comment, "stopped");
    job_comment_close(comment);
    assert_int_equal(line_count(content("calls")), 2);
    assert_string_equal(content("comment"), "stopped step 100/1000 loss 2.00\n");
}

static void test_newest_text_wins(void **state)
{
    static const struct job_comment_times times = {0.05, 20, 20};
    struct job_comment *comment;

    (void)state;
    begin("project=abc | stopped step 6/1000 loss 2.10\n");
    comment = open_comment(&times);
    for (int i = 7; i <= 9; i++) {
        char text[64];

        step(comment, i);
        snprintf(text, sizeof(text), "project=abc | step %d/1000 loss 2.00", i);
        wait_for_text("comment", text);
    }
    job_comment_close(comment);
    /* Only the user's own part was kept of what was there. */
    assert_null(strstr(content("calls"), "2.10"));
}

/* A run that ends before its first step leaves the comment as it was. */
static void test_no_step(void **state)
{
    struct job_comment *comment;

    (void)state;
    begin("mine\n");
    comment = open_comment(&job_comment_times);
    job_comment_end(comment, "done");
    job_comment_close(comment);
    assert_string_equal(content("calls"), "");
    assert_string_equal(content("comment"), "mine\n");
}

/* What the process says on standard error meanwhile goes to a file. */
static int catch_errors(void)
{
    char path[256];
    int saved = dup(2);

    snprintf(path, sizeof(path), "%s/errors", directory);
    assert_non_null(freopen(path, "w", stderr));
    return saved;
}

static void end_catching(int saved)
{
    (void)fflush(stderr);
    assert_int_equal(dup2(saved, 2), 2);
    close(saved);
}

/* Failures: one warning, with what the command said; fewer and fewer attempts. */
static void test_failures(void **state)
{
    static const struct job_comment_times times = {0.05, 20, 20};
    struct job_comment *comment;
    int saved, count;
    double end_s;

    (void)state;
    begin("");
    make_command("scontrol", "echo called >> $calls; echo 'Access denied' >&2; exit 1");
    saved = catch_errors();
    comment = open_comment(&times);
    end_s = clock_now_s(CLOCK_MONOTONIC) + 1.2;
    for (int i = 1; clock_now_s(CLOCK_MONOTONIC) < end_s; i++) {
        step(comment, i);
        usleep(2000);
    }
    job_comment_close(comment);
    end_catching(saved);
    count = line_count(content("calls"));
    assert_in_range(count, 2, 7); /* at 0, 0.1, 0.3, 0.7 s if it is quick; the last at closing */
    assert_int_equal(line_count(content("errors")), 1);
    assert_non_null(strstr(content("errors"), "Access denied"));
    assert_non_null(strstr(content("errors"), "120_4"));
}

static void test_missing_commands(void **state)
{
    static const struct job_comment_times times = {0.05, 20, 20};
    struct job_comment *comment;
    char path[512], before[512];
    int saved;

    (void)state;
    begin("");
    snprintf(path, sizeof(path), "%s/squeue", directory);
    (void)unlink(path);
    snprintf(before, sizeof(before), "%s", getenv("PATH"));
    (void)setenv("PATH", directory, 1); /* there may be a squeue in others */
    saved = catch_errors();
    comment = open_comment(&times);
    step(comment, 1);
    job_comment_end(comment, "done");
    job_comment_close(comment);
    end_catching(saved);
    (void)setenv("PATH", before, 1);
    assert_non_null(strstr(content("errors"), "squeue: No such file"));
    /* Without knowing what the user's comment was, nothing is written over it. */
    assert_string_equal(content("calls"), "");
}

/* A command that hangs holds up nobody who makes steps, and is killed. */
static void test_hanging_command(void **state)
{
    static const struct job_comment_times times = {0.05, 20, 0.5};
    struct job_comment *comment;
    double start_s, longest_s = 0;
    int saved;

    (void)state;
    begin("");
    make_command("scontrol", "echo $$ >> $calls; exec sleep 600");
    saved = catch_errors();
    comment = open_comment(&times);
    step(comment, 1);
    wait_for_text("calls", "\n");
    for (int i = 2; i < 1000; i++) {
        start_s = clock_now_s(CLOCK_MONOTONIC);
        step(comment, i);
        if (clock_now_s(CLOCK_MONOTONIC) - start_s > longest_s)
            longest_s = clock_now_s(CLOCK_MONOTONIC) - start_s;
    }
    start_s = clock_now_s(CLOCK_MONOTONIC);
    job_comment_end(comment, "done");
    job_comment_close(comment);
    end_catching(saved);
    assert_true(longest_s < 5); /* the command may take 20 */
    assert_true(clock_now_s(CLOCK_MONOTONIC) - start_s < 10);
    assert_int_not_equal(kill((pid_t)atoi(content("calls")), 0), 0);
}

/* The user's comment stays, where there is no room for ours. */
static void test_long_comment(void **state)
{
    static const struct job_comment_times times = {0.05, 20, 20};
    char own[JOB_COMMENT_BYTES];
    struct job_comment *comment;
    int saved;

    (void)state;
    memset(own, 'x', sizeof(own) - 10);
    own[sizeof(own) - 10] = '\0';
    begin(own);
    saved = catch_errors();
    comment = open_comment(&times);
    step(comment, 1);
    job_comment_close(comment);
    end_catching(saved);
    assert_string_equal(content("comment"), own);
    assert_non_null(strstr(content("errors"), "no room"));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format),           cmocka_unit_test(test_own),
        cmocka_unit_test(test_interval),         cmocka_unit_test(test_newest_text_wins),
        cmocka_unit_test(test_no_step),          cmocka_unit_test(test_failures),
        cmocka_unit_test(test_missing_commands), cmocka_unit_test(test_hanging_command),
        cmocka_unit_test(test_long_comment),
    };
    char path[512], command[64];
    int result;

    if (!mkdtemp(directory))
        return 1;
    snprintf(path, sizeof(path), "%s:/bin:/usr/bin", directory);
    (void)setenv("PATH", path, 1);
    result = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof(command), "rm -r %s", directory);
    return system(command) == 0 ? result : 1;
}
