/* Which charts there are for some runs. */
#ifndef MTLLM_REPORT_CHARTS_H
#define MTLLM_REPORT_CHARTS_H

#include "report/chart.h"
#include "report/run.h"

struct charts {
    struct chart *charts;
    size_t count;
};

/* Those that the runs have values for, in the order of the page. They point into the runs. */
int charts_choose(struct charts *charts, const struct run *runs, size_t run_count,
                  struct error *error);
void charts_free(struct charts *charts);

/* NULL when there is none of that name. */
const struct chart *charts_find(const struct charts *charts, const char *name);

/* How many training steps a smoothed line takes in on either side. */
size_t charts_smooth_reach(size_t record_count);

#endif
