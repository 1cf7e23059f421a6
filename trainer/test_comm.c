/* Guards: every collective of every group of every layout gives what a plain computation gives,
 * with the same bits on every rank and in every repetition; messages arrive whole and in order,
 * also when they are large. Run by test_comm.sh under mpirun with 1 to 8 ranks; with the argument
 * "cuda" through NCCL, on as many GPUs.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "kernels/module.h"
#include "trainer/comm.h"
#include "trainer/comm_window.h"
#include "trainer/world.h"

#define MOST_RANKS  64
#define LARGE_COUNT ((int64_t)2 * 1024 * 1024 + 5) /* more than one piece of a reduction */

static struct world world;
static const struct kernels *kernels;

static void check_at(bool holds, const char *what, const char *name, int line)
{
    if (holds)
        return;
    fprintf(stderr, "test_comm.c:%d: rank %d of %d: %s: %s\n", line, world.rank, world.size, name,
            what);
    world_abort(&world, 1);
}
#define CHECK(condition) check_at(condition, #condition, name, __LINE__)

/* A value that any rank can work out for any other; sums of them round. */
static double value_of(int rank, int64_t i)
{
    uint64_t x = ((uint64_t)rank * 1000003 + (uint64_t)i + 1) * UINT64_C(0x9E3779B97F4A7C15);

    x ^= x >> 29;
    x *= UINT64_C(0xBF58476D1CE4E5B9);
    x ^= x >> 32;
    return ((double)(x >> 11) * 0x1p-53 - 0.5) * (i % 7 == 0 ? 1e4 : 1);
}

static uint64_t hash(const void *bytes, size_t size)
{
    const unsigned char *at = bytes;
    uint64_t h = UINT64_C(14695981039346656037);

    for (size_t i = 0; i < size; i++)
        h = (h ^ at[i]) * UINT64_C(1099511628211);
    return h;
}

static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes ? bytes : 1);

    if (!memory) {
        fprintf(stderr, "test_comm: out of memory\n");
        world_abort(&world, 1);
    }
    return memory;
}

/* --- communication of memory of the host, by way of the device's ------------------------------ */

static void *push(const void *host, size_t bytes)
{
    void *device = kernels->allocate(bytes);

    if (!device) {
        fprintf(stderr, "test_comm: out of memory\n");
        world_abort(&world, 1);
    }
    kernels->to_device(NULL, device, host, bytes);
    return device;
}

static void copy_back(void *host, const void *device, size_t bytes)
{
    struct error error = {0};

    kernels->to_host(NULL, host, device, bytes);
    if (kernels->stream_sync(NULL, &error) < 0)
        world_abort(&world, error_print(&error));
}

static void pull(void *host, void *device, size_t bytes)
{
    copy_back(host, device, bytes);
    kernels->release(device);
}

static size_t bytes_of(int64_t count, enum comm_type type)
{
    return (size_t)count * (type == COMM_F64 || type == COMM_I64    ? 8
                            : type == COMM_BF16 || type == COMM_F16 ? 2
                                                                    : 4);
}

static void all_reduce(struct comm *comm, void *buffer, int64_t count, enum comm_type type,
                       enum comm_op op)
{
    void *device = push(buffer, bytes_of(count, type));

    comm_all_reduce(comm, device, count, type, op, NULL);
    pull(buffer, device, bytes_of(count, type));
}

/* From this rank's part of `out` when `in` is NULL. */
static void all_gather(struct comm *comm, void *out, const void *in, int64_t count,
                       enum comm_type type)
{
    size_t part = bytes_of(count, type), whole = part * (size_t)comm_size(comm);
    char *all = push(out, whole), *mine = all + part * (size_t)comm_rank(comm);
    void *elsewhere = in ? push(in, part) : NULL;

    comm_all_gather(comm, all, in ? elsewhere : mine, count, type, NULL);
    pull(out, all, whole);
    if (in)
        kernels->release(elsewhere);
}

/* All ranks of the group hold the same bytes. */
static void check_same(struct comm *comm, const void *bytes, size_t size, const char *name)
{
    uint64_t mine = hash(bytes, size), *all = allocate(8 * (size_t)comm_size(comm));

    all_gather(comm, all, &mine, 1, COMM_I64);
    for (int i = 0; i < comm_size(comm); i++)
        CHECK(all[i] == mine);
    free(all);
}

/* Whether sums of that many bytes follow the ranks' order. */
static bool in_rank_order(int64_t bytes)
{
    return strcmp(kernels->name, "cpu") == 0 || bytes <= COMM_RANK_ORDER_BYTES;
}

/* ranks[i]: world rank of the group's rank i. */
static void check_reduce_f32(struct comm *comm, const int *ranks, int64_t count, const char *name)
{
    float *sum = allocate((size_t)count * 4), *again = allocate((size_t)count * 4);

    for (int64_t i = 0; i < count; i++)
        sum[i] = again[i] = (float)value_of(world.rank, i);
    all_reduce(comm, sum, count, COMM_F32, COMM_SUM);
    all_reduce(comm, again, count, COMM_F32, COMM_SUM);
    CHECK(memcmp(sum, again, (size_t)count * 4) == 0);
    for (int64_t i = 0; i < count; i++) {
        float expected = (float)value_of(ranks[0], i), size = fabsf(expected);

        for (int r = 1; r < comm_size(comm); r++) {
            expected += (float)value_of(ranks[r], i);
            size += fabsf((float)value_of(ranks[r], i));
        }
        CHECK(in_rank_order(count * 4) ? sum[i] == expected
                                       : fabsf(sum[i] - expected) <= 1e-6F * size);
    }
    check_same(comm, sum, (size_t)count * 4, name);
    free(sum);
    free(again);
}

/* Each rank's part of the sum, in place and elsewhere, is that of a sum of everything. */
static void check_reduce_scatter(struct comm *comm, int64_t count, const char *name)
{
    int64_t whole = count * comm_size(comm), mine = count * comm_rank(comm);
    float *in = allocate((size_t)whole * 4), *sum = allocate((size_t)whole * 4);
    float *out = allocate((size_t)count * 4);

    for (int64_t i = 0; i < whole; i++)
        in[i] = sum[i] = (float)value_of(world.rank, i);
    all_reduce(comm, sum, whole, COMM_F32, COMM_SUM);
    for (int pass = 0; pass < 2; pass++) {
        char *device = push(in, (size_t)whole * 4);
        void *elsewhere = push(out, (size_t)count * 4);
        void *to = pass ? elsewhere : device + (size_t)mine * 4;

        comm_reduce_scatter(comm, to, device, count, COMM_F32, NULL);
        copy_back(out, to, (size_t)count * 4);
        kernels->release(device);
        kernels->release(elsewhere);
        for (int64_t i = 0; i < count; i++)
            CHECK(fabsf(out[i] - sum[mine + i]) <= 5e-3F * (float)comm_size(comm)); /* of 5e3 */
    }
    free(in);
    free(sum);
    free(out);
}

/* Everyone has what everyone had for it. */
static void check_all_to_all(struct comm *comm, const int *ranks, int64_t count, const char *name)
{
    int64_t whole = count * comm_size(comm);
    float *in = allocate((size_t)whole * 4), *out = allocate((size_t)whole * 4);
    void *from, *to;

    for (int64_t i = 0; i < whole; i++)
        in[i] = (float)value_of(world.rank, i);
    from = push(in, (size_t)whole * 4);
    to = push(out, (size_t)whole * 4);
    comm_all_to_all(comm, to, from, count, COMM_F32, NULL);
    pull(out, to, (size_t)whole * 4);
    kernels->release(from);
    for (int64_t i = 0; i < whole; i++)
        CHECK(out[i] == (float)value_of(ranks[i / count], comm_rank(comm) * count + i % count));
    free(in);
    free(out);
}

static void check_reduce_other(struct comm *comm, const int *ranks, const char *name)
{
    enum { COUNT = 5000 };
    double f64[COUNT];
    int64_t i64[COUNT];
    int32_t i32[COUNT];
    float wide[COUNT], expected_wide[COUNT];
    uint16_t half[COUNT], expected_half[COUNT];
    float with_nan[] = {1, comm_rank(comm) == comm_size(comm) - 1 ? NAN : 1,
                        comm_rank(comm) == 0 ? NAN : 1};
    int n = comm_size(comm);

    for (int i = 0; i < COUNT; i++) {
        f64[i] = value_of(world.rank, i);
        i64[i] = (int64_t)(value_of(world.rank, i) * 1e12);
        i32[i] = (int32_t)(value_of(world.rank, i) * 1000);
    }
    all_reduce(comm, f64, COUNT, COMM_F64, COMM_SUM);
    all_reduce(comm, i64, COUNT, COMM_I64, COMM_SUM);
    all_reduce(comm, i32, COUNT, COMM_I32, COMM_MAX);
    for (int i = 0; i < COUNT; i++) {
        double sum = value_of(ranks[0], i);
        int64_t whole = (int64_t)(value_of(ranks[0], i) * 1e12);
        int32_t most = (int32_t)(value_of(ranks[0], i) * 1000);

        for (int r = 1; r < n; r++) {
            int32_t other = (int32_t)(value_of(ranks[r], i) * 1000);

            sum += value_of(ranks[r], i);
            whole += (int64_t)(value_of(ranks[r], i) * 1e12);
            most = other > most ? other : most;
        }
        CHECK(f64[i] == sum && i64[i] == whole && i32[i] == most);
    }
    /* 16 bits: added up in fp32, rounded once. */
    for (enum dtype dtype = DTYPE_BF16; dtype <= DTYPE_F16; dtype++) {
        for (int r = 0; r < n; r++) {
            for (int i = 0; i < COUNT; i++)
                wide[i] = (float)value_of(ranks[r], i);
            dtype_convert(half, dtype, wide, DTYPE_F32, COUNT);
            dtype_convert(wide, DTYPE_F32, half, dtype, COUNT);
            for (int i = 0; i < COUNT; i++)
                expected_wide[i] = r == 0 ? wide[i] : expected_wide[i] + wide[i];
        }
        dtype_convert(expected_half, dtype, expected_wide, DTYPE_F32, COUNT);
        for (int i = 0; i < COUNT; i++)
            wide[i] = (float)value_of(world.rank, i);
        dtype_convert(half, dtype, wide, DTYPE_F32, COUNT);
        all_reduce(comm, half, COUNT, dtype == DTYPE_BF16 ? COMM_BF16 : COMM_F16, COMM_SUM);
        CHECK(memcmp(half, expected_half, sizeof(half)) == 0);
    }
    all_reduce(comm, with_nan, 3, COMM_F32, COMM_MAX);
    CHECK(with_nan[0] == 1 && isnan(with_nan[1]) && isnan(with_nan[2]));
}

static void check_gather(struct comm *comm, const int *ranks, int64_t count, const char *name)
{
    int n = comm_size(comm);
    int32_t *in = allocate((size_t)count * 4), *out = allocate((size_t)(count * n) * 4);
    int32_t *mine = out + count * comm_rank(comm);

    for (int pass = 0; pass < 2; pass++) { /* in its own place, then from elsewhere */
        int32_t *from = pass ? in : mine;

        memset(out, 0xff, (size_t)(count * n) * 4);
        for (int64_t i = 0; i < count; i++)
            from[i] = (int32_t)(value_of(world.rank, i) * 1e5);
        all_gather(comm, out, pass ? in : NULL, count, COMM_I32);
        for (int r = 0; r < n; r++)
            for (int64_t i = 0; i < count; i++)
                CHECK(out[r * count + i] == (int32_t)(value_of(ranks[r], i) * 1e5));
    }
    free(in);
    free(out);
}

static void check_broadcast(struct comm *comm, const int *ranks, int64_t count, const char *name)
{
    double *buffer = allocate((size_t)count * 8);

    for (int root = 0; root < comm_size(comm); root++) {
        void *device;

        for (int64_t i = 0; i < count; i++)
            buffer[i] = value_of(world.rank, i);
        device = push(buffer, (size_t)count * 8);
        comm_broadcast(comm, device, count * 8, root, NULL);
        pull(buffer, device, (size_t)count * 8);
        for (int64_t i = 0; i < count; i++)
            CHECK(buffer[i] == value_of(ranks[root], i));
    }
    free(buffer);
}

/* Round the ring, several messages under way at once, of growing size (the first is empty), waited
 * for in reverse: order is that of sending, not of waiting. */
static void check_messages(struct comm *comm, const int *ranks, int64_t count, const char *name)
{
    enum { MESSAGES = 5 };
    int n = comm_size(comm), next = (comm_rank(comm) + 1) % n,
        before = (comm_rank(comm) + n - 1) % n;
    void *out[MESSAGES], *in[MESSAGES];
    double *buffer = allocate((size_t)count * MESSAGES * 8);
    struct comm_request sends[MESSAGES], receives[MESSAGES], nothing = {0};

    comm_connect(comm);
    comm_wait(&nothing);
    for (int m = 0; m < MESSAGES; m++) {
        for (int64_t i = 0; i < count * m; i++)
            buffer[i] = value_of(world.rank, i * MESSAGES + m);
        out[m] = push(buffer, (size_t)(count * m) * 8);
        in[m] = push(buffer, (size_t)(count * m) * 8);
    }
    /* No memory is taken or given back meanwhile: that may wait for all work of the device. */
    for (int m = 0; m < MESSAGES && n > 1; m++) {
        comm_receive(comm, in[m], count * m * 8, before, &receives[m], NULL);
        comm_send(comm, out[m], count * m * 8, next, &sends[m], NULL);
    }
    for (int m = MESSAGES - 1; m >= 0 && n > 1; m--) {
        comm_wait(&receives[m]);
        comm_wait(&sends[m]);
        CHECK(!receives[m].handle && !sends[m].handle);
        copy_back(buffer, in[m], (size_t)(count * m) * 8);
        for (int64_t i = 0; i < count * m; i++)
            CHECK(buffer[i] == value_of(ranks[before], i * MESSAGES + m));
    }
    for (int m = 0; m < MESSAGES; m++) {
        kernels->release(in[m]);
        kernels->release(out[m]);
    }
    free(buffer);
}

/* Messages as a pipeline has them, one forward one backward, and none waited for before the last is
 * begun: neither side may wait for what the other begins later. */
static void check_pipeline(struct comm *comm, const int *ranks, int64_t count, const char *name)
{
    enum { MICROBATCHES = 6 };
    int n = comm_size(comm), stage = comm_rank(comm), ahead = n - stage - 1;
    struct comm_request requests[4 * MICROBATCHES];
    void *from_below[MICROBATCHES], *from_above[MICROBATCHES], *mine;
    double *buffer = allocate((size_t)count * 8);
    int64_t bytes = count * 8;
    int begun = 0;

    for (int64_t i = 0; i < count; i++)
        buffer[i] = value_of(world.rank, i);
    mine = push(buffer, (size_t)bytes);
    for (int m = 0; m < MICROBATCHES; m++) {
        from_below[m] = kernels->allocate((size_t)bytes);
        from_above[m] = kernels->allocate((size_t)bytes);
    }
    for (int m = -ahead; m < MICROBATCHES; m++) {
        int forward = m + ahead;

        if (forward < MICROBATCHES && stage > 0)
            comm_receive(comm, from_below[forward], bytes, stage - 1, &requests[begun++], NULL);
        if (forward < MICROBATCHES && stage < n - 1)
            comm_send(comm, mine, bytes, stage + 1, &requests[begun++], NULL);
        if (m >= 0 && stage < n - 1)
            comm_receive(comm, from_above[m], bytes, stage + 1, &requests[begun++], NULL);
        if (m >= 0 && stage > 0)
            comm_send(comm, mine, bytes, stage - 1, &requests[begun++], NULL);
    }
    while (begun > 0)
        comm_wait(&requests[--begun]);
    for (int m = 0; m < MICROBATCHES; m++) {
        pull(buffer, from_below[m], (size_t)bytes);
        for (int64_t i = 0; i < count && stage > 0; i++)
            CHECK(buffer[i] == value_of(ranks[stage - 1], i));
        pull(buffer, from_above[m], (size_t)bytes);
        for (int64_t i = 0; i < count && stage < n - 1; i++)
            CHECK(buffer[i] == value_of(ranks[stage + 1], i));
    }
    kernels->release(mine);
    free(buffer);
}

/* Work on another stream beside the one that computes, which waits for it: what a group does is
 * done in the order of the calls, whichever stream it is given. */
static void check_streams(struct comm *comm, const char *name)
{
    enum { COUNT = 100000 };
    struct stream *other = kernels->stream_create();
    float *numbers = allocate(COUNT * 4), *device;

    for (int64_t i = 0; i < COUNT; i++)
        numbers[i] = (float)(i % 100 + comm_rank(comm));
    device = push(numbers, COUNT * 4);
    kernels->stream_wait(other, NULL);
    comm_all_reduce(comm, device, COUNT, COMM_F32, COMM_MAX, other);
    comm_all_reduce(comm, device, COUNT, COMM_F32, COMM_SUM, NULL);
    pull(numbers, device, COUNT * 4);
    for (int64_t i = 0; i < COUNT; i++)
        CHECK(numbers[i] == (float)(i % 100 + comm_size(comm) - 1) * (float)comm_size(comm));
    kernels->stream_destroy(other);
    free(numbers);
}

static bool in_group(const char *name, const struct layout *layout, int rank)
{
    struct layout_place me = layout_place(layout, world.rank), it = layout_place(layout, rank);
    bool same_rows = it.cp == me.cp && it.dp == me.dp;

    if (!strcmp(name, "tp"))
        return it.pp == me.pp && same_rows;
    if (!strcmp(name, "cp"))
        return it.tp == me.tp && it.dp == me.dp && it.pp == me.pp;
    if (!strcmp(name, "replicas"))
        return it.pp == me.pp && it.tp == me.tp;
    if (!strcmp(name, "pp"))
        return it.tp == me.tp && same_rows;
    if (!strcmp(name, "embedding") || !strcmp(name, "wrap"))
        return it.tp == me.tp && same_rows && (it.pp == 0 || it.pp == layout->pp - 1);
    return true;
}

/* Turns of every part of a window, of other contents each, with puts, waits and sums on streams of
 * their own: nothing arrives late, early or elsewhere. */
static void check_window(struct comm *comm, const int *ranks, int64_t count, const char *name)
{
    enum { PARTS = COMM_WINDOW_PARTS, TURNS = 20 };
    int size = comm_size(comm), mine = comm_rank(comm);
    size_t bytes = (size_t)count * sizeof(float),
           part_bytes = (bytes * (size_t)size + 255) & ~255UL;
    size_t flags = (size_t)comm_window_flags(size, PARTS) * sizeof(uint32_t);
    char *memory = kernels->allocate(PARTS * part_bytes + flags);
    struct stream *puts = kernels->stream_create();
    float *values = allocate(bytes), *got = allocate(part_bytes), *sum = allocate(bytes);
    void *parts[PARTS], *own, *total = push(sum, bytes);
    struct comm_window *window;
    struct error error;

    for (int part = 0; part < PARTS; part++)
        parts[part] = memory + (size_t)part * part_bytes;
    if (comm_window_open(&window, comm, memory, parts, PARTS,
                         (uint32_t *)(void *)(memory + PARTS * part_bytes), &error) < 0)
        world_abort(&world, error_print(&error));
    CHECK(window || size == 1 || strcmp(kernels->name, "cuda") != 0);
    for (int turn = 0; window && turn < PARTS * TURNS; turn++) {
        int part = turn % PARTS;

        for (int64_t i = 0; i < count; i++)
            values[i] = (float)value_of(ranks[mine] * 100 + turn, i);
        own = push(values, bytes);
        kernels->stream_wait(puts, NULL);
        comm_window_turn(window, part, puts);
        for (int i = 1; i < size; i++)
            comm_window_put(window, part, (mine + i) % size, (size_t)mine * bytes, own, bytes,
                            puts);
        for (int i = size - 1; i >= 0; i--)
            if (i != mine)
                comm_window_wait(window, part, i, NULL);
        comm_window_sum(window, part, total, own, count, NULL);
        copy_back(got, parts[part], bytes * (size_t)size);
        copy_back(sum, total, bytes);
        for (int64_t i = 0; i < count; i++) {
            float expected = 0;

            for (int rank = 0; rank < size; rank++) {
                float value = (float)value_of(ranks[rank] * 100 + turn, i);

                CHECK(rank == mine || got[rank * count + i] == value);
                expected = rank == 0 ? value : expected + value;
            }
            CHECK(sum[i] == expected);
        }
        if (kernels->stream_sync(puts, &error) < 0)
            world_abort(&world, error_print(&error));
        kernels->release(own);
    }
    comm_window_close(window);
    kernels->release(memory);
    kernels->release(total);
    kernels->stream_destroy(puts);
    free(values);
    free(got);
    free(sum);
}

static void check_group(struct comm *comm, const char *name, const struct layout *layout)
{
    int ranks[MOST_RANKS] = {0}, count = 0, mine = -1;

    for (int rank = 0; rank < world.size; rank++) {
        if (!in_group(name, layout, rank))
            continue;
        if (rank == world.rank)
            mine = count;
        ranks[count++] = rank;
    }
    CHECK(comm_size(comm) == count);
    CHECK(comm_rank(comm) == mine);
    for (int64_t n = 1; n <= 30000; n = n * 5 + 1)
        check_reduce_f32(comm, ranks, n, name);
    check_reduce_scatter(comm, 1, name);
    check_reduce_scatter(comm, 1777, name);
    check_reduce_other(comm, ranks, name);
    check_all_to_all(comm, ranks, 1, name);
    check_all_to_all(comm, ranks, 1777, name);
    check_gather(comm, ranks, 1, name);
    check_gather(comm, ranks, 1777, name);
    check_broadcast(comm, ranks, 333, name);
    check_messages(comm, ranks, 500, name);
    check_pipeline(comm, ranks, 5000, name);
    check_streams(comm, name);
    check_window(comm, ranks, 1, name);
    check_window(comm, ranks, 1776, name);
    comm_barrier(comm);
}

static void check_layout(const struct layout *layout)
{
    struct comm_groups groups;
    struct error error = {0};
    struct layout_place place = layout_place(layout, world.rank);
    const char *name = "layout";

    if (comm_open(&groups, &world, layout, kernels, &error) < 0)
        world_abort(&world, error_print(&error));
    check_group(groups.world, "world", layout);
    check_group(groups.tp, "tp", layout);
    check_group(groups.cp, "cp", layout);
    check_group(groups.replicas, "replicas", layout);
    check_group(groups.pp, "pp", layout);
    CHECK((groups.embedding != NULL) ==
          (layout->pp > 1 && (place.pp == 0 || place.pp == layout->pp - 1)));
    if (groups.embedding)
        check_group(groups.embedding, "embedding", layout);
    CHECK((groups.wrap != NULL) == (layout->chunks > 1 && groups.embedding));
    if (groups.wrap)
        check_group(groups.wrap, "wrap", layout);
    comm_close(&groups);
    comm_close(&groups);
}

static void check_large(struct comm *comm)
{
    int ranks[MOST_RANKS] = {0};

    for (int rank = 0; rank < world.size; rank++)
        ranks[rank] = rank;
    check_reduce_f32(comm, ranks, LARGE_COUNT, "large");
    check_reduce_scatter(comm, LARGE_COUNT / 8, "large");
    check_gather(comm, ranks, LARGE_COUNT / 8, "large");
    check_broadcast(comm, ranks, LARGE_COUNT / 8, "large");
    check_messages(comm, ranks, LARGE_COUNT / 16, "large");
    check_pipeline(comm, ranks, LARGE_COUNT / 16, "large");
    check_window(comm, ranks, LARGE_COUNT / 16, "large");
}

/* Every node has one first rank, and launchers that say where a rank is say the same. */
static void check_places(struct comm *comm)
{
    int32_t first_ranks = world.local_rank == 0, last_node = world.node;
    const char *local_rank = getenv("OMPI_COMM_WORLD_LOCAL_RANK"), *name = "places";
    const char *local_size = getenv("OMPI_COMM_WORLD_LOCAL_SIZE"), *node = getenv("SLURM_NODEID");

    all_reduce(comm, &first_ranks, 1, COMM_I32, COMM_SUM);
    all_reduce(comm, &last_node, 1, COMM_I32, COMM_MAX);
    CHECK(first_ranks == world.nodes && last_node == world.nodes - 1);
    CHECK(!local_rank || atoi(local_rank) == world.local_rank);
    CHECK(!local_size || atoi(local_size) == world.local_size);
    CHECK(!node || atoi(node) == world.node);
}

/* Neither comes back: a rank gives up while the others wait for it; a message of another length
 * than expected. */
static void fail(struct comm *comm, const char *how)
{
    int64_t numbers[2] = {0};
    struct comm_request request = {0};

    if (!strcmp(how, "abort") && world.rank == world.size - 1)
        world_abort(&world, EXIT_STATUS_DATA);
    if (!strcmp(how, "length") && world.rank == 0)
        comm_send(comm, numbers, 8, 1, &request, NULL);
    if (!strcmp(how, "length") && world.rank == 1)
        comm_receive(comm, numbers, 16, 0, &request, NULL);
    comm_wait(&request);
    comm_barrier(comm);
}

/* Rank 0's bytes reach every rank, more than once, before any other communication. */
static void check_share(void)
{
    const char *name = "share";

    for (int time = 0; time < 3; time++) {
        unsigned char bytes[200];
        struct error error = {0};

        memset(bytes, world.rank == 0 ? 7 + time : 0, sizeof(bytes));
        if (world_share(&world, bytes, sizeof(bytes), &error) < 0)
            world_abort(&world, error_print(&error));
        for (size_t i = 0; i < sizeof(bytes); i++)
            CHECK(bytes[i] == 7 + time);
    }
}

/* The GPU of this rank's number on its node. Where there are fewer GPUs than ranks, ranks share
 * them; NCCL takes them for ranks of different hosts then, and makes them talk through sockets. */
static void open_gpu(void)
{
    struct cuda_options options = {.dtype = DTYPE_F32, .attention = "auto"};
    struct error error = {0};
    const struct cuda_module *module = cuda_module_load(&error);
    int count = module ? module->device_count() : 0;
    char host[32];

    if (count == 0) {
        fprintf(stderr, "skipped: %s\n", module ? "no GPU" : error.text);
        world_close(&world);
        exit(77);
    }
    snprintf(host, sizeof(host), "test-%d", world.rank);
    if (count < world.local_size)
        setenv("NCCL_HOSTID", host, 1);
    options.device = world.local_rank % count;
    kernels = module->open(&options, &error);
    if (!kernels)
        world_abort(&world, error_print(&error));
}

int main(int argc, char **argv)
{
    struct comm_groups first;
    struct error error = {0};
    const char *name = "world", *how = argc > 1 ? argv[1] : "";
    int layouts = 0;

    if (world_open(&world, &error) < 0)
        return error_print(&error);
    CHECK(world.size <= MOST_RANKS);
    if (strcmp(how, "share") == 0) {
        check_share();
        world_close(&world);
        return 0;
    }
    kernels = kernels_cpu(1);
    if (strcmp(how, "cuda") == 0)
        open_gpu();
    /* MPI can be started once a process: this one is open throughout. */
    if (comm_open(&first, &world, &(struct layout){.tp = 1, .pp = 1, .dp = world.size, .cp = 1},
                  kernels, &error) < 0) {
        world_close(&world);
        return error_print(&error);
    }
    check_places(first.world);
    if (*how && strcmp(how, "cuda") != 0)
        fail(first.world, how);
    for (int tp = 1; tp <= world.size; tp++)
        for (int pp = 1; tp * pp <= world.size; pp++)
            for (int cp = 1; tp * pp * cp <= world.size; cp++)
                if (world.size % (tp * pp * cp) == 0 && (cp == 1 || tp == 1 || pp == 1)) {
                    check_layout(&(struct layout){.tp = tp,
                                                  .pp = pp,
                                                  .dp = world.size / (tp * pp * cp),
                                                  .cp = cp,
                                                  .chunks = pp == 4 ? 2 : 1});
                    layouts++;
                }
    check_large(first.world);
    if (world.rank == 0)
        printf("%d ranks: %d layouts\n", world.size, layouts);
    comm_close(&first);
    world_close(&world);
    return 0;
}
