#include "ckpt/progress.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"

#define INTERVAL_S 0.2

static volatile sig_atomic_t stop_signal;

static void remember(int number)
{
    stop_signal = number;
}

void progress_begin(struct progress *progress, int64_t total_bytes)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    /* The second one of a kind ends the process at once. */
    struct sigaction action = {.sa_handler = remember, .sa_flags = (int)SA_RESETHAND | SA_RESTART};

    for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++) {
        struct sigaction old;

        /* nohup's wish is respected. */
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(signals[i], &action, NULL);
    }
    *progress = (struct progress){
        .shown = isatty(STDERR_FILENO),
        .total_bytes = total_bytes,
        .start_s = clock_now_s(CLOCK_MONOTONIC),
    };
}

int progress_add(struct progress *progress, int64_t bytes, struct error *error)
{
    double now, share;
    int number = stop_signal;

    if (number)
        return error_set(error, 128 + number, "stopped by signal %d (%s); nothing was made", number,
                         strsignal(number));
    progress->done_bytes += bytes;
    if (!progress->shown)
        return 0;
    now = clock_now_s(CLOCK_MONOTONIC);
    if (now - progress->printed_s < INTERVAL_S)
        return 0;
    progress->printed_s = now;
    share = progress->total_bytes > 0 ? (double)progress->done_bytes / (double)progress->total_bytes
                                      : 1;
    fprintf(stderr, "\r\033[K%3.0f %%  %.2f of %.2f GB  %.2f GB/s", 100 * share,
            1e-9 * (double)progress->done_bytes, 1e-9 * (double)progress->total_bytes,
            1e-9 * (double)progress->done_bytes / (now - progress->start_s + 1e-9));
    return 0;
}

void progress_end(struct progress *progress)
{
    if (progress->shown)
        fputs("\r\033[K", stderr);
    progress->shown = false;
}
