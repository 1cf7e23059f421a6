#include "trainer/optimizer.h"

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

int optimizer_squared_norm(const struct optimizer *optimizer, const struct stage *stage,
                           double *squared, struct error *error)
{
    const struct kernels *k = stage->kernels;

    *squared = 0;
    if (stage->shares == 1 && stage->replica != 0)
        return 0;
    k->zero(stage->stream, optimizer->sum_squares, sizeof(double));
    for (size_t i = 0; i < stage->piece_count; i++) {
        const struct piece *piece = &stage->pieces[i];

        if (piece->parameter->counts)
            k->sum_squares(stage->stream, optimizer->sum_squares, stage->gradients + piece->offset,
                           piece->count);
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

    for (size_t i = 0; i < stage->piece_count; i++) {
        const struct piece *piece = &stage->pieces[i];
        size_t moment = (size_t)piece->state * moment_bytes;

        adamw.weight_decay = piece->parameter->decay ? weight_decay : 0;
        adamw.tile = &piece->tile;
        adamw.tensor = piece->parameter->random;
        stage->kernels->adamw(stage->stream, stage_weight(stage, piece->offset),
                              stage->master ? stage->master + piece->state : NULL,
                              (char *)stage->exp_avg + moment, (char *)stage->exp_avg_sq + moment,
                              stage->gradients + piece->offset, piece->count, &adamw);
    }
    stage_weights_updated(stage);
}
