/* What stands behind comm.h: one table of functions a backend (MPI; NCCL).
 *
 * comm.c decides who belongs to which group and answers for groups of one rank; a backend moves
 * the data of groups of several. Contracts of the functions are those of comm.h.
 */
#ifndef MTLLM_TRAINER_COMM_BACKEND_H
#define MTLLM_TRAINER_COMM_BACKEND_H

#include <stdbool.h>
#include <stddef.h>

#include "trainer/comm.h"

/* What a request's handle points to: the first member of the backend's own. */
struct comm_transfer {
    const struct comm_backend *backend;
};

struct comm_backend {
    bool waits_cheaply; /* comm_waits_cheaply() */
    /* The ranks of `parent` with the same color >= 0, in the order of their ranks there; NULL on
     * ranks of color -1. Collective over the parent. `name` must outlive the group. */
    struct comm *(*split)(struct comm *parent, int color, const char *name);
    /* Frees the group; the world's group, closed last, ends the backend. */
    void (*close)(struct comm *comm);

    void (*all_reduce)(struct comm *comm, void *buffer, int64_t count, enum comm_type type,
                       enum comm_op op, struct stream *stream);
    void (*all_gather)(struct comm *comm, void *out, const void *in, int64_t count,
                       enum comm_type type, struct stream *stream);
    void (*reduce_scatter)(struct comm *comm, void *out, const void *in, int64_t count,
                           enum comm_type type, struct stream *stream);
    void (*all_to_all)(struct comm *comm, void *out, const void *in, int64_t bytes,
                       struct stream *stream); /* `bytes` for each rank */
    void (*broadcast)(struct comm *comm, void *buffer, int64_t bytes, int root,
                      struct stream *stream);
    void (*barrier)(struct comm *comm);
    /* Messages of `comm`, one of the world's groups, get an order of their own. Collective over the
     * world, with NULL on ranks that are in none; once. NULL: every group's messages have one. */
    void (*set_apart)(struct comm *world, struct comm *comm);
    void (*connect)(struct comm *comm); /* NULL: there is nothing to open */
    void (*send)(struct comm *comm, const void *buffer, int64_t bytes, int peer,
                 struct comm_request *request, struct stream *stream);
    void (*receive)(struct comm *comm, void *buffer, int64_t bytes, int peer,
                    struct comm_request *request, struct stream *stream);
    void (*wait)(struct comm_transfer *transfer); /* and frees it */
};

struct comm {
    const struct comm_backend *backend; /* NULL in a world of one rank */
    const struct kernels *kernels;
    const char *name; /* "tp", for messages */
    int rank, size;
    void *state; /* the backend's; NULL in a group of one rank */
};

size_t comm_type_bytes(enum comm_type type);

/* acc[count] = parts[0] op parts[1] op ..., in that order; part i begins `stride` bytes behind part
 * i - 1. acc overlaps no part. */
void comm_reduce_parts(void *acc, const void *parts, size_t stride, int part_count, size_t count,
                       enum comm_type type, enum comm_op op);

/* The group of all ranks, through MPI; through NCCL. */
int comm_mpi_open(struct comm **comm, const struct world *world, const struct kernels *kernels,
                  struct error *error);
int comm_nccl_open(struct comm **comm, const struct world *world, const struct kernels *kernels,
                   struct error *error);

#endif
