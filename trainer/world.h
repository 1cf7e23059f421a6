/* Who am I, and who else is there: rank, size and topology from PMIx.
 *
 * Under srun --mpi=pmix, mpirun or prterun the world comes from the launcher; alone it is one
 * rank. Opening and closing is the bracket of a process's life: a rank that ends without
 * world_close() makes Slurm kill the whole step.
 */
#ifndef MTLLM_TRAINER_WORLD_H
#define MTLLM_TRAINER_WORLD_H

#include "core/error.h"

struct world {
    int rank, size;
    int local_rank, local_size; /* among the ranks of this node */
    int node, nodes;
    char job[64]; /* job id as users know it: "123", "120_4", or "" outside a job */
};

/* Call in the main thread before any other thread starts. Error: EXIT_STATUS_CONFIGURATION when a
 * launcher started several tasks but speaks no PMIx (srun without --mpi=pmix), EXIT_STATUS_SYSTEM
 * when the PMIx server does not answer. */
int world_open(struct world *world, struct error *error);

/* Ends this rank's membership. Safe to call when world_open() failed. */
void world_close(struct world *world);

#endif
