/* The two ends of the model: the embedding, and the head with the loss.
 *
 * Both are split over tensor parallelism by rows of the vocabulary. A token's embedding is on one
 * rank and zero on the others, so their sum is it. The loss needs the maximum and the sum of
 * exponentials over the whole vocabulary: two reductions of a number a token.
 *
 * The head never holds the logits of more than head_rows tokens: forward, loss and backward of
 * one piece follow each other before the next piece begins.
 */
#include "trainer/stage.h"

void embedding_forward(struct stage *stage, struct slot *slot)
{
    const struct stage_sizes *n = &stage->sizes;
    const struct parameter *embedding = parameters_find(&stage->parameters, TENSOR_EMBEDDING, -1);
    void *output = slot->blocks[0].input, *part = stage_parts(stage, output);

    stage_need_weights(stage, TENSOR_EMBEDDING, -1);
    stage->kernels->embedding_forward(stage->stream, part, slot->tokens,
                                      stage_weight(stage, embedding->offset), n->vocab_first,
                                      n->vocab_count, n->rows, n->hidden);
    stage_sum(stage, output);
    stage_drop(stage, slot, DROPOUT_EMBEDDING, -1, output);
}

void embedding_backward(struct stage *stage, struct slot *slot)
{
    const struct stage_sizes *n = &stage->sizes;
    const struct parameter *embedding = parameters_find(&stage->parameters, TENSOR_EMBEDDING, -1);
    const void *gradient;

    stage_drop(stage, slot, DROPOUT_EMBEDDING, -1, slot->gradient);
    gradient = stage_gather(stage, slot->gradient, STAGE_WHOLE_GRADIENT);
    stage->kernels->embedding_backward(stage->stream, stage->gradients + embedding->offset,
                                       slot->tokens, gradient, n->vocab_first, n->vocab_count,
                                       n->rows, n->hidden);
    stage_gradients_done(stage, TENSOR_EMBEDDING, -1);
}

/* The head's matrix: its own, or the embedding's when they are tied. */
static const struct parameter *head_parameter(const struct stage *stage)
{
    return parameters_find(&stage->parameters,
                           stage->model->tied_embeddings ? TENSOR_EMBEDDING : TENSOR_HEAD, -1);
}

/* The tokens with the greatest logits, over the ranks' shares of the vocabulary. */
static void join_best(struct stage *stage, int32_t *best, int64_t rows)
{
    struct scratch *s = &stage->scratch;
    struct comm *tp = stage->groups->tp;

    if (stage->layout->tp == 1)
        return;
    comm_all_gather(tp, s->share_maxima, s->maximum, rows, COMM_F32, stage->stream);
    comm_all_gather(tp, s->share_bests, best, rows, COMM_I32, stage->stream);
    stage->kernels->cross_entropy_best(stage->stream, best, s->share_maxima, s->share_bests,
                                       stage->layout->tp, rows);
}

/* Loss of tokens [row, row + rows), whose logits are in scratch.logits; with `backward` the logits
 * become their gradient. */
static void piece_loss(struct stage *stage, struct slot *slot, int64_t row, int64_t rows,
                       bool backward)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    struct scratch *s = &stage->scratch;
    const int32_t *targets = slot->targets + row;
    float *sums = s->sums, *target_logits = s->sums + rows;

    k->cross_entropy_partial(stage->stream, s->maximum, sums, target_logits, s->best + row,
                             s->logits, targets, n->vocab_first, n->vocab_count, n->vocab_count,
                             rows);
    if (!backward)
        join_best(stage, s->best + row, rows);
    k->copy(stage->stream, s->global, s->maximum, (size_t)rows * sizeof(float));
    if (stage->layout->tp > 1) {
        enum time_part part = stage_communicates(stage, stage->stream);

        comm_all_reduce(stage->groups->tp, s->global, rows, COMM_F32, COMM_MAX, stage->stream);
        k->cross_entropy_rescale(stage->stream, sums, s->maximum, s->global, rows);
        comm_all_reduce(stage->groups->tp, sums, 2 * rows, COMM_F32, COMM_SUM, stage->stream);
        timeline_enter(stage->timeline, part);
    }
    k->cross_entropy_finish(stage->stream, s->loss + row, s->logits, targets, slot->weights + row,
                            s->global, sums, target_logits, n->vocab_first, n->vocab_count,
                            n->vocab_count, rows, backward);
}

void head_forward_backward(struct stage *stage, struct slot *slot, bool backward,
                           logits_callback see, void *user)
{
    const struct kernels *k = stage->kernels;
    const struct stage_sizes *n = &stage->sizes;
    struct scratch *s = &stage->scratch;
    const struct norm norm = {TENSOR_FINAL_NORM, -1, s->final_normed, s->final_mean, s->final_rstd};
    const struct parameter *head = head_parameter(stage);
    const void *head_weight = stage_weight(stage, head->offset);
    const void *whole;
    void *dwhole = stage_parts(stage, s->dnormed);

    stage_need_weights(stage, TENSOR_FINAL_NORM, -1);
    stage_need_weights(stage, head->role, -1);
    stage_norm_forward(stage, &norm, NULL, slot->output, NULL);
    whole = stage_gather(stage, s->final_normed, STAGE_WHOLE_NORMED);
    for (int64_t row = 0; row < n->rows; row += n->head_rows) {
        int64_t rows = n->rows - row < n->head_rows ? n->rows - row : n->head_rows;
        const void *normed = stage_rows(stage, whole, row, n->hidden);
        void *dnormed = stage_rows(stage, dwhole, row, n->hidden);

        k->linear_forward(stage->stream, s->logits, normed, head_weight, rows, n->hidden,
                          n->vocab_count, false);
        if (see)
            see(user, row, rows, s->logits);
        piece_loss(stage, slot, row, rows, backward);
        if (!backward)
            continue;
        k->linear_backward_input(stage->stream, dnormed, s->logits, head_weight, rows, n->hidden,
                                 n->vocab_count, false);
        k->linear_backward_weight(stage->stream, stage->gradients + head->offset, s->logits, normed,
                                  rows, n->hidden, n->vocab_count);
    }
    k->weighted_sum(stage->stream, stage->loss_sum, slot->weights, s->loss, n->rows);
    if (!backward)
        return;
    stage_sum(stage, s->dnormed);
    stage_norm_backward(stage, &norm, slot->gradient, false, s->dnormed, slot->output, NULL);
    stage_gradients_done(stage, TENSOR_FINAL_NORM, -1);
}
