/* Communication between the ranks of a group. MPI is behind it on CPUs, NCCL on GPUs; a group of
 * one rank needs neither.
 *
 * Buffers are device buffers of the kernels' backend. On GPUs everything but comm_barrier() is work
 * on a stream: it begins when that has done what it got before, and what it gets later finds it
 * done. A group remembers the stream of its last work, which lives until the group is closed or has
 * work on another one. Collectives are called by every rank of the group in the same order.
 * Reductions have a fixed order: the same inputs give the same bits, on every rank. A failed
 * operation cannot be survived: the backend says which one failed and ends the process with
 * EXIT_STATUS_IO; nothing here returns an error.
 */
#ifndef MTLLM_TRAINER_COMM_H
#define MTLLM_TRAINER_COMM_H

#include <stdbool.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/error.h"
#include "core/layout.h"
#include "kernels/kernels.h"
#include "trainer/world.h"

enum comm_op { COMM_SUM, COMM_MAX };
enum comm_type { COMM_F32, COMM_F64, COMM_I32, COMM_I64, COMM_BF16, COMM_F16 };

struct comm; /* one group */

struct comm_request {
    void *handle;
};

struct comm_groups {
    struct comm *world;
    struct comm *tp;        /* same cp, dp and pp */
    struct comm *cp;        /* same tp, dp and pp */
    struct comm *replicas;  /* same tp and pp: of the same weights; rank = layout_replica() */
    struct comm *pp;        /* same tp, cp and dp: rank in it = stage */
    struct comm *embedding; /* first and last stage of one pp group; NULL on other stages, or when
                               there is one stage */
    struct comm *wrap;      /* the same ranks, for messages between the last stage and the first;
                               NULL unless stages have several chunks */
    struct comm *kv;        /* tp ranks with the same key/value head; NULL: nobody shares one */
};

/* Collective over the world, in the main thread; layout_world(layout) == world->size. `kernels`,
 * the same backend on every rank, must outlive the groups. Error: EXIT_STATUS_CONFIGURATION when
 * the world has several ranks and there is no MPI, or no NCCL, or it does not see the same world.
 * Several may be open at once; the first opened is closed last. */
int comm_open(struct comm_groups *groups, const struct world *world, const struct layout *layout,
              const struct kernels *kernels, struct error *error);
/* Collective: open groups->kv, where `sharing` neighbours of each tp group hold the same key/value
 * head. 1: nothing to open. Error: EXIT_STATUS_SYSTEM. */
int comm_open_kv(struct comm_groups *groups, const struct world *world, int sharing,
                 struct error *error);
/* Collective; before world_close(). Safe to call when comm_open() failed, and twice. */
void comm_close(struct comm_groups *groups);

int comm_size(const struct comm *comm);
int comm_rank(const struct comm *comm);

/* In place. A sum is taken in rank order (16-bit types in fp32, rounded once), so it depends on
 * nothing but the inputs. A maximum is NaN when an input is.
 *
 * Sums of more than COMM_RANK_ORDER_BYTES through NCCL are the exception. They run round NCCL's
 * ring, 16-bit types rounded at every addition, and which rank's element is first depends on its
 * index, on count and type, on how the GPUs of the group are connected, and on the version of NCCL.
 * With these the same, so are the bits, on every rank and at every start. */
enum { COMM_RANK_ORDER_BYTES = 64 << 10 };
void comm_all_reduce(struct comm *comm, void *buffer, int64_t count, enum comm_type type,
                     enum comm_op op, struct stream *stream);
/* out[size * count]: every rank's in[count], by rank. `in` is this rank's part of out, or does not
 * overlap it. */
void comm_all_gather(struct comm *comm, void *out, const void *in, int64_t count,
                     enum comm_type type, struct stream *stream);
/* out[count] = the sum over the ranks of this rank's part, in[rank * count] and following, of their
 * in[size * count], in the order of comm_all_reduce(). `out` may be that part of `in`; the other
 * parts then are of no more use. */
void comm_reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                         enum comm_type type, struct stream *stream);
/* out[size * count]: by rank, what the others have for this one: in[rank * count] and following of
 * their in[size * count]. They do not overlap. */
void comm_all_to_all(struct comm *comm, void *out, const void *in, int64_t count,
                     enum comm_type type, struct stream *stream);
void comm_broadcast(struct comm *comm, void *buffer, int64_t bytes, int root,
                    struct stream *stream);
void comm_barrier(struct comm *comm);

/* Before the group's first messages: open the connections between each rank and the next, the last
 * and the first included. Collective. NCCL would open each with its first message, and keep the
 * caller until the other end comes to that too, which may be waiting likewise. */
void comm_connect(struct comm *comm);

/* Point to point between neighbours, both nonblocking; the buffer is the operation's until
 * comm_wait(). Messages between two ranks of a group arrive in the order they were sent, each
 * received with as many bytes as were sent.
 *
 * Through NCCL that order is one for all groups that two ranks share, and messages of a rank in the
 * same direction, that is, sent to higher and received from lower ranks, or the other way round,
 * are carried out in the order of the calls: one whose other end is called later holds up those
 * behind it. Pipelines and rings get along with that; groups->wrap has an order of its own.
 * comm_wait() makes the operation's stream wait, not the caller. */
void comm_send(struct comm *comm, const void *buffer, int64_t bytes, int peer,
               struct comm_request *request, struct stream *stream);
void comm_receive(struct comm *comm, void *buffer, int64_t bytes, int peer,
                  struct comm_request *request, struct stream *stream);
/* Also for a request of zeros, or one waited for before: nothing to wait for. */
void comm_wait(struct comm_request *request);

/* Whether a receive costs nothing while it waits for its message. NCCL's occupies a part of the
 * GPU. */
bool comm_waits_cheaply(const struct comm *comm);

#endif
