/* From a checkpoint to this rank's weights and optimizer state, whatever layout wrote it. */
#ifndef MTLLM_TRAINER_RESTORE_H
#define MTLLM_TRAINER_RESTORE_H

#include <limits.h>

#include "ckpt/weights.h"
#include "trainer/stage.h"
#include "trainer/team.h"

/* The checkpoints of a run, newest first, of which those that turn out bad are passed over. */
struct candidates {
    char root[PATH_MAX + 8];
    int64_t *steps;
    size_t count, next;
};

/* List the complete-looking checkpoints under `root`, as rank 0 sees them. Collective. */
int candidates_list(struct candidates *candidates, const char *root, struct team *team,
                    struct error *error);
void candidates_destroy(struct candidates *candidates);

/* Open the newest one not yet tried that every rank can open; false when there is none left. Those
 * that fail are named in warnings. Collective. */
bool candidates_open(struct candidates *candidates, struct team *team, struct weights **checkpoint);

/* Read this rank's weights, and with `optimizer_state` the moments of a checkpoint. A weights-only
 * checkpoint of step 0 leaves the moments at zero. Not collective. Error: EXIT_STATUS_DATA naming
 * file or tensor. */
int restore_stage(struct stage *stage, struct weights *from, bool optimizer_state,
                  struct error *error);

#endif
