/* The layers of a chunk, forward and backward.
 *
 * A layer reads the residual stream s and adds two branches to it, one after the other or, in a
 * parallel block, both of the same s, with one norm or two:
 *     s' = s + attention(norm(s));  s'' = s' + mlp(norm(s'))
 *     s' = s + attention(norm(s)) + mlp(norm(s))
 * Every addition happens together with the norm that follows it, so a branch's output waits in
 * scratch.branch until then. With tensor parallelism each rank computes a part of every branch
 * (its heads, its columns of the MLP); the parts are summed where the branch ends, and in
 * backward the gradient of the branch's input is summed likewise (tensor_parallel.c). The bias at
 * the end of a branch is added by the first rank alone.
 *
 * With RECOMPUTE_SELECTIVE the outputs of norms and of the activation, which backward needs for the
 * products' weights, are not kept from forward: backward has their inputs at hand and writes them
 * once more, into the scratch memory whose content they replace. Of layers that are recomputed
 * whole only the input is kept: backward runs them forward again, up to what it reads, in memory
 * that all of them share.
 *
 * The gradients of the products' weights nobody waits for, so they can come later
 * (pipeline_order.h): what they read of forward is in the slot, and the gradients of the products'
 * outputs are copied where they stay: the wide ones over what backward has no more use for, those
 * of the residual stream's width into slot->deferred. Layers of which forward's part is not kept do
 * it at once all the same.
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
                         int64_t rows, int64_t width, bool whole)
{
    if (parameters_find(&stage->parameters, role, layer) && !(whole && stage->place.tp != 0))
        stage->kernels->bias_forward(stage->stream, y, weight_of(stage, role, layer), rows, width);
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

/* y[rows, width] = the product that begins a branch, of a norm's output. */
static void branch_begin(struct stage *stage, int64_t layer, enum tensor_role weight,
                         enum tensor_role bias, void *y, int64_t width, const void *normed)
{
    stage_gather_begin(stage, normed, STAGE_WHOLE_NORMED, false);
    for (int i = 0; i < stage_pieces(stage); i++) {
        struct piece_of_rows piece;
        const void *x = stage_gathered_piece(stage, normed, STAGE_WHOLE_NORMED, i, &piece);

        stage->kernels->linear_forward(stage->stream, stage_rows(stage, y, piece.first, width), x,
                                       weight_of(stage, weight, layer), piece.count,
                                       stage->sizes.hidden, width, false);
    }
    bias_forward(stage, bias, layer, y, stage->sizes.rows, width, false);
}

/* The product of x[rows, width] that ends a branch: this rank's part, which `accumulate` adds to
 * what is there of another branch; `sum`: nothing more comes, and the parts are summed into
 * scratch.branch. */
static void branch_end(struct stage *stage, int64_t layer, enum tensor_role weight,
                       enum tensor_role bias, const void *x, int64_t width, bool accumulate,
                       bool sum)
{
    const struct stage_sizes *n = &stage->sizes;
    void *branch = stage->scratch.branch, *parts = stage_parts(stage, branch);

    for (int i = 0; i < stage_pieces(stage); i++) {
        struct piece_of_rows piece = stage_parts_piece(stage, i);
        void *y = stage_rows(stage, parts, piece.first, n->hidden);

        stage->kernels->linear_forward(stage->stream, y, stage_rows(stage, x, piece.first, width),
                                       weight_of(stage, weight, layer), piece.count, width,
                                       n->hidden, accumulate);
        bias_forward(stage, bias, layer, y, piece.count, n->hidden, true);
        if (sum)
            stage_sum_piece(stage, branch, i);
    }
    if (sum)
        stage_sum_end(stage, branch);
}

/* block->mixed = attention of block->normed. */
static void attention_inner(struct stage *stage, int64_t layer, struct block_activations *block)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    void *qkv = stage_qkv(stage, block->qkv);
    const struct attention_shape attention = stage_attention(stage, block->slot, layer);

    branch_begin(stage, layer, TENSOR_Q, TENSOR_Q_BIAS, qkv, n->qkv_width, block->normed);
    k->rope(stage->stream, qkv, stage->cosine, stage->sine, block->slot->positions, n->rows,
            n->heads, n->kv_heads, n->head_dim, false);
    stage_to_heads(stage, block->qkv);
    k->attention_forward(stage->stream, block->attended, block->lse, block->qkv, &attention);
    stage_output_from_heads(stage, block->mixed, block->attended);
}

/* The end of the attention branch, which another one follows in a parallel block. */
static void attention_outer(struct stage *stage, int64_t layer, struct block_activations *block)
{
    branch_end(stage, layer, TENSOR_O, TENSOR_O_BIAS, block->mixed, stage->sizes.mixed_width, false,
               !is_parallel(stage));
}

/* block->gated = the MLP of block->middle_normed, up to its last product. */
static void mlp_inner(struct stage *stage, int64_t layer, struct block_activations *block)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;

    branch_begin(stage, layer, mlp_first(stage), mlp_first_bias(stage), block->gate_up,
                 n->mlp_width, block->middle_normed);
    if (stage->model->mlp == MODEL_MLP_SWIGLU)
        k->swiglu_forward(stage->stream, block->gated, block->gate_up, n->rows, n->ffn);
    else
        k->gelu_forward(stage->stream, block->gated, block->gate_up, n->rows * n->ffn);
}

static void mlp_outer(struct stage *stage, int64_t layer, struct block_activations *block)
{
    branch_end(stage, layer, TENSOR_DOWN, TENSOR_DOWN_BIAS, block->gated, stage->sizes.ffn,
               is_parallel(stage), true);
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

        stage_need_weights(stage, TENSOR_INPUT_NORM, layer);
        stage_norm_forward(stage, &first, block->input, residual ? branch : block->input, residual);
        residual = block_forward(stage, layer, block);
    }
    k->copy(stage->stream, slot->output, residual,
            (size_t)(n->shard_rows * n->hidden) * dtype_bytes(k->dtype));
    k->add(stage->stream, slot->output, branch, n->shard_rows * n->hidden);
}

/* --- backward ----------------------------------------------------------------------------------
 */

/* How a branch begins: with a product of a norm's output. */
struct branch_input {
    enum tensor_role weight, bias;
    int64_t width;      /* that the product gives */
    const void *normed; /* the norm's output */
    void *deferred;     /* where the gradient of that product waits; NULL: it does not */
};

/* From the gradient of that product, scratch.dwide, to this rank's part of that of the norm's
 * output; `sum`: nothing more is added to it, and the parts are summed into `dnormed` until
 * stage_sum_end(). */
static void input_backward(struct stage *stage, int64_t layer, const struct branch_input *input,
                           void *dnormed, bool accumulate, bool sum)
{
    const struct stage_sizes *n = &stage->sizes;

    for (int i = 0; i < stage_pieces(stage); i++) {
        struct piece_of_rows piece = stage_parts_piece(stage, i);

        stage->kernels->linear_backward_input(
            stage->stream, stage_rows(stage, stage_parts(stage, dnormed), piece.first, n->hidden),
            stage_rows(stage, stage->scratch.dwide, piece.first, input->width),
            weight_of(stage, input->weight, layer), piece.count, n->hidden, input->width,
            accumulate);
        if (sum)
            stage_sum_piece(stage, dnormed, i);
    }
}

/* `normed` whole. */
static void input_weights(struct stage *stage, int64_t layer, const struct branch_input *input,
                          const void *doutput, const void *normed)
{
    const struct stage_sizes *n = &stage->sizes;

    stage->kernels->linear_backward_weight(stage->stream, gradient_of(stage, input->weight, layer),
                                           doutput, normed, n->rows, n->hidden, input->width);
    bias_backward(stage, input->bias, layer, doutput, input->width);
}

/* Of a product that ends a branch, of x[rows, width]. */
static void output_weights(struct stage *stage, int64_t layer, enum tensor_role weight,
                           enum tensor_role bias, const void *doutput, const void *x, int64_t width)
{
    const struct stage_sizes *n = &stage->sizes;

    stage->kernels->linear_backward_weight(stage->stream, gradient_of(stage, weight, layer),
                                           doutput, x, n->rows, width, n->hidden);
    bias_backward(stage, bias, layer, doutput, n->hidden);
}

/* Where gradients of the layer's products wait for those of its weights; NULL: they come at once.
 */
static const struct deferred_gradients *deferred_of(const struct stage *stage, int64_t layer,
                                                    const struct block_activations *block)
{
    int64_t i = layer - block->slot->chunk->first_layer;

    if (!block->slot->deferred || stage->recompute == RECOMPUTE_SELECTIVE ||
        i < block->slot->chunk->recompute_layers)
        return NULL;
    return &block->slot->deferred[i];
}

static void keep(struct stage *stage, void *to, const void *gradient, int64_t width)
{
    stage->kernels->copy(stage->stream, to, gradient,
                         (size_t)(stage->sizes.rows * width) * dtype_bytes(stage->kernels->dtype));
}

/* Both: the norm's output is gathered while its gradient is computed, whose parts are summed while
 * that of the weights is. */
static void both_backward(struct stage *stage, int64_t layer, const struct branch_input *input,
                          void *dnormed, bool accumulate, bool sum)
{
    if (!input->deferred)
        stage_gather_begin(stage, input->normed, STAGE_WHOLE_NORMED, true);
    input_backward(stage, layer, input, dnormed, accumulate, sum);
    if (input->deferred)
        keep(stage, input->deferred, stage->scratch.dwide, input->width);
    else
        input_weights(stage, layer, input, stage->scratch.dwide,
                      stage_gathered(stage, input->normed, STAGE_WHOLE_NORMED));
    if (sum)
        stage_sum_end(stage, dnormed);
}

/* From the gradient of a branch to that of the input of the product that ends it, scratch.dmixed
 * of `width` columns. Returns the branch's gradient whole; `whole`: it is that already. */
static const void *output_backward(struct stage *stage, int64_t layer, enum tensor_role weight,
                                   int64_t width, const void *gradient, bool whole)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    void *dx = stage->scratch.dmixed;

    if (whole) {
        k->linear_backward_input(stage->stream, dx, gradient, weight_of(stage, weight, layer),
                                 n->rows, width, n->hidden, false);
        return gradient;
    }
    stage_gather_begin(stage, gradient, STAGE_WHOLE_GRADIENT, true);
    for (int i = 0; i < stage_pieces(stage); i++) {
        struct piece_of_rows piece;
        const void *dy = stage_gathered_piece(stage, gradient, STAGE_WHOLE_GRADIENT, i, &piece);

        k->linear_backward_input(stage->stream, stage_rows(stage, dx, piece.first, width), dy,
                                 weight_of(stage, weight, layer), piece.count, width, n->hidden,
                                 false);
    }
    return stage_whole(stage, gradient, STAGE_WHOLE_GRADIENT);
}

/* From the gradient of the MLP's output to that of its first product's, scratch.dwide. Returns the
 * former whole. */
static const void *mlp_backward(struct stage *stage, int64_t layer,
                                const struct block_activations *block, const void *gradient)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    struct scratch *scratch = &stage->scratch;
    void *again = stage->recompute == RECOMPUTE_SELECTIVE ? block->gated : NULL;
    const struct deferred_gradients *deferred = deferred_of(stage, layer, block);

    gradient = output_backward(stage, layer, TENSOR_DOWN, n->ffn, gradient, false);
    if (stage->model->mlp == MODEL_MLP_SWIGLU)
        k->swiglu_backward(stage->stream, scratch->dwide, again, scratch->dmixed, block->gate_up,
                           n->rows, n->ffn);
    else
        k->gelu_backward(stage->stream, scratch->dwide, again, scratch->dmixed, block->gate_up,
                         n->rows * n->ffn);
    if (deferred)
        keep(stage, deferred->mlp, gradient, n->hidden);
    else
        output_weights(stage, layer, TENSOR_DOWN, TENSOR_DOWN_BIAS, gradient, block->gated, n->ffn);
    return gradient;
}

/* From the gradient of attention's output to that of its first product's, scratch.dwide. */
static void attention_backward(struct stage *stage, int64_t layer,
                               const struct block_activations *block, const void *gradient,
                               bool whole)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    struct scratch *scratch = &stage->scratch;
    void *dattended = stage->layout->cp == 1 ? scratch->dwide : scratch->dattended;
    const struct deferred_gradients *deferred = deferred_of(stage, layer, block);
    const struct attention_shape attention = stage_attention(stage, block->slot, layer);

    gradient = output_backward(stage, layer, TENSOR_O, n->mixed_width, gradient, whole);
    if (deferred)
        keep(stage, deferred->attention, gradient, n->hidden);
    else
        output_weights(stage, layer, TENSOR_O, TENSOR_O_BIAS, gradient, block->mixed,
                       n->mixed_width);
    k->attention_backward(stage->stream, dattended, stage_output_to_heads(stage, scratch->dmixed),
                          block->attended, block->qkv, block->lse, scratch->attention, &attention);
    stage_from_heads(stage, dattended);
    k->rope(stage->stream, scratch->dwide, stage->cosine, stage->sine, block->slot->positions,
            n->rows, n->heads, n->kv_heads, n->head_dim, true);
}

static struct branch_input mlp_input(const struct stage *stage, int64_t layer,
                                     const struct block_activations *block)
{
    return (struct branch_input){mlp_first(stage), mlp_first_bias(stage), stage->sizes.mlp_width,
                                 block->middle_normed,
                                 deferred_of(stage, layer, block) ? block->gate_up : NULL};
}

static struct branch_input attention_input(const struct stage *stage, int64_t layer,
                                           const struct block_activations *block)
{
    return (struct branch_input){TENSOR_Q, TENSOR_Q_BIAS, stage->sizes.qkv_width, block->normed,
                                 deferred_of(stage, layer, block) ? block->qkv : NULL};
}

/* The beginning of a branch that has a norm of its own, of the residual stream `s`: from
 * scratch.dwide to `gradient`, which the stream's is added to. */
static void branch_backward(struct stage *stage, int64_t layer, const struct branch_input *input,
                            const struct norm *norm, const void *s, void *gradient)
{
    void *dnormed = stage->scratch.dnormed;

    if (stage->recompute != RECOMPUTE_SELECTIVE) {
        both_backward(stage, layer, input, dnormed, false, true);
        stage_norm_backward(stage, norm, gradient, false, dnormed, s, gradient);
        return;
    }
    input_backward(stage, layer, input, dnormed, false, true);
    stage_sum_end(stage, dnormed);
    stage_norm_backward(stage, norm, gradient, true, dnormed, s, gradient);
    input_weights(stage, layer, input, stage->scratch.dwide,
                  stage_gather(stage, input->normed, STAGE_WHOLE_NORMED));
}

/* Both branches' gradients are that of the layer's output, so both come before the norms. */
static void parallel_backward(struct stage *stage, int64_t layer,
                              const struct block_activations *block, void *gradient)
{
    const struct branch_input mlp = mlp_input(stage, layer, block);
    const struct branch_input attention = attention_input(stage, layer, block);
    const struct norm first = input_norm(layer, block), second = mlp_norm(layer, block);
    bool two = stage->model->block == MODEL_BLOCK_PARALLEL_TWO_NORMS;
    void *dsecond = stage->scratch.branch, *dfirst = two ? stage->scratch.dnormed : dsecond;
    const void *dbranches;

    dbranches = stage_dropped(stage, block->slot, DROPOUT_MLP, layer, gradient);
    dbranches = mlp_backward(stage, layer, block, dbranches);
    both_backward(stage, layer, &mlp, dsecond, false, two);
    attention_backward(stage, layer, block, dbranches, true);
    both_backward(stage, layer, &attention, dfirst, !two, true);
    if (two)
        stage_norm_backward(stage, &second, gradient, false, dsecond, block->input, gradient);
    stage_norm_backward(stage, &first, gradient, false, dfirst, block->input, gradient);
}

static void sequential_backward(struct stage *stage, int64_t layer,
                                const struct block_activations *block, void *gradient)
{
    const struct branch_input mlp = mlp_input(stage, layer, block);
    const struct branch_input attention = attention_input(stage, layer, block);
    const struct norm first = input_norm(layer, block), second = mlp_norm(layer, block);

    mlp_backward(stage, layer, block,
                 stage_dropped(stage, block->slot, DROPOUT_MLP, layer, gradient));
    branch_backward(stage, layer, &mlp, &second, block->middle, gradient);
    attention_backward(stage, layer, block,
                       stage_dropped(stage, block->slot, DROPOUT_ATTENTION, layer, gradient),
                       false);
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
        if (!slot->deferred)
            stage_gradients_done(stage, TENSOR_INPUT_NORM, layer);
    }
}

/* Of the norm's output that was kept. */
static void deferred_input_weights(struct stage *stage, int64_t layer,
                                   const struct branch_input *input)
{
    input_weights(stage, layer, input, input->deferred,
                  stage_gather(stage, input->normed, STAGE_WHOLE_NORMED));
}

void blocks_weights(struct stage *stage, struct slot *slot)
{
    const struct stage_sizes *n = &stage->sizes;

    for (int64_t i = slot->chunk->layers - 1; i >= 0; i--) {
        const struct block_activations *block = &slot->blocks[i];
        int64_t layer = slot->chunk->first_layer + i;
        const struct deferred_gradients *deferred = deferred_of(stage, layer, block);
        const struct branch_input mlp = mlp_input(stage, layer, block);
        const struct branch_input attention = attention_input(stage, layer, block);

        if (deferred) {
            output_weights(stage, layer, TENSOR_DOWN, TENSOR_DOWN_BIAS, deferred->mlp, block->gated,
                           n->ffn);
            deferred_input_weights(stage, layer, &mlp);
            output_weights(stage, layer, TENSOR_O, TENSOR_O_BIAS, deferred->attention, block->mixed,
                           n->mixed_width);
            deferred_input_weights(stage, layer, &attention);
        }
        stage_gradients_done(stage, TENSOR_INPUT_NORM, layer);
    }
}
