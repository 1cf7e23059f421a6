/* What metrics.jsonl says of a run, by step.
 *
 * Whatever numbers a line holds are kept under their names, so metrics that a later trainer or a
 * site's plugin adds need no change here. Of lines with the same step the last one counts. Lines
 * that are no such records are counted and passed over: a run may be read while it is written, or
 * after its host died.
 */
#ifndef MTLLM_REPORT_HISTORY_H
#define MTLLM_REPORT_HISTORY_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/error.h"

/* A value is finite; NAN where the record has none; INFINITY where it stands as null, which is how
 * JSON has a number that is not finite, or is beyond 1e290. */
struct history_metric {
    char *name;     /* of a number in an object within the line "OBJECT/NAME" */
    double *values; /* [count] of its records */
};

/* Records of training steps, or of validations on one set; steps ascend and are distinct. */
struct history_records {
    char *set; /* name of the validation set; NULL: training */
    double *steps;
    size_t count, room;
    struct history_metric *metrics; /* in the order in which they first appeared */
    size_t metric_count;
};

struct history {
    struct history_records training;
    struct history_records *sets;
    size_t set_count;
    size_t lines, broken; /* lines that are no records; the unfinished last one is not counted */
    size_t first_broken;  /* line number, from 1 */
    bool unfinished;      /* the last line has no end: it is being written, or never will be */
};

/* A missing file is an empty history. Error: EXIT_STATUS_IO. */
int history_read(struct history *history, const char *path, struct error *error);
void history_free(struct history *history);

/* NULL where no record has it. */
const double *history_find(const struct history_records *records, const char *name);

#endif
