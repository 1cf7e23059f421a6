/* Memory that the ranks of a group open to each other, to copy into: by copy engines, beside
 * kernels, of which NCCL's collectives take a part of the GPU.
 *
 * A window has parts. What lands in a part does so in turns: a rank that has no more use of what is
 * there begins a turn, every other rank may then put something there once, and the rank waits for
 * those that it wants to read. Everything is work on streams and ordered as they are; turns of a
 * part, and what is put there, are to be ordered among themselves. All ranks do the same in the
 * same order.
 */
#ifndef MTLLM_TRAINER_COMM_WINDOW_H
#define MTLLM_TRAINER_COMM_WINDOW_H

#include <stddef.h>
#include <stdint.h>

#include "trainer/comm.h"

struct comm_window;

enum { COMM_WINDOW_PARTS = 3 }; /* at most */

/* Elements of uint32_t, of zeros at first, in which the ranks of a group tell each other of
 * themselves. */
int64_t comm_window_flags(int ranks, int parts);

/* Collective. `memory` was given by the kernels' allocate(); parts[count] and flags lie in it.
 * *window is NULL on every rank where one cannot reach another's: CPUs, GPUs of several hosts, or
 * that are not connected. Error: EXIT_STATUS_SYSTEM, on which the others wait for this rank. */
int comm_window_open(struct comm_window **window, struct comm *comm, void *memory,
                     void *const *parts, int count, uint32_t *flags, struct error *error);
/* Collective, before the memory is released and the group is closed. NULL is nothing. */
void comm_window_close(struct comm_window *window);

void comm_window_turn(struct comm_window *window, int part, struct stream *stream);
/* `from`, of this rank, to `offset` bytes behind the beginning of the part at `peer`. */
void comm_window_put(struct comm_window *window, int part, int peer, size_t offset,
                     const void *from, size_t bytes, struct stream *stream);
/* Until what `peer` puts in this turn is there. */
void comm_window_wait(struct comm_window *window, int part, int peer, struct stream *stream);
/* out[count], act, = the sum of everyone's own[count], which the others have put into the part one
 * behind the other, by rank: in that order, in fp32, rounded once. out may be `own`. */
void comm_window_sum(struct comm_window *window, int part, void *out, const void *own,
                     int64_t count, struct stream *stream);

#endif
