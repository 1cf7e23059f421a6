#include "trainer/team.h"

#include <assert.h>
#include <string.h>

int team_create(struct team *team, struct comm *world, const struct kernels *kernels,
                struct error *error)
{
    int count = comm_size(world) > TEAM_NUMBERS ? comm_size(world) : TEAM_NUMBERS;

    *team = (struct team){.world = world, .kernels = kernels};
    team->scalars = kernels->allocate((size_t)count * sizeof(double));
    if (!team->scalars)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for %d numbers", count);
    return 0;
}

void team_destroy(struct team *team)
{
    if (team->scalars)
        team->kernels->release(team->scalars);
    team->scalars = NULL;
}

int team_sum(struct team *team, double *numbers, int count, struct error *error)
{
    size_t bytes = (size_t)count * sizeof(*numbers);

    assert(count <= TEAM_NUMBERS);
    team->kernels->to_device(team->stream, team->scalars, numbers, bytes);
    comm_all_reduce(team->world, team->scalars, count, COMM_F64, COMM_SUM, team->stream);
    team->kernels->to_host(team->stream, numbers, team->scalars, bytes);
    return team->kernels->stream_sync(team->stream, error);
}

int team_share(struct team *team, void *bytes, size_t count, struct error *error)
{
    const struct kernels *k = team->kernels;
    void *device = k->allocate(count);
    int result;

    if (!device)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for %zu bytes", count);
    k->to_device(team->stream, device, bytes, count);
    comm_broadcast(team->world, device, (int64_t)count, 0, team->stream);
    k->to_host(team->stream, bytes, device, count);
    result = k->stream_sync(team->stream, error);
    k->release(device);
    return result;
}

int team_gather(struct team *team, void *all, const void *mine, size_t bytes, struct error *error)
{
    const struct kernels *k = team->kernels;
    size_t whole = bytes * (size_t)comm_size(team->world);
    char *device = k->allocate(whole), *part;
    int result;

    assert(bytes % sizeof(int32_t) == 0);
    if (!device)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for %zu bytes", whole);
    part = device + bytes * (size_t)comm_rank(team->world);
    k->to_device(team->stream, part, mine, bytes);
    comm_all_gather(team->world, device, part, (int64_t)(bytes / sizeof(int32_t)), COMM_I32,
                    team->stream);
    k->to_host(team->stream, all, device, whole);
    result = k->stream_sync(team->stream, error);
    k->release(device);
    return result;
}

int team_agree(struct team *team, int result, struct error *error)
{
    const struct kernels *k = team->kernels;
    int size = comm_size(team->world), rank = comm_rank(team->world);
    double status = result == 0 ? 0 : error->status;
    struct error device_error = {0};

    k->zero(team->stream, team->scalars, (size_t)size * sizeof(double));
    k->to_device(team->stream, team->scalars + rank, &status, sizeof(status));
    comm_all_reduce(team->world, team->scalars, size, COMM_F64, COMM_SUM, team->stream);
    for (int i = 0; i < size; i++) {
        k->to_host(team->stream, &status, team->scalars + i, sizeof(status));
        if (k->stream_sync(team->stream, &device_error) < 0) {
            *error = device_error;
            return -1;
        }
        if (status == 0)
            continue;
        error->status = (int)status;
        if (i != rank)
            error->text[0] = '\0';
        return -1;
    }
    return 0;
}
