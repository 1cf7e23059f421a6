/* A run of Weights & Biases, written offline: `wandb sync DIRECTORY` takes it from there.
 *
 * It is one run, and one file, from the first start of a training to its end. A step is one record
 * of history, validations included: it is written when the next step begins, and the summary now
 * and then.
 */
#ifndef MTLLM_TRAINER_WANDB_H
#define MTLLM_TRAINER_WANDB_H

#include <jansson.h>

#include "core/settings.h"
#include "trainer/metrics.h"

struct wandb;

struct wandb_options {
    const struct settings *settings;
    const char *run_directory;
    json_t *config;      /* object: name to value */
    int64_t resume_step; /* from where the run goes on */
};

/* Begin the run, or go on with it: history of `resume_step` and later ones is cut away, and so is
 * what a kill has torn: rows from that step on are to be written again.
 * Error: EXIT_STATUS_IO, EXIT_STATUS_DATA, EXIT_STATUS_USAGE. */
int wandb_open(struct wandb **wandb, const struct wandb_options *options, struct error *error);
/* Rows of steps that the file had when it was opened only count for the summary. */
void wandb_write(struct wandb *wandb, const struct metrics_row *row);
/* A run that is complete gets its end, and the command that uploads it is printed. NULL is nothing.
 */
void wandb_close(struct wandb *wandb, bool complete);

#endif
