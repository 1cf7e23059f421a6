/* The thread that writes the job's comment, and the commands that it runs.
 *
 * What the user gave with sbatch --comment stays in front of ours. It is asked for once, before the
 * first text is written; until it is known nothing is.
 */
#include "trainer/job_comment.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/log.h"

#define SEPARATOR " | " /* between the user's comment and ours */

const struct job_comment_times job_comment_times = {60, 30, 10};

struct job_comment {
    char job[64];
    int64_t steps;
    const struct job_comment_times *times;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* Under the mutex. */
    char text[JOB_COMMENT_BYTES]; /* the newest; "" when it is written */
    bool closing;
    double deadline_s; /* of everything, once closing */
    /* The training loop's. */
    struct metrics_row row; /* of the last step; empty: none so far */
    /* The thread's. */
    char own[JOB_COMMENT_BYTES]; /* of the user */
    bool own_known;
    int failures; /* since the last success */
    bool warned;
};

/* --- text ------------------------------------------------------------------------------------- */

void job_comment_format(const struct metrics_row *row, int64_t steps, const char *state, char *text,
                        size_t size)
{
    double loss = row->values[METRIC_LOSS];
    char mfu[32] = "", eta[48] = "", duration[32];

    if (row->present[METRIC_MFU])
        snprintf(mfu, sizeof(mfu), " %.0f%% MFU", 100 * row->values[METRIC_MFU]);
    if (!*state && row->present[METRIC_ETA_S]) {
        metrics_format_duration(row->values[METRIC_ETA_S], duration, sizeof(duration));
        snprintf(eta, sizeof(eta), " ETA %s", duration);
    }
    snprintf(text, size, "%s%sstep %.0f/%lld loss %.*f%s%s", state, *state ? " " : "",
             row->values[METRIC_STEP], (long long)steps, fabs(loss) < 0.1 ? 4 : 2, loss, mfu, eta);
}

static bool is_ours(const char *text)
{
    long long step, steps;
    int length = 0;

    if (strncmp(text, "done ", 5) == 0)
        text += 5;
    else if (strncmp(text, "stopped ", 8) == 0)
        text += 8;
    return sscanf(text, "step %lld/%lld loss %n", &step, &steps, &length) == 2 && length > 0;
}

void job_comment_own(const char *comment, char *own, size_t size)
{
    const char *end = comment + strlen(comment);

    if (is_ours(comment))
        end = comment;
    for (const char *at = comment; (at = strstr(at, SEPARATOR)); at++) {
        if (is_ours(at + strlen(SEPARATOR))) {
            end = at;
            break;
        }
    }
    snprintf(own, size, "%.*s", (int)(end - comment), comment);
}

/* --- commands --------------------------------------------------------------------------------- */

/* When the command that runs has to be over. */
static double command_deadline(struct job_comment *comment, double start_s)
{
    double deadline_s = start_s + comment->times->command_s;

    pthread_mutex_lock(&comment->mutex);
    if (comment->closing && comment->deadline_s < deadline_s)
        deadline_s = comment->deadline_s;
    pthread_mutex_unlock(&comment->mutex);
    return deadline_s;
}

/* Without this process's descriptors, with the signals that it blocks. */
static int spawn(char *const *arguments, int output, int errors, pid_t *pid)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    int code;

    sigemptyset(&none);
    sigfillset(&all);
    if ((code = posix_spawn_file_actions_init(&files)) != 0)
        return code;
    if ((code = posix_spawnattr_init(&attributes)) != 0) {
        posix_spawn_file_actions_destroy(&files);
        return code;
    }
    if ((code = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0)) == 0 &&
        (code = posix_spawn_file_actions_adddup2(&files, output, 1)) == 0 &&
        (code = posix_spawn_file_actions_adddup2(&files, errors, 2)) == 0 &&
        (code = posix_spawn_file_actions_addclosefrom_np(&files, 3)) == 0 &&
        (code = posix_spawnattr_setsigmask(&attributes, &none)) == 0 &&
        (code = posix_spawnattr_setsigdefault(&attributes, &all)) == 0 &&
        (code = posix_spawnattr_setflags(&attributes,
                                         POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF)) == 0)
        code = posix_spawnp(pid, arguments[0], &files, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    return code;
}

/* What the command writes, as far as there is room, until it ends; true when it ended. */
static bool read_until_end(struct job_comment *comment, int input, pid_t pid, int *status,
                           char *output, size_t size)
{
    double start_s = clock_now_s(CLOCK_MONOTONIC);
    size_t used = 0;
    bool open = true;

    while (clock_now_s(CLOCK_MONOTONIC) < command_deadline(comment, start_s)) {
        /* Looked at once more when it has ended, for what it wrote last. */
        bool ended = waitpid(pid, status, WNOHANG) == pid;
        struct pollfd wanted = {.fd = open ? input : -1, .events = POLLIN};

        while (poll(&wanted, 1, ended || !open ? 0 : 50) > 0) {
            char buffer[512];
            ssize_t count = read(input, buffer, sizeof(buffer));
            size_t kept = count > 0 ? (size_t)count : 0;

            if (count <= 0) {
                open = false;
                break;
            }
            if (kept > size - 1 - used)
                kept = size - 1 - used;
            memcpy(output + used, buffer, kept);
            used += kept;
        }
        output[used] = '\0';
        if (ended)
            return true;
        if (!open)
            (void)poll(NULL, 0, 10);
    }
    return false;
}

/* Returns 0 when it succeeded; what it wrote to standard output, without the newline at its end, or
 * what went wrong, is in `output`. */
static int run_command(struct job_comment *comment, char *const *arguments, char *output,
                       size_t size)
{
    int ends[2], status = 0, code, errors = memfd_create("errors", MFD_CLOEXEC);
    size_t length;
    bool good;
    pid_t pid;

    output[0] = '\0';
    if (errors < 0 || pipe2(ends, O_CLOEXEC) < 0) {
        snprintf(output, size, "%s", strerror(errno));
        if (errors >= 0)
            close(errors);
        return -1;
    }
    code = spawn(arguments, ends[1], errors, &pid);
    close(ends[1]);
    if (code != 0) {
        snprintf(output, size, "%s: %s", arguments[0], strerror(code));
    } else if (!read_until_end(comment, ends[0], pid, &status, output, size)) {
        (void)kill(pid, SIGKILL);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        snprintf(output, size, "%s did not end in time", arguments[0]);
        code = ETIMEDOUT;
    }
    close(ends[0]);
    good = code == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (code == 0 && !good) {
        ssize_t count = pread(errors, output, size - 1, 0);

        output[count > 0 ? count : 0] = '\0';
    }
    close(errors);
    length = strlen(output);
    if (length > 0 && output[length - 1] == '\n')
        output[length - 1] = '\0';
    return good ? 0 : -1;
}

static int learn_own(struct job_comment *comment, char *output, size_t size)
{
    char job[80];
    char *const arguments[] = {"squeue", "--noheader", "--format=%k", job, NULL};

    snprintf(job, sizeof(job), "--jobs=%s", comment->job);
    if (run_command(comment, arguments, output, size) < 0)
        return -1;
    if (strcmp(output, "(null)") == 0)
        output[0] = '\0';
    job_comment_own(output, comment->own, sizeof(comment->own));
    comment->own_known = true;
    return 0;
}

static int write_comment(struct job_comment *comment, const char *text, char *output, size_t size)
{
    char job[80], argument[sizeof("Comment=" SEPARATOR) + 2 * JOB_COMMENT_BYTES];
    char *const arguments[] = {"scontrol", "update", job, argument, NULL};
    bool own;

    if (!comment->own_known && learn_own(comment, output, size) < 0)
        return -1;
    own = comment->own[0];
    if (strlen(comment->own) + strlen(SEPARATOR) + strlen(text) >= JOB_COMMENT_BYTES) {
        snprintf(output, size, "there is no room behind the job's own comment");
        return -1;
    }
    snprintf(job, sizeof(job), "JobId=%s", comment->job);
    snprintf(argument, sizeof(argument), "Comment=%s%s%s", comment->own, own ? SEPARATOR : "",
             text);
    return run_command(comment, arguments, output, size);
}

/* --- the thread ------------------------------------------------------------------------------- */

static void note_result(struct job_comment *comment, int result, const char *output)
{
    if (result == 0) {
        comment->failures = 0;
        return;
    }
    if (comment->failures < 6)
        comment->failures++;
    if (!comment->warned)
        log_warning("the comment of job %s could not be set: %.*s; the run goes on, and tries "
                    "again now and then (--job-comment=no does not)",
                    comment->job, (int)strcspn(output, "\n"), output);
    comment->warned = true;
}

/* Wait, with the mutex, until the time or until closing. */
static void wait_until(struct job_comment *comment, double until_s)
{
    struct timespec until = {.tv_sec = (time_t)until_s};

    until.tv_nsec = (long)((until_s - (double)until.tv_sec) * 1e9);
    while (!comment->closing && clock_now_s(CLOCK_MONOTONIC) < until_s)
        pthread_cond_timedwait(&comment->changed, &comment->mutex, &until);
}

static void *write_comments(void *argument)
{
    struct job_comment *comment = argument;
    char text[JOB_COMMENT_BYTES], output[2 * JOB_COMMENT_BYTES];

    pthread_mutex_lock(&comment->mutex);
    for (;;) {
        double start_s;
        int result;

        while (!comment->closing && !comment->text[0])
            pthread_cond_wait(&comment->changed, &comment->mutex);
        if (!comment->text[0])
            break;
        strcpy(text, comment->text);
        comment->text[0] = '\0';
        pthread_mutex_unlock(&comment->mutex);
        start_s = clock_now_s(CLOCK_MONOTONIC);
        result = write_comment(comment, text, output, sizeof(output));
        note_result(comment, result, output);
        pthread_mutex_lock(&comment->mutex);
        wait_until(comment, start_s + ldexp(comment->times->interval_s, comment->failures));
    }
    pthread_mutex_unlock(&comment->mutex);
    return NULL;
}

int job_comment_open(struct job_comment **result, const char *job, int64_t steps,
                     const struct job_comment_times *times, struct error *error)
{
    struct job_comment *comment = calloc(1, sizeof(*comment));
    pthread_condattr_t monotonic;
    int code;

    *result = NULL;
    if (!comment)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    snprintf(comment->job, sizeof(comment->job), "%s", job);
    comment->steps = steps;
    comment->times = times;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&comment->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&comment->mutex, NULL);
    code = pthread_create(&comment->thread, NULL, write_comments, comment);
    if (code != 0) {
        pthread_cond_destroy(&comment->changed);
        pthread_mutex_destroy(&comment->mutex);
        free(comment);
        return error_set(error, EXIT_STATUS_SYSTEM,
                         "cannot start the thread for the job's comment: %s", strerror(code));
    }
    *result = comment;
    return 0;
}

/* The newest text takes the place of one that nobody has written yet. */
static void leave_text(struct job_comment *comment, const char *state)
{
    pthread_mutex_lock(&comment->mutex);
    job_comment_format(&comment->row, comment->steps, state, comment->text, sizeof(comment->text));
    pthread_cond_signal(&comment->changed);
    pthread_mutex_unlock(&comment->mutex);
}

void job_comment_step(struct job_comment *comment, const struct metrics_row *row)
{
    if (!comment)
        return;
    comment->row = *row;
    leave_text(comment, "");
}

void job_comment_end(struct job_comment *comment, const char *state)
{
    if (comment && comment->row.present[METRIC_STEP])
        leave_text(comment, state);
}

void job_comment_close(struct job_comment *comment)
{
    if (!comment)
        return;
    pthread_mutex_lock(&comment->mutex);
    comment->closing = true;
    comment->deadline_s = clock_now_s(CLOCK_MONOTONIC) + comment->times->last_s;
    pthread_cond_signal(&comment->changed);
    pthread_mutex_unlock(&comment->mutex);
    pthread_join(comment->thread, NULL);
    pthread_cond_destroy(&comment->changed);
    pthread_mutex_destroy(&comment->mutex);
    free(comment);
}
