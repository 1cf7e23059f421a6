/* The inside of a chart: axes, curves, marks, and what a pointer is told. */
#ifndef MTLLM_REPORT_PLOT_H
#define MTLLM_REPORT_PLOT_H

#include "report/chart.h"
#include "report/downsample.h"
#include "report/ticks.h"

struct plot {
    const struct chart *chart;
    struct axis x, y;
    size_t columns;         /* of the downsampled curves */
    struct bucket *buckets; /* [line_count][columns]; stacked: their means are sums */
    bool any;               /* there is a finite value */
    int height;             /* pixels */
    FILE *stream;
};

/* Downsample the chart's lines and choose its axes. */
int plot_open(struct plot *plot, const struct chart *chart, size_t columns, int height,
              FILE *stream, struct error *error);
void plot_close(struct plot *plot);

/* What is inside of an <svg> that is plot->height high and as wide as it likes; labels reach out of
 * it to the left and below, marks above. */
void plot_write(const struct plot *plot);

#endif
