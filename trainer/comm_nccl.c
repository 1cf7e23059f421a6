/* Communication between GPU ranks, through NCCL.
 *
 * Rank 0 makes the world's id, which PMIx brings to the others; groups are split from the world.
 *
 * Small sums, and maxima whatever their size, are gathered and reduced by everyone in rank order:
 * that is faster for them than a ring, and NCCL's maximum drops NaN. Large sums are NCCL's, in the
 * order that nccl.cu pins.
 *
 * Messages do not go through the groups. In a pipeline a stage sends activations up and receives
 * gradients from there, in an order that suits itself and not its neighbour; on one stream each
 * would wait for the other. So there are two further groups of all ranks, each with a stream: one
 * for messages from lower to higher ranks, one for the others. A message waits there for those
 * before it in its own direction; with one forward, one backward, none of these waits for something
 * that its stage, or the neighbour, would do only later. Messages that wrap round from the last
 * stage to the first would close a circle of such waits: they have two more (pipeline.c).
 *
 * Calls do not wait, but for connections that collectives make when they are used first, by all
 * ranks at the same place; those of messages are made by comm_connect(). A rank that dies then, or
 * while others wait for it on the device, is found by peers.c. What fails in the
 * background (a network) would be waited for as well: a thread asks for it.
 */
#include "trainer/comm_backend.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/module.h"

#define SCRATCH_BYTES ((int64_t)1 << 20) /* of a group: what is gathered at one time */

enum { CHECK_S = 1, PEERS_FIRST_S = 2 };

/* Messages in one direction. */
struct direction {
    struct nccl_group *group; /* all ranks */
    struct stream *stream;
};

/* What the groups of one comm_open() share. */
struct connection {
    const struct world *world;
    const struct kernels *kernels;
    const struct nccl *nccl;
    struct direction up, down;
    struct direction apart_up, apart_down; /* of the group that is set apart; zeros: none is */

    /* The thread that asks for failures. */
    pthread_t thread;
    bool running;
    pthread_mutex_t mutex;
    pthread_cond_t closing_condition;
    bool closing;         /* under the mutex */
    struct comm *members; /* every group, the newest first; under the mutex */
};

struct nccl_state {
    struct connection *connection;
    struct nccl_group *group;
    struct stream *last;           /* that had work of the group */
    char *scratch;                 /* device, [SCRATCH_BYTES] */
    int32_t *ranks;                /* [size] of the members, in the world */
    struct nccl_message *messages; /* [2 size] */
    bool apart;                    /* its messages are */
    struct comm *next;             /* in `members` */
};

struct nccl_transfer {
    struct comm_transfer base;
    const struct nccl *nccl;
    struct stream *stream;  /* that waits for it */
    struct nccl_mark *done; /* NULL: there was nothing to do */
};

static const struct comm_backend nccl_backend;

static struct nccl_state *state_of(const struct comm *comm)
{
    return comm->state;
}

/* For what the other ranks cannot know of and would wait for. */
static __attribute__((noreturn)) void end_all(const struct world *world, const struct error *error)
{
    /* Mostly it is another rank's death. Then peers.c says which, and ends this process. */
    if (world->size > 1)
        sleep(PEERS_FIRST_S);
    world_abort(world, error_print(error));
}

static __attribute__((noreturn)) void fail(const struct comm *comm, const char *operation,
                                           int64_t bytes, const struct error *reason)
{
    struct error error;

    error_set(&error, EXIT_STATUS_IO, "rank %d of %d of group %s: %s of %lld bytes failed: %s",
              comm->rank, comm->size, comm->name, operation, (long long)bytes, reason->text);
    end_all(state_of(comm)->connection->world, &error);
}

static __attribute__((noreturn)) void end_without_memory(const struct world *world)
{
    struct error error;

    error_set(&error, EXIT_STATUS_SYSTEM, "rank %d: out of memory for communication", world->rank);
    end_all(world, &error);
}

/* The work of a group follows each other, whatever the streams. */
static struct nccl_state *begin(struct comm *comm, struct stream *stream)
{
    struct nccl_state *state = state_of(comm);

    if (stream != state->last)
        state->connection->kernels->stream_wait(stream, state->last);
    state->last = stream;
    return state;
}

/* --- collectives -------------------------------------------------------------------------------*/

static const enum nccl_type types[] = {
    [COMM_F32] = NCCL_F32, [COMM_F64] = NCCL_F64,   [COMM_I32] = NCCL_I32,
    [COMM_I64] = NCCL_I64, [COMM_BF16] = NCCL_BF16, [COMM_F16] = NCCL_F16,
};

/* Everyone gathers all parts and reduces them. */
static void reduce_gathered(struct comm *comm, char *buffer, int64_t count, enum comm_type type,
                            enum comm_op op, struct stream *stream)
{
    struct nccl_state *state = state_of(comm);
    const struct nccl *nccl = state->connection->nccl;
    int64_t element = (int64_t)comm_type_bytes(type), most = SCRATCH_BYTES / comm->size / element;
    struct error error;

    while (count > 0) {
        int64_t n = count < most ? count : most;

        if (nccl->gather(state->group, state->scratch, buffer, n * element, stream, &error) < 0)
            fail(comm, "all-reduce", n * element, &error);
        nccl->reduce_parts(stream, buffer, state->scratch, comm->size, n, types[type],
                           op == COMM_MAX);
        buffer += n * element;
        count -= n;
    }
}

static void nccl_all_reduce(struct comm *comm, void *buffer, int64_t count, enum comm_type type,
                            enum comm_op op, struct stream *stream)
{
    struct nccl_state *state = begin(comm, stream);
    int64_t bytes = count * (int64_t)comm_type_bytes(type);
    struct error error;

    if (op == COMM_MAX || bytes <= COMM_RANK_ORDER_BYTES)
        reduce_gathered(comm, buffer, count, type, op, stream);
    else if (state->connection->nccl->sum(state->group, buffer, count, types[type], stream,
                                          &error) < 0)
        fail(comm, "all-reduce", bytes, &error);
}

static void nccl_all_gather(struct comm *comm, void *out, const void *in, int64_t count,
                            enum comm_type type, struct stream *stream)
{
    struct nccl_state *state = begin(comm, stream);
    int64_t bytes = count * (int64_t)comm_type_bytes(type);
    struct error error;

    if (state->connection->nccl->gather(state->group, out, in, bytes, stream, &error) < 0)
        fail(comm, "all-gather", bytes, &error);
}

static void nccl_reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                                enum comm_type type, struct stream *stream)
{
    struct nccl_state *state = begin(comm, stream);
    struct error error;

    if (state->connection->nccl->sum_parts(state->group, out, in, count, types[type], stream,
                                           &error) < 0)
        fail(comm, "reduce-scatter", count * (int64_t)comm_type_bytes(type), &error);
}

static void nccl_all_to_all(struct comm *comm, void *out, const void *in, int64_t bytes,
                            struct stream *stream)
{
    struct nccl_state *state = begin(comm, stream);
    struct error error;

    for (int i = 0; i < comm->size; i++) {
        state->messages[2 * i] = (struct nccl_message){(char *)in + bytes * i, bytes, i, false};
        state->messages[2 * i + 1] = (struct nccl_message){(char *)out + bytes * i, bytes, i, true};
    }
    if (state->connection->nccl->exchange(state->group, state->messages, 2 * comm->size, stream,
                                          &error) < 0)
        fail(comm, "all-to-all", bytes, &error);
}

static void nccl_broadcast(struct comm *comm, void *buffer, int64_t bytes, int root,
                           struct stream *stream)
{
    struct nccl_state *state = begin(comm, stream);
    struct error error;

    if (state->connection->nccl->broadcast(state->group, buffer, bytes, root, stream, &error) < 0)
        fail(comm, "broadcast", bytes, &error);
}

/* Nobody has the sum of one from everyone before everyone has come here. */
static void nccl_barrier(struct comm *comm)
{
    struct nccl_state *state = begin(comm, NULL);
    const struct kernels *k = state->connection->kernels;
    struct error error;
    int result;

    result = state->connection->nccl->gather(state->group, state->scratch,
                                             state->scratch + comm->rank, 1, NULL, &error);
    if (result == 0)
        result = k->stream_sync(NULL, &error);
    if (result < 0)
        fail(comm, "barrier", 0, &error);
}

/* --- point to point ----------------------------------------------------------------------------*/

static const struct direction *direction_of(const struct comm *comm, int peer, bool receiving)
{
    const struct connection *connection = state_of(comm)->connection;
    bool up = receiving ? peer < comm->rank : peer > comm->rank;

    if (state_of(comm)->apart)
        return up ? &connection->apart_up : &connection->apart_down;
    return up ? &connection->up : &connection->down;
}

/* A byte to and from each neighbour, all that go in one direction at once. */
static void nccl_connect(struct comm *comm)
{
    struct nccl_state *state = begin(comm, NULL);
    const struct connection *connection = state->connection;
    const struct direction *directions[] = {
        state->apart ? &connection->apart_up : &connection->up,
        state->apart ? &connection->apart_down : &connection->down,
    };
    const int next = (comm->rank + 1) % comm->size;
    const int neighbours[] = {next, (comm->rank + comm->size - 1) % comm->size};
    struct error error;

    for (int d = 0; d < 2; d++) {
        struct nccl_message messages[4];
        int count = 0;

        for (int n = 0; n < (comm->size == 2 ? 1 : 2); n++)
            for (int receiving = 0; receiving < 2; receiving++)
                if (direction_of(comm, neighbours[n], receiving) == directions[d]) {
                    messages[count] = (struct nccl_message){state->scratch + count, 1,
                                                            state->ranks[neighbours[n]], receiving};
                    count++;
                }
        connection->kernels->stream_wait(directions[d]->stream, NULL);
        if (connection->nccl->exchange(directions[d]->group, messages, count, directions[d]->stream,
                                       &error) < 0)
            fail(comm, "connecting", 1, &error);
        connection->kernels->stream_wait(NULL, directions[d]->stream);
    }
}

static void start_transfer(struct comm *comm, void *buffer, int64_t bytes, int peer, bool receiving,
                           struct comm_request *request, struct stream *stream)
{
    struct nccl_state *state = state_of(comm);
    struct connection *connection = state->connection;
    const struct direction *direction = direction_of(comm, peer, receiving);
    struct nccl_message message = {buffer, bytes, state->ranks[peer], receiving};
    struct nccl_transfer *transfer = calloc(1, sizeof(*transfer));
    struct error error;

    if (!transfer)
        end_without_memory(connection->world);
    *transfer = (struct nccl_transfer){{&nccl_backend}, connection->nccl, stream, NULL};
    request->handle = transfer;
    if (bytes == 0)
        return; /* the other end knows that too */
    /* The buffer is written, or is no longer read. */
    connection->kernels->stream_wait(direction->stream, stream);
    if (connection->nccl->exchange(direction->group, &message, 1, direction->stream, &error) < 0)
        fail(comm, receiving ? "receive" : "send", bytes, &error);
    transfer->done = connection->nccl->mark(direction->stream);
}

static void nccl_send(struct comm *comm, const void *buffer, int64_t bytes, int peer,
                      struct comm_request *request, struct stream *stream)
{
    start_transfer(comm, (void *)buffer, bytes, peer, false, request, stream);
}

static void nccl_receive(struct comm *comm, void *buffer, int64_t bytes, int peer,
                         struct comm_request *request, struct stream *stream)
{
    start_transfer(comm, buffer, bytes, peer, true, request, stream);
}

static void nccl_wait(struct comm_transfer *base)
{
    struct nccl_transfer *transfer = (struct nccl_transfer *)base;

    transfer->nccl->wait(transfer->stream, transfer->done);
    free(transfer);
}

/* --- the thread --------------------------------------------------------------------------------*/

static void ask(const struct connection *connection)
{
    const struct direction *directions[] = {&connection->up, &connection->down,
                                            &connection->apart_up, &connection->apart_down};
    struct error error;

    for (struct comm *comm = connection->members; comm; comm = state_of(comm)->next)
        if (connection->nccl->check(state_of(comm)->group, &error) < 0)
            fail(comm, "communication in the background", 0, &error);
    for (size_t d = 0; d < sizeof(directions) / sizeof(*directions); d++) {
        if (!directions[d]->group || connection->nccl->check(directions[d]->group, &error) == 0)
            continue;
        error_prefix(&error, "rank %d: messages failed: ", connection->world->rank);
        error.status = EXIT_STATUS_IO;
        end_all(connection->world, &error);
    }
}

static void *ask_again_and_again(void *argument)
{
    struct connection *connection = argument;

    pthread_mutex_lock(&connection->mutex);
    while (!connection->closing) {
        struct timespec next;

        ask(connection);
        clock_gettime(CLOCK_MONOTONIC, &next);
        next.tv_sec += CHECK_S;
        pthread_cond_timedwait(&connection->closing_condition, &connection->mutex, &next);
    }
    pthread_mutex_unlock(&connection->mutex);
    return NULL;
}

static void start_thread(struct connection *connection)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    connection->running =
        pthread_create(&connection->thread, NULL, ask_again_and_again, connection) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!connection->running)
        end_without_memory(connection->world);
}

static void stop_thread(struct connection *connection)
{
    if (!connection->running)
        return;
    pthread_mutex_lock(&connection->mutex);
    connection->closing = true;
    pthread_cond_signal(&connection->closing_condition);
    pthread_mutex_unlock(&connection->mutex);
    pthread_join(connection->thread, NULL);
    connection->running = false;
}

/* --- opening and closing -----------------------------------------------------------------------*/

/* The world's ranks of a group's members. */
static int gather_ranks(struct comm *comm, struct error *error)
{
    struct nccl_state *state = state_of(comm);
    const struct connection *connection = state->connection;
    const struct kernels *k = connection->kernels;
    int32_t mine = connection->world->rank;
    char *part = state->scratch + (size_t)comm->rank * sizeof(mine);

    k->to_device(NULL, part, &mine, sizeof(mine));
    if (connection->nccl->gather(state->group, state->scratch, part, sizeof(mine), NULL, error) < 0)
        return -1;
    k->to_host(NULL, state->ranks, state->scratch, (size_t)comm->size * sizeof(mine));
    return k->stream_sync(NULL, error);
}

static struct comm *create_group(struct connection *connection, struct nccl_group *group,
                                 const char *name)
{
    struct comm *comm = calloc(1, sizeof(*comm));
    struct nccl_state *state = calloc(1, sizeof(*state));
    struct error error;

    if (!comm || !state)
        end_without_memory(connection->world);
    *comm = (struct comm){
        .backend = &nccl_backend, .kernels = connection->kernels, .name = name, .state = state};
    *state = (struct nccl_state){
        .connection = connection,
        .group = group,
        .scratch = connection->kernels->allocate((size_t)SCRATCH_BYTES),
    };
    if (connection->nccl->place(group, &comm->rank, &comm->size, &error) < 0)
        fail(comm, "opening", 0, &error);
    state->ranks = calloc((size_t)comm->size, sizeof(*state->ranks));
    state->messages = calloc(2 * (size_t)comm->size, sizeof(*state->messages));
    if (!state->scratch || !state->ranks || !state->messages)
        end_without_memory(connection->world);
    assert(comm->size <= SCRATCH_BYTES / 8);
    if (gather_ranks(comm, &error) < 0)
        fail(comm, "opening", 0, &error);
    pthread_mutex_lock(&connection->mutex);
    state->next = connection->members;
    connection->members = comm;
    pthread_mutex_unlock(&connection->mutex);
    return comm;
}

static struct comm *nccl_split(struct comm *parent, int color, const char *name)
{
    struct connection *connection = state_of(parent)->connection;
    struct nccl_group *group;
    struct error error;

    if (connection->nccl->split(&group, state_of(parent)->group, color, &error) < 0)
        fail(parent, "split", 0, &error);
    return group ? create_group(connection, group, name) : NULL;
}

static void close_direction(struct connection *connection, struct direction *direction)
{
    struct error error;

    if (!direction->group)
        return;
    (void)connection->kernels->stream_sync(direction->stream, &error);
    connection->nccl->destroy(direction->group);
    connection->kernels->stream_destroy(direction->stream);
}

static void forget(struct connection *connection, const struct comm *comm)
{
    struct comm **at = &connection->members;

    pthread_mutex_lock(&connection->mutex);
    while (*at != comm)
        at = &state_of(*at)->next;
    *at = state_of(comm)->next;
    pthread_mutex_unlock(&connection->mutex);
}

static void nccl_close(struct comm *comm)
{
    struct nccl_state *state = state_of(comm);
    struct connection *connection = state->connection;
    struct error error;

    forget(connection, comm);
    if (!connection->members) { /* the world's, closed last */
        stop_thread(connection);
        close_direction(connection, &connection->up);
        close_direction(connection, &connection->down);
        close_direction(connection, &connection->apart_up);
        close_direction(connection, &connection->apart_down);
    }
    /* Whether it succeeded has been asked by those who needed to know. */
    (void)connection->kernels->stream_sync(state->last, &error);
    connection->nccl->destroy(state->group);
    connection->kernels->release(state->scratch);
    if (!connection->members) {
        pthread_mutex_destroy(&connection->mutex);
        pthread_cond_destroy(&connection->closing_condition);
        free(connection);
    }
    free(state->ranks);
    free(state->messages);
    free(state);
    free(comm);
}

/* What rank 0 tells the others. */
struct greeting {
    int status; /* why there will be no communication; 0: there will */
    char id[NCCL_ID_BYTES];
};

/* Every rank has NCCL and the id, or an error; a text has only who knows the reason. */
static int greet(const struct connection *connection, struct greeting *greeting,
                 struct error *error)
{
    const struct world *world = connection->world;
    struct error reason = {0};
    int result = connection->nccl->open(&reason);

    *greeting = (struct greeting){0};
    if (result == 0 && world->rank == 0)
        result = connection->nccl->new_id(greeting->id, &reason);
    greeting->status = result < 0 ? reason.status : 0;
    if (world_share(world, greeting, sizeof(*greeting), error) < 0)
        return -1;
    if (greeting->status != 0) {
        *error = reason;
        error->status = greeting->status;
        if (world->rank != 0)
            error->text[0] = '\0';
        return -1;
    }
    if (result < 0)
        end_all(world, &reason);
    return 0;
}

static struct connection *create_connection(const struct world *world,
                                            const struct kernels *kernels, const struct nccl *nccl)
{
    struct connection *connection = calloc(1, sizeof(*connection));
    pthread_condattr_t monotonic;

    if (!connection)
        end_without_memory(world);
    *connection = (struct connection){.world = world, .kernels = kernels, .nccl = nccl};
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&connection->mutex, NULL);
    pthread_cond_init(&connection->closing_condition, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return connection;
}

static void open_direction(struct comm *world, struct direction *direction)
{
    struct connection *connection = state_of(world)->connection;
    struct error error;

    if (connection->nccl->split(&direction->group, state_of(world)->group, 0, &error) < 0)
        fail(world, "split", 0, &error);
    direction->stream = connection->kernels->stream_create();
}

static void nccl_set_apart(struct comm *world, struct comm *comm)
{
    struct connection *connection = state_of(world)->connection;
    struct direction up, down;

    open_direction(world, &up);
    open_direction(world, &down);
    pthread_mutex_lock(&connection->mutex);
    connection->apart_up = up;
    connection->apart_down = down;
    pthread_mutex_unlock(&connection->mutex);
    if (comm)
        state_of(comm)->apart = true;
}

int comm_nccl_open(struct comm **comm, const struct world *world, const struct kernels *kernels,
                   struct error *error)
{
    const struct cuda_module *module = cuda_module_load(error);
    struct connection *connection;
    struct greeting greeting;
    struct nccl_group *group;

    *comm = NULL;
    if (!module)
        return -1;
    connection = create_connection(world, kernels, module->nccl);
    if (greet(connection, &greeting, error) < 0) {
        free(connection);
        return -1;
    }
    if (connection->nccl->create(&group, greeting.id, world->rank, world->size, error) < 0) {
        error_prefix(error, "rank %d of %d: NCCL does not start: ", world->rank, world->size);
        end_all(world, error);
    }
    *comm = create_group(connection, group, "world");
    open_direction(*comm, &connection->up);
    open_direction(*comm, &connection->down);
    start_thread(connection);
    return 0;
}

static const struct comm_backend nccl_backend = {
    .split = nccl_split,
    .close = nccl_close,
    .all_reduce = nccl_all_reduce,
    .all_gather = nccl_all_gather,
    .reduce_scatter = nccl_reduce_scatter,
    .all_to_all = nccl_all_to_all,
    .broadcast = nccl_broadcast,
    .barrier = nccl_barrier,
    .set_apart = nccl_set_apart,
    .connect = nccl_connect,
    .send = nccl_send,
    .receive = nccl_receive,
    .wait = nccl_wait,
};
