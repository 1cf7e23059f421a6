#include "data/progress.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"

enum { BAR_COLUMNS = 20 };

void progress_begin(struct progress *progress, int64_t total_bytes, int64_t done_bytes)
{
    *progress = (struct progress){.enabled = isatty(STDERR_FILENO) != 0,
                                  .total_bytes = total_bytes,
                                  .begun_bytes = done_bytes,
                                  .started_s = clock_now_s(CLOCK_MONOTONIC)};
}

double progress_elapsed_s(const struct progress *progress)
{
    return clock_now_s(CLOCK_MONOTONIC) - progress->started_s;
}

static void format_time(char *text, size_t size, double seconds)
{
    int64_t whole = (int64_t)(seconds + 0.5);

    if (whole < 3600)
        snprintf(text, size, "%d:%02d", (int)(whole / 60), (int)(whole % 60));
    else
        snprintf(text, size, "%lld:%02d:%02d", (long long)(whole / 3600), (int)(whole / 60 % 60),
                 (int)(whole % 60));
}

void progress_update(struct progress *progress, int64_t bytes, int64_t documents)
{
    double now = clock_now_s(CLOCK_MONOTONIC), elapsed = now - progress->started_s;
    double rate = elapsed > 0 ? (double)(bytes - progress->begun_bytes) / elapsed : 0;
    char bar[BAR_COLUMNS + 1], left[32];

    if (!progress->enabled || now - progress->last_s < 0.2)
        return;
    progress->last_s = now;
    progress->shown = true;
    if (progress->total_bytes <= 0) {
        fprintf(stderr, "\r%.1f MB  %.1f MB/s  %lld documents\033[K", (double)bytes / 1e6,
                rate / 1e6, (long long)documents);
        return;
    }
    if (bytes > progress->total_bytes) /* the file grew meanwhile */
        progress->total_bytes = bytes;
    memset(bar, ' ', BAR_COLUMNS);
    memset(bar, '=', (size_t)((double)bytes / (double)progress->total_bytes * BAR_COLUMNS));
    bar[BAR_COLUMNS] = '\0';
    format_time(left, sizeof(left), rate > 0 ? (double)(progress->total_bytes - bytes) / rate : 0);
    fprintf(stderr, "\r[%s] %3.0f%%  %.1f MB/s  %lld documents  %s left\033[K", bar,
            100.0 * (double)bytes / (double)progress->total_bytes, rate / 1e6, (long long)documents,
            left);
}

void progress_clear(struct progress *progress)
{
    if (!progress->shown)
        return;
    fprintf(stderr, "\r\033[K");
    progress->shown = false;
    progress->last_s = 0;
}
