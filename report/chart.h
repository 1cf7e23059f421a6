/* One chart as SVG, for a page or by itself.
 *
 * Text keeps its size whatever the width: on a page the chart is as wide as its place, positions
 * along x are percentages, and only the inner picture with the curves is stretched.
 */
#ifndef MTLLM_REPORT_CHART_H
#define MTLLM_REPORT_CHART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "core/error.h"

enum { CHART_COLOURS = 8, CHART_COLOUR_REST = 8, CHART_COLUMNS = 720 };

enum chart_x { CHART_STEPS, CHART_SECONDS };

struct chart_line {
    char label[128];
    const double *x, *y; /* [count]; x ascends; y as in history.h */
    size_t count;
    int colour;          /* of the palette, or CHART_COLOUR_REST */
    bool dashed, points; /* points: each value is shown, if they are few */
    size_t smooth;       /* 0, or the reach of a smoothed line before the pale exact one */
};

/* A moment of the run, such as a restart. */
struct chart_mark {
    double x;
    int colour; /* -1: of the text; the mark crosses the whole chart */
    char text[160];
};

/* A stretch without training. */
struct chart_span {
    double from, to;
    char text[160];
};

struct chart {
    char name[96];  /* what --svg calls it */
    char title[96]; /* plain text, as all text here */
    const char *unit;
    double factor; /* from the values to the unit */
    enum chart_x x;
    bool zero;    /* the axis begins at 0 */
    double far;   /* logarithmic if the greatest value is this many times the median; 0: never */
    bool whole;   /* values are whole numbers */
    bool cut;     /* the axis leaves out the few values that lie far from the others */
    bool stacked; /* means of the lines, which share their x, on top of each other */
    bool wide;
    struct chart_line *lines;
    size_t line_count;
    struct chart_mark *marks;
    size_t mark_count;
    struct chart_span *spans;
    size_t span_count;
    double *owned; /* values of a line that are the chart's own; may be NULL */
};

/* The <figure> of a page. `columns`: into how many the curves are downsampled. */
int chart_write_figure(const struct chart *chart, size_t columns, FILE *stream,
                       struct error *error);
/* A file by itself: title, legend and colours are in it. */
int chart_write_svg(const struct chart *chart, FILE *stream, struct error *error);
/* The style sheet that the charts of a page share, without its element. */
void chart_write_style(FILE *stream);
/* A short piece of a line, for legends. */
void chart_write_swatch(const struct chart_line *line, bool area, FILE *stream);

#endif
