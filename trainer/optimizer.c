#include "trainer/optimizer.h"

#include <assert.h>

int optimizer_create(struct optimizer *optimizer, const struct settings *settings,
                     const struct stage *stage, struct error *error)
{
    *optimizer = (struct optimizer){
        .beta1 = setting_real(settings, SETTING_ADAM_BETA1),
        .beta2 = setting_real(settings, SETTING_ADAM_BETA2),
        .eps = setting_real(settings, SETTING_ADAM_EPS),
        .clip = setting_real(settings, SETTING_CLIP_GRAD),
        .seed = (uint64_t)setting_integer(settings, SETTING_SEED),
        .sum_squares = stage->kernels->allocate(sizeof(double)),
    };
    if (!optimizer->sum_squares)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for the optimizer");
    return 0;
}

void optimizer_destroy(struct optimizer *optimizer, const struct stage *stage)
{
    if (optimizer->sum_squares)
        stage->kernels->release(optimizer->sum_squares);
    optimizer->sum_squares = NULL;
}

void optimizer_zero_gradients(struct stage *stage)
{
    stage->kernels->zero(stage->stream, stage->gradients,
                         (size_t)stage->parameters.elements * sizeof(float));
}

/* Of the roles `first` to `last` of a layer, which lie one behind the other. */
static void reduce_shared(struct stage *stage, enum tensor_role first, enum tensor_role last,
                          int64_t layer)
{
    const struct parameter *from = parameters_find(&stage->parameters, first, layer);
    const struct parameter *to = parameters_find(&stage->parameters, last, layer);

    if (from)
        comm_all_reduce(stage->groups->kv, stage->gradients + from->offset,
                        to->offset + to->count - from->offset, COMM_F32, COMM_SUM, stage->stream);
}

/* Each rank that shares a key/value head has the gradient of its own query heads. */
static void reduce_kv_gradients(struct stage *stage)
{
    for (int c = 0; c < stage->layout->chunks; c++) {
        const struct chunk *chunk = &stage->chunks[c];

        for (int64_t i = 0; i < chunk->layers; i++) {
            reduce_shared(stage, TENSOR_K, TENSOR_V, chunk->first_layer + i);
            reduce_shared(stage, TENSOR_K_BIAS, TENSOR_V_BIAS, chunk->first_layer + i);
        }
    }
}

void optimizer_reduce_gradients(struct stage *stage)
{
    assert(stage->layout->dp == 1 || stage->unreduced == 0);
    if (stage->layout->dp > 1)
        stage->kernels->stream_wait(stage->stream, stage->reductions);
    if (stage->groups->kv)
        reduce_kv_gradients(stage);
    if (stage->model->tied_embeddings && stage->groups->embedding) {
        const struct parameter *embedding =
            parameters_find(&stage->parameters, TENSOR_EMBEDDING, -1);

        comm_all_reduce(stage->groups->embedding, stage->gradients + embedding->offset,
                        embedding->count, COMM_F32, COMM_SUM, stage->stream);
    }
}

int optimizer_squared_norm(const struct optimizer *optimizer, const struct stage *stage,
                           double *squared, struct error *error)
{
    const struct kernels *k = stage->kernels;

    *squared = 0;
    if (stage->place.dp != 0)
        return 0;
    k->zero(stage->stream, optimizer->sum_squares, sizeof(double));
    for (size_t i = 0; i < stage->parameters.count; i++) {
        const struct parameter *parameter = &stage->parameters.list[i];

        if (parameter->counts)
            k->sum_squares(stage->stream, optimizer->sum_squares,
                           stage->gradients + parameter->offset, parameter->count);
    }
    k->to_host(stage->stream, squared, optimizer->sum_squares, sizeof(*squared));
    return k->stream_sync(stage->stream, error);
}

void optimizer_update(const struct optimizer *optimizer, struct stage *stage, double lr,
                      double weight_decay, int64_t update, double norm, double loss_scale)
{
    double scale = optimizer->clip > 0 ? optimizer->clip / (norm + 1e-6) : 1;
    struct adamw adamw = {
        .lr = lr,
        .beta1 = optimizer->beta1,
        .beta2 = optimizer->beta2,
        .eps = optimizer->eps,
        .grad_scale = (scale < 1 ? scale : 1) / loss_scale,
        .step = update,
        .moments = stage->moments,
        .seed = optimizer->seed,
    };
    size_t moment_bytes = dtype_bytes(stage->moments);

    for (size_t i = 0; i < stage->parameters.count; i++) {
        const struct parameter *parameter = &stage->parameters.list[i];
        int64_t at = parameter->offset;

        if (parameter->count == 0)
            continue;
        adamw.weight_decay = parameter->decay ? weight_decay : 0;
        adamw.tile = &parameter->local;
        adamw.tensor = parameter->random;
        stage->kernels->adamw(stage->stream, stage_weight(stage, at),
                              stage->master ? stage->master + at : NULL,
                              (char *)stage->exp_avg + (size_t)at * moment_bytes,
                              (char *)stage->exp_avg_sq + (size_t)at * moment_bytes,
                              stage->gradients + at, parameter->count, &adamw);
    }
}
