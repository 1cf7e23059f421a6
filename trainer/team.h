/* Small agreements between all ranks: sums of a few numbers, and "did everyone succeed?". */
#ifndef MTLLM_TRAINER_TEAM_H
#define MTLLM_TRAINER_TEAM_H

#include "core/error.h"
#include "kernels/kernels.h"
#include "trainer/comm.h"

struct team {
    struct comm *world;
    const struct kernels *kernels;
    struct stream *stream;
    double *scalars; /* device, [max(world size, TEAM_NUMBERS)] */
};

enum { TEAM_NUMBERS = 16 }; /* most that team_sum() takes */

/* Error: EXIT_STATUS_SYSTEM. */
int team_create(struct team *team, struct comm *world, const struct kernels *kernels,
                struct error *error);
void team_destroy(struct team *team);

/* numbers[count] = their sums over all ranks, added in rank order. Error: the device's. */
int team_sum(struct team *team, double *numbers, int count, struct error *error);

/* Bring rank 0's `bytes` of host memory to every rank. */
int team_share(struct team *team, void *bytes, size_t count, struct error *error);

/* all[ranks][bytes] = every rank's `mine`, by rank, in host memory. bytes is a multiple of 4. */
int team_gather(struct team *team, void *all, const void *mine, size_t bytes, struct error *error);

/* 0 when `result` is 0 on every rank. Otherwise -1 on every rank, and every rank's error has the
 * status of the lowest failing rank; the text is that rank's own and empty elsewhere, so that
 * whoever has a text says it. */
int team_agree(struct team *team, int result, struct error *error);

#endif
