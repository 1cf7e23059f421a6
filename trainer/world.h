/* Who am I, and who else is there: rank, size and topology from PMIx.
 *
 * Under srun --mpi=pmix, mpirun or prterun the world comes from the launcher; alone it is one
 * rank. Opening and closing is the bracket of a process's life: a rank that ends without
 * world_close() makes Slurm kill the whole step.
 */
#ifndef MTLLM_TRAINER_WORLD_H
#define MTLLM_TRAINER_WORLD_H

#include <stdbool.h>
#include <stddef.h>

#include "core/error.h"

struct world {
    int rank, size;
    int local_rank, local_size; /* among the ranks of this node */
    int node, nodes;
    char job[64];    /* job id as users know it: "123", "120_4", or "" outside a job */
    bool connected;  /* to a PMIx server; for world_close() */
    char space[256]; /* where PMIx has its ranks; "" when not connected */
};

/* Call in the main thread, after stop_open(): PMIx starts a thread, and the signals that stop a run
 * must be blocked there too. Error: EXIT_STATUS_CONFIGURATION when several tasks were asked for but
 * the launcher speaks no PMIx (srun without --mpi=pmix), EXIT_STATUS_SYSTEM when the PMIx server
 * does not answer. */
int world_open(struct world *world, struct error *error);

/* Brings rank 0's `bytes` to every rank, without any other communication. Collective. Not before
 * MPI was started, where it will be: with Slurm's PMIx 22.05 Open MPI then crashed in 2 of 75
 * starts. Error: EXIT_STATUS_SYSTEM. */
int world_share(const struct world *world, void *bytes, size_t size, struct error *error);

/* Ends this rank's membership. Safe to call when world_open() failed. */
void world_close(struct world *world);

/* Ends every rank of the world at once, and this process with `status`: for a failure that the
 * other ranks cannot know of and would wait for. The launcher ends with `status` too. */
void world_abort(const struct world *world, int status) __attribute__((noreturn));

/* Fill local_rank, local_size, node and nodes of `world`, whose rank and size are known, from
 * "(vector,(first_node,nodes,ranks_per_node)...)", as PMIx gives it. -1 when `map` is not that, or
 * not of `size` ranks. */
int world_place_from_map(struct world *world, const char *map);

#endif
