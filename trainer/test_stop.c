/* Guards: real signals set the flag once and nothing else, whatever comes again; SIGUSR1 is left
 * alone; the time limit counts from the end less the margin; a second Ctrl-C ends the process.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "trainer/stop.h"

/* At most ten seconds, in steps of a millisecond. */
static enum stop_reason wait_for_reason(const struct stop *stop)
{
    static const struct timespec pause = {.tv_nsec = 1000000};

    for (int i = 0; i < 10000 && stop_requested(stop) == STOP_NONE; i++)
        nanosleep(&pause, NULL);
    return stop_requested(stop);
}

/* Without what an earlier test left pending. */
static struct stop *open_stop(void)
{
    static const struct timespec none = {0};
    sigset_t signals;
    struct error error = {0};
    struct stop *stop;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGUSR2);
    sigaddset(&signals, SIGINT);
    assert_int_equal(sigprocmask(SIG_BLOCK, &signals, NULL), 0);
    while (sigtimedwait(&signals, NULL, &none) > 0)
        continue;
    if (stop_open(&stop, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(stop_requested(stop), STOP_NONE);
    return stop;
}

static void *sleep_for_ever(void *user)
{
    (void)user;
    for (;;)
        pause();
    return NULL;
}

/* As libraries do that start threads before main(): most of the time such a thread gets it. */
static void test_signals_of_other_threads(void **state)
{
    enum { THREADS = 8 };
    sigset_t signals, before;
    struct stop *stop;
    (void)state;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    assert_int_equal(pthread_sigmask(SIG_UNBLOCK, &signals, &before), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_t thread;

        assert_int_equal(pthread_create(&thread, NULL, sleep_for_ever, NULL), 0);
        assert_int_equal(pthread_detach(thread), 0);
    }
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
    stop = open_stop();
    assert_int_equal(kill(getpid(), SIGTERM), 0);
    assert_int_equal(wait_for_reason(stop), STOP_SIGTERM);
    stop_close(stop);
}

static void test_signals(void **state)
{
    static const struct {
        int number;
        enum stop_reason reason;
    } cases[] = {{SIGTERM, STOP_SIGTERM}, {SIGUSR2, STOP_SIGUSR2}, {SIGINT, STOP_SIGINT}};
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct stop *stop = open_stop();

        assert_int_equal(kill(getpid(), cases[i].number), 0);
        assert_int_equal(wait_for_reason(stop), cases[i].reason);
        stop_close(stop);
    }
    stop_close(NULL);
}

/* The first reason stays; a later signal neither changes it nor ends the process. */
static void test_repeated(void **state)
{
    struct stop *stop = open_stop();
    struct error error = {0};
    (void)state;

    kill(getpid(), SIGUSR2);
    assert_int_equal(wait_for_reason(stop), STOP_SIGUSR2);
    for (int i = 0; i < 100; i++)
        kill(getpid(), i % 2 ? SIGTERM : SIGUSR2);
    stop_set_time_limit(stop, 1, 0);
    assert_int_equal(stop_requested(stop), STOP_SIGUSR2);
    stop_close(stop);
    /* A late one waits, blocked, behind the process's end. */
    kill(getpid(), SIGTERM);
    if (stop_open(&stop, &error) < 0)
        fail_msg("%s", error.text);
    assert_true(wait_for_reason(stop) != STOP_NONE);
    stop_close(stop);
}

static void test_time_limit(void **state)
{
    struct stop *stop = open_stop();
    int64_t now = (int64_t)time(NULL);
    (void)state;

    stop_set_time_limit(stop, 0, 100);
    assert_int_equal(stop_requested(stop), STOP_NONE);
    stop_set_time_limit(stop, now + 1000, 100);
    assert_int_equal(stop_requested(stop), STOP_NONE);
    stop_set_time_limit(stop, now + 1000, 1000);
    assert_int_equal(stop_requested(stop), STOP_TIME_LIMIT);
    stop_set_time_limit(stop, now + 1000, 5000);
    assert_int_equal(stop_requested(stop), STOP_TIME_LIMIT);
    stop_set_time_limit(stop, 10, 100);
    assert_int_equal(stop_requested(stop), STOP_TIME_LIMIT);
    /* It comes by itself, while we wait. */
    stop_set_time_limit(stop, (int64_t)time(NULL) + 2, 1);
    assert_int_equal(wait_for_reason(stop), STOP_TIME_LIMIT);
    stop_close(stop);
}

/* What becomes of a child that sends itself these signals, each after the other was taken. */
static int fate_of_child(int first, int second)
{
    pid_t child = fork();
    int status;

    if (child == 0) {
        struct error error;
        struct stop *stop;

        if (stop_open(&stop, &error) < 0)
            _exit(1);
        kill(getpid(), first);
        if (wait_for_reason(stop) == STOP_NONE)
            _exit(2);
        kill(getpid(), second);
        if (second == SIGINT)
            sleep(10);
        _exit(0);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void test_second_interrupt(void **state)
{
    int status = fate_of_child(SIGINT, SIGINT);
    (void)state;

    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    status = fate_of_child(SIGTERM, SIGTERM);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    status = fate_of_child(SIGTERM, SIGUSR1);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1);
}

static void test_end_time(void **state)
{
    struct settings *settings = settings_create();
    struct error error = {0};
    (void)state;

    unsetenv("SLURM_JOB_END_TIME");
    assert_int_equal(stop_job_end_time(settings), 0);
    setenv("SLURM_JOB_END_TIME", "soon", 1);
    assert_int_equal(stop_job_end_time(settings), 0);
    setenv("SLURM_JOB_END_TIME", "1700000000", 1);
    assert_int_equal(stop_job_end_time(settings), 1700000000);
    assert_int_equal(settings_set(settings, SETTING_JOB_END_TIME, "1800000000",
                                  SETTING_SOURCE_ENVIRONMENT, "MTLLM_JOB_END_TIME",
                                  "MTLLM_JOB_END_TIME", &error),
                     0);
    assert_int_equal(stop_job_end_time(settings), 1800000000);
    settings_destroy(settings);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signals_of_other_threads),
        cmocka_unit_test(test_signals),
        cmocka_unit_test(test_repeated),
        cmocka_unit_test(test_time_limit),
        cmocka_unit_test(test_end_time),
        cmocka_unit_test(test_second_interrupt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
