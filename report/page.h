/* The whole as one HTML page. */
#ifndef MTLLM_REPORT_PAGE_H
#define MTLLM_REPORT_PAGE_H

#include <stdio.h>

#include "report/charts.h"

int page_write(const struct run *runs, size_t run_count, const struct charts *charts, FILE *stream,
               struct error *error);

#endif
