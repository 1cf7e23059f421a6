#include "data/guard.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

enum { PARTIAL_FILES = 2 };

/* All that the handler knows. Changed only while its signals are blocked. */
static const char *volatile partial_paths[PARTIAL_FILES];

static const int ending_signals[] = {SIGINT, SIGTERM, SIGHUP};
enum { ENDING_SIGNALS = sizeof(ending_signals) / sizeof(ending_signals[0]) };

/* unlink() and raise() are safe wherever the program was; the signal raised here is blocked until
 * the handler returns, and then ends the process as if there had been no handler. */
static void remove_and_end(int number)
{
    for (int i = 0; i < PARTIAL_FILES; i++)
        if (partial_paths[i])
            unlink(partial_paths[i]);
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

static void guard_paths(const struct token_writer *writer)
{
    for (int i = 0; i < PARTIAL_FILES; i++)
        partial_paths[i] = writer ? token_writer_partial_path(writer, i) : NULL;
}

int guard_open(struct token_writer **writer, const char *prefix, int64_t vocab_size,
               struct error *error)
{
    sigset_t before;
    int result;

    block(&before);
    catch_signals();
    result = token_writer_open(writer, prefix, vocab_size, error);
    guard_paths(*writer);
    unblock(&before);
    return result;
}

int guard_commit(struct token_writer *writer, struct error *error)
{
    sigset_t before;
    int result;

    block(&before);
    result = token_writer_commit(writer, error);
    guard_paths(writer);
    unblock(&before);
    return result;
}

void guard_close(struct token_writer *writer)
{
    sigset_t before;

    block(&before);
    guard_paths(NULL);
    token_writer_close(writer);
    unblock(&before);
}
