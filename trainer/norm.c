/* The norms of a stage, RMSNorm or LayerNorm, whose weights every tensor-parallel rank holds. */
#include "trainer/stage.h"

static enum tensor_role bias_role(enum tensor_role weight)
{
    return weight == TENSOR_INPUT_NORM ? TENSOR_INPUT_NORM_BIAS
           : weight == TENSOR_MLP_NORM ? TENSOR_MLP_NORM_BIAS
                                       : TENSOR_FINAL_NORM_BIAS;
}

void stage_norm_forward(struct stage *stage, const struct norm *norm, void *sum, const void *x,
                        const void *residual)
{
    const struct kernels *k = stage->kernels;
    const struct parameter *weight = parameters_find(&stage->parameters, norm->role, norm->layer);
    const struct parameter *bias =
        parameters_find(&stage->parameters, bias_role(norm->role), norm->layer);
    double eps = stage->model->norm_eps;

    if (stage->model->norm == MODEL_NORM_RMS)
        k->rmsnorm_forward(stage->stream, norm->y, norm->rstd, sum, x, residual,
                           stage_weight(stage, weight->offset), eps, stage->sizes.shard_rows,
                           stage->sizes.hidden);
    else
        k->layernorm_forward(stage->stream, norm->y, norm->mean, norm->rstd, sum, x, residual,
                             stage_weight(stage, weight->offset), stage_weight(stage, bias->offset),
                             eps, stage->sizes.shard_rows, stage->sizes.hidden);
}

void stage_norm_backward(struct stage *stage, const struct norm *norm, void *dx, bool again,
                         const void *dy, const void *s, const void *dresidual)
{
    const struct kernels *k = stage->kernels;
    const struct parameter *weight = parameters_find(&stage->parameters, norm->role, norm->layer);
    const struct parameter *bias =
        parameters_find(&stage->parameters, bias_role(norm->role), norm->layer);
    void *y = again ? norm->y : NULL;

    if (stage->model->norm == MODEL_NORM_RMS)
        k->rmsnorm_backward(stage->stream, dx, stage->gradients + weight->offset, y, dy, s,
                            stage_weight(stage, weight->offset), norm->rstd, dresidual,
                            stage->sizes.shard_rows, stage->sizes.hidden);
    else
        k->layernorm_backward(
            stage->stream, dx, stage->gradients + weight->offset, stage->gradients + bias->offset,
            y, dy, s, stage_weight(stage, weight->offset), stage_weight(stage, bias->offset),
            norm->mean, norm->rstd, dresidual, stage->sizes.shard_rows, stage->sizes.hidden);
}
