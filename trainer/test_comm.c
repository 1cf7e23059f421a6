/* Guards: every collective of every group of every layout gives what a plain computation gives,
 * with the same bits on every rank and in every repetition; messages arrive whole and in order,
 * also when they are large. Run by test_comm.sh under mpirun with 1 to 8 ranks.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "trainer/comm.h"
#include "trainer/world.h"

#define MOST_RANKS  64
#define LARGE_COUNT ((int64_t)2 * 1024 * 1024 + 5) /* more than one piece of a reduction */

static struct world world;

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

/* All ranks of the group hold the same bytes. */
static void check_same(struct comm *comm, const void *bytes, size_t size, const char *name)
{
    uint64_t mine = hash(bytes, size), *all = allocate(8 * (size_t)comm_size(comm));

    comm_all_gather(comm, all, &mine, 1, COMM_I64, NULL);
    for (int i = 0; i < comm_size(comm); i++)
        CHECK(all[i] == mine);
    free(all);
}

/* ranks[i]: world rank of the group's rank i. */
static void check_reduce_f32(struct comm *comm, const int *ranks, int64_t count, const char *name)
{
    float *sum = allocate((size_t)count * 4), *again = allocate((size_t)count * 4);

    for (int64_t i = 0; i < count; i++)
        sum[i] = again[i] = (float)value_of(world.rank, i);
    comm_all_reduce(comm, sum, count, COMM_F32, COMM_SUM, NULL);
    comm_all_reduce(comm, again, count, COMM_F32, COMM_SUM, NULL);
    CHECK(memcmp(sum, again, (size_t)count * 4) == 0);
    for (int64_t i = 0; i < count; i++) {
        float expected = (float)value_of(ranks[0], i);

        for (int r = 1; r < comm_size(comm); r++)
            expected += (float)value_of(ranks[r], i);
        CHECK(sum[i] == expected);
    }
    check_same(comm, sum, (size_t)count * 4, name);
    free(sum);
    free(again);
}

static void check_reduce_other(struct comm *comm, const int *ranks, const char *name)
{
    enum { COUNT = 5000 };
    double f64[COUNT];
    int64_t i64[COUNT];
    int32_t i32[COUNT];
    float wide[COUNT], expected_wide[COUNT];
    uint16_t half[COUNT], expected_half[COUNT];
    float with_nan = comm_rank(comm) == comm_size(comm) - 1 ? NAN : 1;
    int n = comm_size(comm);

    for (int i = 0; i < COUNT; i++) {
        f64[i] = value_of(world.rank, i);
        i64[i] = (int64_t)(value_of(world.rank, i) * 1e12);
        i32[i] = (int32_t)(value_of(world.rank, i) * 1000);
    }
    comm_all_reduce(comm, f64, COUNT, COMM_F64, COMM_SUM, NULL);
    comm_all_reduce(comm, i64, COUNT, COMM_I64, COMM_SUM, NULL);
    comm_all_reduce(comm, i32, COUNT, COMM_I32, COMM_MAX, NULL);
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
        comm_all_reduce(comm, half, COUNT, dtype == DTYPE_BF16 ? COMM_BF16 : COMM_F16, COMM_SUM,
                        NULL);
        CHECK(memcmp(half, expected_half, sizeof(half)) == 0);
    }
    comm_all_reduce(comm, &with_nan, 1, COMM_F32, COMM_MAX, NULL);
    CHECK(isnan(with_nan));
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
        comm_all_gather(comm, out, from, count, COMM_I32, NULL);
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
        for (int64_t i = 0; i < count; i++)
            buffer[i] = value_of(world.rank, i);
        comm_broadcast(comm, buffer, count * 8, root, NULL);
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
    double *out[MESSAGES], *in[MESSAGES];
    struct comm_request sends[MESSAGES], receives[MESSAGES], nothing = {0};

    comm_wait(&nothing);
    if (n == 1)
        return;
    for (int m = 0; m < MESSAGES; m++) {
        int64_t length = count * m;

        out[m] = allocate((size_t)length * 8);
        in[m] = allocate((size_t)length * 8);
        for (int64_t i = 0; i < length; i++)
            out[m][i] = value_of(world.rank, i * MESSAGES + m);
        comm_receive(comm, in[m], length * 8, before, &receives[m], NULL);
        comm_send(comm, out[m], length * 8, next, &sends[m], NULL);
    }
    for (int m = MESSAGES - 1; m >= 0; m--) {
        comm_wait(&receives[m]);
        comm_wait(&sends[m]);
        CHECK(!receives[m].handle && !sends[m].handle);
        for (int64_t i = 0; i < count * m; i++)
            CHECK(in[m][i] == value_of(ranks[before], i * MESSAGES + m));
        free(out[m]);
        free(in[m]);
    }
}

static bool in_group(const char *name, const struct layout *layout, int rank)
{
    struct layout_place me = layout_place(layout, world.rank), it = layout_place(layout, rank);

    if (!strcmp(name, "tp"))
        return it.pp == me.pp && it.dp == me.dp;
    if (!strcmp(name, "dp"))
        return it.pp == me.pp && it.tp == me.tp;
    if (!strcmp(name, "pp"))
        return it.tp == me.tp && it.dp == me.dp;
    if (!strcmp(name, "model"))
        return it.dp == me.dp;
    if (!strcmp(name, "embedding"))
        return it.tp == me.tp && it.dp == me.dp && (it.pp == 0 || it.pp == layout->pp - 1);
    return true;
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
    check_reduce_other(comm, ranks, name);
    check_gather(comm, ranks, 1, name);
    check_gather(comm, ranks, 1777, name);
    check_broadcast(comm, ranks, 333, name);
    check_messages(comm, ranks, 500, name);
    comm_barrier(comm);
}

static void check_layout(const struct layout *layout)
{
    struct comm_groups groups;
    struct error error = {0};
    struct layout_place place = layout_place(layout, world.rank);
    const char *name = "layout";

    if (comm_open(&groups, &world, layout, &error) < 0)
        world_abort(&world, error_print(&error));
    check_group(groups.world, "world", layout);
    check_group(groups.tp, "tp", layout);
    check_group(groups.dp, "dp", layout);
    check_group(groups.pp, "pp", layout);
    check_group(groups.model, "model", layout);
    CHECK((groups.embedding != NULL) ==
          (layout->pp > 1 && (place.pp == 0 || place.pp == layout->pp - 1)));
    if (groups.embedding)
        check_group(groups.embedding, "embedding", layout);
    comm_close(&groups);
    comm_close(&groups);
}

static void check_large(struct comm *comm)
{
    int ranks[MOST_RANKS] = {0};

    for (int rank = 0; rank < world.size; rank++)
        ranks[rank] = rank;
    check_reduce_f32(comm, ranks, LARGE_COUNT, "large");
    check_gather(comm, ranks, LARGE_COUNT / 8, "large");
    check_broadcast(comm, ranks, LARGE_COUNT / 8, "large");
    check_messages(comm, ranks, LARGE_COUNT / 16, "large");
}

/* Every node has one first rank, and launchers that say where a rank is say the same. */
static void check_places(struct comm *comm)
{
    int32_t first_ranks = world.local_rank == 0, last_node = world.node;
    const char *local_rank = getenv("OMPI_COMM_WORLD_LOCAL_RANK"), *name = "places";
    const char *local_size = getenv("OMPI_COMM_WORLD_LOCAL_SIZE"), *node = getenv("SLURM_NODEID");

    comm_all_reduce(comm, &first_ranks, 1, COMM_I32, COMM_SUM, NULL);
    comm_all_reduce(comm, &last_node, 1, COMM_I32, COMM_MAX, NULL);
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

int main(int argc, char **argv)
{
    struct comm_groups first;
    struct error error = {0};
    const char *name = "world";
    int layouts = 0;

    if (world_open(&world, &error) < 0)
        return error_print(&error);
    CHECK(world.size <= MOST_RANKS);
    /* MPI can be started once a process: this one is open throughout. */
    if (comm_open(&first, &world, &(struct layout){1, 1, world.size}, &error) < 0) {
        world_close(&world);
        return error_print(&error);
    }
    check_places(first.world);
    if (argc > 1)
        fail(first.world, argv[1]);
    for (int tp = 1; tp <= world.size; tp++) {
        for (int pp = 1; tp * pp <= world.size; pp++) {
            if (world.size % (tp * pp) != 0)
                continue;
            check_layout(&(struct layout){tp, pp, world.size / (tp * pp)});
            layouts++;
        }
    }
    check_large(first.world);
    if (world.rank == 0)
        printf("%d ranks: %d layouts\n", world.size, layouts);
    comm_close(&first);
    world_close(&world);
    return 0;
}
