#include "report/plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "report/downsample.h"
#include "report/markup.h"
#include "report/ticks.h"

enum { UNITS = 10 /* of the curves' picture in a pixel of its height */, BANDS = 48 };

static struct bucket *line_buckets(const struct plot *plot, size_t line)
{
    return plot->buckets + line * plot->columns;
}

/* --- axes ------------------------------------------------------------------------------------ */

static void find_x_axis(struct plot *plot)
{
    const struct chart *chart = plot->chart;
    double least = INFINITY, most = -INFINITY;

    for (size_t i = 0; i < chart->line_count; i++) {
        const struct chart_line *line = &chart->lines[i];

        if (line->count == 0)
            continue;
        least = fmin(least, line->x[0]);
        most = fmax(most, line->x[line->count - 1]);
    }
    if (chart->x == CHART_SECONDS)
        plot->x = axis_duration(fmax(most, 1), 5);
    else if (most > least)
        plot->x = axis_linear(least, most, 5, true, false);
    else /* a single step stands in the middle */
        plot->x = (struct axis){
            .least = most - 1, .most = most + 1, .count = 1, .ticks = {most}, .step = 1};
}

/* The means become sums over the lines so far. */
static void stack(struct plot *plot)
{
    for (size_t i = 0; i < plot->chart->line_count; i++)
        for (size_t column = 0; column < plot->columns; column++) {
            struct bucket *bucket = &line_buckets(plot, i)[column];

            if (bucket->count == 0)
                bucket->mean = 0;
            if (i > 0)
                bucket->mean += bucket[-(ptrdiff_t)plot->columns].mean;
            bucket->least = bucket->greatest = bucket->mean;
        }
}

struct range {
    double least, most, median;
};

/* Of each line leave out the hundredth of its columns that reaches highest, and that which reaches
 * lowest. */
static void cut_range(const struct plot *plot, struct range *range, double *numbers)
{
    *range = (struct range){INFINITY, -INFINITY, range->median};
    for (size_t i = 0; i < plot->chart->line_count; i++) {
        const struct bucket *buckets = line_buckets(plot, i);
        double *greatest = numbers + plot->columns;
        size_t count = 0;

        for (size_t column = 0; column < plot->columns; column++)
            if (buckets[column].count > 0) {
                numbers[count] = buckets[column].least * plot->chart->factor;
                greatest[count++] = buckets[column].greatest * plot->chart->factor;
            }
        if (count == 0)
            continue;
        qsort(numbers, count, sizeof(*numbers), compare_numbers);
        qsort(greatest, count, sizeof(*greatest), compare_numbers);
        range->least = fmin(range->least, numbers[count / 100]);
        range->most = fmax(range->most, greatest[count - 1 - count / 100]);
    }
}

/* Of what will be drawn, in the chart's unit. False: there is nothing. */
static bool find_range(const struct plot *plot, struct range *range, double *numbers)
{
    const struct chart *chart = plot->chart;
    size_t total = chart->line_count * plot->columns, count = 0;

    *range = (struct range){INFINITY, -INFINITY, 0};
    for (size_t i = 0; i < total; i++) {
        if (plot->buckets[i].count == 0)
            continue;
        range->least = fmin(range->least, plot->buckets[i].least * chart->factor);
        range->most = fmax(range->most, plot->buckets[i].greatest * chart->factor);
        numbers[count++] = plot->buckets[i].mean * chart->factor;
    }
    if (count == 0)
        return false;
    qsort(numbers, count, sizeof(*numbers), compare_numbers);
    range->median = numbers[count / 2];
    if (chart->cut)
        cut_range(plot, range, numbers);
    return true;
}

/* Linear, unless a few values lie so high that the others would be one flat line. */
static int find_y_axis(struct plot *plot, struct error *error)
{
    const struct chart *chart = plot->chart;
    size_t total = chart->line_count * plot->columns;
    double *numbers = reallocarray(NULL, total + 2 * plot->columns, sizeof(*numbers));
    struct range range;

    if (!numbers)
        return error_set(error, EXIT_STATUS_SYSTEM, "no memory for a chart");
    plot->any = find_range(plot, &range, numbers);
    free(numbers);
    if (!plot->any)
        range = (struct range){0, 1, 0.5};
    if (chart->far > 0 && range.least > 0 && range.most > chart->far * range.median)
        plot->y = axis_logarithmic(range.least, range.most, 5);
    else
        plot->y = axis_linear(chart->zero ? fmin(0, range.least) : range.least,
                              chart->zero ? fmax(range.most, 0) : range.most, 4, chart->whole,
                              !chart->cut);
    return 0;
}

/* From the top, in pixels. Where the axis leaves a value out, not far beyond the edge. */
static double place_y(const struct plot *plot, double value)
{
    double place = axis_place(&plot->y, value * plot->chart->factor);

    return (1 - fmin(fmax(place, -1), 2)) * plot->height;
}

/* In columns, whose middles are whole numbers. */
static double place_column(const struct plot *plot, double x)
{
    return axis_place(&plot->x, x) * (double)plot->columns - 0.5;
}

static double place_percent(const struct plot *plot, double x)
{
    return 100 * axis_place(&plot->x, x);
}

/* --- curves ---------------------------------------------------------------------------------- */

/* A path of the stretched picture, in relative moves of rounded coordinates. */
struct path {
    const struct plot *plot;
    long x, y; /* in tenths of a column, in UNITS of a pixel */
    bool drawing;
};

static void write_tenths(FILE *stream, const char *before, long tenths)
{
    if (tenths % 10 == 0)
        fprintf(stream, "%s%ld", before, tenths / 10);
    else
        fprintf(stream, "%s%s%ld.%ld", before, tenths < 0 ? "-" : "", labs(tenths) / 10,
                labs(tenths) % 10);
}

/* `x` in columns. */
static void path_to(struct path *path, double x, double y)
{
    FILE *stream = path->plot->stream;
    long to_x = lround(x * 10), to_y = lround(place_y(path->plot, y) * UNITS);

    if (!path->drawing) {
        write_tenths(stream, "M", to_x);
        /* Shown even if nothing follows: as a dot. */
        fprintf(stream, " %ldh0", to_y);
        path->drawing = true;
    } else if (to_x == path->x) {
        if (to_y != path->y)
            fprintf(stream, "v%ld", to_y - path->y);
    } else if (to_y == path->y) {
        write_tenths(stream, "h", to_x - path->x);
    } else {
        write_tenths(stream, "l", to_x - path->x);
        fprintf(stream, "%s%ld", to_y < path->y ? "" : " ", to_y - path->y);
    }
    path->x = to_x;
    path->y = to_y;
}

static void begin_path(const struct plot *plot, const struct chart_line *line, const char *kind)
{
    fprintf(plot->stream, "<path class=\"%s s%d%s\" d=\"", kind, line->colour,
            line->dashed ? " dash" : "");
}

/* Every value where it is. */
static void write_exact(const struct plot *plot, const struct chart_line *line)
{
    struct path path = {.plot = plot};

    for (size_t i = 0; i < line->count; i++) {
        if (isinf(line->y[i]))
            path.drawing = false;
        else if (!isnan(line->y[i]))
            path_to(&path, place_column(plot, line->x[i]), line->y[i]);
    }
}

static void write_downsampled(const struct plot *plot, const struct bucket *buckets)
{
    struct path path = {.plot = plot};

    for (size_t column = 0; column < plot->columns; column++) {
        const struct bucket *bucket = &buckets[column];

        if (bucket->count > 0) {
            path_to(&path, (double)column, bucket->first);
            path_to(&path, (double)column, bucket->least);
            path_to(&path, (double)column, bucket->greatest);
            path_to(&path, (double)column, bucket->last);
        }
        if (bucket->lost > 0)
            path.drawing = false;
    }
}

/* Once a column, at its last value. */
static void write_smoothed(const struct plot *plot, const struct chart_line *line)
{
    struct path path = {.plot = plot};

    for (size_t i = 0; i < line->count; i++) {
        size_t column = bucket_index(line->x[i], plot->x.least, plot->x.most, plot->columns);
        double mean;

        if (i + 1 < line->count &&
            bucket_index(line->x[i + 1], plot->x.least, plot->x.most, plot->columns) == column)
            continue;
        mean = smooth(line->y, line->count, i, line->smooth);
        if (isfinite(mean))
            path_to(&path, place_column(plot, line->x[i]), mean);
    }
}

static void write_line(const struct plot *plot, size_t i)
{
    const struct chart_line *line = &plot->chart->lines[i];

    begin_path(plot, line, !line->smooth ? "line" : i > 0 ? "raw faint" : "raw");
    if (line->count <= plot->columns)
        write_exact(plot, line);
    else
        write_downsampled(plot, line_buckets(plot, i));
    fputs("\"/>", plot->stream);
}

static void write_smooth_line(const struct plot *plot, size_t i)
{
    begin_path(plot, &plot->chart->lines[i], "line");
    write_smoothed(plot, &plot->chart->lines[i]);
    fputs("\"/>", plot->stream);
}

/* Does any step fall into this column? Of few steps there is none in most. */
static bool column_is_used(const struct plot *plot, size_t column)
{
    for (size_t i = 0; i < plot->chart->line_count; i++)
        if (line_buckets(plot, i)[column].count > 0)
            return true;
    return false;
}

/* The area between the sums up to this line and those up to the one below. */
static void write_area(const struct plot *plot, size_t i)
{
    struct path path = {.plot = plot};
    const struct bucket *buckets = line_buckets(plot, i);
    size_t last = 0;

    fprintf(plot->stream, "<path class=\"area f%d\" d=\"", plot->chart->lines[i].colour);
    for (size_t column = 0; column < plot->columns; column++)
        if (column_is_used(plot, column)) {
            if (!path.drawing && column > 0)
                path_to(&path, -0.5, buckets[column].mean);
            path_to(&path, (double)column, buckets[column].mean);
            last = column;
        }
    if (path.drawing) {
        path_to(&path, (double)plot->columns - 0.5, buckets[last].mean);
        path_to(&path, (double)plot->columns - 0.5,
                i > 0 ? line_buckets(plot, i - 1)[last].mean : 0);
        for (size_t column = last + 1; column-- > 0;)
            if (column_is_used(plot, column))
                path_to(&path, (double)column, i > 0 ? line_buckets(plot, i - 1)[column].mean : 0);
        fputs("H-.5z", plot->stream);
    }
    fputs("\"/>", plot->stream);
}

static void write_curves(const struct plot *plot)
{
    const struct chart *chart = plot->chart;
    FILE *stream = plot->stream;

    fprintf(stream,
            "<svg%s width=\"100%%\" height=\"%d\" viewBox=\"-.5 0 %zu %d\" "
            "preserveAspectRatio=\"none\">",
            chart->cut ? " class=\"cut\"" : "", plot->height, plot->columns, plot->height * UNITS);
    for (size_t i = 0; i < chart->span_count; i++)
        fprintf(stream, "<path class=\"span\" d=\"M%.1f 0H%.1fV%dH%.1fz\"/>",
                place_column(plot, chart->spans[i].from), place_column(plot, chart->spans[i].to),
                plot->height * UNITS, place_column(plot, chart->spans[i].from));
    fputs("<path class=\"grid\" d=\"", stream);
    for (int i = 0; i < plot->y.count; i++)
        fprintf(stream, "M-.5 %.0fh%zu", place_y(plot, plot->y.ticks[i] / chart->factor) * UNITS,
                plot->columns);
    fputs("\"/>", stream);
    for (size_t i = 0; i < chart->line_count && plot->any; i++)
        if (chart->stacked)
            write_area(plot, i);
        else
            write_line(plot, i);
    for (size_t i = 0; i < chart->line_count && plot->any; i++)
        if (chart->lines[i].smooth)
            write_smooth_line(plot, i);
    for (size_t i = 0; i < chart->mark_count; i++)
        if (chart->marks[i].colour < 0)
            fprintf(stream, "<path class=\"mark\" d=\"M%.1f 0V%d\"/>",
                    place_column(plot, chart->marks[i].x), plot->height * UNITS);
    fputs("</svg>", stream);
}

/* --- what keeps its size --------------------------------------------------------------------- */

static const char *x_text(const struct plot *plot, double x, char text[NUMBER_SIZE])
{
    return plot->chart->x == CHART_SECONDS ? duration_text(x, text) : tick_text(&plot->x, x, text);
}

static void write_labels(const struct plot *plot)
{
    FILE *stream = plot->stream;
    char text[NUMBER_SIZE];

    for (int i = 0; i < plot->y.count; i++)
        fprintf(stream, "<text class=\"end\" x=\"-8\" y=\"%.1f\">%s</text>",
                place_y(plot, plot->y.ticks[i] / plot->chart->factor) + 4,
                tick_text(&plot->y, plot->y.ticks[i], text));
    for (int i = 0; i < plot->x.count; i++) {
        double place = place_percent(plot, plot->x.ticks[i]);

        fprintf(stream, "<text class=\"%s\" x=\"%.2f%%\" y=\"%d\">%s</text>",
                place < 2    ? "start"
                : place > 96 ? "end"
                             : "middle",
                place, plot->height + 18, x_text(plot, plot->x.ticks[i], text));
    }
    fprintf(stream,
            "<line class=\"axis\" x2=\"100%%\" y1=\"%d\" "
            "y2=\"%d\"/>",
            plot->height, plot->height);
}

static void write_points(const struct plot *plot)
{
    for (size_t i = 0; i < plot->chart->line_count; i++) {
        const struct chart_line *line = &plot->chart->lines[i];

        if (!line->points || line->count > 40)
            continue;
        for (size_t k = 0; k < line->count; k++)
            if (isfinite(line->y[k]) && place_y(plot, line->y[k]) >= 0 &&
                place_y(plot, line->y[k]) <= plot->height)
                fprintf(plot->stream, "<circle class=\"f%d\" cx=\"%.2f%%\" cy=\"%.1f\" r=\"3\"/>",
                        line->colour, place_percent(plot, line->x[k]), place_y(plot, line->y[k]));
    }
}

static void write_marks(const struct plot *plot)
{
    for (size_t i = 0; i < plot->chart->mark_count; i++) {
        const struct chart_mark *mark = &plot->chart->marks[i];
        char class[16] = "marked";

        if (mark->colour >= 0)
            snprintf(class, sizeof(class), "f%d", mark->colour);
        fprintf(plot->stream, "<svg x=\"%.2f%%\"><path class=\"%s\" d=\"M-5-8H5L0 0z\"><title>",
                place_percent(plot, mark->x), class);
        markup_text(mark->text, plot->stream);
        fputs("</title></path></svg>", plot->stream);
    }
}

/* Where numbers are not finite: one cross for those close to each other. */
static void write_lost(const struct plot *plot)
{
    for (size_t band = 0; band < BANDS; band++) {
        size_t begin = band * plot->columns / BANDS, end = (band + 1) * plot->columns / BANDS;
        size_t lost = 0;
        double at = 0;
        char number[NUMBER_SIZE];

        for (size_t i = 0; i < plot->chart->line_count; i++)
            for (size_t column = begin; column < end; column++) {
                const struct bucket *bucket = &line_buckets(plot, i)[column];

                if (lost == 0)
                    at = bucket->lost_at;
                lost += bucket->lost;
            }
        if (lost == 0)
            continue;
        fprintf(plot->stream,
                "<text class=\"lost middle\" x=\"%.2f%%\" y=\"%d\">&#215;<title>%s %s: ",
                place_percent(plot, at), plot->height - 4,
                plot->chart->x == CHART_STEPS ? "step" : "after",
                plot->chart->x == CHART_STEPS ? count_text(at, number) : duration_text(at, number));
        if (lost > 1)
            fprintf(plot->stream, "the first of %zu numbers that are not finite", lost);
        else
            fputs("not a finite number", plot->stream);
        fputs("</title></text>", plot->stream);
    }
}

/* The buckets of a line from begin to end as one. */
static struct bucket merge(const struct bucket *buckets, size_t begin, size_t end)
{
    struct bucket sum = {0};

    for (size_t i = begin; i < end; i++) {
        if (buckets[i].count == 0)
            continue;
        if (sum.count == 0)
            sum.least = sum.greatest = buckets[i].least;
        sum.count += buckets[i].count;
        sum.least = fmin(sum.least, buckets[i].least);
        sum.greatest = fmax(sum.greatest, buckets[i].greatest);
        sum.mean += (buckets[i].mean - sum.mean) * (double)buckets[i].count / (double)sum.count;
    }
    return sum;
}

static void write_value(const struct plot *plot, const struct chart_line *line,
                        const struct bucket *bucket)
{
    double factor = plot->chart->factor;
    const char *unit = plot->chart->unit;
    char mean[NUMBER_SIZE], least[NUMBER_SIZE], greatest[NUMBER_SIZE];

    number_text(bucket->mean * factor, mean);
    number_text(bucket->least * factor, least);
    number_text(bucket->greatest * factor, greatest);
    markup_printf(plot->stream, "\n%s: %s%s%s", line->label, mean, *unit ? " " : "", unit);
    if (strcmp(least, greatest) != 0)
        markup_printf(plot->stream, " (%s to %s)", least, greatest);
}

/* Strips that light up under a mouse and say the values there. */
static void write_bands(const struct plot *plot)
{
    const struct chart *chart = plot->chart;
    FILE *stream = plot->stream;

    for (size_t band = 0; band < BANDS; band++) {
        size_t begin = band * plot->columns / BANDS, end = (band + 1) * plot->columns / BANDS;
        double width = (plot->x.most - plot->x.least) / (double)plot->columns;
        char from[NUMBER_SIZE], to[NUMBER_SIZE];
        bool any = false;

        for (size_t i = 0; i < chart->line_count; i++) {
            struct bucket bucket = merge(line_buckets(plot, i), begin, end);

            if (bucket.count == 0)
                continue;
            /* Of a stack, what the line itself adds. */
            if (chart->stacked && i > 0)
                bucket.mean -= merge(line_buckets(plot, i - 1), begin, end).mean;
            if (chart->stacked)
                bucket.least = bucket.greatest = bucket.mean;
            if (!any) {
                double first = plot->x.least + width * (double)begin,
                       last = plot->x.least + width * (double)end;

                fprintf(stream,
                        "<rect class=\"band\" x=\"%.2f%%\" width=\"%.2f%%\" height=\"%d\"><title>",
                        100.0 * (double)begin / (double)plot->columns,
                        100.0 * (double)(end - begin) / (double)plot->columns, plot->height);
                if (chart->x == CHART_SECONDS)
                    fprintf(stream, "%s to %s", duration_text(first, from),
                            duration_text(last, to));
                else if (ceil(first) >= floor(last))
                    fprintf(stream, "step %s", count_text(round((first + last) / 2), from));
                else
                    fprintf(stream, "steps %s to %s", count_text(ceil(first), from),
                            count_text(floor(last), to));
                any = true;
            }
            write_value(plot, &chart->lines[i], &bucket);
        }
        if (any)
            fputs("</title></rect>", stream);
    }
}

void plot_write(const struct plot *plot)
{
    write_labels(plot);
    write_curves(plot);
    write_points(plot);
    write_bands(plot);
    write_lost(plot);
    write_marks(plot);
}

int plot_open(struct plot *plot, const struct chart *chart, size_t columns, int height,
              FILE *stream, struct error *error)
{
    *plot = (struct plot){.chart = chart, .columns = columns, .height = height, .stream = stream};
    plot->buckets = calloc(chart->line_count * columns + 1, sizeof(*plot->buckets));
    if (!plot->buckets)
        return error_set(error, EXIT_STATUS_SYSTEM, "no memory for a chart");
    find_x_axis(plot);
    for (size_t i = 0; i < chart->line_count; i++)
        downsample(chart->lines[i].x, chart->lines[i].y, chart->lines[i].count, plot->x.least,
                   plot->x.most, line_buckets(plot, i), columns);
    if (chart->stacked)
        stack(plot);
    if (find_y_axis(plot, error) == 0)
        return 0;
    free(plot->buckets);
    return -1;
}

void plot_close(struct plot *plot)
{
    free(plot->buckets);
}
