#include "trainer/restore.h"

#include <stdio.h>
#include <stdlib.h>

#include "core/log.h"

int candidates_list(struct candidates *candidates, const char *root, struct team *team,
                    struct error *error)
{
    int64_t count = 0;
    int result = 0;

    *candidates = (struct candidates){0};
    snprintf(candidates->root, sizeof(candidates->root), "%s", root);
    if (comm_rank(team->world) == 0) {
        result = checkpoint_list(root, &candidates->steps, &candidates->count, error);
        count = (int64_t)candidates->count;
    }
    if (team_agree(team, result, error) < 0 || team_share(team, &count, sizeof(count), error) < 0)
        return -1;
    if (count == 0)
        return 0;
    if (!candidates->steps)
        candidates->steps = calloc((size_t)count, sizeof(*candidates->steps));
    candidates->count = (size_t)count;
    result = candidates->steps ? 0 : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (team_agree(team, result, error) < 0)
        return -1;
    return team_share(team, candidates->steps, (size_t)count * sizeof(*candidates->steps), error);
}

void candidates_destroy(struct candidates *candidates)
{
    free(candidates->steps);
    *candidates = (struct candidates){0};
}

bool candidates_open(struct candidates *candidates, struct team *team, struct weights **checkpoint)
{
    while (candidates->next < candidates->count) {
        char path[PATH_MAX + 64];
        struct error reason = {0};
        int result;

        checkpoint_path(candidates->root, candidates->steps[candidates->next++], path,
                        sizeof(path));
        result = weights_open_checkpoint(checkpoint, path, &reason);
        if (team_agree(team, result, &reason) == 0)
            return true;
        if (reason.text[0])
            log_warning_any_rank("%s; trying the checkpoint before it", reason.text);
        if (result == 0)
            weights_close(*checkpoint);
        *checkpoint = NULL;
    }
    return false;
}

/* Copy a parameter that was read into its place in an array of this rank. */
static int place(struct stage *stage, const struct parameter *parameter, void *array,
                 enum dtype dtype, const void *buffer, struct error *error)
{
    size_t bytes = dtype_bytes(dtype);

    stage->kernels->to_device(stage->stream, (char *)array + (size_t)parameter->offset * bytes,
                              buffer, (size_t)parameter->count * bytes);
    return stage->kernels->stream_sync(stage->stream, error);
}

/* A parameter's weights, or the fp32 master copy of them. `buffer` is host memory for it. */
static int restore_weight(struct stage *stage, struct weights *from,
                          const struct parameter *parameter, void *array, enum dtype dtype,
                          void *buffer, struct error *error)
{
    const int64_t start[2] = {parameter->local.row, parameter->local.column};
    const int64_t extent[2] = {parameter->local.rows, parameter->local.columns};

    if (weights_read(from, parameter->name, start, extent, dtype, buffer, error) < 0)
        return -1;
    return place(stage, parameter, array, dtype, buffer, error);
}

static int restore_moment(struct stage *stage, struct checkpoint *checkpoint,
                          const struct parameter *parameter, enum checkpoint_kind kind, void *array,
                          void *buffer, struct error *error)
{
    const int64_t start[2] = {parameter->local.row, parameter->local.column};
    const int64_t extent[2] = {parameter->local.rows, parameter->local.columns};

    if (checkpoint_read(checkpoint, parameter->name, kind, start, extent, stage->moments, buffer,
                        error) < 0)
        return -1;
    return place(stage, parameter, array, stage->moments, buffer, error);
}

static int restore_moments(struct stage *stage, struct checkpoint *checkpoint,
                           const struct parameter *parameter, void *buffer, struct error *error)
{
    const struct checkpoint_tensor *tensor = checkpoint_find_tensor(checkpoint, parameter->name);

    if (!tensor->present[CHECKPOINT_EXP_AVG] || !tensor->present[CHECKPOINT_EXP_AVG_SQ]) {
        if (checkpoint_get_state(checkpoint)->step == 0)
            return 0;
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: has no optimizer state for %s; start from its weights with --init",
                         checkpoint_directory(checkpoint), parameter->name);
    }
    if (restore_moment(stage, checkpoint, parameter, CHECKPOINT_EXP_AVG, stage->exp_avg, buffer,
                       error) < 0)
        return -1;
    return restore_moment(stage, checkpoint, parameter, CHECKPOINT_EXP_AVG_SQ, stage->exp_avg_sq,
                          buffer, error);
}

static int restore_parameter(struct stage *stage, struct weights *from,
                             const struct parameter *parameter, bool optimizer_state, void *buffer,
                             struct error *error)
{
    if (restore_weight(stage, from, parameter, stage->weights, stage->kernels->dtype, buffer,
                       error) < 0)
        return -1;
    if (stage->master &&
        restore_weight(stage, from, parameter, stage->master, DTYPE_F32, buffer, error) < 0)
        return -1;
    if (!optimizer_state)
        return 0;
    return restore_moments(stage, weights_checkpoint(from), parameter, buffer, error);
}

int restore_stage(struct stage *stage, struct weights *from, bool optimizer_state,
                  struct error *error)
{
    int64_t most = 1;
    void *buffer;
    int result = 0;

    for (size_t i = 0; i < stage->parameters.count; i++)
        if (stage->parameters.list[i].count > most)
            most = stage->parameters.list[i].count;
    buffer = malloc((size_t)most * sizeof(float));
    if (!buffer)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for %lld weights",
                         (long long)most);
    for (size_t i = 0; i < stage->parameters.count && result == 0; i++)
        if (stage->parameters.list[i].count > 0)
            result = restore_parameter(stage, from, &stage->parameters.list[i], optimizer_state,
                                       buffer, error);
    free(buffer);
    return result;
}
