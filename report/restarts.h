/* Where a run was started again, in its charts. */
#ifndef MTLLM_REPORT_RESTARTS_H
#define MTLLM_REPORT_RESTARTS_H

#include "report/chart.h"
#include "report/run.h"

/* A mark for each restart, on the chart's axis of steps or of time. `colour` as in chart_mark. */
int restarts_mark(struct chart *chart, const struct run *run, int colour, struct error *error);
/* A span on the axis of time for each stretch that the run stood still before a restart. */
int restarts_shade(struct chart *chart, const struct run *run, struct error *error);

#endif
