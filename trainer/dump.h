/* --dump-logits: the tokens, targets, masks and logits of one batch as an HDF5 file, for comparison
 * with other programs. */
#ifndef MTLLM_TRAINER_DUMP_H
#define MTLLM_TRAINER_DUMP_H

#include <hdf5.h>

#include "trainer/logits.h"

/* What a dump has of each token besides the logits; all of four bytes. */
enum dump_column { DUMP_TOKENS, DUMP_TARGETS, DUMP_WEIGHTS, DUMP_ANSWERS, DUMP_COLUMNS };

/* Written by rank 0, one microbatch at a time. */
struct dump {
    const struct training *training;
    const struct logits *logits; /* all of a batch */
    const char *path;
    hid_t file, values, columns[DUMP_COLUMNS]; /* rank 0; -1: not open */
    int32_t *rest;                             /* [DUMP_COLUMNS, rows]; weights are floats */
    void *device;                              /* that a microbatch's logits fit */
    bool failed;
};

/* dump_close() belongs to a failure too. Error: EXIT_STATUS_SYSTEM, EXIT_STATUS_IO. */
int dump_open(struct dump *dump, const struct training *training, const struct logits *logits,
              const char *path, struct error *error);
/* Collective: the batch that the logits are of. */
void dump_collect(struct dump *dump, const struct batch *batch);
int dump_close(struct dump *dump, struct error *error);

#endif
