/* Every place that the rows of a run go to: metrics.jsonl, and where they are asked for
 * TensorBoard's event files and a W&B run. One rank has it.
 *
 * metrics.jsonl is the record of the run. The others are brought up to it when they are opened, so
 * that they have what they missed: rows that a kill took, or all that was before they were asked
 * for. One that fails says so once, and the training goes on.
 */
#ifndef MTLLM_TRAINER_METRICS_OUTPUTS_H
#define MTLLM_TRAINER_METRICS_OUTPUTS_H

#include "core/settings.h"
#include "trainer/metrics.h"

struct metrics_outputs;

struct metrics_outputs_options {
    const struct settings *settings;
    const char *run_directory;
    const char *metrics;          /* the path of metrics.jsonl */
    const char *settings_text;    /* as settings_write() has it */
    const char *model_config;     /* config.json */
    struct metrics_resume resume; /* later rows are dropped */
};

/* Error: EXIT_STATUS_IO, of metrics.jsonl alone. */
int metrics_outputs_open(struct metrics_outputs **outputs,
                         const struct metrics_outputs_options *options, struct error *error);
const struct metrics_past *metrics_outputs_past(const struct metrics_outputs *outputs);
void metrics_outputs_write(struct metrics_outputs *outputs, const struct metrics_row *row);
/* The run is complete: closing marks its end. NULL is nothing, also below. */
void metrics_outputs_complete(struct metrics_outputs *outputs);
void metrics_outputs_close(struct metrics_outputs *outputs);

#endif
