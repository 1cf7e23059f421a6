#include "report/restarts.h"

#include <stdlib.h>

#include "report/ticks.h"

static int no_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "no memory for the restarts");
}

static int add_mark(struct chart *chart, const struct chart_mark *mark, struct error *error)
{
    struct chart_mark *grown = reallocarray(chart->marks, chart->mark_count + 1, sizeof(*grown));

    if (!grown)
        return no_memory(error);
    chart->marks = grown;
    grown[chart->mark_count++] = *mark;
    return 0;
}

static int add_span(struct chart *chart, const struct chart_span *span, struct error *error)
{
    struct chart_span *grown = reallocarray(chart->spans, chart->span_count + 1, sizeof(*grown));

    if (!grown)
        return no_memory(error);
    chart->spans = grown;
    grown[chart->span_count++] = *span;
    return 0;
}

int restarts_mark(struct chart *chart, const struct run *run, int colour, struct error *error)
{
    for (size_t i = 1; i < run->start_count; i++) {
        const struct run_start *start = &run->starts[i];
        const struct history_records *records = &run->history.training;
        size_t record = run->starts[i].record;
        char time[NUMBER_SIZE], step[NUMBER_SIZE];
        struct chart_mark mark = {.x = start->step + 0.5, .colour = colour};

        if (records->count == 0 || record == records->count)
            continue; /* nothing is drawn of it yet */
        if (chart->x == CHART_SECONDS)
            mark.x = start->time - run_begin_time(run);
        snprintf(mark.text, sizeof(mark.text), "%s: restart %zu%s, from step %s%s%s (%s)",
                 run->name, i, run->starts_guessed ? " (a guess from a gap)" : "",
                 count_text(start->step, step), *start->job ? ", job " : "", start->job,
                 time_text(start->time, time));
        if (add_mark(chart, &mark, error) < 0)
            return -1;
    }
    return 0;
}

int restarts_shade(struct chart *chart, const struct run *run, struct error *error)
{
    for (size_t i = 1; i < run->start_count; i++) {
        size_t record = run->starts[i].record;
        char length[NUMBER_SIZE];
        struct chart_span span;

        if (record == 0 || record == run->history.training.count)
            continue;
        span.from = run->elapsed[record - 1];
        span.to = run->elapsed[record];
        snprintf(span.text, sizeof(span.text), "%s without progress",
                 duration_text(span.to - span.from, length));
        if (add_span(chart, &span, error) < 0)
            return -1;
    }
    return 0;
}
