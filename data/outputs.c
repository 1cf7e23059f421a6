#include "data/outputs.h"

#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

/* All that the handler knows. Changed only while its signals are blocked. */
static struct outputs *volatile unfinished;
static const char *volatile kept_message; /* NULL: nothing is kept */

static const int ending_signals[] = {SIGINT, SIGTERM, SIGHUP};
enum { ENDING_SIGNALS = sizeof(ending_signals) / sizeof(ending_signals[0]) };

static void remove_partial_files(const struct outputs *outputs)
{
    for (int i = 0; outputs && i < outputs->count; i++)
        for (int which = 0; which < 2; which++) {
            const char *path = token_writer_partial_path(outputs->writers[i], which);

            if (path)
                unlink(path);
        }
}

/* unlink(), write() and raise() are safe wherever the program was; the signal raised here is
 * blocked until the handler returns, and then ends the process as if there had been no handler. */
static void end(int number)
{
    if (!kept_message)
        remove_partial_files(unfinished);
    else if (write(STDERR_FILENO, kept_message, strlen(kept_message)) < 0)
        kept_message = NULL; /* nobody to tell */
    signal(number, SIG_DFL);
    raise(number);
}

static void block(sigset_t *before)
{
    sigset_t set;

    sigemptyset(&set);
    for (int i = 0; i < ENDING_SIGNALS; i++)
        sigaddset(&set, ending_signals[i]);
    sigprocmask(SIG_BLOCK, &set, before);
}

static void unblock(const sigset_t *before)
{
    sigprocmask(SIG_SETMASK, before, NULL);
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = end}, before;

    for (int i = 0; i < ENDING_SIGNALS; i++) {
        sigaction(ending_signals[i], NULL, &before);
        if (before.sa_handler != SIG_IGN) /* nohup */
            sigaction(ending_signals[i], &action, NULL);
    }
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is then an error of write() */
}

int outputs_add(struct outputs *outputs, const char *prefix, int64_t vocab_size,
                const struct token_file *like, struct error *error)
{
    struct token_writer **writer = &outputs->writers[outputs->count];
    sigset_t before;
    int result;

    block(&before);
    catch_signals();
    result = like ? token_writer_open_like(writer, prefix, like, error)
                  : token_writer_find(writer, prefix, vocab_size, error);
    outputs->count += result == 0;
    unfinished = outputs;
    unblock(&before);
    return result;
}

void outputs_keep(struct outputs *outputs, const char *message)
{
    sigset_t before;

    block(&before);
    kept_message = message;
    for (int i = 0; i < outputs->count; i++)
        token_writer_keep(outputs->writers[i], message != NULL);
    unblock(&before);
}

int outputs_commit(struct outputs *outputs, const char *record, struct error *error)
{
    sigset_t before;
    int result;

    block(&before);
    result = token_writer_commit_all(outputs->writers, outputs->count, error);
    if (result == 0) {
        kept_message = NULL;
        if (record)
            unlink(record);
    }
    unblock(&before);
    return result;
}

void outputs_close(struct outputs *outputs)
{
    sigset_t before;

    block(&before);
    unfinished = NULL;
    kept_message = NULL;
    for (int i = 0; i < outputs->count; i++)
        token_writer_close(outputs->writers[i]);
    outputs->count = 0;
    unblock(&before);
}
