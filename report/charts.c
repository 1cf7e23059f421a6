#include "report/charts.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "report/restarts.h"

enum { FAR = 30, LATE_LEAST = 40 /* steps */, POINTS_BELOW = 20 };

/* What is known of metrics; those that are not listed get a chart of their own at the end. In the
 * order of the page. */
static const struct known {
    const char *metric;
    const char *name, *title, *unit; /* name: NULL: no chart */
    double factor, far;
    bool zero, whole, smooth;
    bool changes;                            /* no chart where it does not */
    const char *other, *label, *other_label; /* a second metric in the chart of a single run */
} known[] = {
    {"loss", "loss", "Loss", "nats", 1, .far = 3, .smooth = true},
    {"perplexity", "perplexity", "Perplexity", "", 1, .far = 5, .smooth = true},
    {"accuracy", "accuracy", "Accuracy", "%", 100, .smooth = true},
    {"instruct_accuracy", "instruct_accuracy", "Accuracy of the assistant's tokens", "%", 100,
     .smooth = true},
    {"lr", "lr", "Learning rate", "", 1, .zero = true},
    {"grad_norm", "grad_norm", "Gradient norm", "", 1, .far = FAR, .zero = true, .smooth = true},
    {"tokens_per_s", "throughput", "Throughput", "tokens/s", 1, .zero = true, .smooth = true},
    {"mfu", "mfu", "MFU", "%", 100, .zero = true, .smooth = true, .other = "mfu_full",
     .label = "causal attention", .other_label = "full attention"},
    {"tflops", "tflops", "Model FLOPs of a rank", "TFLOP/s", 1, .zero = true, .smooth = true,
     .other = "tflops_full", .label = "causal attention", .other_label = "full attention"},
    {"step_s", "step_s", "Duration of a step", "s", 1, .far = FAR, .zero = true, .smooth = true},
    {"pipeline_idle", "pipeline_idle", "Pipeline idle", "% of a step", 100, .zero = true,
     .smooth = true},
    {"memory_gib", "memory", "Memory in use", "GiB", 1, .zero = true},
    {"batch_size", "batch_size", "Batch size", "sequences", 1, .zero = true, .whole = true,
     .changes = true},
    {"loss_scale", "loss_scale", "Loss scale", "", 1, .far = FAR, .changes = true},
    {"loss_outlier", "loss_outlier", "Loss, outliers", "standard deviations", 1, .smooth = false},
    {"grad_norm_outlier", "grad_norm_outlier", "Gradient norm, outliers", "standard deviations", 1,
     .smooth = false},
    {"skipped", "skipped", "Steps without an update", "so far", 1, .zero = true, .whole = true,
     .changes = true},
    {"nonfinite", "nonfinite", "Steps that were not finite", "so far", 1, .zero = true,
     .whole = true, .changes = true},
    /* In charts with others, or the same as another. */
    {.metric = "time"},
    {.metric = "tokens"},
    {.metric = "samples"},
    {.metric = "eta_s"},
    {.metric = "mfu_full"},
    {.metric = "tflops_full"},
    {.metric = "tokens_per_s_gpu"},
    {.metric = "count_loss_mask"},
    {.metric = "count_instruct_mask"},
};

/* Of step_s, in the order in which they happen. */
static const struct {
    const char *metric, *title;
} parts[] = {
    {"data_wait_s", "Waiting for data"},  {"forward_s", "Forward"},     {"backward_s", "Backward"},
    {"communication_s", "Communication"}, {"optimizer_s", "Optimizer"},
};
enum { PARTS = sizeof(parts) / sizeof(*parts), KNOWN = sizeof(known) / sizeof(*known) };

/* What training is held up by between two steps. */
static const char between[] = "checkpoint_s";

/* Of each file of tokens: "datasets/PREFIX/epochs". */
static const char datasets[] = "datasets/", epochs[] = "/epochs";

static int no_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "no memory for the charts");
}

size_t charts_smooth_reach(size_t record_count)
{
    return record_count < 40 ? 0 : record_count < 200 ? 4 : record_count / 50;
}

static bool is_part(const char *metric)
{
    for (size_t i = 0; i < PARTS; i++)
        if (strcmp(parts[i].metric, metric) == 0)
            return true;
    return strcmp(metric, between) == 0;
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

static void name_line(struct chart_line *line, const char *label)
{
    snprintf(line->label, sizeof(line->label), "%s", label);
}

/* A new line of the chart, in the colour and dashes of the `number`th of them. */
static struct chart_line *add_line(struct chart *chart, const char *label, const double *x,
                                   const double *y, size_t count, size_t number,
                                   struct error *error)
{
    struct chart_line *grown = reallocarray(chart->lines, chart->line_count + 1, sizeof(*grown));
    struct chart_line *line;

    if (!grown) {
        no_memory(error);
        return NULL;
    }
    chart->lines = grown;
    line = &grown[chart->line_count++];
    *line = (struct chart_line){.x = x,
                                .y = y,
                                .count = count,
                                .colour = (int)(number % CHART_COLOURS),
                                .dashed = number >= CHART_COLOURS};
    name_line(line, label);
    return line;
}

static int mark_all(struct chart *chart, const struct run *runs, size_t run_count,
                    struct error *error)
{
    for (size_t i = 0; i < run_count; i++)
        if (restarts_mark(chart, &runs[i], run_count > 1 ? (int)i % CHART_COLOURS : -1, error) < 0)
            return -1;
    return 0;
}

/* --- training -------------------------------------------------------------------------------- */

/* What a run's training records have of the metric; nothing without it. */
static int add_metric_line(struct chart *chart, const char *metric, bool smoothed,
                           const char *label, const struct run *run, size_t number,
                           struct error *error)
{
    const struct history_records *records = &run->history.training;
    const double *values = history_find(records, metric);
    struct chart_line *line;

    if (!values || records->count == 0)
        return 0;
    line = add_line(chart, label, records->steps, values, records->count, number, error);
    if (!line)
        return -1;
    line->points = records->count < POINTS_BELOW;
    line->smooth = smoothed ? charts_smooth_reach(records->count) : 0;
    return 0;
}

/* A line for each run whose records have the metric. */
static int add_metric_lines(struct chart *chart, const char *metric, bool smoothed,
                            const struct run *runs, size_t run_count, struct error *error)
{
    for (size_t i = 0; i < run_count; i++)
        if (add_metric_line(chart, metric, smoothed, run_count > 1 ? runs[i].name : chart->title,
                            &runs[i], i, error) < 0)
            return -1;
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
    if (!chart || add_metric_lines(chart, like->metric, like->smooth, runs, run_count, error) < 0)
        return -1;
    if (run_count > 1 || !like->other || !history_find(&runs->history.training, like->other))
        return 0;
    name_line(&chart->lines[0], like->label);
    return add_metric_line(chart, like->other, like->smooth, like->other_label, runs, 1, error);
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

        if (!runs[i].elapsed || records->count == 0)
            continue;
        if (!chart && !(chart = add_chart(charts, &like, error)))
            return -1;
        chart->x = CHART_SECONDS;
        if (!add_line(chart, run_count > 1 ? runs[i].name : "steps", runs[i].elapsed,
                      records->steps, records->count, i, error))
            return -1;
        if (run_count == 1 && restarts_shade(chart, &runs[i], error) < 0)
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
    line = add_line(chart, "Rest", records->steps, chart->owned, records->count, 0, error);
    if (!line)
        return -1;
    line->colour = CHART_COLOUR_REST;
    return 0;
}

/* The parts of one run's steps on top of each other. */
static int add_parts(struct charts *charts, const struct run *run, bool alone, struct error *error)
{
    static const struct known like = {
        .name = "parts", .title = "Parts of a step, mean", .unit = "s", .factor = 1, .zero = true};
    const struct history_records *records = &run->history.training;
    struct chart *chart = NULL;

    for (size_t i = 0; i < PARTS; i++) {
        const double *values = history_find(records, parts[i].metric);

        if (!values || records->count == 0)
            continue;
        if (!chart && !(chart = add_chart(charts, &like, error)))
            return -1;
        if (!add_line(chart, parts[i].title, records->steps, values, records->count, i, error))
            return -1;
    }
    if (!chart)
        return 0;
    chart->stacked = true;
    if (add_rest(chart, records, error) < 0 ||
        add_metric_line(chart, between, false, "Checkpoint, between steps", run, PARTS, error) < 0)
        return -1;
    if (!alone) {
        snprintf(chart->name, sizeof(chart->name), "parts_%.80s", run->name);
        snprintf(chart->title, sizeof(chart->title), "Parts of a step: %.70s", run->name);
    }
    return restarts_mark(chart, run, -1, error);
}

static int add_all_parts(struct charts *charts, const struct run *runs, size_t run_count,
                         struct error *error)
{
    for (size_t i = 0; i < run_count; i++)
        if (add_parts(charts, &runs[i], run_count == 1, error) < 0)
            return -1;
    return 0;
}

/* Is it more than one number? */
static bool varies(const struct run *runs, size_t run_count, const char *metric)
{
    for (size_t i = 0; i < run_count; i++) {
        const struct history_records *records = &runs[i].history.training;
        const double *values = history_find(records, metric);

        for (size_t k = 1; values && k < records->count; k++)
            if (values[k] != values[k - 1])
                return true;
    }
    return false;
}

static int add_known(struct charts *charts, size_t from, const struct run *runs, size_t run_count,
                     struct error *error)
{
    for (size_t i = from; i < KNOWN; i++) {
        if (!known[i].name || (known[i].changes && !varies(runs, run_count, known[i].metric)))
            continue;
        if (add_metric(charts, &known[i], runs, run_count, error) < 0 ||
            (strcmp(known[i].metric, "step_s") == 0 &&
             add_all_parts(charts, runs, run_count, error) < 0))
            return -1;
    }
    return 0;
}

/* How often each dataset was gone through. */
static int add_epochs(struct charts *charts, const struct run *runs, size_t run_count,
                      struct error *error)
{
    static const struct known like = {
        .name = "epochs", .title = "Epochs of the datasets", .unit = "", .factor = 1, .zero = true};
    struct chart *chart = NULL;

    for (size_t i = 0; i < run_count; i++) {
        const struct history_records *records = &runs[i].history.training;
        size_t seen = 0;

        for (size_t k = 0; k < records->metric_count; k++) {
            const char *name = records->metrics[k].name;
            size_t length = strlen(name), before = strlen(datasets), behind = strlen(epochs);
            char label[128];

            if (length <= before + behind || strncmp(name, datasets, before) != 0 ||
                strcmp(name + length - behind, epochs) != 0)
                continue;
            if (!chart && !(chart = add_chart(charts, &like, error)))
                return -1;
            snprintf(label, sizeof(label), "%s%s%.*s", run_count > 1 ? runs[i].name : "",
                     run_count > 1 ? ", " : "", (int)(length - before - behind), name + before);
            if (!add_line(chart, label, records->steps, records->metrics[k].values, records->count,
                          run_count > 1 ? i : seen, error))
                return -1;
            if (run_count > 1 && seen > 0)
                chart->lines[chart->line_count - 1].dashed = true;
            seen++;
        }
    }
    return chart ? mark_all(chart, runs, run_count, error) : 0;
}

/* What nobody here knows: of newer trainers, and a site's own. */
static int add_unknown(struct charts *charts, const struct run *runs, size_t run_count,
                       struct error *error)
{
    for (size_t i = 0; i < run_count; i++) {
        const struct history_records *records = &runs[i].history.training;

        for (size_t k = 0; k < records->metric_count; k++) {
            const char *name = records->metrics[k].name;
            struct known like = {name, name, name, "", 1, .far = FAR, .smooth = true};

            if (find_known(name) || is_part(name) ||
                strncmp(name, datasets, strlen(datasets)) == 0 || charts_find(charts, name))
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
    size_t number = 1; /* 0 is a single run's training */

    for (size_t i = 0; i < run_count; i++)
        for (size_t k = 0; k < runs[i].history.set_count; k++) {
            const struct history_records *records = &runs[i].history.sets[k];
            const double *values = history_find(records, metric);
            struct chart_line *line;
            char label[128];

            if (!values)
                continue;
            set_label(label, sizeof(label), &runs[i], records->set, run_count);
            line = add_line(chart, label, records->steps, values, records->count,
                            run_count > 1 ? i : number, error);
            if (!line)
                return -1;
            line->dashed = line->dashed || (run_count > 1 && k > 0);
            line->points = true;
            number++;
        }
    return 0;
}

static int add_validation(struct charts *charts, const char *metric, const struct run *runs,
                          size_t run_count, struct error *error)
{
    const struct known plain = {metric, metric, metric, "", 1, .far = FAR};
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
    if (add_epochs(charts, runs, run_count, error) < 0)
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
