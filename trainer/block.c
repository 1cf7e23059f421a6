/* The layers of a chunk, forward and backward.
 *
 * A layer reads the residual stream s and adds two branches to it, one after the other or, in a
 * parallel block, both of the same s, with one norm or two:
 *     s' = s + attention(norm(s));  s'' = s' + mlp(norm(s'))
 *     s' = s + attention(norm(s)) + mlp(norm(s))
 * Every addition happens together with the norm that follows it, so a branch's output waits in
 * scratch.branch until then. With tensor parallelism each rank computes a part of every branch
 * (its heads, its columns of the MLP); the parts are summed where the branch ends, and in
 * backward the gradient of the branch's input is summed likewise. The bias at the end of a branch
 * is added by the first rank alone.
 *
 * With RECOMPUTE_SELECTIVE the outputs of norms and of the activation, which backward needs for the
 * products' weights, are not kept from forward: backward has their inputs at hand and writes them
 * once more, into the scratch memory whose content they replace. Of layers that are recomputed
 * whole only the input is kept: backward runs them forward again, up to what it reads, in memory
 * that all of them share.
 */
#include "trainer/stage.h"

static const void *weight_of(const struct stage *stage, enum tensor_role role, int64_t layer)
{
    return stage_weight(stage, parameters_find(&stage->parameters, role, layer)->offset);
}

static float *gradient_of(const struct stage *stage, enum tensor_role role, int64_t layer)
{
    return stage->gradients + parameters_find(&stage->parameters, role, layer)->offset;
}

static bool is_parallel(const struct stage *stage)
{
    return stage->model->block != MODEL_BLOCK_SEQUENTIAL;
}

/* The first of the matrices that make up the MLP's first product, and of their biases. */
static enum tensor_role mlp_first(const struct stage *stage)
{
    return stage->model->mlp == MODEL_MLP_SWIGLU ? TENSOR_GATE : TENSOR_UP;
}

static enum tensor_role mlp_first_bias(const struct stage *stage)
{
    return stage->model->mlp == MODEL_MLP_SWIGLU ? TENSOR_GATE_BIAS : TENSOR_UP_BIAS;
}

/* --- products with their biases --------------------------------------------------------------- */

/* y[rows, width] += the bias, if there is one: of this rank's columns, or (`whole`) of all, by the
 * first rank for all that are summed. */
static void bias_forward(struct stage *stage, enum tensor_role role, int64_t layer, void *y,
                         int64_t width, bool whole)
{
    if (parameters_find(&stage->parameters, role, layer) && !(whole && stage->place.tp != 0))
        stage->kernels->bias_forward(stage->stream, y, weight_of(stage, role, layer),
                                     stage->sizes.rows, width);
}

static void bias_backward(struct stage *stage, enum tensor_role role, int64_t layer, const void *dy,
                          int64_t width)
{
    if (parameters_find(&stage->parameters, role, layer))
        stage->kernels->bias_backward(stage->stream, gradient_of(stage, role, layer), dy,
                                      stage->sizes.rows, width);
}

/* --- forward -----------------------------------------------------------------------------------
 */

/* block->mixed = attention of block->normed. */
static void attention_inner(struct stage *stage, int64_t layer, struct block_activations *block)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;

    k->linear_forward(stage->stream, block->qkv, block->normed, weight_of(stage, TENSOR_Q, layer),
                      n->rows, n->hidden, n->qkv_width, false);
    bias_forward(stage, TENSOR_Q_BIAS, layer, block->qkv, n->qkv_width, false);
    k->rope(stage->stream, block->qkv, stage->cosine, stage->sine, block->slot->positions, n->rows,
            n->heads, n->kv_heads, n->head_dim, false);
    k->attention_forward(stage->stream, block->mixed, block->lse, block->qkv,
                         &block->slot->attention);
}

/* scratch.branch = this rank's part of the attention branch. */
static void attention_outer(struct stage *stage, int64_t layer, struct block_activations *block)
{
    const struct stage_sizes *n = &stage->sizes;

    stage->kernels->linear_forward(stage->stream, stage->scratch.branch, block->mixed,
                                   weight_of(stage, TENSOR_O, layer), n->rows, n->mixed_width,
                                   n->hidden, false);
    bias_forward(stage, TENSOR_O_BIAS, layer, stage->scratch.branch, n->hidden, true);
}

/* block->gated = the MLP of block->middle_normed, up to its last product. */
static void mlp_inner(struct stage *stage, int64_t layer, struct block_activations *block)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;

    k->linear_forward(stage->stream, block->gate_up, block->middle_normed,
                      weight_of(stage, mlp_first(stage), layer), n->rows, n->hidden, n->mlp_width,
                      false);
    bias_forward(stage, mlp_first_bias(stage), layer, block->gate_up, n->mlp_width, false);
    if (stage->model->mlp == MODEL_MLP_SWIGLU)
        k->swiglu_forward(stage->stream, block->gated, block->gate_up, n->rows, n->ffn);
    else
        k->gelu_forward(stage->stream, block->gated, block->gate_up, n->rows * n->ffn);
}

/* scratch.branch (+)= this rank's part of the MLP branch. */
static void mlp_outer(struct stage *stage, int64_t layer, struct block_activations *block)
{
    const struct stage_sizes *n = &stage->sizes;

    stage->kernels->linear_forward(stage->stream, stage->scratch.branch, block->gated,
                                   weight_of(stage, TENSOR_DOWN, layer), n->rows, n->ffn, n->hidden,
                                   is_parallel(stage));
    bias_forward(stage, TENSOR_DOWN_BIAS, layer, stage->scratch.branch, n->hidden, true);
}

static struct norm input_norm(int64_t layer, const struct block_activations *block)
{
    return (struct norm){TENSOR_INPUT_NORM, layer, block->normed, block->mean, block->rstd};
}

static struct norm mlp_norm(int64_t layer, const struct block_activations *block)
{
    return (struct norm){TENSOR_MLP_NORM, layer, block->middle_normed, block->middle_mean,
                         block->middle_rstd};
}

/* From block->normed to all that backward reads of the layer. In a sequential block scratch.branch
 * then is of no more use; in a parallel one it is not touched. */
static void block_inner(struct stage *stage, int64_t layer, struct block_activations *block)
{
    const struct norm second = mlp_norm(layer, block);

    attention_inner(stage, layer, block);
    if (!is_parallel(stage)) {
        attention_outer(stage, layer, block);
        stage_sum_over_tp(stage, stage->scratch.branch);
        stage_drop(stage, block->slot, DROPOUT_ATTENTION, layer, stage->scratch.branch);
        stage_norm_forward(stage, &second, block->middle, stage->scratch.branch, block->input);
    } else if (stage->model->block == MODEL_BLOCK_PARALLEL_TWO_NORMS) {
        stage_norm_forward(stage, &second, NULL, block->input, NULL);
    }
    mlp_inner(stage, layer, block);
}

/* The residual stream behind the layer is the result plus scratch.branch. */
static void *block_forward(struct stage *stage, int64_t layer, struct block_activations *block)
{
    block_inner(stage, layer, block);
    if (is_parallel(stage))
        attention_outer(stage, layer, block);
    mlp_outer(stage, layer, block);
    stage_sum_over_tp(stage, stage->scratch.branch);
    stage_drop(stage, block->slot, DROPOUT_MLP, layer, stage->scratch.branch);
    return is_parallel(stage) ? block->input : block->middle;
}

void blocks_forward(struct stage *stage, struct slot *slot)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    void *branch = stage->scratch.branch, *residual = NULL;

    for (int64_t i = 0; i < slot->chunk->layers; i++) {
        struct block_activations *block = &slot->blocks[i];
        int64_t layer = slot->chunk->first_layer + i;
        const struct norm first = input_norm(layer, block);

        stage_norm_forward(stage, &first, block->input, residual ? branch : block->input, residual);
        residual = block_forward(stage, layer, block);
    }
    k->copy(stage->stream, slot->output, residual,
            (size_t)(n->rows * n->hidden) * dtype_bytes(k->dtype));
    k->add(stage->stream, slot->output, branch, n->rows * n->hidden);
}

/* --- backward ----------------------------------------------------------------------------------
 */

/* How a branch begins: with a product of a norm's output. */
struct branch_input {
    enum tensor_role weight, bias;
    int64_t width;      /* that the product gives */
    const void *normed; /* [rows, hidden] */
};

/* From the gradient of that product, scratch.dwide, to that of the norm's output, which this rank's
 * part is added to. */
static void input_backward(struct stage *stage, int64_t layer, const struct branch_input *input,
                           void *dnormed, bool accumulate)
{
    const struct stage_sizes *n = &stage->sizes;

    stage->kernels->linear_backward_input(stage->stream, dnormed, stage->scratch.dwide,
                                          weight_of(stage, input->weight, layer), n->rows,
                                          n->hidden, input->width, accumulate);
    bias_backward(stage, input->bias, layer, stage->scratch.dwide, input->width);
}

static void weight_backward(struct stage *stage, int64_t layer, const struct branch_input *input)
{
    const struct stage_sizes *n = &stage->sizes;

    stage->kernels->linear_backward_weight(stage->stream, gradient_of(stage, input->weight, layer),
                                           stage->scratch.dwide, input->normed, n->rows, n->hidden,
                                           input->width);
}

/* The same while `dnormed`, complete but for that, is summed over tensor parallelism. */
static void weight_backward_beside_sum(struct stage *stage, int64_t layer,
                                       const struct branch_input *input, void *dnormed)
{
    stage_sum_begin(stage, dnormed);
    weight_backward(stage, layer, input);
    stage_sum_end(stage);
}

/* From the gradient of the MLP's output to that of its first product's, scratch.dwide. */
static void mlp_backward(struct stage *stage, int64_t layer, const struct block_activations *block,
                         const void *gradient)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    struct scratch *scratch = &stage->scratch;
    void *again = stage->recompute == RECOMPUTE_SELECTIVE ? block->gated : NULL;

    k->linear_backward_input(stage->stream, scratch->dmixed, gradient,
                             weight_of(stage, TENSOR_DOWN, layer), n->rows, n->ffn, n->hidden,
                             false);
    if (stage->model->mlp == MODEL_MLP_SWIGLU)
        k->swiglu_backward(stage->stream, scratch->dwide, again, scratch->dmixed, block->gate_up,
                           n->rows, n->ffn);
    else
        k->gelu_backward(stage->stream, scratch->dwide, again, scratch->dmixed, block->gate_up,
                         n->rows * n->ffn);
    k->linear_backward_weight(stage->stream, gradient_of(stage, TENSOR_DOWN, layer), gradient,
                              block->gated, n->rows, n->ffn, n->hidden);
    bias_backward(stage, TENSOR_DOWN_BIAS, layer, gradient, n->hidden);
}

/* From the gradient of attention's output to that of its first product's, scratch.dwide. */
static void attention_backward(struct stage *stage, int64_t layer,
                               const struct block_activations *block, const void *gradient)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    struct scratch *scratch = &stage->scratch;

    k->linear_backward_input(stage->stream, scratch->dmixed, gradient,
                             weight_of(stage, TENSOR_O, layer), n->rows, n->mixed_width, n->hidden,
                             false);
    k->linear_backward_weight(stage->stream, gradient_of(stage, TENSOR_O, layer), gradient,
                              block->mixed, n->rows, n->mixed_width, n->hidden);
    bias_backward(stage, TENSOR_O_BIAS, layer, gradient, n->hidden);
    k->attention_backward(stage->stream, scratch->dwide, scratch->dmixed, block->mixed, block->qkv,
                          block->lse, scratch->attention, &block->slot->attention);
    k->rope(stage->stream, scratch->dwide, stage->cosine, stage->sine, block->slot->positions,
            n->rows, n->heads, n->kv_heads, n->head_dim, true);
}

static struct branch_input mlp_input(const struct stage *stage,
                                     const struct block_activations *block)
{
    return (struct branch_input){mlp_first(stage), mlp_first_bias(stage), stage->sizes.mlp_width,
                                 block->middle_normed};
}

static struct branch_input attention_input(const struct stage *stage,
                                           const struct block_activations *block)
{
    return (struct branch_input){TENSOR_Q, TENSOR_Q_BIAS, stage->sizes.qkv_width, block->normed};
}

/* The beginning of a branch that has a norm of its own, of the residual stream `s`: from
 * scratch.dwide to `gradient`, which the stream's is added to. */
static void branch_backward(struct stage *stage, int64_t layer, const struct branch_input *input,
                            const struct norm *norm, const void *s, void *gradient)
{
    void *dnormed = stage->scratch.dnormed;
    bool again = stage->recompute == RECOMPUTE_SELECTIVE;

    input_backward(stage, layer, input, dnormed, false);
    if (again)
        stage_sum_over_tp(stage, dnormed);
    else
        weight_backward_beside_sum(stage, layer, input, dnormed);
    stage_norm_backward(stage, norm, gradient, again, dnormed, s, gradient);
    if (again)
        weight_backward(stage, layer, input);
}

/* Both branches' gradients are that of the layer's output, so both come before the norms. */
static void parallel_backward(struct stage *stage, int64_t layer,
                              const struct block_activations *block, void *gradient)
{
    const struct branch_input mlp = mlp_input(stage, block);
    const struct branch_input attention = attention_input(stage, block);
    const struct norm first = input_norm(layer, block), second = mlp_norm(layer, block);
    bool two = stage->model->block == MODEL_BLOCK_PARALLEL_TWO_NORMS;
    void *dsecond = stage->scratch.branch, *dfirst = two ? stage->scratch.dnormed : dsecond;
    const void *dbranches;

    dbranches = stage_dropped(stage, block->slot, DROPOUT_MLP, layer, gradient);
    mlp_backward(stage, layer, block, dbranches);
    input_backward(stage, layer, &mlp, dsecond, false);
    if (two)
        weight_backward_beside_sum(stage, layer, &mlp, dsecond);
    else
        weight_backward(stage, layer, &mlp);
    attention_backward(stage, layer, block, dbranches);
    input_backward(stage, layer, &attention, dfirst, !two);
    weight_backward_beside_sum(stage, layer, &attention, dfirst);
    if (two)
        stage_norm_backward(stage, &second, gradient, false, dsecond, block->input, gradient);
    stage_norm_backward(stage, &first, gradient, false, dfirst, block->input, gradient);
}

static void sequential_backward(struct stage *stage, int64_t layer,
                                const struct block_activations *block, void *gradient)
{
    const struct branch_input mlp = mlp_input(stage, block);
    const struct branch_input attention = attention_input(stage, block);
    const struct norm first = input_norm(layer, block), second = mlp_norm(layer, block);

    mlp_backward(stage, layer, block,
                 stage_dropped(stage, block->slot, DROPOUT_MLP, layer, gradient));
    branch_backward(stage, layer, &mlp, &second, block->middle, gradient);
    attention_backward(stage, layer, block,
                       stage_dropped(stage, block->slot, DROPOUT_ATTENTION, layer, gradient));
    branch_backward(stage, layer, &attention, &first, block->input, gradient);
}

/* What forward made of block->input, once more. */
static void block_again(struct stage *stage, int64_t layer, struct block_activations *block)
{
    const struct norm first = input_norm(layer, block);

    stage_norm_forward(stage, &first, NULL, block->input, NULL);
    block_inner(stage, layer, block);
}

void blocks_backward(struct stage *stage, struct slot *slot)
{
    for (int64_t i = slot->chunk->layers - 1; i >= 0; i--) {
        int64_t layer = slot->chunk->first_layer + i;

        if (i < slot->chunk->recompute_layers)
            block_again(stage, layer, &slot->blocks[i]);
        if (is_parallel(stage))
            parallel_backward(stage, layer, &slot->blocks[i], slot->gradient);
        else
            sequential_backward(stage, layer, &slot->blocks[i], slot->gradient);
        stage_gradients_done(stage,
                             parameters_find(&stage->parameters, TENSOR_INPUT_NORM, layer)->offset);
    }
}
