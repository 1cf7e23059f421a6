#include "data/guard.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

/* All that the handler knows. Changed only while its signals are blocked. */
static const struct token_writer *volatile writers[GUARDED_WRITERS_MOST];

static const int ending_signals[] = {SIGINT, SIGTERM, SIGHUP};
enum { ENDING_SIGNALS = sizeof(ending_signals) / sizeof(ending_signals[0]) };

/* unlink() and raise() are safe wherever the program was; the signal raised here is blocked until
 * the handler returns, and then ends the process as if there had been no handler. */
static void remove_and_end(int number)
{
    for (int i = 0; i < GUARDED_WRITERS_MOST; i++)
        for (int which = 0; writers[i] && which < 2; which++) {
            const char *path = token_writer_partial_path(writers[i], which);

            if (path)
                unlink(path);
        }
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
    struct sigaction action = {.sa_handler = remove_and_end}, before;

    for (int i = 0; i < ENDING_SIGNALS; i++) {
        sigaction(ending_signals[i], NULL, &before);
        if (before.sa_handler != SIG_IGN) /* nohup */
            sigaction(ending_signals[i], &action, NULL);
    }
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is then an error of write() */
}

/* Put `to` in the place of `from`; NULL is an empty place. */
static void exchange(const struct token_writer *from, const struct token_writer *to)
{
    int place = 0;

    while (writers[place] != from)
        place++;
    writers[place] = to;
}

int guard_open(struct token_writer **writer, const char *prefix, int64_t vocab_size,
               struct error *error)
{
    sigset_t before;
    int result;

    block(&before);
    catch_signals();
    result = token_writer_open(writer, prefix, vocab_size, error);
    if (result == 0)
        exchange(NULL, *writer);
    unblock(&before);
    return result;
}

int guard_commit(struct token_writer *writer, struct error *error)
{
    sigset_t before;
    int result;

    block(&before);
    result = token_writer_commit(writer, error);
    unblock(&before);
    return result;
}

void guard_close(struct token_writer *writer)
{
    sigset_t before;

    if (!writer)
        return;
    block(&before);
    exchange(writer, NULL);
    token_writer_close(writer);
    unblock(&before);
}
