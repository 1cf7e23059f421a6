/* Windows, on memory that a GPU's driver opens to other processes (kernels/peer_memory.h).
 *
 * Each rank has two flags for each part and rank: `ready`, which that rank sets to the number of
 * the turn that it has begun, and `arrived`, which it sets when it has put something. Both are
 * waited for where they lie.
 */
#include "trainer/comm_window.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/module.h"
#include "trainer/comm_backend.h"

enum flag { FLAG_READY, FLAG_ARRIVED, FLAG_COUNT };

/* What a rank tells the others of its memory. */
struct introduction {
    char boot[40]; /* of its host; empty: it cannot open anything */
    char handle[PEER_HANDLE_BYTES];
    int64_t parts[COMM_WINDOW_PARTS], flags; /* bytes behind the beginning */
};

struct comm_window {
    struct comm *comm;
    const struct peer_memory *peer_memory;
    int parts;
    struct introduction *introductions; /* [ranks] */
    char **memory;                      /* [ranks], as it is mapped here; NULL: it is not */
    int32_t *able;                      /* [ranks]: they have mapped all others' */
    uint32_t turns[COMM_WINDOW_PARTS];  /* begun */
};

static int64_t flag_count(int ranks, int parts)
{
    return (int64_t)FLAG_COUNT * parts * ranks;
}

/* And room behind them for introductions. */
int64_t comm_window_flags(int ranks, int parts)
{
    return flag_count(ranks, parts) +
           ranks * (int64_t)(sizeof(struct introduction) / sizeof(uint32_t));
}

/* At `rank`, what `about` tells it. */
static uint32_t *flag_at(const struct comm_window *window, int rank, enum flag flag, int part,
                         int about)
{
    uint32_t *flags =
        (uint32_t *)(void *)(window->memory[rank] + window->introductions[rank].flags);

    return flags + ((int64_t)flag * window->parts + part) * window->comm->size + about;
}

/* The same for processes of one host, as long as it is up. */
static void read_boot(char boot[40])
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (!file || !fgets(boot, 40, file))
        boot[0] = '\0';
    if (file)
        fclose(file);
}

/* Every rank's, through device memory, as the group moves it. */
static void exchange(struct comm *comm, uint32_t *device, void *parts, size_t bytes)
{
    const struct kernels *k = comm->kernels;
    size_t mine = (size_t)comm->rank * bytes;
    struct error error;

    k->to_device(NULL, (char *)device + mine, (char *)parts + mine, bytes);
    comm_all_gather(comm, device, (char *)device + mine, (int64_t)(bytes / sizeof(int32_t)),
                    COMM_I32, NULL);
    k->to_host(NULL, parts, device, (size_t)comm->size * bytes);
    /* What fails here fails later too, where somebody hears of it. */
    (void)k->stream_sync(NULL, &error);
}

static bool open_all(struct comm_window *window)
{
    int rank = window->comm->rank;

    for (int i = 0; i < window->comm->size; i++) {
        const struct introduction *other = &window->introductions[i];

        if (!other->boot[0] || strcmp(other->boot, window->introductions[rank].boot) != 0)
            return false;
        if (i == rank)
            continue;
        window->memory[i] = window->peer_memory->open(other->handle);
        if (!window->memory[i])
            return false;
    }
    return true;
}

static void destroy(struct comm_window *window)
{
    for (int i = 0; window->memory && i < window->comm->size; i++)
        if (window->memory[i] && i != window->comm->rank)
            window->peer_memory->close(window->memory[i]);
    free(window->memory);
    free(window->able);
    free(window->introductions);
    free(window);
}

static struct comm_window *create(struct comm *comm, const struct peer_memory *peer_memory,
                                  void *memory, void *const *parts, int count, uint32_t *flags)
{
    struct comm_window *window = calloc(1, sizeof(*window));
    struct introduction *mine;

    if (!window)
        return NULL;
    *window = (struct comm_window){.comm = comm, .peer_memory = peer_memory, .parts = count};
    window->introductions = calloc((size_t)comm->size, sizeof(*window->introductions));
    window->memory = calloc((size_t)comm->size, sizeof(*window->memory));
    window->able = calloc((size_t)comm->size, sizeof(*window->able));
    if (!window->introductions || !window->memory || !window->able) {
        destroy(window);
        return NULL;
    }
    window->memory[comm->rank] = memory;
    mine = &window->introductions[comm->rank];
    mine->flags = (char *)flags - (char *)memory;
    for (int i = 0; i < count; i++)
        mine->parts[i] = (char *)parts[i] - (char *)memory;
    if (peer_memory->handle(memory, mine->handle))
        read_boot(mine->boot);
    return window;
}

int comm_window_open(struct comm_window **result, struct comm *comm, void *memory,
                     void *const *parts, int count, uint32_t *flags, struct error *error)
{
    uint32_t *device = flags + flag_count(comm->size, count);
    const struct cuda_module *module;
    struct comm_window *window;
    bool all = true;

    *result = NULL;
    assert(count <= COMM_WINDOW_PARTS);
    if (comm->size == 1 || strcmp(comm->kernels->name, "cuda") != 0)
        return 0;
    module = cuda_module_load(error);
    window = create(comm, module->peer_memory, memory, parts, count, flags);
    if (!window)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    exchange(comm, device, window->introductions, sizeof(*window->introductions));
    window->able[comm->rank] = open_all(window);
    exchange(comm, device, window->able, sizeof(*window->able));
    for (int i = 0; i < comm->size; i++)
        all = all && window->able[i];
    if (all)
        *result = window;
    else
        comm_window_close(window);
    return 0;
}

void comm_window_close(struct comm_window *window)
{
    struct comm *comm;

    if (!window)
        return;
    comm = window->comm;
    destroy(window);
    comm_barrier(comm); /* now nobody has this rank's memory open */
}

void comm_window_turn(struct comm_window *window, int part, struct stream *stream)
{
    int rank = window->comm->rank;

    window->turns[part]++;
    for (int i = 0; i < window->comm->size; i++)
        if (i != rank)
            window->peer_memory->signal(stream, flag_at(window, i, FLAG_READY, part, rank),
                                        window->turns[part]);
}

void comm_window_put(struct comm_window *window, int part, int peer, size_t offset,
                     const void *from, size_t bytes, struct stream *stream)
{
    int rank = window->comm->rank;
    char *to = window->memory[peer] + window->introductions[peer].parts[part] + offset;

    window->peer_memory->wait(stream, flag_at(window, rank, FLAG_READY, part, peer),
                              window->turns[part]);
    window->comm->kernels->copy(stream, to, from, bytes);
    window->peer_memory->signal(stream, flag_at(window, peer, FLAG_ARRIVED, part, rank),
                                window->turns[part]);
}

void comm_window_wait(struct comm_window *window, int part, int peer, struct stream *stream)
{
    window->peer_memory->wait(stream, flag_at(window, window->comm->rank, FLAG_ARRIVED, part, peer),
                              window->turns[part]);
}

void comm_window_sum(struct comm_window *window, int part, void *out, const void *own,
                     int64_t count, struct stream *stream)
{
    const struct comm *comm = window->comm;
    const char *parts = window->memory[comm->rank] + window->introductions[comm->rank].parts[part];

    window->peer_memory->sum(stream, out, parts, own, comm->rank, comm->size, count,
                             comm->kernels->dtype);
}
