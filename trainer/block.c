/* The layers of a stage, forward and backward.
 *
 * A layer reads the residual stream s and adds two branches to it:
 *     s' = s + attention(norm(s));  s'' = s' + mlp(norm(s'))
 * Every addition happens together with the norm that follows it, so a branch's output waits in
 * scratch.branch until then. With tensor parallelism each rank computes a part of every branch
 * (its heads, its columns of the MLP); the parts are summed where the branch ends, and in
 * backward the gradient of the branch's input is summed likewise.
 *
 * With RECOMPUTE_SELECTIVE the outputs of norms and of SwiGLU, which backward needs for the
 * products' weights, are not kept from forward: backward has their inputs at hand and writes them
 * once more, into the scratch memory whose content they replace.
 */
#include "trainer/stage.h"

static const void *weight_of(const struct stage *stage, enum parameter_role role, int64_t layer)
{
    return stage_weight(stage, parameters_find(&stage->parameters, role, layer)->offset);
}

static float *gradient_of(const struct stage *stage, enum parameter_role role, int64_t layer)
{
    return stage->gradients + parameters_find(&stage->parameters, role, layer)->offset;
}

/* scratch.branch = attention of block->normed. */
static void attention_branch_forward(struct stage *stage, int64_t layer,
                                     struct block_activations *block)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    struct attention_shape shape = stage_attention(stage);

    k->linear_forward(stage->stream, block->qkv, block->normed,
                      weight_of(stage, PARAMETER_Q, layer), n->rows, n->hidden, n->qkv_width,
                      false);
    k->rope(stage->stream, block->qkv, stage->cosine, stage->sine, stage->positions, n->rows,
            n->heads, n->kv_heads, n->head_dim, false);
    k->attention_forward(stage->stream, block->mixed, block->lse, block->qkv, &shape);
    k->linear_forward(stage->stream, stage->scratch.branch, block->mixed,
                      weight_of(stage, PARAMETER_O, layer), n->rows, n->mixed_width, n->hidden,
                      false);
    stage_sum_over_tp(stage, stage->scratch.branch);
}

/* scratch.branch = MLP of block->middle_normed. */
static void mlp_branch_forward(struct stage *stage, int64_t layer, struct block_activations *block)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;

    k->linear_forward(stage->stream, block->gate_up, block->middle_normed,
                      weight_of(stage, PARAMETER_GATE, layer), n->rows, n->hidden, 2 * n->ffn,
                      false);
    k->swiglu_forward(stage->stream, block->gated, block->gate_up, n->rows, n->ffn);
    k->linear_forward(stage->stream, stage->scratch.branch, block->gated,
                      weight_of(stage, PARAMETER_DOWN, layer), n->rows, n->ffn, n->hidden, false);
    stage_sum_over_tp(stage, stage->scratch.branch);
}

void blocks_forward(struct stage *stage, struct slot *slot)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    double eps = stage->model->norm_eps;
    void *branch = stage->scratch.branch, *residual = NULL;

    for (int64_t i = 0; i < stage->layers; i++) {
        struct block_activations *block = &slot->blocks[i];
        int64_t layer = stage->first_layer + i;

        k->rmsnorm_forward(stage->stream, block->normed, block->rstd, block->input,
                           residual ? branch : block->input, residual,
                           weight_of(stage, PARAMETER_INPUT_NORM, layer), eps, n->rows, n->hidden);
        attention_branch_forward(stage, layer, block);
        k->rmsnorm_forward(stage->stream, block->middle_normed, block->middle_rstd, block->middle,
                           branch, block->input, weight_of(stage, PARAMETER_POST_NORM, layer), eps,
                           n->rows, n->hidden);
        mlp_branch_forward(stage, layer, block);
        residual = block->middle;
    }
    k->copy(stage->stream, slot->output, residual,
            (size_t)(n->rows * n->hidden) * dtype_bytes(k->dtype));
    k->add(stage->stream, slot->output, branch, n->rows * n->hidden);
}

/* How a branch begins: with a norm of the residual stream, and a product of that. */
struct branch_input {
    enum parameter_role norm, weight;
    int64_t width;     /* that the product gives */
    const void *s;     /* [rows, hidden] the residual stream */
    void *normed;      /* [rows, hidden] */
    const float *rstd; /* [rows] */
};

/* From the gradient of that product, scratch.dwide, to the residual stream's, which is added to
 * `gradient`. */
static void branch_input_backward(struct stage *stage, int64_t layer,
                                  const struct branch_input *input, void *gradient)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    void *dwide = stage->scratch.dwide, *dnormed = stage->scratch.dnormed;
    float *dw = gradient_of(stage, input->weight, layer);
    bool again = stage->recompute == RECOMPUTE_SELECTIVE;

    k->linear_backward_input(stage->stream, dnormed, dwide, weight_of(stage, input->weight, layer),
                             n->rows, n->hidden, input->width, false);
    stage_sum_begin(stage, dnormed);
    if (!again) /* while that is summed */
        k->linear_backward_weight(stage->stream, dw, dwide, input->normed, n->rows, n->hidden,
                                  input->width);
    stage_sum_end(stage);
    k->rmsnorm_backward(stage->stream, gradient, gradient_of(stage, input->norm, layer),
                        again ? input->normed : NULL, dnormed, input->s,
                        weight_of(stage, input->norm, layer), input->rstd, gradient, n->rows,
                        n->hidden);
    if (again)
        k->linear_backward_weight(stage->stream, dw, dwide, input->normed, n->rows, n->hidden,
                                  input->width);
}

/* `gradient`, of the residual stream behind the MLP, becomes that before it. */
static void mlp_branch_backward(struct stage *stage, int64_t layer,
                                const struct block_activations *block, void *gradient)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    struct scratch *scratch = &stage->scratch;
    const struct branch_input input = {
        .norm = PARAMETER_POST_NORM,
        .weight = PARAMETER_GATE,
        .width = 2 * n->ffn,
        .s = block->middle,
        .normed = block->middle_normed,
        .rstd = block->middle_rstd,
    };

    k->linear_backward_input(stage->stream, scratch->dmixed, gradient,
                             weight_of(stage, PARAMETER_DOWN, layer), n->rows, n->ffn, n->hidden,
                             false);
    k->swiglu_backward(stage->stream, scratch->dwide,
                       stage->recompute == RECOMPUTE_SELECTIVE ? block->gated : NULL,
                       scratch->dmixed, block->gate_up, n->rows, n->ffn);
    k->linear_backward_weight(stage->stream, gradient_of(stage, PARAMETER_DOWN, layer), gradient,
                              block->gated, n->rows, n->ffn, n->hidden);
    branch_input_backward(stage, layer, &input, gradient);
}

/* `gradient`, of the residual stream behind attention, becomes that before it. */
static void attention_branch_backward(struct stage *stage, int64_t layer,
                                      const struct block_activations *block, void *gradient)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    struct scratch *scratch = &stage->scratch;
    struct attention_shape shape = stage_attention(stage);
    const struct branch_input input = {
        .norm = PARAMETER_INPUT_NORM,
        .weight = PARAMETER_Q,
        .width = n->qkv_width,
        .s = block->input,
        .normed = block->normed,
        .rstd = block->rstd,
    };

    k->linear_backward_input(stage->stream, scratch->dmixed, gradient,
                             weight_of(stage, PARAMETER_O, layer), n->rows, n->mixed_width,
                             n->hidden, false);
    k->linear_backward_weight(stage->stream, gradient_of(stage, PARAMETER_O, layer), gradient,
                              block->mixed, n->rows, n->mixed_width, n->hidden);
    k->attention_backward(stage->stream, scratch->dwide, scratch->dmixed, block->mixed, block->qkv,
                          block->lse, scratch->attention, &shape);
    k->rope(stage->stream, scratch->dwide, stage->cosine, stage->sine, stage->positions, n->rows,
            n->heads, n->kv_heads, n->head_dim, true);
    branch_input_backward(stage, layer, &input, gradient);
}

void blocks_backward(struct stage *stage, struct slot *slot)
{
    for (int64_t i = stage->layers - 1; i >= 0; i--) {
        int64_t layer = stage->first_layer + i;

        mlp_branch_backward(stage, layer, &slot->blocks[i], slot->gradient);
        attention_branch_backward(stage, layer, &slot->blocks[i], slot->gradient);
        stage_gradients_done(
            stage, parameters_find(&stage->parameters, PARAMETER_INPUT_NORM, layer)->offset);
    }
}
