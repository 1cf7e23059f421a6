#include "report/charts.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "report/ticks.h"

enum { FAR = 30, LATE_LEAST = 40 /* steps */, POINTS_BELOW = 20 };

/* What is known of metrics; those that are not listed get a chart of their own at the end. In the
 * order of the page. */
static const struct known {
    const char *metric;
    const char *name, *title, *unit; /* name: NULL: no chart of its own */
    double factor, far;
    bool zero, whole, smooth;
} known[] = {
    {"loss", "loss", "Loss", "nats", 1, 3, false, false, true},
    {"perplexity", "perplexity", "Perplexity", "", 1, 5, false, false, true},
    {"accuracy", "accuracy", "Accuracy", "%", 100, 0, false, false, true},
    {"instruct_accuracy", "instruct_accuracy", "Accuracy of the assistant's tokens", "%", 100, 0,
     false, false, true},
    {"lr", "lr", "Learning rate", "", 1, 0, true, false, false},
    {"grad_norm", "grad_norm", "Gradient norm", "", 1, FAR, true, false, true},
    {"tokens_per_s", "throughput", "Throughput", "tokens/s", 1, 0, true, false, true},
    {"mfu", "mfu", "MFU", "%", 100, 0, true, false, true},
    {"tflops", "tflops", "Model FLOPs of a rank", "TFLOP/s", 1, 0, true, false, true},
    {"step_s", "step_s", "Duration of a step", "s", 1, FAR, true, false, true},
    {"pipeline_idle", "pipeline_idle", "Pipeline idle", "% of a step", 100, 0, true, false, true},
    {"memory_bytes", "memory", "Memory in use", "GiB", 1.0 / (1 << 30), 0, true, false, false},
    {"loss_scale", "loss_scale", "Loss scale", "", 1, FAR, false, false, false},
    {"skipped", "skipped", "Steps without an update", "so far", 1, 0, true, true, false},
    /* Counters of progress: in a chart together, below. */
    {"time", NULL, NULL, NULL, 1, 0, false, false, false},
    {"tokens", NULL, NULL, NULL, 1, 0, false, false, false},
    {"samples", NULL, NULL, NULL, 1, 0, false, false, false},
};

/* Of step_s, in the order in which they happen. */
static const struct {
    const char *metric, *title;
} parts[] = {
    {"data_wait_s", "Waiting for data"}, {"forward_s", "Forward"},
    {"backward_s", "Backward"},          {"communication_s", "Communication"},
    {"optimizer_s", "Optimizer"},        {"checkpoint_s", "Checkpoint"},
};
enum { PARTS = sizeof(parts) / sizeof(*parts), KNOWN = sizeof(known) / sizeof(*known) };

static int no_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "no memory for the charts");
}

size_t charts_smooth_reach(size_t record_count)
{
    return record_count < 40 ? 0 : record_count < 200 ? 4 : record_count / 50;
}

static int part_of(const char *metric)
{
    for (int i = 0; i < PARTS; i++)
        if (strcmp(parts[i].metric, metric) == 0)
            return i;
    return -1;
}

static const struct known *find_known(const char *metric)
{
    for (size_t i = 0; i < KNOWN; i++)
        if (strcmp(known[i].metric, metric) == 0)
            return &known[i];
    return NULL;
}

/* --- putting a chart together ---------------------------------------------------------------- */

/* A new chart at the end, as `like` says; NULL when there is no memory. */
static struct chart *add_chart(struct charts *charts, const struct known *like, struct error *error)
{
    struct chart *grown = reallocarray(charts->charts, charts->count + 1, sizeof(*grown));
    struct chart *chart;

    if (!grown) {
        no_memory(error);
        return NULL;
    }
    charts->charts = grown;
    chart = &grown[charts->count++];
    *chart = (struct chart){.unit = like->unit,
                            .factor = like->factor,
                            .zero = like->zero,
                            .far = like->far,
                            .whole = like->whole};
    snprintf(chart->name, sizeof(chart->name), "%s", like->name);
    snprintf(chart->title, sizeof(chart->title), "%s", like->title);
    return chart;
}

static struct chart_line *add_line(struct chart *chart, struct error *error)
{
    struct chart_line *grown = reallocarray(chart->lines, chart->line_count + 1, sizeof(*grown));

    if (!grown) {
        no_memory(error);
        return NULL;
    }
    chart->lines = grown;
    grown[chart->line_count] = (struct chart_line){0};
    return &grown[chart->line_count++];
}

static void name_line(struct chart_line *line, const char *label)
{
    snprintf(line->label, sizeof(line->label), "%s", label);
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

/* The restarts of a run, on the axis of steps or of time. */
static int mark_restarts(struct chart *chart, const struct run *run, int colour,
                         struct error *error)
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

/* Where the run stood still before a restart. */
static int shade_gaps(struct chart *chart, const struct run *run, struct error *error)
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

static int mark_all(struct chart *chart, const struct run *runs, size_t run_count,
                    struct error *error)
{
    for (size_t i = 0; i < run_count; i++)
        if (mark_restarts(chart, &runs[i], run_count > 1 ? (int)i % CHART_COLOURS : -1, error) < 0)
            return -1;
    return 0;
}

/* --- training -------------------------------------------------------------------------------- */

/* A line for each run whose records have the metric. */
static int add_metric_lines(struct chart *chart, const char *metric, bool smoothed,
                            const struct run *runs, size_t run_count, struct error *error)
{
    for (size_t i = 0; i < run_count; i++) {
        const struct history_records *records = &runs[i].history.training;
        const double *values = history_find(records, metric);
        struct chart_line *line;

        if (!values || records->count == 0)
            continue;
        line = add_line(chart, error);
        if (!line)
            return -1;
        *line = (struct chart_line){
            .x = records->steps,
            .y = values,
            .count = records->count,
            .colour = (int)i % CHART_COLOURS,
            .dashed = i >= CHART_COLOURS,
            .points = records->count < POINTS_BELOW,
            .smooth = smoothed ? charts_smooth_reach(records->count) : 0,
        };
        name_line(line, run_count > 1 ? runs[i].name : chart->title);
    }
    return mark_all(chart, runs, run_count, error);
}

static bool any_has(const struct run *runs, size_t run_count, const char *metric)
{
    for (size_t i = 0; i < run_count; i++)
        if (history_find(&runs[i].history.training, metric))
            return true;
    return false;
}

static int add_metric(struct charts *charts, const struct known *like, const struct run *runs,
                      size_t run_count, struct error *error)
{
    struct chart *chart;

    if (!any_has(runs, run_count, like->metric))
        return 0;
    chart = add_chart(charts, like, error);
    return chart ? add_metric_lines(chart, like->metric, like->smooth, runs, run_count, error) : -1;
}

static int add_progress(struct charts *charts, const struct run *runs, size_t run_count,
                        struct error *error)
{
    static const struct known like = {.name = "progress",
                                      .title = "Progress",
                                      .unit = "steps",
                                      .factor = 1,
                                      .zero = true,
                                      .whole = true};
    struct chart *chart = NULL;

    for (size_t i = 0; i < run_count; i++) {
        const struct history_records *records = &runs[i].history.training;
        struct chart_line *line;

        if (!runs[i].elapsed || records->count == 0)
            continue;
        if (!chart && !(chart = add_chart(charts, &like, error)))
            return -1;
        chart->x = CHART_SECONDS;
        line = add_line(chart, error);
        if (!line)
            return -1;
        *line = (struct chart_line){
            .x = runs[i].elapsed,
            .y = records->steps,
            .count = records->count,
            .colour = (int)i % CHART_COLOURS,
            .dashed = i >= CHART_COLOURS,
        };
        name_line(line, run_count > 1 ? runs[i].name : "steps");
        if (run_count == 1 && shade_gaps(chart, &runs[i], error) < 0)
            return -1;
    }
    return chart ? mark_all(chart, runs, run_count, error) : 0;
}

/* What of step_s no part of it accounts for. */
static int add_rest(struct chart *chart, const struct history_records *records, struct error *error)
{
    const double *step_s = history_find(records, "step_s");
    struct chart_line *line;

    if (!step_s)
        return 0;
    chart->owned = reallocarray(NULL, records->count, sizeof(*chart->owned));
    if (!chart->owned)
        return no_memory(error);
    for (size_t i = 0; i < records->count; i++) {
        double rest = step_s[i];

        for (size_t k = 0; k < chart->line_count; k++)
            rest -= isnan(chart->lines[k].y[i]) ? 0 : chart->lines[k].y[i];
        /* Parts are means of ranks, rounded: they may come to a little more than the whole. */
        chart->owned[i] = isfinite(rest) ? fmax(rest, 0) : NAN;
    }
    line = add_line(chart, error);
    if (!line)
        return -1;
    *line = (struct chart_line){.x = records->steps,
                                .y = chart->owned,
                                .count = records->count,
                                .colour = CHART_COLOUR_REST};
    name_line(line, "Rest");
    return 0;
}

/* The parts of one run's steps on top of each other. */
static int add_parts(struct charts *charts, const struct run *run, bool alone, struct error *error)
{
    static const struct known like = {
        .name = "parts", .title = "Parts of a step, mean", .unit = "s", .factor = 1, .zero = true};
    const struct history_records *records = &run->history.training;
    struct chart *chart = NULL;

    for (int i = 0; i < PARTS; i++) {
        const double *values = history_find(records, parts[i].metric);
        struct chart_line *line;

        if (!values || records->count == 0)
            continue;
        if (!chart && !(chart = add_chart(charts, &like, error)))
            return -1;
        line = add_line(chart, error);
        if (!line)
            return -1;
        *line = (struct chart_line){
            .x = records->steps, .y = values, .count = records->count, .colour = i};
        name_line(line, parts[i].title);
    }
    if (!chart)
        return 0;
    chart->stacked = true;
    if (add_rest(chart, records, error) < 0)
        return -1;
    if (!alone) {
        snprintf(chart->name, sizeof(chart->name), "parts_%.80s", run->name);
        snprintf(chart->title, sizeof(chart->title), "Parts of a step: %.70s", run->name);
    }
    return mark_restarts(chart, run, -1, error);
}

static int add_all_parts(struct charts *charts, const struct run *runs, size_t run_count,
                         struct error *error)
{
    for (size_t i = 0; i < run_count; i++)
        if (add_parts(charts, &runs[i], run_count == 1, error) < 0)
            return -1;
    return 0;
}

/* A count that stayed 0 all the time is no chart. */
static bool never_skipped(const struct run *runs, size_t run_count)
{
    for (size_t i = 0; i < run_count; i++) {
        const struct history_records *records = &runs[i].history.training;
        const double *skipped = history_find(records, "skipped");

        if (skipped && records->count > 0 && skipped[records->count - 1] > 0)
            return false;
    }
    return true;
}

static int add_known(struct charts *charts, size_t from, const struct run *runs, size_t run_count,
                     struct error *error)
{
    for (size_t i = from; i < KNOWN; i++) {
        if (!known[i].name ||
            (strcmp(known[i].metric, "skipped") == 0 && never_skipped(runs, run_count)))
            continue;
        if (add_metric(charts, &known[i], runs, run_count, error) < 0 ||
            (strcmp(known[i].metric, "step_s") == 0 &&
             add_all_parts(charts, runs, run_count, error) < 0))
            return -1;
    }
    return 0;
}

/* What nobody here knows: of newer trainers, and a site's own. */
static int add_unknown(struct charts *charts, const struct run *runs, size_t run_count,
                       struct error *error)
{
    for (size_t i = 0; i < run_count; i++) {
        const struct history_records *records = &runs[i].history.training;

        for (size_t k = 0; k < records->metric_count; k++) {
            const char *name = records->metrics[k].name;
            struct known like = {name, name, name, "", 1, FAR, false, false, true};

            if (find_known(name) || part_of(name) >= 0 || charts_find(charts, name))
                continue;
            if (add_metric(charts, &like, runs, run_count, error) < 0)
                return -1;
        }
    }
    return 0;
}

/* --- validation ------------------------------------------------------------------------------ */

/* "valid" of a single run; of several "RUN", or "RUN, valid" where it has more sets. */
static void set_label(char *label, size_t size, const struct run *run, const char *set,
                      size_t run_count)
{
    bool more = run->history.set_count > 1;

    if (run_count == 1)
        snprintf(label, size, "%s", set);
    else
        snprintf(label, size, "%s%s%s", run->name, more ? ", " : "", more ? set : "");
}

static int add_set_lines(struct chart *chart, const char *metric, const struct run *runs,
                         size_t run_count, struct error *error)
{
    int colour = 1; /* that of a single run's training is 0 */

    for (size_t i = 0; i < run_count; i++)
        for (size_t k = 0; k < runs[i].history.set_count; k++) {
            const struct history_records *records = &runs[i].history.sets[k];
            const double *values = history_find(records, metric);
            struct chart_line *line;

            if (!values)
                continue;
            line = add_line(chart, error);
            if (!line)
                return -1;
            *line = (struct chart_line){
                .x = records->steps,
                .y = values,
                .count = records->count,
                .colour = (run_count > 1 ? (int)i : colour) % CHART_COLOURS,
                .dashed = run_count > 1 ? k > 0 || i >= CHART_COLOURS : colour >= CHART_COLOURS,
                .points = true,
            };
            set_label(line->label, sizeof(line->label), &runs[i], records->set, run_count);
            colour++;
        }
    return 0;
}

static int add_validation(struct charts *charts, const char *metric, const struct run *runs,
                          size_t run_count, struct error *error)
{
    const struct known plain = {metric, metric, metric, "", 1, FAR, false, false, false};
    const struct known *like = find_known(metric);
    struct chart *chart = add_chart(charts, like ? like : &plain, error);

    if (!chart)
        return -1;
    snprintf(chart->name, sizeof(chart->name), "validation_%s", metric);
    snprintf(chart->title, sizeof(chart->title), "Validation: %.80s", like ? like->title : metric);
    chart->title[12] = (char)tolower((unsigned char)chart->title[12]);
    if (add_set_lines(chart, metric, runs, run_count, error) < 0)
        return -1;
    return mark_all(chart, runs, run_count, error);
}

/* A chart for each metric that any validation has. */
static int add_validations(struct charts *charts, const struct run *runs, size_t run_count,
                           struct error *error)
{
    for (size_t i = 0; i < run_count; i++)
        for (size_t k = 0; k < runs[i].history.set_count; k++) {
            const struct history_records *records = &runs[i].history.sets[k];

            for (size_t m = 0; m < records->metric_count; m++) {
                const struct known *like = find_known(records->metrics[m].name);
                char name[96];

                snprintf(name, sizeof(name), "validation_%s", records->metrics[m].name);
                if ((like && !like->name) || charts_find(charts, name))
                    continue;
                if (add_validation(charts, records->metrics[m].name, runs, run_count, error) < 0)
                    return -1;
            }
        }
    return 0;
}

/* Loss of training and, of a single run, of validation. */
static struct chart *new_loss(struct charts *charts, const struct run *runs, size_t run_count,
                              struct error *error)
{
    struct chart *chart = add_chart(charts, find_known("loss"), error);

    if (!chart || add_metric_lines(chart, "loss", true, runs, run_count, error) < 0)
        return NULL;
    if (run_count > 1)
        return chart;
    name_line(&chart->lines[0], "training");
    return add_set_lines(chart, "loss", runs, run_count, error) < 0 ? NULL : chart;
}

static int add_loss(struct charts *charts, const struct run *runs, size_t run_count,
                    struct error *error)
{
    struct chart *chart;

    if (!any_has(runs, run_count, "loss"))
        return 0;
    chart = new_loss(charts, runs, run_count, error);
    if (!chart)
        return -1;
    chart->wide = true;
    return 0;
}

/* What lies before `from`. */
static void leave_out(struct chart *chart, double from)
{
    size_t kept = 0;

    for (size_t i = 0; i < chart->line_count; i++) {
        struct chart_line *line = &chart->lines[i];

        for (; line->count > 0 && line->x[0] < from; line->count--) {
            line->x++;
            line->y++;
        }
    }
    for (size_t i = 0; i < chart->mark_count; i++)
        if (chart->marks[i].x >= from)
            chart->marks[kept++] = chart->marks[i];
    chart->mark_count = kept;
}

/* The second half alone, where a whole run's chart is flat. */
static int add_late_loss(struct charts *charts, const struct run *runs, size_t run_count,
                         struct error *error)
{
    struct chart *chart;
    double last = 0;

    if (charts->count == 0)
        return 0;
    for (size_t i = 0; i < charts->charts[0].line_count; i++) {
        const struct chart_line *line = &charts->charts[0].lines[i];

        last = line->count > 0 ? fmax(last, line->x[line->count - 1]) : last;
    }
    if (last < LATE_LEAST)
        return 0;
    chart = new_loss(charts, runs, run_count, error);
    if (!chart)
        return -1;
    snprintf(chart->name, sizeof(chart->name), "late_loss");
    snprintf(chart->title, sizeof(chart->title), "Loss, second half");
    chart->far = 0;
    chart->cut = true;
    leave_out(chart, last / 2);
    return 0;
}

/* --- all ------------------------------------------------------------------------------------- */

int charts_choose(struct charts *charts, const struct run *runs, size_t run_count,
                  struct error *error)
{
    *charts = (struct charts){0};
    if (add_loss(charts, runs, run_count, error) < 0 ||
        add_late_loss(charts, runs, run_count, error) < 0 ||
        add_validations(charts, runs, run_count, error) < 0 ||
        add_progress(charts, runs, run_count, error) < 0 ||
        add_known(charts, 1, runs, run_count, error) < 0)
        return -1;
    return add_unknown(charts, runs, run_count, error);
}

void charts_free(struct charts *charts)
{
    for (size_t i = 0; i < charts->count; i++) {
        free(charts->charts[i].lines);
        free(charts->charts[i].marks);
        free(charts->charts[i].spans);
        free(charts->charts[i].owned);
    }
    free(charts->charts);
}

const struct chart *charts_find(const struct charts *charts, const char *name)
{
    for (size_t i = 0; i < charts->count; i++)
        if (strcmp(charts->charts[i].name, name) == 0)
            return &charts->charts[i];
    return NULL;
}
