#include "trainer/console.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/log.h"

enum { BAR_COLUMNS = 24 };

/* The terminal is the process's own. */
static struct {
    bool bar, lines, colour;
    bool shown; /* the bar stands on the terminal */
    int64_t steps;
    double drawn_s;
} console = {.lines = true};

static void clear_bar(void)
{
    if (console.shown)
        fputs("\r\033[K", stderr);
    console.shown = false;
    console.drawn_s = 0;
}

void console_open(int64_t steps)
{
    const char *term = getenv("TERM"), *no_colour = getenv("NO_COLOR");

    console.steps = steps;
    console.bar = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    console.lines = !console.bar || !isatty(STDOUT_FILENO);
    console.colour = !no_colour || !*no_colour;
    log_set_clear(clear_bar);
}

void console_close(void)
{
    clear_bar();
    log_set_clear(NULL);
}

static int terminal_columns(void)
{
    struct winsize size;

    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/* What stands behind the bar, as much of it as there is room for. */
static void format_state(const struct metrics_row *row, char *text, size_t size)
{
    size_t used = 0;
    char left[32];

    used += (size_t)snprintf(text, size, " %.0f/%lld  loss %.4g", row->values[METRIC_STEP],
                             (long long)console.steps, row->values[METRIC_LOSS]);
    if (row->present[METRIC_MFU])
        used += (size_t)snprintf(text + used, size - used, "  %.1f%% MFU",
                                 100 * row->values[METRIC_MFU]);
    used += (size_t)snprintf(text + used, size - used, "  %.0f tokens/s",
                             row->values[METRIC_TOKENS_PER_S]);
    if (row->present[METRIC_ETA_S]) {
        metrics_format_duration(row->values[METRIC_ETA_S], left, sizeof(left));
        snprintf(text + used, size - used, "  %s left", left);
    }
}

void console_step(const struct metrics_row *row)
{
    double done = console.steps > 0 ? row->values[METRIC_STEP] / (double)console.steps : 1;
    bool last = row->values[METRIC_STEP] >= (double)console.steps;
    int columns, filled, room;
    char state[256], bar[BAR_COLUMNS + 1];

    if (!console.bar || (clock_now_s(CLOCK_MONOTONIC) - console.drawn_s < 0.1 && !last))
        return;
    /* A line that is full would be two. */
    room = terminal_columns() - 3;
    columns = room < 0 ? 0 : room < BAR_COLUMNS ? room : BAR_COLUMNS;
    room -= columns;
    filled = (int)(columns * (done < 1 ? done : 1));
    memset(bar, '=', BAR_COLUMNS);
    bar[BAR_COLUMNS] = '\0';
    format_state(row, state, sizeof(state));
    fprintf(stderr, "\r[%s%.*s%s%*s]%.*s\033[K", console.colour ? "\033[32m" : "", filled, bar,
            console.colour ? "\033[0m" : "", columns - filled, "", room > 0 ? room : 0, state);
    console.shown = true;
    console.drawn_s = clock_now_s(CLOCK_MONOTONIC);
}

void console_line(const struct metrics_row *row)
{
    char text[2048];

    metrics_format_console(row, console.steps, text, sizeof(text) - 1);
    strcat(text, "\n");
    log_copy_line(text);
    if (!console.lines && !row->eval)
        return;
    clear_bar();
    /* A console that is gone is no reason to stop. */
    (void)!fputs(text, stdout);
    (void)fflush(stdout);
}
