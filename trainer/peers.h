/* Watching the other ranks: when one dies, by kill -9 or with its node, every rank ends within
 * seconds, with a message and EXIT_STATUS_IO, whatever it is waiting for.
 *
 * Neither MPI nor NCCL sees to that, and not every launcher does: the others would wait in a
 * collective for as long as the job lasts. Here the ranks form a ring of TCP connections, and a
 * thread of each watches the two of its own. A connection that ends without a goodbye means that
 * the rank behind it is gone; who sees it says so and tells its other neighbour, which tells on.
 */
#ifndef MTLLM_TRAINER_PEERS_H
#define MTLLM_TRAINER_PEERS_H

#include "core/error.h"
#include "trainer/team.h"
#include "trainer/world.h"

struct peers;

/* Begin to watch. Collective. In a world of one rank, and, with a warning, where ranks cannot
 * connect to each other, *peers is NULL and nothing is watched. Error: the device's. */
int peers_open(struct peers **peers, const struct world *world, struct team *team,
               struct error *error);

/* This rank will soon have ended, and needs nobody any more but to close their communication. Ranks
 * end together: one that is not through peers_close() PEERS_PATIENCE_S after a neighbour's goodbye
 * is waiting for somebody who will not come, and is ended as if that one had died. */
void peers_goodbye(struct peers *peers);
/* After comm_close(). NULL is nothing. */
void peers_close(struct peers *peers);

#ifndef PEERS_PATIENCE_S /* a test builds this with less */
#define PEERS_PATIENCE_S 60
#endif

#endif
