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

bool candidates_open(struct candidates *candidates, struct team *team,
                     struct checkpoint **checkpoint)
{
    while (candidates->next < candidates->count) {
        char path[PATH_MAX + 64];
        struct error reason = {0};
        int result;

        checkpoint_path(candidates->root, candidates->steps[candidates->next++], path,
                        sizeof(path));
        result = checkpoint_open(checkpoint, path, &reason);
        if (team_agree(team, result, &reason) == 0)
            return true;
        if (reason.text[0])
            log_warning_any_rank("%s; trying the checkpoint before it", reason.text);
        if (result == 0)
            checkpoint_close(*checkpoint);
        *checkpoint = NULL;
    }
    return false;
}

/* Read one kind of a parameter into an array of this rank. `buffer` is host memory for it. */
static int read_array(struct stage *stage, struct checkpoint *checkpoint,
                      const struct parameter *parameter, enum checkpoint_kind kind, void *array,
                      enum dtype dtype, void *buffer, struct error *error)
{
    const int64_t start[2] = {parameter->local.row, parameter->local.column};
    const int64_t extent[2] = {parameter->local.rows, parameter->local.columns};
    size_t bytes = dtype_bytes(dtype);

    if (checkpoint_read(checkpoint, parameter->name, kind, start, extent, dtype, buffer, error) < 0)
        return -1;
    stage->kernels->to_device(stage->stream, (char *)array + (size_t)parameter->offset * bytes,
                              buffer, (size_t)parameter->count * bytes);
    return stage->kernels->stream_sync(stage->stream, error);
}

static int check_tensor(const struct parameter *parameter, const struct checkpoint *checkpoint,
                        const struct checkpoint_tensor *tensor, struct error *error)
{
    if (!tensor || !tensor->present[CHECKPOINT_WEIGHT])
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%s: has no tensor %s, which the model needs",
                         checkpoint_directory(checkpoint), parameter->name);
    if (tensor->shape[0] != parameter->shape[0] || tensor->shape[1] != parameter->shape[1])
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%s: tensor %s is [%lld, %lld], but the model needs [%lld, %lld]",
                         checkpoint_directory(checkpoint), parameter->name,
                         (long long)tensor->shape[0], (long long)tensor->shape[1],
                         (long long)parameter->shape[0], (long long)parameter->shape[1]);
    return 0;
}

static int restore_parameter(struct stage *stage, struct checkpoint *checkpoint,
                             const struct parameter *parameter, bool optimizer_state, void *buffer,
                             struct error *error)
{
    const struct checkpoint_tensor *tensor = checkpoint_find_tensor(checkpoint, parameter->name);
    enum dtype act = stage->kernels->dtype;
    enum checkpoint_kind finest;

    if (check_tensor(parameter, checkpoint, tensor, error) < 0)
        return -1;
    finest = tensor->present[CHECKPOINT_MASTER] ? CHECKPOINT_MASTER : CHECKPOINT_WEIGHT;
    if (read_array(stage, checkpoint, parameter, act == DTYPE_F32 ? finest : CHECKPOINT_WEIGHT,
                   stage->weights, act, buffer, error) < 0)
        return -1;
    if (stage->master && read_array(stage, checkpoint, parameter, finest, stage->master, DTYPE_F32,
                                    buffer, error) < 0)
        return -1;
    if (!optimizer_state)
        return 0;
    if (!tensor->present[CHECKPOINT_EXP_AVG] || !tensor->present[CHECKPOINT_EXP_AVG_SQ]) {
        if (checkpoint_get_state(checkpoint)->step == 0)
            return 0;
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: has no optimizer state for %s; start from its weights with --init",
                         checkpoint_directory(checkpoint), parameter->name);
    }
    if (read_array(stage, checkpoint, parameter, CHECKPOINT_EXP_AVG, stage->exp_avg, stage->moments,
                   buffer, error) < 0)
        return -1;
    return read_array(stage, checkpoint, parameter, CHECKPOINT_EXP_AVG_SQ, stage->exp_avg_sq,
                      stage->moments, buffer, error);
}

int restore_stage(struct stage *stage, struct checkpoint *checkpoint, bool optimizer_state,
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
            result = restore_parameter(stage, checkpoint, &stage->parameters.list[i],
                                       optimizer_state, buffer, error);
    free(buffer);
    return result;
}
