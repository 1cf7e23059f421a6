/* Groups of ranks, and the arithmetic of reductions. */
#include "trainer/comm_backend.h"

#include "config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 2048 /* elements of 16 bits widened at once */

size_t comm_type_bytes(enum comm_type type)
{
    switch (type) {
    case COMM_F64:
    case COMM_I64:
        return 8;
    case COMM_F32:
    case COMM_I32:
        return 4;
    case COMM_BF16:
    case COMM_F16:
        return 2;
    }
    return 0;
}

/* acc[count] op= part[count]. The second comparison lets NaN win a maximum. */
/* NOLINTBEGIN(bugprone-macro-parentheses): types cannot be put in parentheses */
#define DEFINE_REDUCE(name, ctype, wrapping)                                                       \
    static void name(ctype *restrict acc, const ctype *restrict part, size_t count,                \
                     enum comm_op op)                                                              \
    {                                                                                              \
        if (op == COMM_SUM)                                                                        \
            for (size_t i = 0; i < count; i++)                                                     \
                acc[i] = (ctype)((wrapping)acc[i] + (wrapping)part[i]);                            \
        else                                                                                       \
            for (size_t i = 0; i < count; i++)                                                     \
                acc[i] = part[i] > acc[i] || part[i] != part[i] ? part[i] : acc[i];                \
    }
DEFINE_REDUCE(reduce_f32, float, float)
DEFINE_REDUCE(reduce_f64, double, double)
DEFINE_REDUCE(reduce_i32, int32_t, uint32_t)
DEFINE_REDUCE(reduce_i64, int64_t, uint64_t)
/* NOLINTEND(bugprone-macro-parentheses) */

static const char *part_at(const void *parts, size_t stride, int i)
{
    return (const char *)parts + stride * (size_t)i;
}

static void reduce_half(uint16_t *acc, const void *parts, size_t stride, int part_count,
                        size_t count, enum dtype dtype, enum comm_op op)
{
    float sum[BLOCK], part[BLOCK];

    for (size_t start = 0; start < count; start += BLOCK) {
        size_t n = count - start < BLOCK ? count - start : BLOCK;

        dtype_convert(sum, DTYPE_F32, (const uint16_t *)parts + start, dtype, n);
        for (int i = 1; i < part_count; i++) {
            const uint16_t *from = (const uint16_t *)(const void *)part_at(parts, stride, i);

            dtype_convert(part, DTYPE_F32, from + start, dtype, n);
            reduce_f32(sum, part, n, op);
        }
        dtype_convert(acc + start, dtype, sum, DTYPE_F32, n);
    }
}

void comm_reduce_parts(void *acc, const void *parts, size_t stride, int part_count, size_t count,
                       enum comm_type type, enum comm_op op)
{
    if (type == COMM_BF16 || type == COMM_F16) {
        reduce_half(acc, parts, stride, part_count, count,
                    type == COMM_BF16 ? DTYPE_BF16 : DTYPE_F16, op);
        return;
    }
    memcpy(acc, parts, count * comm_type_bytes(type));
    for (int i = 1; i < part_count; i++) {
        const void *part = part_at(parts, stride, i);

        if (type == COMM_F32)
            reduce_f32(acc, part, count, op);
        else if (type == COMM_F64)
            reduce_f64(acc, part, count, op);
        else if (type == COMM_I32)
            reduce_i32(acc, part, count, op);
        else
            reduce_i64(acc, part, count, op);
    }
}

static struct comm *group_of_one(const struct kernels *kernels, const char *name)
{
    struct comm *comm = calloc(1, sizeof(*comm));

    if (comm)
        *comm = (struct comm){.kernels = kernels, .name = name, .size = 1};
    return comm;
}

/* `size` is the same on every rank that calls, so all of them split or none does. */
static struct comm *open_group(struct comm *world, int size, int color, const char *name)
{
    if (size == 1 || world->size == 1)
        return group_of_one(world->kernels, name);
    return world->backend->split(world, color, name);
}

static int open_world(struct comm **comm, const struct world *world, const struct kernels *kernels,
                      struct error *error)
{
    if (world->size == 1) {
        *comm = group_of_one(kernels, "world");
        return *comm ? 0 : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    }
    if (strcmp(kernels->name, "cuda") == 0)
        return comm_nccl_open(comm, world, kernels, error);
#ifdef HAVE_MPI
    return comm_mpi_open(comm, world, kernels, error);
#else
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "%d ranks were started, but this mtllm was built without MPI; start one, or "
                     "build it where MPI's development files are installed",
                     world->size);
#endif
}

int comm_open(struct comm_groups *groups, const struct world *world, const struct layout *layout,
              const struct kernels *kernels, struct error *error)
{
    struct layout_place place = layout_place(layout, world->rank);
    int in_stage = world->rank % (layout->tp * layout_replicas(layout));
    bool at_end = place.pp == 0 || place.pp == layout->pp - 1;
    bool complete;

    assert(layout_world(layout) == world->size);
    *groups = (struct comm_groups){0};
    if (open_world(&groups->world, world, kernels, error) < 0)
        return -1;
    groups->tp = open_group(groups->world, layout->tp, world->rank / layout->tp, "tp");
    groups->cp = open_group(groups->world, layout->cp,
                            world->rank / (layout->tp * layout->cp) * layout->tp + place.tp, "cp");
    groups->replicas = open_group(groups->world, layout_replicas(layout),
                                  place.pp * layout->tp + place.tp, "replicas");
    groups->pp = open_group(groups->world, layout->pp, in_stage, "pp");
    complete = groups->tp && groups->cp && groups->replicas && groups->pp;
    if (layout->pp > 1) {
        groups->embedding = open_group(groups->world, 2, at_end ? in_stage : -1, "embedding");
        complete = complete && (groups->embedding || !at_end);
        if (groups->pp)
            comm_connect(groups->pp);
    }
    if (layout_chunks(layout) > 1) {
        groups->wrap = open_group(groups->world, 2, at_end ? in_stage : -1, "wrap");
        complete = complete && (groups->wrap || !at_end);
        if (groups->world->backend->set_apart)
            groups->world->backend->set_apart(groups->world, groups->wrap);
        if (groups->wrap)
            comm_connect(groups->wrap);
    }
    if (!complete) {
        comm_close(groups);
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    }
    return 0;
}

int comm_open_kv(struct comm_groups *groups, const struct world *world, int sharing,
                 struct error *error)
{
    if (sharing == 1)
        return 0;
    groups->kv = open_group(groups->world, sharing, world->rank / sharing, "kv");
    return groups->kv ? 0 : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

static void close_group(struct comm **comm)
{
    if (*comm && (*comm)->state)
        (*comm)->backend->close(*comm);
    else
        free(*comm);
    *comm = NULL;
}

void comm_close(struct comm_groups *groups)
{
    close_group(&groups->kv);
    close_group(&groups->wrap);
    close_group(&groups->embedding);
    close_group(&groups->pp);
    close_group(&groups->replicas);
    close_group(&groups->cp);
    close_group(&groups->tp);
    close_group(&groups->world);
}

int comm_size(const struct comm *comm)
{
    return comm->size;
}

int comm_rank(const struct comm *comm)
{
    return comm->rank;
}

void comm_all_reduce(struct comm *comm, void *buffer, int64_t count, enum comm_type type,
                     enum comm_op op, struct stream *stream)
{
    assert(count >= 0);
    if (comm->size > 1 && count > 0)
        comm->backend->all_reduce(comm, buffer, count, type, op, stream);
}

void comm_all_gather(struct comm *comm, void *out, const void *in, int64_t count,
                     enum comm_type type, struct stream *stream)
{
    assert(count >= 0);
    if (count == 0)
        return;
    if (comm->size > 1)
        comm->backend->all_gather(comm, out, in, count, type, stream);
    else if (out != in)
        comm->kernels->copy(stream, out, in, (size_t)count * comm_type_bytes(type));
}

void comm_reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                         enum comm_type type, struct stream *stream)
{
    assert(count >= 0);
    if (count == 0)
        return;
    if (comm->size > 1)
        comm->backend->reduce_scatter(comm, out, in, count, type, stream);
    else if (out != in)
        comm->kernels->copy(stream, out, in, (size_t)count * comm_type_bytes(type));
}

void comm_all_to_all(struct comm *comm, void *out, const void *in, int64_t count,
                     enum comm_type type, struct stream *stream)
{
    int64_t bytes = count * (int64_t)comm_type_bytes(type);

    assert(count >= 0);
    if (count == 0)
        return;
    if (comm->size > 1)
        comm->backend->all_to_all(comm, out, in, bytes, stream);
    else
        comm->kernels->copy(stream, out, in, (size_t)bytes);
}

void comm_broadcast(struct comm *comm, void *buffer, int64_t bytes, int root, struct stream *stream)
{
    assert(bytes >= 0 && root >= 0 && root < comm->size);
    if (comm->size > 1 && bytes > 0)
        comm->backend->broadcast(comm, buffer, bytes, root, stream);
}

void comm_barrier(struct comm *comm)
{
    if (comm->size > 1)
        comm->backend->barrier(comm);
}

void comm_connect(struct comm *comm)
{
    if (comm->size > 1 && comm->backend->connect)
        comm->backend->connect(comm);
}

void comm_send(struct comm *comm, const void *buffer, int64_t bytes, int peer,
               struct comm_request *request, struct stream *stream)
{
    assert(bytes >= 0 && peer >= 0 && peer < comm->size && peer != comm->rank);
    comm->backend->send(comm, buffer, bytes, peer, request, stream);
}

void comm_receive(struct comm *comm, void *buffer, int64_t bytes, int peer,
                  struct comm_request *request, struct stream *stream)
{
    assert(bytes >= 0 && peer >= 0 && peer < comm->size && peer != comm->rank);
    comm->backend->receive(comm, buffer, bytes, peer, request, stream);
}

void comm_wait(struct comm_request *request)
{
    struct comm_transfer *transfer = request->handle;

    request->handle = NULL;
    if (transfer)
        transfer->backend->wait(transfer);
}

bool comm_waits_cheaply(const struct comm *comm)
{
    return comm->size == 1 || comm->backend->waits_cheaply;
}
