/* Communication between GPUs, one a process, through NCCL. A part of the CUDA module, which loads
 * NCCL when it is asked to: a process that needs no other has no need of NCCL either.
 *
 * Work is ordered on streams, like that of kernels, and a function returns when its work is
 * enqueued; only what makes connections (the first use of a group, or of a peer) waits for the
 * other ranks. The work of one group is to be ordered: on one stream, or by waiting. Functions that
 * can fail return -1 with EXIT_STATUS_IO and NCCL's own words, unless they say otherwise.
 */
#ifndef MTLLM_KERNELS_NCCL_H
#define MTLLM_KERNELS_NCCL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "kernels/kernels.h"

struct nccl_group; /* ranks, in an order */
struct nccl_mark;  /* a point in a stream's work */

enum nccl_type { NCCL_F32, NCCL_F64, NCCL_I32, NCCL_I64, NCCL_BF16, NCCL_F16 };

enum { NCCL_ID_BYTES = 128 };

struct nccl_message {
    void *buffer; /* of the device; when sending it is only read */
    int64_t bytes;
    int peer;
    bool receiving;
};

struct nccl {
    /* Load NCCL, and tell it to add up in one order, whatever it would be fastest with. Before
     * everything else; again is fine. Error: EXIT_STATUS_CONFIGURATION when it is not there. */
    int (*open)(struct error *error);
    /* What the ranks of a group that is to be made have in common; one of them makes it. */
    int (*new_id)(char id[NCCL_ID_BYTES], struct error *error);
    /* Collective over the group, or over `parent`. The ranks of `parent` with the same color >= 0
     * become a group, in their order there; *group is NULL on ranks of color -1. */
    int (*create)(struct nccl_group **group, const char *id, int rank, int size,
                  struct error *error);
    int (*split)(struct nccl_group **group, struct nccl_group *parent, int color,
                 struct error *error);
    void (*destroy)(struct nccl_group *group); /* whose work is done */
    int (*place)(const struct nccl_group *group, int *rank, int *size, struct error *error);
    /* What has failed in the background. Callable from any thread. */
    int (*check)(struct nccl_group *group, struct error *error);

    /* In place. In the order of NCCL's ring, see comm.h. */
    int (*sum)(struct nccl_group *group, void *buffer, int64_t count, enum nccl_type type,
               struct stream *stream, struct error *error);
    /* out[count] = the sum of this rank's part of everyone's in[size * count], in the same order;
     * `out` may be that part. */
    int (*sum_parts)(struct nccl_group *group, void *out, const void *in, int64_t count,
                     enum nccl_type type, struct stream *stream, struct error *error);
    /* out[size * bytes]: every rank's in[bytes]; `in` may be this rank's place in out. */
    int (*gather)(struct nccl_group *group, void *out, const void *in, int64_t bytes,
                  struct stream *stream, struct error *error);
    int (*broadcast)(struct nccl_group *group, void *buffer, int64_t bytes, int root,
                     struct stream *stream, struct error *error);
    /* All of them at once. A message has as many bytes, more than 0, where it is sent as where it
     * is received. */
    int (*exchange)(struct nccl_group *group, const struct nccl_message *messages, int count,
                    struct stream *stream, struct error *error);

    /* out[count] = parts[0][count] + parts[1][count] + ..., in that order, 16-bit types in fp32 and
     * rounded once; or, with `maximum`, the greatest of them, NaN if any is. out overlaps no
     * part. */
    void (*reduce_parts)(struct stream *stream, void *out, const void *parts, int part_count,
                         int64_t count, enum nccl_type type, bool maximum);

    /* What `stream` has got so far; NULL after a failure, which stream_sync() will tell. */
    struct nccl_mark *(*mark)(struct stream *stream);
    /* What `stream` gets from now on waits for the mark, which is given back. NULL is nothing. */
    void (*wait)(struct stream *stream, struct nccl_mark *mark);
};

#endif
