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

/* What is read into one place: a rectangle of a tensor of the file. `buffer` is host memory for
 * it. */
struct target {
    const char *name;
    const struct tile *tile;
    void *array; /* of the rank */
    int64_t at;  /* element of it */
    enum dtype dtype;
    void *buffer;
};

static int place(struct stage *stage, const struct target *target, struct error *error)
{
    size_t bytes = dtype_bytes(target->dtype);

    stage->kernels->to_device(stage->stream, (char *)target->array + (size_t)target->at * bytes,
                              target->buffer,
                              (size_t)(target->tile->rows * target->tile->columns) * bytes);
    return stage->kernels->stream_sync(stage->stream, error);
}

/* Weights, or the fp32 master copy of them. */
static int restore_weight(struct stage *stage, struct weights *from, const struct target *target,
                          struct error *error)
{
    const int64_t start[2] = {target->tile->row, target->tile->column};
    const int64_t extent[2] = {target->tile->rows, target->tile->columns};

    if (weights_read(from, target->name, start, extent, target->dtype, target->buffer, error) < 0)
        return -1;
    return place(stage, target, error);
}

static int restore_moment(struct stage *stage, struct checkpoint *checkpoint,
                          enum checkpoint_kind kind, const struct target *target,
                          struct error *error)
{
    const int64_t start[2] = {target->tile->row, target->tile->column};
    const int64_t extent[2] = {target->tile->rows, target->tile->columns};

    if (checkpoint_read(checkpoint, target->name, kind, start, extent, target->dtype,
                        target->buffer, error) < 0)
        return -1;
    return place(stage, target, error);
}

static int restore_moments(struct stage *stage, struct checkpoint *checkpoint,
                           const struct piece *piece, void *buffer, struct error *error)
{
    const char *name = piece->parameter->name;
    const struct checkpoint_tensor *tensor = checkpoint_find_tensor(checkpoint, name);
    const struct target first = {name,         &piece->tile,   stage->exp_avg,
                                 piece->state, stage->moments, buffer};
    const struct target second = {name,         &piece->tile,   stage->exp_avg_sq,
                                  piece->state, stage->moments, buffer};

    if (!tensor->present[CHECKPOINT_EXP_AVG] || !tensor->present[CHECKPOINT_EXP_AVG_SQ]) {
        if (checkpoint_get_state(checkpoint)->step == 0)
            return 0;
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: has no optimizer state for %s; start from its weights with --init",
                         checkpoint_directory(checkpoint), name);
    }
    if (restore_moment(stage, checkpoint, CHECKPOINT_EXP_AVG, &first, error) < 0)
        return -1;
    return restore_moment(stage, checkpoint, CHECKPOINT_EXP_AVG_SQ, &second, error);
}

static int restore_parameter(struct stage *stage, struct weights *from,
                             const struct parameter *parameter, void *buffer, struct error *error)
{
    const struct target target = {parameter->name,   &parameter->local,     stage->weights,
                                  parameter->offset, stage->kernels->dtype, buffer};

    return parameter->count == 0 ? 0 : restore_weight(stage, from, &target, error);
}

static int restore_piece(struct stage *stage, struct weights *from, const struct piece *piece,
                         bool optimizer_state, void *buffer, struct error *error)
{
    const struct target master = {piece->parameter->name, &piece->tile, stage->master,
                                  piece->state,           DTYPE_F32,    buffer};

    if (stage->master && restore_weight(stage, from, &master, error) < 0)
        return -1;
    return optimizer_state ? restore_moments(stage, weights_checkpoint(from), piece, buffer, error)
                           : 0;
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
        result = restore_parameter(stage, from, &stage->parameters.list[i], buffer, error);
    for (size_t i = 0; i < stage->piece_count && result == 0; i++)
        result = restore_piece(stage, from, &stage->pieces[i], optimizer_state, buffer, error);
    free(buffer);
    return result;
}
