#include "report/page.h"

#include <stdlib.h>
#include <string.h>

#include "report/downsample.h"
#include "report/markup.h"
#include "report/ticks.h"

/* A page stays below 1 MB: what it takes is about this much. */
enum {
    BYTES_ALL = 850000,
    BYTES_CHART = 5000,
    BYTES_LINE = 1600, /* its values for a pointer */
    BYTES_MARK = 200,
    BYTES_COLUMN = 20,
    COLUMNS_LEAST = 40
};

static const char style[] =
    ":root{color-scheme:light dark;--paper:#f4f5f7;--card:#fff;--ink:#1c2128;--quiet:#5f6874;"
    "--line:#e3e6ea;--warn:#9a6700;--warn-paper:#fff8e1}\n"
    "@media(prefers-color-scheme:dark){:root{--paper:#0e1115;--card:#171b21;--ink:#e8ecf1;"
    "--quiet:#9aa4b0;--line:#2a3038;--warn:#f2bd4b;--warn-paper:#2a2413}}\n"
    "*{box-sizing:border-box}"
    "body{margin:0 auto;max-width:100rem;padding:1.25rem 1rem 3rem;background:var(--paper);"
    "color:var(--ink);font:15px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Noto Sans\","
    "\"DejaVu Sans\",sans-serif;-webkit-text-size-adjust:100%}"
    "h1{font-size:1.5rem;line-height:1.25;margin:0;overflow-wrap:anywhere}"
    "h2{font-size:1.05rem;margin:2rem 0 .6rem}"
    ".about{color:var(--quiet);margin:.25rem 0 1rem;overflow-wrap:anywhere}"
    ".note{background:var(--warn-paper);border-left:4px solid var(--warn);border-radius:4px;"
    "padding:.5rem .8rem;margin:.5rem 0;overflow-wrap:anywhere}"
    ".facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;"
    "margin:1rem 0}"
    ".facts div{background:var(--card);border:1px solid var(--line);border-radius:10px;"
    "padding:.6rem .8rem;min-width:0}"
    "dl{margin:0}dt{color:var(--quiet);font-size:.8rem}"
    "dd{margin:0;font-size:1.25rem;font-weight:600;font-variant-numeric:tabular-nums}"
    "dd small{display:block;color:var(--quiet);font-size:.8rem;font-weight:400}\n"
    ".charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,25rem),1fr));"
    "gap:.75rem}"
    "figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;"
    "padding:.75rem 0 .25rem;min-width:0}"
    ".wide{grid-column:1/-1}"
    "figcaption{padding:0 1rem .35rem}"
    ".unit{color:var(--quiet);font-size:.85rem;margin-left:.3rem}"
    ".legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;color:var(--quiet);font-size:.85rem;"
    "overflow-wrap:anywhere}"
    ".swatch{margin-right:.35rem;vertical-align:-1px}"
    ".plot{display:block;overflow:visible;width:calc(100% - 5rem);margin:.85rem 1.25rem 1.9rem "
    "3.75rem;font-size:12px;font-variant-numeric:tabular-nums}\n"
    ".scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);"
    "border-radius:10px;margin-bottom:.75rem}"
    "table{border-collapse:collapse;width:100%;font-size:.9rem;"
    "font-variant-numeric:tabular-nums}"
    "th,td{text-align:left;vertical-align:top;padding:.35rem .8rem;border-top:1px solid "
    "var(--line)}"
    "tr:first-child>*{border-top:0}th{color:var(--quiet);font-weight:600;white-space:nowrap}"
    ".number{text-align:right;white-space:nowrap}.value{overflow-wrap:anywhere;min-width:8rem}"
    ".origin{color:var(--quiet);overflow-wrap:anywhere}.lines td{white-space:nowrap}"
    ".lines .value{white-space:normal}"
    "summary{cursor:pointer;padding:.4rem 0;color:var(--quiet)}"
    "footer{color:var(--quiet);font-size:.85rem;margin-top:2rem}\n"
    "@media(max-width:30rem){.facts{grid-template-columns:1fr 1fr;gap:.5rem}"
    ".charts{gap:.5rem}body{padding:1rem .6rem 2rem}dd{font-size:1.1rem}th,td{padding:.35rem .6rem}"
    ".settings tr{display:grid;grid-template-columns:40% 60%;border-top:1px solid var(--line)}"
    ".settings tr>*{border:0;white-space:normal;overflow-wrap:anywhere}"
    ".settings .origin{grid-column:2;padding-top:0;font-size:.8rem}}\n"
    "@media print{body{background:#fff}figure,.scroll,.facts div{break-inside:avoid}}\n";

/* --- what is known of a run ------------------------------------------------------------------ */

static double last_finite(const struct history_records *records, const char *metric)
{
    const double *values = history_find(records, metric);

    for (size_t i = records->count; values && i-- > 0;)
        if (isfinite(values[i]))
            return values[i];
    return NAN;
}

/* NAN without finite values. */
static double median(const struct history_records *records, const char *metric)
{
    const double *values = history_find(records, metric);
    double *sorted = values ? reallocarray(NULL, records->count + 1, sizeof(*sorted)) : NULL;
    double middle = NAN;
    size_t count = 0;

    for (size_t i = 0; sorted && i < records->count; i++)
        if (isfinite(values[i]))
            sorted[count++] = values[i];
    if (count > 0) {
        qsort(sorted, count, sizeof(*sorted), compare_numbers);
        middle = sorted[count / 2];
    }
    free(sorted);
    return middle;
}

static double last_step(const struct run *run)
{
    const struct history_records *records = &run->history.training;

    return records->count > 0 ? records->steps[records->count - 1] : 0;
}

/* The loss as the smoothed line ends. */
static double last_loss(const struct run *run)
{
    const struct history_records *records = &run->history.training;
    const double *loss = history_find(records, "loss");
    size_t count = records->count;

    return loss && count > 0 ? smooth(loss, count, count - 1, charts_smooth_reach(count)) : NAN;
}

/* The records of the set that stands for all: "valid" if there is one. NULL without any. */
static const struct history_records *main_set(const struct run *run)
{
    for (size_t i = 0; i < run->history.set_count; i++)
        if (strcmp(run->history.sets[i].set, "valid") == 0)
            return &run->history.sets[i];
    return run->history.set_count > 0 ? run->history.sets : NULL;
}

/* The record of the lowest loss; the count if there is none. */
static size_t best_record(const struct history_records *records)
{
    const double *loss = history_find(records, "loss");
    size_t best = records->count;

    for (size_t i = 0; loss && i < records->count; i++)
        if (isfinite(loss[i]) && (best == records->count || loss[i] < loss[best]))
            best = i;
    return best;
}

/* --- facts ----------------------------------------------------------------------------------- */

/* The values of a fact are written before it is known whether there is a small line. */
static void write_fact(FILE *stream, const char *name, const char *value, const char *small)
{
    fputs("<div><dt>", stream);
    markup_text(name, stream);
    fputs("</dt><dd>", stream);
    markup_text(value, stream);
    if (*small) {
        fputs("<small>", stream);
        markup_text(small, stream);
        fputs("</small>", stream);
    }
    fputs("</dd></div>\n", stream);
}

static void write_steps(const struct run *run, FILE *stream)
{
    double steps = strtod(run_setting(run, "steps"), NULL), done = last_step(run);
    char value[NUMBER_SIZE], all[NUMBER_SIZE], small[96] = "";

    if (steps > 0)
        snprintf(small, sizeof(small), "of %s, %.3g\xc2\xa0%%", count_text(steps, all),
                 floor(1000 * done / steps) / 10);
    write_fact(stream, "Steps", count_text(done, value), small);
}

static void write_validation(const struct run *run, FILE *stream)
{
    const struct history_records *records = main_set(run);
    char value[NUMBER_SIZE], best_value[NUMBER_SIZE], step[NUMBER_SIZE], small[128];
    size_t best;

    if (!records || (best = best_record(records)) == records->count)
        return;
    snprintf(small, sizeof(small), "lowest %s, step %s",
             number_text(history_find(records, "loss")[best], best_value),
             count_text(records->steps[best], step));
    write_fact(stream, "Validation loss", number_text(last_finite(records, "loss"), value), small);
}

static void write_time(const struct run *run, FILE *stream)
{
    const struct history_records *records = &run->history.training;
    const double *step_s = history_find(records, "step_s");
    double busy = 0, left = last_finite(records, "eta_s");
    char value[NUMBER_SIZE], spent[NUMBER_SIZE], small[96] = "";

    if (!run->elapsed || records->count == 0)
        return;
    for (size_t i = 0; step_s && i < records->count; i++)
        busy += isfinite(step_s[i]) ? step_s[i] : 0;
    if (left > 0 && last_step(run) < strtod(run_setting(run, "steps"), NULL))
        snprintf(small, sizeof(small), "%s left", duration_text(left, spent));
    else if (busy > 0)
        snprintf(small, sizeof(small), "%s of it in steps", duration_text(busy, spent));
    write_fact(stream, "Time", duration_text(run->elapsed[records->count - 1], value), small);
}

static void write_restarts(const struct run *run, FILE *stream)
{
    char value[NUMBER_SIZE], small[96] = "";

    if (run->start_count == 0)
        return;
    if (run->starts_guessed)
        snprintf(small, sizeof(small), "a guess from gaps");
    else if (*run->starts[run->start_count - 1].job)
        snprintf(small, sizeof(small), "job %s", run->starts[run->start_count - 1].job);
    write_fact(stream, "Restarts", count_text((double)run->start_count - 1, value), small);
}

static void write_facts(const struct run *run, FILE *stream)
{
    const struct history_records *records = &run->history.training;
    double loss = last_loss(run), norm = last_finite(records, "grad_norm");
    double rate = median(records, "tokens_per_s"), mfu = median(records, "mfu");
    double tokens = last_finite(records, "tokens"), skipped = last_finite(records, "skipped");
    char value[NUMBER_SIZE], other[NUMBER_SIZE], text[64];

    fputs("<dl class=\"facts\">\n", stream);
    write_steps(run, stream);
    if (isfinite(loss)) {
        snprintf(text, sizeof(text), isfinite(norm) ? "gradient norm %s" : "%s",
                 isfinite(norm) ? number_text(norm, other) : "");
        write_fact(stream, "Training loss", number_text(loss, value), text);
    }
    write_validation(run, stream);
    if (isfinite(tokens))
        write_fact(stream, "Tokens", number_text(tokens, value), "trained on");
    if (isfinite(rate)) {
        if (isfinite(mfu))
            snprintf(text, sizeof(text), "tokens/s, MFU %.1f\xc2\xa0%%", 100 * mfu);
        else
            snprintf(text, sizeof(text), "tokens/s, median");
        write_fact(stream, "Throughput", number_text(rate, value), text);
    }
    write_time(run, stream);
    write_restarts(run, stream);
    if (isfinite(skipped))
        write_fact(stream, "Skipped", count_text(skipped, value), "steps without an update");
    fputs("</dl>\n", stream);
}

/* --- several runs ---------------------------------------------------------------------------- */

static void write_number_cell(FILE *stream, double value, const char *text)
{
    fputs("<td class=\"number\">", stream);
    markup_text(isfinite(value) ? text : "\xe2\x80\x93", stream);
    fputs("</td>", stream);
}

static void write_run_row(const struct run *run, size_t i, FILE *stream)
{
    const struct history_records *records = &run->history.training, *set = main_set(run);
    const struct chart_line line = {.colour = (int)i % CHART_COLOURS, .dashed = i >= CHART_COLOURS};
    double values[] = {last_step(run),
                       last_loss(run),
                       set ? last_finite(set, "loss") : NAN,
                       median(records, "tokens_per_s"),
                       100 * median(records, "mfu"),
                       run->elapsed && records->count ? run->elapsed[records->count - 1] : NAN,
                       run->start_count ? (double)run->start_count - 1 : NAN};
    char text[NUMBER_SIZE];

    fputs("<tr><td class=\"value\">", stream);
    chart_write_swatch(&line, false, stream);
    markup_text(run->name, stream);
    fputs("</td>", stream);
    write_number_cell(stream, values[0], count_text(values[0], text));
    write_number_cell(stream, values[1], number_text(values[1], text));
    write_number_cell(stream, values[2], number_text(values[2], text));
    write_number_cell(stream, values[3], number_text(values[3], text));
    snprintf(text, sizeof(text), "%.1f %%", values[4]);
    write_number_cell(stream, values[4], text);
    write_number_cell(stream, values[5], duration_text(values[5], text));
    write_number_cell(stream, values[6], count_text(values[6], text));
    fputs("</tr>\n", stream);
}

static void write_runs(const struct run *runs, size_t run_count, FILE *stream)
{
    static const char *const titles[] = {"Steps", "Loss", "Validation", "Tokens/s",
                                         "MFU",   "Time", "Restarts"};

    fputs("<div class=\"scroll\"><table>\n<tr><th>Run</th>", stream);
    for (size_t i = 0; i < sizeof(titles) / sizeof(*titles); i++)
        fprintf(stream, "<th class=\"number\">%s</th>", titles[i]);
    fputs("</tr>\n", stream);
    for (size_t i = 0; i < run_count; i++)
        write_run_row(&runs[i], i, stream);
    fputs("</table></div>\n", stream);
}

/* --- notes ----------------------------------------------------------------------------------- */

static void write_notes(const struct run *run, FILE *stream)
{
    const struct history *history = &run->history;

    if (history->training.count == 0) {
        fputs("<p class=\"note\">", stream);
        markup_text(run->name, stream);
        fputs(": no step is recorded yet.</p>\n", stream);
    }
    if (history->broken > 0) {
        fputs("<p class=\"note\">", stream);
        markup_printf(stream,
                      "%s: %zu of %zu lines of metrics.jsonl are no records and were passed over; "
                      "the first is line %zu.",
                      run->name, history->broken, history->lines, history->first_broken);
        fputs("</p>\n", stream);
    }
}

/* --- tables ---------------------------------------------------------------------------------- */

static void write_checkpoint(const struct listing_row *row, FILE *stream)
{
    char text[NUMBER_SIZE], created[sizeof(row->created)];

    fprintf(stream, "<tr><td class=\"number\">%s</td><td%s>", count_text((double)row->step, text),
            *row->fault ? " class=\"value\"" : "");
    markup_text(*row->fault ? row->fault : row->latest ? "complete, latest" : "complete", stream);
    fputs("</td>", stream);
    write_number_cell(stream, row->described ? 0 : NAN, bytes_text((double)row->bytes, text));
    fputs("<td>", stream);
    /* "2026-11-26T13:05:00Z" */
    snprintf(created, sizeof(created), "%s", row->created);
    if (strlen(created) == 20 && created[10] == 'T')
        created[10] = created[19] = ' ';
    markup_text(row->described ? created : "\xe2\x80\x93", stream);
    fputs("</td><td>", stream);
    markup_text(row->described && *row->layout ? row->layout : "\xe2\x80\x93", stream);
    fputs("</td></tr>\n", stream);
}

static void write_checkpoints(const struct run *run, bool alone, FILE *stream)
{
    if (run->checkpoint_count == 0)
        return;
    fputs("<h2>Checkpoints", stream);
    if (!alone) {
        fputs(" of ", stream);
        markup_text(run->name, stream);
    }
    fputs("</h2>\n<div class=\"scroll\"><table class=\"lines\">\n<tr><th class=\"number\">Step</th>"
          "<th>State</th><th class=\"number\">Size</th><th>Written, UTC</th><th>Layout</th></tr>\n",
          stream);
    for (size_t i = 0; i < run->checkpoint_count; i++)
        write_checkpoint(&run->checkpoints[i], stream);
    fputs("</table></div>\n", stream);
}

static void write_setting_list(const struct run *run, bool defaults, FILE *stream)
{
    fputs("<div class=\"scroll\"><table class=\"settings\">\n", stream);
    for (size_t i = 0; i < run->setting_count; i++) {
        const struct run_setting *setting = &run->settings[i];

        if ((strcmp(setting->origin, "default") == 0) != defaults)
            continue;
        fputs("<tr><th>", stream);
        markup_text(setting->name, stream);
        fputs("</th><td class=\"value\">", stream);
        markup_text(setting->value, stream);
        fputs("</td><td class=\"origin\">", stream);
        markup_text(setting->origin, stream);
        fputs("</td></tr>\n", stream);
    }
    fputs("</table></div>\n", stream);
}

static void write_settings(const struct run *run, FILE *stream)
{
    if (run->setting_count == 0)
        return;
    fputs("<h2>Settings</h2>\n", stream);
    write_setting_list(run, false, stream);
    fputs("<details><summary>Defaults</summary>\n", stream);
    write_setting_list(run, true, stream);
    fputs("</details>\n", stream);
}

/* A row for each setting that some run before runs[i] does not have. */
static void write_compared(const struct run *runs, size_t run_count, bool alike, FILE *stream)
{
    fputs("<div class=\"scroll\"><table>\n<tr><th></th>", stream);
    for (size_t i = 0; i < run_count; i++) {
        fputs("<th>", stream);
        markup_text(runs[i].name, stream);
        fputs("</th>", stream);
    }
    fputs("</tr>\n", stream);
    for (size_t i = 0; i < run_count; i++)
        for (size_t k = 0; k < runs[i].setting_count; k++) {
            const char *name = runs[i].settings[k].name, *value = runs[i].settings[k].value;
            bool seen = false, same = true;

            for (size_t other = 0; other < run_count; other++) {
                const char *text = run_setting(&runs[other], name);

                seen = seen || (other < i && *text);
                same = same && strcmp(text, value) == 0;
            }
            if (seen || same != alike)
                continue;
            fputs("<tr><th>", stream);
            markup_text(name, stream);
            fputs("</th>", stream);
            for (size_t other = 0; other < run_count; other++) {
                fputs("<td class=\"value\">", stream);
                markup_text(run_setting(&runs[other], name), stream);
                fputs("</td>", stream);
            }
            fputs("</tr>\n", stream);
        }
    fputs("</table></div>\n", stream);
}

static void write_all_settings(const struct run *runs, size_t run_count, FILE *stream)
{
    size_t with = 0;

    for (size_t i = 0; i < run_count; i++)
        with += runs[i].setting_count > 0;
    if (with == 0)
        return;
    if (run_count == 1) {
        write_settings(runs, stream);
        return;
    }
    fputs("<h2>Settings that differ</h2>\n", stream);
    write_compared(runs, run_count, false, stream);
    fputs("<details><summary>Settings that are alike</summary>\n", stream);
    write_compared(runs, run_count, true, stream);
    fputs("</details>\n", stream);
}

/* --- the page -------------------------------------------------------------------------------- */

static void write_title(const struct run *runs, size_t run_count, FILE *stream)
{
    if (run_count == 1)
        markup_text(runs->name, stream);
    else
        markup_printf(stream, "%zu runs", run_count);
}

/* "llama-tiny, 4 ranks tp2 pp2 dp1, 2026-11-26 13:05 UTC to …" */
static void write_about(const struct run *run, FILE *stream)
{
    const struct history_records *records = &run->history.training;
    const char *model = run_setting(run, "model");
    double begin = run_begin_time(run), end = last_finite(records, "time");
    char from[NUMBER_SIZE], to[NUMBER_SIZE];

    fputs("<p class=\"about\">", stream);
    if (*model)
        markup_printf(stream, "%s \xc2\xb7 ", model);
    if (run->start_count > 0 && *run->starts[run->start_count - 1].layout)
        markup_printf(stream, "%s \xc2\xb7 ", run->starts[run->start_count - 1].layout);
    if (isfinite(begin) && isfinite(end))
        markup_printf(stream, "%s to %s", time_text(begin, from), time_text(end, to));
    else
        markup_text(run->path, stream);
    fputs("</p>\n", stream);
}

/* How finely curves are drawn: as finely as the page's size allows. */
static size_t choose_columns(const struct charts *charts)
{
    size_t lines = 1, marks = 0, fixed, columns = 0;

    for (size_t i = 0; i < charts->count; i++) {
        lines += charts->charts[i].line_count;
        marks += charts->charts[i].mark_count;
    }
    fixed = BYTES_CHART * charts->count + BYTES_LINE * lines + BYTES_MARK * marks;
    if (fixed < BYTES_ALL)
        columns = (BYTES_ALL - fixed) / (BYTES_COLUMN * lines);
    return columns < COLUMNS_LEAST   ? COLUMNS_LEAST
           : columns > CHART_COLUMNS ? CHART_COLUMNS
                                     : columns;
}

int page_write(const struct run *runs, size_t run_count, const struct charts *charts, FILE *stream,
               struct error *error)
{
    size_t columns = choose_columns(charts);

    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
          stream);
    write_title(runs, run_count, stream);
    fprintf(stream, "</title>\n<style>\n%s", style);
    chart_write_style(stream);
    fputs("</style>\n</head>\n<body>\n<h1>", stream);
    write_title(runs, run_count, stream);
    fputs("</h1>\n", stream);
    if (run_count == 1) {
        write_about(runs, stream);
        write_facts(runs, stream);
    } else {
        fputs("<p class=\"about\">Curves have the colours of this table.</p>\n", stream);
        write_runs(runs, run_count, stream);
    }
    for (size_t i = 0; i < run_count; i++)
        write_notes(&runs[i], stream);
    fputs("<div class=\"charts\">\n", stream);
    for (size_t i = 0; i < charts->count; i++)
        if (chart_write_figure(&charts->charts[i], columns, stream, error) < 0)
            return -1;
    fputs("</div>\n", stream);
    for (size_t i = 0; i < run_count; i++)
        write_checkpoints(&runs[i], run_count == 1, stream);
    write_all_settings(runs, run_count, stream);
    fputs("<footer>Pale curves show every step, strong ones a mean over neighbouring steps. "
          "Triangles mark restarts, crosses numbers that were not finite. "
          "Made by mtllm-report " MTLLM_VERSION ".</footer>\n</body>\n</html>\n",
          stream);
    return 0;
}
