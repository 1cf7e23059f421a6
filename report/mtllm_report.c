/* mtllm-report: a page, or a chart, of one or several runs; mtllm-report(1). */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/log.h"
#include "core/standard_streams.h"
#include "report/page.h"

enum { RUNS_MOST = 32 };

static const char usage[] =
    "Usage: mtllm-report [OPTION]... RUN...\n"
    "Draw what the directories of runs tell: loss and validation, learning rate, gradient norm,\n"
    "throughput, the parts of a step, memory, restarts, checkpoints, settings; several runs over\n"
    "each other. The result is one HTML page that loads nothing.\n"
    "\n"
    "  -o, --output=FILE  where to write it; - is standard output [report.html in the first RUN;\n"
    "                     a chart: standard output]\n"
    "      --svg=NAME     one chart as an SVG file instead; \"list\" prints the names of those\n"
    "                     that there are\n"
    "      --help         print this and exit\n"
    "      --version      print the version and exit\n";

struct options {
    const char *output, *svg; /* NULL: not given */
    char **runs;
    size_t run_count;
};

/* --- command line ---------------------------------------------------------------------------- */

/* 1: help or version was asked for and printed. */
static int read_options(struct options *options, int argc, char **argv, struct error *error)
{
    enum { SVG = 256, HELP, VERSION };
    static const struct option table[] = {{"output", required_argument, NULL, 'o'},
                                          {"svg", required_argument, NULL, SVG},
                                          {"help", no_argument, NULL, HELP},
                                          {"version", no_argument, NULL, VERSION},
                                          {0}};
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":o:", table, NULL)) != -1) {
        switch (option) {
        case 'o':
            options->output = optarg;
            break;
        case SVG:
            options->svg = optarg;
            break;
        case HELP:
            fputs(usage, stdout);
            return 1;
        case VERSION:
            puts("mtllm-report (mtllm) " MTLLM_VERSION);
            return 1;
        case ':':
            return error_set(error, EXIT_STATUS_USAGE, "%s: a value is missing; see --help",
                             argv[optind - 1]);
        default:
            return error_set(error, EXIT_STATUS_USAGE, "%s: no such option; see --help",
                             argv[optind - 1]);
        }
    }
    if (options->output && !*options->output)
        return error_set(error, EXIT_STATUS_USAGE,
                         "--output=: a file name is missing; - is standard output");
    options->runs = argv + optind;
    options->run_count = (size_t)(argc - optind);
    if (options->run_count < 1 || options->run_count > RUNS_MOST)
        return error_set(error, EXIT_STATUS_USAGE,
                         "expected 1 to %d directories of runs, found %zu; see --help", RUNS_MOST,
                         options->run_count);
    return 0;
}

/* --- output ---------------------------------------------------------------------------------- */

struct output {
    FILE *stream;
    char path[DISK_PATH_SIZE], temporary[DISK_PATH_SIZE]; /* "": standard output */
};

/* A page that somebody looks at is replaced when the new one is whole. What is no regular file,
 * such as a pipe, is written to. */
static int open_output(struct output *output, const struct options *options, struct error *error)
{
    struct stat status;
    int result;

    *output = (struct output){.stream = stdout};
    if (options->output ? strcmp(options->output, "-") == 0 : options->svg != NULL)
        return 0;
    result = options->output ? disk_path(output->path, error, "%s", options->output)
                             : disk_path(output->path, error, "%s/report.html", options->runs[0]);
    if (result == 0 && (stat(output->path, &status) != 0 || S_ISREG(status.st_mode)))
        result = disk_path(output->temporary, error, "%s.tmp", output->path);
    if (result < 0)
        return -1;
    output->stream = fopen(*output->temporary ? output->temporary : output->path, "w");
    if (!output->stream)
        return error_set_errno(error, "cannot write %s (--output names another place)",
                               output->path);
    return 0;
}

/* `result`: of writing it. */
static int close_output(struct output *output, int result, struct error *error)
{
    const char *name = *output->path ? output->path : "standard output";
    bool failed = ferror(output->stream) != 0;

    failed = (output->stream == stdout ? fflush(stdout) : fclose(output->stream)) != 0 || failed;
    if (result == 0 && failed)
        result = error_set_errno(error, "cannot write %s", name);
    if (result == 0 && *output->temporary && rename(output->temporary, output->path) != 0)
        result = error_set_errno(error, "cannot write %s", name);
    if (result < 0 && *output->temporary)
        unlink(output->temporary);
    return result;
}

/* --- runs ------------------------------------------------------------------------------------ */

static void warn(const struct run *run)
{
    const struct history *history = &run->history;

    if (history->broken > 0)
        log_warning("%s/metrics.jsonl: %zu of %zu lines are no records and are passed over; the "
                    "first is line %zu",
                    run->path, history->broken, history->lines, history->first_broken);
    if (history->training.count == 0)
        log_warning("%s: no step is recorded yet", run->path);
}

/* Runs of the same name are told apart by their paths. */
static int name_runs(struct run *runs, size_t count, struct error *error)
{
    bool same[RUNS_MOST] = {false};

    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < count; k++)
            same[i] = same[i] || (k != i && strcmp(runs[k].name, runs[i].name) == 0);
    for (size_t i = 0; i < count; i++) {
        if (!same[i])
            continue;
        free(runs[i].name);
        runs[i].name = strdup(runs[i].path);
        if (!runs[i].name)
            return error_set(error, EXIT_STATUS_SYSTEM, "no memory");
    }
    return 0;
}

static int write_chart(const struct options *options, const struct charts *charts, FILE *stream,
                       struct error *error)
{
    const struct chart *chart = charts_find(charts, options->svg);

    if (strcmp(options->svg, "list") == 0) {
        for (size_t i = 0; i < charts->count; i++)
            fprintf(stream, "%-24s %s\n", charts->charts[i].name, charts->charts[i].title);
        return 0;
    }
    if (!chart)
        return error_set(error, EXIT_STATUS_USAGE,
                         "--svg=%s: there is no such chart of this; --svg=list names those that "
                         "there are",
                         options->svg);
    return chart_write_svg(chart, stream, error);
}

static int draw(const struct options *options, const struct run *runs, struct error *error)
{
    struct charts charts;
    struct output output;
    int result = charts_choose(&charts, runs, options->run_count, error);

    if (result == 0 && (result = open_output(&output, options, error)) == 0) {
        if (options->svg)
            result = write_chart(options, &charts, output.stream, error);
        else
            result = page_write(runs, options->run_count, &charts, output.stream, error);
        result = close_output(&output, result, error);
    }
    charts_free(&charts);
    return result;
}

static int report(const struct options *options, struct error *error)
{
    struct run *runs = calloc(options->run_count, sizeof(*runs));
    int result = 0;

    if (!runs)
        return error_set(error, EXIT_STATUS_SYSTEM, "no memory");
    for (size_t i = 0; i < options->run_count && result == 0; i++) {
        result = run_load(&runs[i], options->runs[i], error);
        if (result == 0)
            warn(&runs[i]);
    }
    if (result == 0)
        result = name_runs(runs, options->run_count, error);
    if (result == 0)
        result = draw(options, runs, error);
    for (size_t i = 0; i < options->run_count; i++)
        run_free(&runs[i]);
    free(runs);
    return result;
}

int main(int argc, char **argv)
{
    struct options options = {0};
    struct error error = {0};
    int result;

    standard_streams_open();
    result = read_options(&options, argc, argv, &error);
    if (result == 0)
        result = report(&options, &error);
    if (result >= 0 && (fflush(stdout) != 0 || ferror(stdout)))
        result = error_set_errno(&error, "cannot write standard output");
    return result < 0 ? error_print(&error) : EXIT_STATUS_OK;
}
