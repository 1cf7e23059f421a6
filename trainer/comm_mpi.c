/* Communication between CPU ranks, through MPI.
 *
 * Reductions are ours, MPI only moves the bytes: which algorithm MPI_Allreduce() takes, and with it
 * the order of the sum, depends on the message size, the version and site-wide tuning files. Here a
 * large buffer is cut into one slice a rank (all-to-all), every rank adds up its slice in rank
 * order and the slices are gathered again, which moves as much as a ring does; a small one is
 * gathered whole and added up by everyone. Both give the same bits.
 *
 * Everything happens in the main thread. Counts are split before they outgrow MPI's int.
 */
#include "trainer/comm_backend.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <mpi.h>

#include "core/log.h"

#define SCRATCH_BYTES ((size_t)1 << 20)
#define SMALL_BYTES   ((size_t)16 << 10) /* up to here a gather beats two exchanges */
#ifndef MESSAGE_BYTES                    /* a test builds this with less */
#define MESSAGE_BYTES ((int64_t)1 << 30) /* the most in one MPI call */
#endif

/* What the groups of one comm_open() share. */
struct workspace {
    char *scratch;           /* [SCRATCH_BYTES] */
    bool initialized;        /* this comm_open() started MPI, so its comm_close() ends it */
    char segments[PATH_MAX]; /* directory of this node's shared memory; "" for MPI's own choice */
};

struct mpi_group {
    MPI_Comm mpi;
    struct workspace *workspace;
    MPI_Request *requests; /* [2 size] */
};

struct mpi_transfer {
    struct comm_transfer base;
    struct comm *comm;
    bool receiving;
    int64_t bytes;
    int peer, count;
    MPI_Request requests[];
};

static const struct comm_backend mpi_backend;

static struct mpi_group *group_of(struct comm *comm)
{
    return comm->state;
}

/* Nothing sound can follow a failed exchange: the other ranks would wait for ever. */
static void check(int result, const struct comm *comm, const char *operation, int64_t bytes)
{
    struct error error;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;

    if (result == MPI_SUCCESS)
        return;
    MPI_Error_string(result, text, &length);
    error_set(&error, EXIT_STATUS_IO, "rank %d of %d of group %s: %s of %lld bytes failed: %s",
              comm->rank, comm->size, comm->name, operation, (long long)bytes, text);
    MPI_Abort(MPI_COMM_WORLD, error_print(&error));
    _Exit(EXIT_STATUS_IO);
}

/* --- reductions --------------------------------------------------------------------------------*/

/* Everyone gathers all parts and adds them up. */
static void reduce_gathered(struct comm *comm, char *buffer, int64_t count, enum comm_type type,
                            enum comm_op op)
{
    struct mpi_group *group = group_of(comm);
    size_t element = comm_type_bytes(type);
    int64_t most = (int64_t)(SCRATCH_BYTES / (size_t)comm->size / element);

    while (count > 0) {
        int64_t n = count < most ? count : most;
        size_t bytes = (size_t)n * element;

        check(MPI_Allgather(buffer, (int)bytes, MPI_BYTE, group->workspace->scratch, (int)bytes,
                            MPI_BYTE, group->mpi),
              comm, "all-reduce", (int64_t)bytes);
        comm_reduce_parts(buffer, group->workspace->scratch, bytes, comm->size, (size_t)n, type,
                          op);
        buffer += bytes;
        count -= n;
    }
}

/* Everyone adds up one slice of `bytes`, then all slices are gathered. */
static void reduce_sliced(struct comm *comm, char *buffer, size_t bytes, enum comm_type type,
                          enum comm_op op)
{
    struct mpi_group *group = group_of(comm);
    char *mine = buffer + bytes * (size_t)comm->rank;

    check(MPI_Alltoall(buffer, (int)bytes, MPI_BYTE, group->workspace->scratch, (int)bytes,
                       MPI_BYTE, group->mpi),
          comm, "all-reduce", (int64_t)bytes * comm->size);
    comm_reduce_parts(mine, group->workspace->scratch, bytes, comm->size,
                      bytes / comm_type_bytes(type), type, op);
    check(
        MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, buffer, (int)bytes, MPI_BYTE, group->mpi),
        comm, "all-reduce", (int64_t)bytes * comm->size);
}

static void mpi_all_reduce(struct comm *comm, void *buffer, int64_t count, enum comm_type type,
                           enum comm_op op, struct stream *stream)
{
    size_t element = comm_type_bytes(type);
    char *at = buffer;

    (void)stream;
    while ((size_t)count * element > SMALL_BYTES && count >= comm->size) {
        int64_t most = (int64_t)(SCRATCH_BYTES / element);
        int64_t slice = (count < most ? count : most) / comm->size;

        reduce_sliced(comm, at, (size_t)slice * element, type, op);
        at += (size_t)(slice * comm->size) * element;
        count -= slice * comm->size;
    }
    reduce_gathered(comm, at, count, type, op);
}

/* `bytes` to and from every rank, which lie that many bytes apart as `in_part` and `out_part` say.
 */
static void exchange(struct comm *comm, char *out, int64_t out_part, const char *in,
                     int64_t in_part, int64_t bytes, const char *operation)
{
    struct mpi_group *group = group_of(comm);
    int count = 0;

    for (int i = 1; i < comm->size; i++) {
        int from = (comm->rank + comm->size - i) % comm->size, to = (comm->rank + i) % comm->size;

        check(MPI_Irecv(out + out_part * from, (int)bytes, MPI_BYTE, from, 0, group->mpi,
                        &group->requests[count++]),
              comm, operation, bytes);
        check(MPI_Isend(in + in_part * to, (int)bytes, MPI_BYTE, to, 0, group->mpi,
                        &group->requests[count++]),
              comm, operation, bytes);
    }
    memcpy(out + out_part * comm->rank, in + in_part * comm->rank, (size_t)bytes);
    check(MPI_Waitall(count, group->requests, MPI_STATUSES_IGNORE), comm, operation, bytes);
}

static void mpi_reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                               enum comm_type type, struct stream *stream)
{
    char *scratch = group_of(comm)->workspace->scratch;
    int64_t element = (int64_t)comm_type_bytes(type);
    int64_t most = (int64_t)SCRATCH_BYTES / comm->size / element;

    (void)stream;
    for (int64_t start = 0; start < count; start += most) {
        int64_t n = count - start < most ? count - start : most, bytes = n * element;

        exchange(comm, scratch, bytes, (const char *)in + start * element, count * element, bytes,
                 "reduce-scatter");
        comm_reduce_parts((char *)out + start * element, scratch, (size_t)bytes, comm->size,
                          (size_t)n, type, COMM_SUM);
    }
}

/* --- copies ------------------------------------------------------------------------------------*/

/* Bytes [start, start + bytes) of every rank's part, where parts are `part` bytes long: rank r's
 * go to out + r * part + start, which is more than an int displacement can say. */
static int gather_piece(struct comm *comm, char *out, const char *in, int64_t part, int64_t start,
                        int64_t bytes)
{
    MPI_Datatype block = MPI_DATATYPE_NULL, strided = MPI_DATATYPE_NULL;
    bool in_place = in == out + part * comm->rank;
    int result = MPI_Type_contiguous((int)bytes, MPI_BYTE, &block);

    if (result == MPI_SUCCESS)
        result = MPI_Type_create_resized(block, 0, (MPI_Aint)part, &strided);
    if (result == MPI_SUCCESS)
        result = MPI_Type_commit(&strided);
    if (result == MPI_SUCCESS)
        result = MPI_Allgather(in_place ? MPI_IN_PLACE : in + start, (int)bytes, MPI_BYTE,
                               out + start, 1, strided, group_of(comm)->mpi);
    if (strided != MPI_DATATYPE_NULL)
        MPI_Type_free(&strided);
    if (block != MPI_DATATYPE_NULL)
        MPI_Type_free(&block);
    return result;
}

static void mpi_all_gather(struct comm *comm, void *out, const void *in, int64_t count,
                           enum comm_type type, struct stream *stream)
{
    int64_t part = count * (int64_t)comm_type_bytes(type);

    (void)stream;
    if (part <= MESSAGE_BYTES / comm->size) {
        bool in_place = in == (char *)out + part * comm->rank;

        check(MPI_Allgather(in_place ? MPI_IN_PLACE : in, (int)part, MPI_BYTE, out, (int)part,
                            MPI_BYTE, group_of(comm)->mpi),
              comm, "all-gather", part);
        return;
    }
    for (int64_t start = 0; start < part; start += MESSAGE_BYTES) {
        int64_t bytes = part - start < MESSAGE_BYTES ? part - start : MESSAGE_BYTES;

        check(gather_piece(comm, out, in, part, start, bytes), comm, "all-gather", bytes);
    }
}

static void mpi_all_to_all(struct comm *comm, void *out, const void *in, int64_t bytes,
                           struct stream *stream)
{
    (void)stream;
    for (int64_t start = 0; start < bytes; start += MESSAGE_BYTES)
        exchange(comm, (char *)out + start, bytes, (const char *)in + start, bytes,
                 bytes - start < MESSAGE_BYTES ? bytes - start : MESSAGE_BYTES, "all-to-all");
}

static void mpi_broadcast(struct comm *comm, void *buffer, int64_t bytes, int root,
                          struct stream *stream)
{
    (void)stream;
    for (int64_t start = 0; start < bytes; start += MESSAGE_BYTES) {
        int64_t n = bytes - start < MESSAGE_BYTES ? bytes - start : MESSAGE_BYTES;

        check(MPI_Bcast((char *)buffer + start, (int)n, MPI_BYTE, root, group_of(comm)->mpi), comm,
              "broadcast", n);
    }
}

static void mpi_barrier(struct comm *comm)
{
    check(MPI_Barrier(group_of(comm)->mpi), comm, "barrier", 0);
}

/* --- point to point ----------------------------------------------------------------------------*/

/* One MPI message a MESSAGE_BYTES, and one for nothing. MPI keeps messages of one sender in
 * order, so that pieces need no numbers. */
static void start_transfer(struct comm *comm, char *buffer, int64_t bytes, int peer, bool receiving,
                           struct comm_request *request)
{
    int count = bytes == 0 ? 1 : (int)((bytes + MESSAGE_BYTES - 1) / MESSAGE_BYTES);
    struct mpi_transfer *transfer = malloc(sizeof(*transfer) + (size_t)count * sizeof(MPI_Request));

    if (!transfer) {
        check(MPI_ERR_NO_MEM, comm, receiving ? "receive" : "send", bytes);
        return;
    }
    transfer->base.backend = &mpi_backend;
    transfer->comm = comm;
    transfer->receiving = receiving;
    transfer->bytes = bytes;
    transfer->peer = peer;
    transfer->count = count;
    for (int i = 0; i < count; i++) {
        int64_t start = i * MESSAGE_BYTES;
        int n = (int)(bytes - start < MESSAGE_BYTES ? bytes - start : MESSAGE_BYTES);
        MPI_Comm mpi = group_of(comm)->mpi;

        check(receiving
                  ? MPI_Irecv(buffer + start, n, MPI_BYTE, peer, 0, mpi, &transfer->requests[i])
                  : MPI_Isend(buffer + start, n, MPI_BYTE, peer, 0, mpi, &transfer->requests[i]),
              comm, receiving ? "receive" : "send", bytes);
    }
    request->handle = transfer;
}

static void mpi_send(struct comm *comm, const void *buffer, int64_t bytes, int peer,
                     struct comm_request *request, struct stream *stream)
{
    (void)stream;
    /* MPI_Isend() takes const; the common path does not write to what it sends. */
    start_transfer(comm, (char *)buffer, bytes, peer, false, request);
}

static void mpi_receive(struct comm *comm, void *buffer, int64_t bytes, int peer,
                        struct comm_request *request, struct stream *stream)
{
    (void)stream;
    start_transfer(comm, buffer, bytes, peer, true, request);
    /* mpi_wait() waits for it. NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker) */
}

static void mpi_wait(struct comm_transfer *base)
{
    struct mpi_transfer *transfer = (struct mpi_transfer *)base;
    const char *operation = transfer->receiving ? "receive" : "send";
    int64_t received = 0;

    for (int i = 0; i < transfer->count; i++) {
        MPI_Status status;
        int n = 0;

        /* start_transfer() began it. NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker) */
        check(MPI_Wait(&transfer->requests[i], &status), transfer->comm, operation,
              transfer->bytes);
        if (transfer->receiving)
            check(MPI_Get_count(&status, MPI_BYTE, &n), transfer->comm, operation, transfer->bytes);
        received += n;
    }
    /* More than was asked for is an error of MPI's own. */
    if (transfer->receiving && received != transfer->bytes)
        check(MPI_ERR_TRUNCATE, transfer->comm, operation, transfer->bytes);
    free(transfer);
}

/* --- opening and closing -----------------------------------------------------------------------*/

static struct comm *create_group(MPI_Comm mpi, struct workspace *workspace,
                                 const struct kernels *kernels, const char *name)
{
    struct comm *comm = calloc(1, sizeof(*comm));
    struct mpi_group *group = calloc(1, sizeof(*group));

    if (!comm || !group)
        goto failed;
    *group = (struct mpi_group){mpi, workspace, NULL};
    *comm =
        (struct comm){.backend = &mpi_backend, .kernels = kernels, .name = name, .state = group};
    if (MPI_Comm_rank(mpi, &comm->rank) != MPI_SUCCESS ||
        MPI_Comm_size(mpi, &comm->size) != MPI_SUCCESS)
        goto failed;
    group->requests = malloc(2 * (size_t)comm->size * sizeof(*group->requests));
    if (group->requests)
        return comm;
failed:
    free(comm);
    free(group);
    return NULL;
}

static struct comm *mpi_split(struct comm *parent, int color, const char *name)
{
    MPI_Comm mpi = MPI_COMM_NULL;
    struct comm *comm;

    check(MPI_Comm_split(group_of(parent)->mpi, color < 0 ? MPI_UNDEFINED : color, parent->rank,
                         &mpi),
          parent, "split", 0);
    if (mpi == MPI_COMM_NULL)
        return NULL;
    comm = create_group(mpi, group_of(parent)->workspace, parent->kernels, name);
    if (!comm)
        MPI_Comm_free(&mpi);
    return comm;
}

/* Only an empty directory goes, and it is empty once all ranks of the node have found each other.
 */
static void remove_segments(const struct workspace *workspace)
{
    if (*workspace->segments)
        rmdir(workspace->segments);
}

static void close_workspace(struct workspace *workspace)
{
    if (!workspace)
        return;
    if (workspace->initialized)
        MPI_Finalize();
    remove_segments(workspace);
    free(workspace->scratch);
    free(workspace);
}

static void mpi_close(struct comm *comm)
{
    struct mpi_group *group = group_of(comm);

    if (group->mpi == MPI_COMM_WORLD)
        close_workspace(group->workspace);
    else
        check(MPI_Comm_free(&group->mpi), comm, "close", 0);
    free(group->requests);
    free(group);
    free(comm);
}

/* Several Slurm nodes on one host (slurmd -N: test clusters): Open MPI names its shared memory
 * after host and local rank, so that nodes would write into each other's and crash. A directory a
 * node keeps them apart. On nodes that have merely another name than their host this changes
 * nothing. */
static void separate_nodes(struct workspace *workspace)
{
    const char *node = getenv("SLURMD_NODENAME"), *job = getenv("SLURM_JOB_ID");
    const char *step = getenv("SLURM_STEP_ID");
    char host[HOST_NAME_MAX + 1] = "";
    struct stat status;

    if (!node || !job || !step || strchr(node, '/') || gethostname(host, sizeof(host) - 1) < 0)
        return;
    host[strcspn(host, ".")] = '\0';
    if (!strcmp(host, node))
        return;
    snprintf(workspace->segments, sizeof(workspace->segments), "/dev/shm/mtllm-%lu-%s.%s-%s",
             (unsigned long)getuid(), job, step, node);
    if ((mkdir(workspace->segments, 0700) < 0 && errno != EEXIST) ||
        lstat(workspace->segments, &status) < 0 || !S_ISDIR(status.st_mode) ||
        status.st_uid != getuid() ||
        setenv("OMPI_MCA_btl_vader_backing_directory", workspace->segments, 0) < 0) {
        log_warning("%s: cannot be used for the shared memory of node %s", workspace->segments,
                    node);
        *workspace->segments = '\0';
    }
}

/* Ranks wait for each other by polling. With more ranks than cores a poller keeps the one it waits
 * for from running, unless it yields; with enough cores yielding costs next to nothing. */
static int start_mpi(struct workspace *workspace, struct error *error)
{
    int running = 0, provided;

    if (MPI_Initialized(&running) == MPI_SUCCESS && running)
        return 0;
    separate_nodes(workspace);
    if (setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0) < 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
        return error_set(error, EXIT_STATUS_CONFIGURATION, "MPI does not start");
    workspace->initialized = true;
    remove_segments(workspace);
    if (provided < MPI_THREAD_FUNNELED)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "this MPI was built without support for threads");
    if (MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN) != MPI_SUCCESS)
        return error_set(error, EXIT_STATUS_SYSTEM, "MPI does not take an error handler");
    return 0;
}

int comm_mpi_open(struct comm **comm, const struct world *world, const struct kernels *kernels,
                  struct error *error)
{
    struct workspace *workspace = calloc(1, sizeof(*workspace));
    int rank = -1, size = 0;

    *comm = NULL;
    if (!workspace)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (start_mpi(workspace, error) < 0)
        goto failed;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (rank != world->rank || size != world->size) {
        error_set(error, EXIT_STATUS_CONFIGURATION,
                  "MPI takes this process for rank %d of %d, the launcher's PMIx says rank %d of "
                  "%d; the MPI that mtllm was built with must be one with PMIx support (for Open "
                  "MPI, ompi_info | grep pmix lists it)",
                  rank, size, world->rank, world->size);
        goto failed;
    }
    workspace->scratch = aligned_alloc(64, SCRATCH_BYTES);
    if (workspace->scratch)
        *comm = create_group(MPI_COMM_WORLD, workspace, kernels, "world");
    if (!*comm) {
        error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        goto failed;
    }
    return 0;

failed:
    close_workspace(workspace);
    return -1;
}

static const struct comm_backend mpi_backend = {
    .waits_cheaply = true,
    .split = mpi_split,
    .close = mpi_close,
    .all_reduce = mpi_all_reduce,
    .all_gather = mpi_all_gather,
    .reduce_scatter = mpi_reduce_scatter,
    .all_to_all = mpi_all_to_all,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .send = mpi_send,
    .receive = mpi_receive,
    .wait = mpi_wait,
};
