/* One rank's part of the model: the layers of a pipeline stage, in one chunk or several (runs of
 * layers that do not lie one behind the other), split over tensor parallelism, with their weights,
 * optimizer state and the activations of the microbatches in flight.
 *
 * All device memory is taken once, by stage_create(). The arithmetic of layers is in block.c, of
 * the embedding and the loss in ends.c; the order of microbatches is pipeline.c's business.
 */
#ifndef MTLLM_TRAINER_STAGE_H
#define MTLLM_TRAINER_STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/layout.h"
#include "core/model.h"
#include "kernels/kernels.h"
#include "trainer/comm.h"
#include "trainer/comm_window.h"
#include "trainer/parameter.h"
#include "trainer/pipeline_order.h"
#include "trainer/timeline.h"

/* What a layer keeps from forward to backward. rows = tokens of a microbatch, of which shard_rows
 * are this rank's of the residual stream. */
struct block_activations {
    const struct slot *slot; /* that it belongs to */
    void *input;             /* [shard_rows, hidden] the residual stream before the layer */
    void *normed;            /* [shard_rows, hidden] */
    float *mean;             /* [shard_rows], of LayerNorm; NULL: there is none */
    float *rstd;             /* [shard_rows] */
    void *qkv;               /* [attention_rows, attention_width] after rotation */
    void *attended;          /* [attention_rows, attention_heads head_dim] out of attention */
    float *lse;              /* [attention_heads, attention_rows] */
    void *mixed;             /* [rows, mixed_width] the same by rows; attended, without cp */
    /* [shard_rows, hidden] the residual stream between attention and MLP; NULL in a parallel block
     */
    void *middle;
    /* What the MLP reads; `normed` in a parallel block with one norm. */
    void *middle_normed;
    float *middle_mean, *middle_rstd;
    void *gate_up; /* [rows, mlp_width] */
    void *gated;   /* [rows, ffn] behind the activation */
};

/* One norm of the model, with what it keeps from forward to backward. */
struct norm {
    enum tensor_role role; /* of its weight */
    int64_t layer;
    void *y;
    float *mean, *rstd;
};

/* One microbatch in flight in one chunk. */
struct slot {
    const struct model_chunk *chunk;
    int32_t *tokens;    /* [rows] device; first chunk of the model */
    int32_t *targets;   /* [rows] device; last chunk of the model; negative: no target */
    float *weights;     /* [rows] device; likewise: d(batch loss) / d(token's loss) */
    int32_t *positions; /* [rows] device */
    int32_t *starts;    /* [sequences + 1] device */
    struct attention_shape attention; /* of what is in it */
    int64_t first_row;                /* among all rows of the run */
    bool training;
    struct block_activations *blocks;
    /* [shard_rows, hidden] for the next chunk; in the last the final residual stream. */
    void *output;
    void *gradient; /* of the chunk's: of output on the way back, of the input at the end */
    /* [chunk->layers] while backward puts off the weights' gradients; NULL: it does not. */
    const struct deferred_gradients *deferred;
    struct comm_request sent;
};

/* Gradients of a layer's output that wait for those of its weights: [rows, hidden] each. */
struct deferred_gradients {
    void *mlp, *attention; /* of the products that end these branches */
};

/* A [shard_rows, hidden] gradient, of a chunk's output and then of its input. */
struct boundary_gradient {
    void *buffer;
    struct comm_request sent;
};

/* Layers of this rank that lie one behind the other. */
struct model_chunk {
    int64_t first_layer, layers;
    int64_t recompute_layers; /* the first ones, of which only the input is kept */
    bool first, last;         /* in the model: behind the embedding, in front of the head */
    struct slot *slots;       /* microbatches have them by turns */
    int64_t slot_count;
    /* Of the first layer, [shard_rows, hidden], by turns too. One more than slots, so that there is
     * one to receive into before the slot is free; no more where nothing is received. */
    void **inputs;
    int64_t input_count;
    /* Likewise; more than slots where they wait for the stage that they are sent to. */
    struct boundary_gradient *gradients;
    int64_t gradient_count;
};

/* The sizes of this rank's shards. */
struct stage_sizes {
    int64_t rows, hidden, ffn;
    int64_t shard_rows; /* this rank's of the residual stream: rows, or rows / tp */
    int heads, kv_heads, head_dim;
    int64_t qkv_width, mixed_width;
    /* What this rank attends with: with context parallelism the microbatch's rows, some heads. */
    int64_t attention_rows, attention_width;
    int attention_heads, attention_kv_heads;
    int64_t mlp_width; /* columns before the activation: gate and up, or up alone */
    int64_t vocab_first, vocab_count;
    int64_t head_rows; /* tokens whose logits exist at one time */
};

/* Where shards of the residual stream's width are gathered: a norm's output; a gradient. */
enum stage_whole { STAGE_WHOLE_NORMED, STAGE_WHOLE_GRADIENT, STAGE_WHOLE_COUNT };

/* Memory that lives for a part of one microbatch only. */
struct scratch {
    struct block_activations again; /* of the layer that is computed again; its input is its own */
    void *branch;  /* [shard_rows, hidden] what a branch adds to the residual stream */
    void *dnormed; /* [shard_rows, hidden] */
    /* With sequence parallelism, [rows, hidden]: what is gathered; this rank's part of what is to
     * be summed; the others' of its shard. NULL without. */
    void *whole[STAGE_WHOLE_COUNT], *parts, *arriving;
    uint32_t *flags; /* of the window */
    void *dwide;     /* [rows, max(mlp_width, qkv_width)] */
    void *dmixed;    /* [rows, max(ffn, mixed_width)] */
    /* With context parallelism: gradients of block->qkv and block->attended; what is exchanged. */
    void *dattended, *dattended_output, *exchange;
    void *attention;         /* what its backward works in */
    void *dropped;           /* [shard_rows, hidden] a branch's gradient; NULL without dropout */
    void *final_normed;      /* [shard_rows, hidden] */
    float *final_mean;       /* [shard_rows] */
    float *final_rstd;       /* [shard_rows] */
    void *logits;            /* [head_rows, vocab_count] */
    float *maximum, *global; /* [head_rows] */
    float *sums;             /* [2][head_rows] sums of exponentials, then targets' logits */
    float *loss;             /* [rows] */
    int32_t *best;           /* [rows] the token with the greatest logit; in evaluations */
    /* With tensor parallelism, [tp, head_rows]: of each rank's share of the vocabulary. */
    float *share_maxima;
    int32_t *share_bests;
};

/* What backward computes again instead of keeping it: nothing; the outputs of the activation and,
 * unless blocks are parallel, of norms; or, in some layers, everything. The bits are the same. */
enum recompute { RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL };

/* Dropout of the embedding's output and of what each branch adds to the residual stream. LIMA's
 * (Zhou et al., 2023) grows from nothing in the first layer to `rate` in the last. */
struct stage_dropout {
    double rate;
    double attention; /* the rate of attention's probabilities, in all layers */
    bool lima;
    uint64_t seed;
};

struct stage {
    const struct kernels *kernels;
    struct stream *stream;
    const struct model *model;
    const struct layout *layout;
    struct layout_place place;
    const struct comm_groups *groups;
    int64_t micro_batch, seq_length, sequences;
    int64_t layers; /* of all chunks */
    enum recompute recompute;
    int64_t recompute_layers; /* the first of the stage, of which only the input is kept */
    struct stage_dropout dropout;
    bool first, last; /* holds the embedding; the head */
    bool sequence_parallel;
    struct stage_sizes sizes;
    struct parameters parameters;

    void *weights;    /* [parameters.elements], of kernels->dtype */
    float *gradients; /* fp32 */
    /* Sums over replicas, and over tensor parallelism, and what is gathered there, on streams
     * beside the one that computes where the kernels have some. */
    struct stream *reductions, *sums, *gathers;
    /* scratch.whole and scratch.arriving of the tensor-parallel ranks; NULL: they are not open to
     * each other. */
    struct comm_window *window;
    bool last_microbatch; /* what backward has finished will not change any more */
    size_t unreduced;     /* the first buckets' gradients are this replica's own */
    size_t gathered;      /* the first buckets' weights are whole */
    size_t gathering;     /* or will be, when `reductions` has done its work */
    int replica;          /* this rank's number among those with the same weights */
    int shares;           /* replicas that share the optimizer's state; 1: each has all */
    struct piece *pieces; /* what this one updates */
    size_t piece_count;
    /* Of state_elements = parameters.elements / shares: */
    int64_t state_elements;
    float *master; /* fp32; NULL when the weights are fp32, or updated without one */
    enum dtype moments;
    void *exp_avg, *exp_avg_sq; /* of `moments` */
    struct timeline *timeline;  /* of training; NULL where nothing is computed */
    struct profile *profile;    /* that spans are recorded to; NULL: nothing is */
    double *loss_sum;           /* device: sum of weight * loss over microbatches */
    float *cosine, *sine;       /* [seq_length, head_dim / 2] */
    struct scratch scratch;
    struct model_chunk *model_chunks; /* [layout_chunks(layout)] */
    struct pipeline_shape pipeline;   /* of the largest batch */
    struct pipeline_order order;      /* of the batch at hand */
    /* [deferred_count, layers], microbatches have them by turns. */
    struct deferred_gradients *deferred;
    int64_t deferred_count;

    void *memory; /* the one allocation */
    size_t memory_bytes;
    /* What it is taken for: weights; gradients; optimizer state; activations and the rest. */
    size_t weight_bytes, gradient_bytes, state_bytes;
};

/* What a stage keeps for the optimizer: nothing, for validation alone; fp32 moments, and master
 * weights where the weights are narrower; bf16 moments and no master weights. */
enum stage_state { STAGE_EVALUATES, STAGE_TRAINS, STAGE_TRAINS_BF16 };

/* Whether backward is split in two (zero-bubble); by itself: where it is faster. */
enum stage_split { STAGE_SPLIT_AUTO, STAGE_SPLIT_NEVER, STAGE_SPLIT_ALWAYS };

/* What a stage has to do. */
struct stage_work {
    int64_t micro_batch, seq_length;
    int64_t sequences; /* at most, a microbatch; micro_batch: each row is one */
    /* A step, at most and, where steps are not all alike, at least: bounds how many can be in
     * flight. */
    int64_t microbatches, fewest_microbatches;
    enum stage_state state;
    enum stage_split split;
    bool sequence_parallel; /* no effect without tp, which divides the rows of a microbatch */
    bool zero;              /* replicas share the optimizer's state */
    enum recompute recompute;
    int64_t recompute_layers; /* of a stage, with RECOMPUTE_FULL; more than it has: all */
    struct stage_dropout dropout;
};

/* Lay everything out without taking it, communicating or preparing anything: sizes, parameters,
 * microbatches in flight and the bytes of each kind, by the arithmetic that stage_create() uses.
 * Of the kernels only dtype, head_rows and attention_workspace() count. To be destroyed by
 * stage_destroy(); model and layout must outlive the stage. Error: EXIT_STATUS_SYSTEM. */
int stage_measure(struct stage *stage, const struct kernels *kernels, const struct model *model,
                  const struct layout *layout, struct layout_place place,
                  const struct stage_work *work, struct error *error);

/* Lay out and allocate everything, and settle how products are computed. model, layout and groups
 * must outlive the stage. Error: EXIT_STATUS_SYSTEM with the bytes asked for. */
int stage_create(struct stage *stage, const struct kernels *kernels, const struct model *model,
                 const struct layout *layout, struct layout_place place,
                 const struct comm_groups *groups, const struct stage_work *work,
                 struct error *error);
void stage_destroy(struct stage *stage);

/* Collective over tensor parallelism, after stage_create() and before stage_destroy() and
 * comm_close(): ranks open their memory to each other where they can, which sequence parallelism
 * is faster with. Error: EXIT_STATUS_SYSTEM. */
int stage_connect(struct stage *stage, struct error *error);
void stage_disconnect(struct stage *stage);

/* Initial weights, the same whatever the layout. */
void stage_randomize(struct stage *stage, uint64_t seed);

/* Element `offset` of the weights. */
void *stage_weight(const struct stage *stage, int64_t offset);

/* A microbatch into a slot: of `sequences`, the first row of each in `starts` (host memory) and
 * then the number of rows. Arrays of the host must stay as they are until the microbatch is
 * through. */
struct microbatch {
    const int32_t *tokens, *targets, *positions; /* [rows] */
    const float *weights;                        /* [rows] */
    int sequences;
    int64_t longest;       /* rows of the longest sequence */
    const int32_t *starts; /* [sequences + 1] */
    int64_t first_row;     /* among all rows of the run */
    bool training;         /* dropout applies */
};
void stage_load(struct stage *stage, struct slot *slot, const struct microbatch *microbatch);

/* --- tensor_parallel.c: a buffer of the residual stream is a shard, [shard_rows, hidden]; whole is
 * [rows, hidden]. Without sequence parallelism they are the same, and nothing is gathered. --- */

/* Of weights and activations. */
enum comm_type stage_comm_type(const struct stage *stage);

/* A collective on `stream` is next: it is time of communication where that is the stream that
 * computes. Returns what to go back to with timeline_enter(). */
enum time_part stage_communicates(const struct stage *stage, const struct stream *stream);
/* The stage goes on when that stream has done what it has got. */
void stage_wait_for(const struct stage *stage, struct stream *stream);

/* Row `row` of a buffer of activations. */
void *stage_rows(const struct stage *stage, const void *buffer, int64_t row, int64_t width);

/* Rows [first, first + count) of a microbatch, which a product is done of at one time. */
struct piece_of_rows {
    int64_t first, count;
};

/* In how many pieces the products of what is gathered, and those that give what is summed, are
 * done: one travels beside another one. */
int stage_pieces(const struct stage *stage);

/* Begin to gather; with `keep` all of it will be in scratch.whole[which], for stage_gathered().
 * The shard stays as it is until that, or until its last piece is there. */
void stage_gather_begin(struct stage *stage, const void *shard, enum stage_whole which, bool keep);
/* Wait for the pieces, in this order: the first row of piece `i`. */
const void *stage_gathered_piece(struct stage *stage, const void *shard, enum stage_whole which,
                                 int i, struct piece_of_rows *piece);
/* All of it, after the last piece. */
const void *stage_whole(const struct stage *stage, const void *shard, enum stage_whole which);
/* Wait for all at once: whole. */
const void *stage_gathered(struct stage *stage, const void *shard, enum stage_whole which);
/* Both. */
const void *stage_gather(struct stage *stage, const void *shard, enum stage_whole which);

/* Where this rank's part, whole, is to be of what is then summed into a shard: scratch.parts, or
 * the shard. */
void *stage_parts(const struct stage *stage, void *shard);
/* Which rows piece `i` of it has. */
struct piece_of_rows stage_parts_piece(const struct stage *stage, int i);
/* The pieces, in this order, are there: sum them over tensor parallelism, while the stage computes
 * something else, until stage_sum_end(). */
void stage_sum_piece(struct stage *stage, void *shard, int i);
void stage_sum_end(struct stage *stage, void *shard);
/* All of it, at once. */
void stage_sum(struct stage *stage, void *shard);

/* Which row of the microbatch a shard begins with. */
int64_t stage_first_row(const struct stage *stage);

/* --- context_parallel.c: nothing to do without context parallelism --- */

/* Where q, k and v of this rank's rows are to be: [rows, qkv_width]. */
void *stage_qkv(const struct stage *stage, void *attended);
/* From there to those that this rank attends with, and their gradients, `dattended`, back to
 * scratch.dwide. */
void stage_to_heads(struct stage *stage, void *attended);
void stage_from_heads(struct stage *stage, void *dattended);
/* From attention's output to that of this rank's rows, and its gradient back. */
void stage_output_from_heads(struct stage *stage, void *mixed, const void *output);
const void *stage_output_to_heads(struct stage *stage, const void *dmixed);

/* --- gradients.c --- */

/* Backward adds nothing more to the gradients from those of role `first` of a layer on in this
 * microbatch. In the last one they are summed over replicas, while backward goes on: always the
 * same buckets in the same order, from the end of the model to its beginning. */
void stage_gradients_done(struct stage *stage, enum tensor_role first, int64_t layer);
/* After the last microbatch: the gradients of what this replica updates are those of the batch. */
void stage_finish_gradients(struct stage *stage);

/* This replica's share of the weights has changed: those of the others are to be gathered. */
void stage_weights_updated(struct stage *stage);
/* Before forward computes with the weights of a bucket, of which role `role` of a layer is one. */
void stage_need_weights(struct stage *stage, enum tensor_role role, int64_t layer);

/* --- dropout (dropout.c) --- */

/* The rate behind the branches of a layer, or behind the embedding (-1), of a model of that many
 * layers. */
double stage_dropout_rate(const struct stage_dropout *dropout, int64_t layers, int64_t layer);

/* Attention in a layer, for what is in the slot: with dropout in training. */
struct attention_shape stage_attention(const struct stage *stage, const struct slot *slot,
                                       int64_t layer);

/* Where in the model something is dropped. */
enum dropout_place { DROPOUT_ATTENTION, DROPOUT_MLP, DROPOUT_EMBEDDING };

/* In place; nothing where there is no dropout, or no training. `layer` -1 for the embedding. */
void stage_drop(struct stage *stage, const struct slot *slot, enum dropout_place place,
                int64_t layer, void *x);
/* The gradient of what went into dropout from that of what came out: `gradient` itself, or
 * scratch.dropped. */
const void *stage_dropped(struct stage *stage, const struct slot *slot, enum dropout_place place,
                          int64_t layer, const void *gradient);

/* --- norms (norm.c): y and statistics of s = x + residual; sum[shard_rows, hidden] = s. residual
 * may be NULL: then s = x, and sum is not written. */
void stage_norm_forward(struct stage *stage, const struct norm *norm, void *sum, const void *x,
                        const void *residual);
/* dx = the gradient of s + dresidual (NULL: none; may be dx itself); weights' gradients accumulate;
 * with `again` norm->y is written once more. */
void stage_norm_backward(struct stage *stage, const struct norm *norm, void *dx, bool again,
                         const void *dy, const void *s, const void *dresidual);

/* --- arithmetic of one microbatch --------------------------------------------------------- */

/* The layers of the slot's chunk: from slot->blocks[0].input to slot->output. */
void blocks_forward(struct stage *stage, struct slot *slot);
/* slot->gradient, of the output, becomes that of the input; weights' gradients accumulate, with
 * slot->deferred only as far as blocks_weights() does not do it later. */
void blocks_backward(struct stage *stage, struct slot *slot);
void blocks_weights(struct stage *stage, struct slot *slot);

/* slot->tokens to slot->blocks[0].input, and back. First chunk only. */
void embedding_forward(struct stage *stage, struct slot *slot);
void embedding_backward(struct stage *stage, struct slot *slot);

/* Called with the logits of tokens [row, row + rows) of the microbatch, [rows, vocab_count] of this
 * rank, before the loss is taken. */
typedef void (*logits_callback)(void *user, int64_t row, int64_t rows, const void *logits);

/* The loss of slot->output, added to loss_sum; with `backward` its gradient too, into
 * slot->gradient, and the head's; without, scratch.loss and scratch.best are those of each token.
 * Last chunk only. `see` may be NULL. */
void head_forward_backward(struct stage *stage, struct slot *slot, bool backward,
                           logits_callback see, void *user);

#endif
