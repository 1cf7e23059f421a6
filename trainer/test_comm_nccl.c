/* Guards, on a host with one GPU: what the NCCL backend of comm.h does in a group of one rank,
 * which comm.c would not ask it for: every collective of every type, the order of sums and the NaN
 * of maxima, groups that are split, messages between two streams; and that a world of one rank
 * needs no NCCL. With several ranks: test_comm cuda. Ends with 77 where there is no GPU.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "kernels/module.h"
#include "trainer/comm_backend.h"
#include "trainer/world.h"

#define LARGE ((int64_t)3 * 1024 * 1024 + 7)

static const struct world world = {.size = 1, .local_size = 1, .nodes = 1};
static const struct cuda_module *module;
static const struct kernels *kernels;
static int failures;

static void check_at(bool holds, const char *what, int line)
{
    if (holds)
        return;
    printf("FAILED: test_comm_nccl.c:%d: %s\n", line, what);
    failures++;
}
#define CHECK(condition) check_at(condition, #condition, __LINE__)

static void require(int result, const struct error *error)
{
    if (result < 0)
        exit(error_print(error));
}

static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes);

    if (!memory)
        exit(71);
    return memory;
}

static void *push(const void *host, size_t bytes)
{
    void *device = kernels->allocate(bytes);

    if (!device)
        exit(71);
    kernels->to_device(NULL, device, host, bytes);
    return device;
}

static void pull(void *host, void *device, size_t bytes)
{
    struct error error = {0};

    kernels->to_host(NULL, host, device, bytes);
    require(kernels->stream_sync(NULL, &error), &error);
    kernels->release(device);
}

/* Bytes that are numbers of every type, none of them NaN. */
static unsigned char *some_bytes(size_t size)
{
    unsigned char *bytes = allocate(size);

    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)(i % 2 ? 0x3c + i % 3 : (i * 2654435761U) >> 13);
    return bytes;
}

/* The sum and the maximum of one rank are what it has. */
static void test_all_reduce(struct comm *comm, int64_t count)
{
    for (enum comm_type type = COMM_F32; type <= COMM_F16; type++) {
        size_t size = (size_t)count * comm_type_bytes(type);
        unsigned char *before = some_bytes(size), *after = allocate(size);

        for (enum comm_op op = COMM_SUM; op <= COMM_MAX; op++) {
            void *device = push(before, size);

            comm->backend->all_reduce(comm, device, count, type, op, NULL);
            pull(after, device, size);
            CHECK(memcmp(before, after, size) == 0);
        }
        free(before);
        free(after);
    }
}

static void test_copies(struct comm *comm)
{
    size_t size = 100000;
    unsigned char *before = some_bytes(size), *after = allocate(size);
    void *in = push(before, size), *out = push(after, size);

    comm->backend->all_gather(comm, out, in, (int64_t)size / 4, COMM_I32, NULL);
    comm->backend->all_gather(comm, out, out, (int64_t)size / 4, COMM_I32, NULL);
    comm->backend->broadcast(comm, out, (int64_t)size, 0, NULL);
    comm->backend->barrier(comm);
    pull(after, out, size);
    CHECK(memcmp(before, after, size) == 0);
    kernels->release(in);
    free(before);
    free(after);
}

static void test_groups(struct comm *comm)
{
    struct comm *tp = comm->backend->split(comm, 3, "tp"),
                *none = comm->backend->split(comm, -1, "none");

    CHECK(none == NULL);
    CHECK(tp && tp->size == 1 && tp->rank == 0 && strcmp(tp->name, "tp") == 0);
    if (!tp)
        return;
    test_all_reduce(tp, 1);
    test_all_reduce(tp, LARGE);
    test_copies(tp);
    tp->backend->close(tp);
}

/* A message to itself, on a stream of its own, between work of the one that computes. */
static void test_messages(void)
{
    const struct nccl *nccl = module->nccl;
    size_t size = 1 << 20;
    unsigned char *before = some_bytes(size), *after = allocate(size);
    struct stream *stream = kernels->stream_create();
    struct nccl_group *group;
    struct error error = {0};
    char id[NCCL_ID_BYTES];
    void *in = kernels->allocate(size), *out = kernels->allocate(size);
    struct nccl_message messages[] = {{out, (int64_t)size, 0, false}, {in, (int64_t)size, 0, true}};

    require(nccl->new_id(id, &error), &error);
    require(nccl->create(&group, id, 0, 1, &error), &error);
    kernels->to_device(NULL, out, before, size);
    kernels->stream_wait(stream, NULL);
    require(nccl->exchange(group, messages, 2, stream, &error), &error);
    nccl->wait(NULL, nccl->mark(stream));
    nccl->wait(NULL, NULL);
    require(nccl->check(group, &error), &error);
    pull(after, in, size);
    CHECK(memcmp(before, after, size) == 0);
    nccl->destroy(group);
    kernels->stream_destroy(stream);
    kernels->release(out);
    free(before);
    free(after);
}

/* Numbers of any type, sums of which round; NaN in some places of some parts. */
static void fill_parts(void *parts, int64_t count, enum comm_type type, bool with_nan)
{
    for (int64_t i = 0; i < count; i++) {
        double x = (drand48() - 0.5) * (i % 7 == 0 ? 1e3 : 1);
        float narrow = with_nan && i % 97 == 5 ? NAN : (float)x;

        if (type == COMM_F64)
            ((double *)parts)[i] = with_nan && i % 97 == 5 ? NAN : x;
        else if (type == COMM_F32)
            ((float *)parts)[i] = narrow;
        else if (type == COMM_I64)
            ((int64_t *)parts)[i] = (int64_t)(x * 1e16);
        else if (type == COMM_I32)
            ((int32_t *)parts)[i] = (int32_t)(x * 4e6);
        else
            dtype_convert((uint16_t *)parts + i, type == COMM_BF16 ? DTYPE_BF16 : DTYPE_F16,
                          &narrow, DTYPE_F32, 1);
    }
}

/* How many elements differ; NaN is NaN, whatever its bits. */
static int64_t differences(const void *a, const void *b, int64_t count, enum comm_type type)
{
    size_t bytes = comm_type_bytes(type);
    int64_t found = 0;

    for (int64_t i = 0; i < count; i++) {
        const char *x = (const char *)a + (size_t)i * bytes,
                   *y = (const char *)b + (size_t)i * bytes;
        float wide[2] = {0, 0};

        if (memcmp(x, y, bytes) == 0)
            continue;
        if (type == COMM_F32) {
            memcpy(&wide[0], x, 4);
            memcpy(&wide[1], y, 4);
        } else if (type == COMM_F64) {
            wide[0] = (float)((const double *)a)[i];
            wide[1] = (float)((const double *)b)[i];
        } else if (bytes == 2) {
            enum dtype dtype = type == COMM_BF16 ? DTYPE_BF16 : DTYPE_F16;

            dtype_convert(&wide[0], DTYPE_F32, x, dtype, 1);
            dtype_convert(&wide[1], DTYPE_F32, y, dtype, 1);
        }
        found += !(isnan(wide[0]) && isnan(wide[1]));
    }
    return found;
}

/* Several ranks' parts are reduced on the device as comm_reduce_parts() does it. */
static void test_order(int part_count, int64_t count)
{
    static const enum nccl_type types[] = {
        [COMM_F32] = NCCL_F32, [COMM_F64] = NCCL_F64,   [COMM_I32] = NCCL_I32,
        [COMM_I64] = NCCL_I64, [COMM_BF16] = NCCL_BF16, [COMM_F16] = NCCL_F16,
    };

    for (enum comm_type type = COMM_F32; type <= COMM_F16; type++) {
        size_t size = (size_t)count * comm_type_bytes(type);
        void *parts = allocate(size * (size_t)part_count), *expected = allocate(size);
        void *found = allocate(size);

        for (enum comm_op op = COMM_SUM; op <= COMM_MAX; op++) {
            void *device, *out = push(found, size);

            fill_parts(parts, count * part_count, type, op == COMM_MAX);
            device = push(parts, size * (size_t)part_count);
            comm_reduce_parts(expected, parts, size, part_count, (size_t)count, type, op);
            module->nccl->reduce_parts(NULL, out, device, part_count, count, types[type],
                                       op == COMM_MAX);
            pull(found, out, size);
            kernels->release(device);
            CHECK(differences(expected, found, count, type) == 0);
        }
        free(parts);
        free(expected);
        free(found);
    }
}

/* A world of one copies on the device, and asks nobody. */
static void test_alone(void)
{
    struct comm_groups groups;
    struct error error = {0};
    size_t size = 4096;
    unsigned char *before = some_bytes(size), *after = allocate(size);
    void *in = push(before, size), *out = push(after, size);

    require(comm_open(&groups, &world, &(struct layout){.tp = 1, .pp = 1, .dp = 1, .cp = 1},
                      kernels, &error),
            &error);
    comm_all_gather(groups.tp, out, in, (int64_t)size / 4, COMM_F32, NULL);
    comm_all_reduce(groups.world, out, (int64_t)size / 4, COMM_F32, COMM_SUM, NULL);
    comm_barrier(groups.replicas);
    pull(after, out, size);
    CHECK(memcmp(before, after, size) == 0);
    CHECK(!getenv("NCCL_ALGO"));
    comm_close(&groups);
    kernels->release(in);
    free(before);
    free(after);
}

int main(void)
{
    struct cuda_options options = {.dtype = DTYPE_F32, .attention = "auto"};
    struct error error = {0};
    struct comm *comm;

    unsetenv("NCCL_ALGO");
    module = cuda_module_load(&error);
    if (!module || module->device_count() == 0) {
        fprintf(stderr, "skipped: %s\n", module ? "no GPU" : error.text);
        return 77;
    }
    kernels = module->open(&options, &error);
    if (!kernels)
        return error_print(&error);
    test_alone();
    for (int parts = 1; parts <= 8; parts += parts < 3 ? 1 : 5)
        test_order(parts, 5000 + parts);
    require(comm_nccl_open(&comm, &world, kernels, &error), &error);
    CHECK(getenv("NCCL_ALGO") && getenv("NCCL_PROTO"));
    test_all_reduce(comm, 1);
    test_all_reduce(comm, COMM_RANK_ORDER_BYTES / 4 + 1);
    test_all_reduce(comm, LARGE);
    test_copies(comm);
    test_groups(comm);
    test_messages();
    comm->backend->close(comm);
    printf("%s\n", failures ? "FAILED" : "ok");
    return failures ? 1 : 0;
}
