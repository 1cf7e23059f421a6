/* TensorBoard's event files: a file a process start in one directory, each record in TFRecord
 * framing. https://github.com/tensorflow/tensorboard, tensorboard/compat/proto/event.proto
 */
#ifndef MTLLM_TRAINER_TENSORBOARD_H
#define MTLLM_TRAINER_TENSORBOARD_H

#include <jansson.h>

#include "core/error.h"
#include "trainer/metrics_scalars.h"

struct tensorboard;

struct tensorboard_options {
    const char *directory; /* made when missing */
    enum metrics_names names;
    int64_t resume_step;     /* from where the run goes on */
    const char *settings;    /* shown as text */
    json_t *hyperparameters; /* object: name to number, boolean or text */
};

/* Begin a file. Events of `resume_step` and later ones are dropped from the files that are there
 * (each is replaced as a whole or stays as it is), and so is what a kill has torn: rows from that
 * step on are to be written again. Error: EXIT_STATUS_IO. */
int tensorboard_open(struct tensorboard **tensorboard, const struct tensorboard_options *options,
                     struct error *error);
/* Append a row's scalars in one write. Rows of steps that the files had when they were opened are
 * there already, and are left out. */
void tensorboard_write(struct tensorboard *tensorboard, const struct metrics_row *row);
/* The run, if it is complete, is marked as having succeeded. NULL is nothing. */
void tensorboard_close(struct tensorboard *tensorboard, bool complete);

#endif
