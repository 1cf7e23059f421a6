/* Allocation and initial values of one rank's part of the model. */
#include "trainer/stage.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/rope.h"

/* Hands out pieces of one allocation; the first pass, without one, only adds them up. */
struct arena {
    char *base;
    size_t used;
};

static void *take(struct arena *arena, int64_t count, size_t element_bytes)
{
    void *piece = arena->base ? arena->base + arena->used : NULL;
    size_t bytes = (size_t)count * element_bytes;

    arena->used += (bytes + 255) / 256 * 256;
    return piece;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static void set_sizes(struct stage *stage)
{
    const struct model *model = stage->model;
    int tp = stage->layout->tp, cp = stage->layout->cp;
    struct stage_sizes *sizes = &stage->sizes;

    *sizes = (struct stage_sizes){
        .rows = stage->micro_batch * stage->seq_length / cp,
        .hidden = model->hidden_size,
        .ffn = model->ffn_size / tp,
        .heads = (int)(model->heads / tp),
        .kv_heads = (int)(model->kv_heads * layout_kv_sharing(stage->layout, model) / tp),
        .head_dim = (int)model->head_dim,
    };
    sizes->qkv_width = (int64_t)(sizes->heads + 2 * sizes->kv_heads) * sizes->head_dim;
    sizes->mixed_width = (int64_t)sizes->heads * sizes->head_dim;
    sizes->attention_rows = cp * sizes->rows;
    sizes->attention_heads = sizes->heads / cp;
    sizes->attention_kv_heads = sizes->kv_heads > cp ? sizes->kv_heads / cp : 1;
    if (cp == 1)
        sizes->attention_kv_heads = sizes->kv_heads;
    sizes->attention_width =
        (int64_t)(sizes->attention_heads + 2 * sizes->attention_kv_heads) * sizes->head_dim;
    sizes->mlp_width = (model->mlp == MODEL_MLP_SWIGLU ? 2 : 1) * sizes->ffn;
    vocabulary_shard(model, stage->layout, stage->place.tp, &sizes->vocab_first,
                     &sizes->vocab_count);
    sizes->shard_rows = stage->sequence_parallel ? sizes->rows / tp : sizes->rows;
    sizes->head_rows =
        sizes->rows < stage->kernels->head_rows ? sizes->rows : stage->kernels->head_rows;
}

/* A stage whose microbatches have one sequence a row has no others. */
static struct attention_shape attention_of(const struct stage *stage, int64_t sequences,
                                           int64_t longest)
{
    return (struct attention_shape){
        .rows = stage->sizes.attention_rows,
        .heads = stage->sizes.attention_heads,
        .kv_heads = stage->sizes.attention_kv_heads,
        .head_dim = stage->sizes.head_dim,
        .sequences = (int)sequences,
        .longest = longest,
        .varying = stage->sequences != stage->micro_batch,
        .window = (int)stage->model->sliding_window,
    };
}

/* All but the input. After the rest of lay_out_scratch(). */
static void lay_out_block(struct stage *stage, struct block_activations *block, struct arena *arena)
{
    const struct stage_sizes *n = &stage->sizes;
    const struct model *model = stage->model;
    bool keep = stage->recompute != RECOMPUTE_SELECTIVE,
         layer_norm = model->norm == MODEL_NORM_LAYER;
    bool sequential = model->block == MODEL_BLOCK_SEQUENTIAL, keep_normed = keep || !sequential;
    bool two_norms = model->block != MODEL_BLOCK_PARALLEL;
    size_t act = dtype_bytes(stage->kernels->dtype);

    block->normed =
        keep_normed ? take(arena, n->shard_rows * n->hidden, act) : stage->scratch.dnormed;
    block->mean = layer_norm ? take(arena, n->shard_rows, sizeof(float)) : NULL;
    block->rstd = take(arena, n->shard_rows, sizeof(float));
    block->qkv = take(arena, n->attention_rows * n->attention_width, act);
    block->mixed = take(arena, n->rows * n->mixed_width, act);
    block->attended =
        stage->layout->cp > 1 ? take(arena, n->rows * n->mixed_width, act) : block->mixed;
    block->lse = take(arena, n->attention_rows * n->attention_heads, sizeof(float));
    block->middle = sequential ? take(arena, n->shard_rows * n->hidden, act) : NULL;
    block->middle_normed = !two_norms    ? block->normed
                           : keep_normed ? take(arena, n->shard_rows * n->hidden, act)
                                         : stage->scratch.dnormed;
    block->middle_mean = layer_norm && two_norms ? take(arena, n->shard_rows, sizeof(float)) : NULL;
    block->middle_rstd = two_norms ? take(arena, n->shard_rows, sizeof(float)) : NULL;
    block->gate_up = take(arena, n->rows * n->mlp_width, act);
    block->gated = keep ? take(arena, n->rows * n->ffn, act) : stage->scratch.dmixed;
}

static void lay_out_blocks(struct stage *stage, struct slot *slot, struct arena *arena)
{
    const struct stage_sizes *n = &stage->sizes;

    for (int64_t i = 0; i < slot->chunk->layers; i++) {
        struct block_activations *block = &slot->blocks[i];

        if (i < slot->chunk->recompute_layers)
            *block = stage->scratch.again;
        else
            lay_out_block(stage, block, arena);
        block->slot = slot;
        if (i > 0)
            block->input =
                take(arena, n->shard_rows * n->hidden, dtype_bytes(stage->kernels->dtype));
    }
}

static void lay_out_chunk(struct stage *stage, struct model_chunk *chunk, struct arena *arena)
{
    const struct stage_sizes *n = &stage->sizes;
    size_t act = dtype_bytes(stage->kernels->dtype);

    for (int64_t i = 0; i < chunk->input_count; i++)
        chunk->inputs[i] = take(arena, n->shard_rows * n->hidden, act);
    for (int64_t i = 0; i < chunk->slot_count; i++) {
        struct slot *slot = &chunk->slots[i];

        if (chunk->first)
            slot->tokens = take(arena, n->rows, sizeof(int32_t));
        if (chunk->last) {
            slot->targets = take(arena, n->rows, sizeof(int32_t));
            slot->weights = take(arena, n->rows, sizeof(float));
        }
        slot->positions = take(arena, n->rows, sizeof(int32_t));
        slot->starts = take(arena, stage->sequences + 1, sizeof(int32_t));
        lay_out_blocks(stage, slot, arena);
        slot->output = take(arena, n->shard_rows * n->hidden, act);
    }
    for (int64_t i = 0; i < chunk->gradient_count; i++)
        chunk->gradients[i].buffer = take(arena, n->shard_rows * n->hidden, act);
}

static void lay_out_scratch(struct stage *stage, struct arena *arena)
{
    const struct stage_sizes *n = &stage->sizes;
    struct scratch *scratch = &stage->scratch;
    size_t act = dtype_bytes(stage->kernels->dtype);
    struct attention_shape attention = attention_of(stage, stage->sequences, stage->seq_length);

    attention.dropout.rate = stage->dropout.attention;
    scratch->branch = take(arena, n->shard_rows * n->hidden, act);
    scratch->dnormed = take(arena, n->shard_rows * n->hidden, act);
    if (stage->sequence_parallel) {
        for (int i = 0; i < STAGE_WHOLE_COUNT; i++)
            scratch->whole[i] = take(arena, n->rows * n->hidden, act);
        scratch->parts = take(arena, n->rows * n->hidden, act);
        scratch->arriving = take(arena, n->rows * n->hidden, act);
        scratch->flags =
            take(arena, comm_window_flags(stage->layout->tp, COMM_WINDOW_PARTS), sizeof(uint32_t));
    }
    scratch->dwide = take(arena, n->rows * larger(n->mlp_width, n->qkv_width), act);
    scratch->dmixed = take(arena, n->rows * larger(n->ffn, n->mixed_width), act);
    scratch->attention = take(arena, (int64_t)stage->kernels->attention_workspace(&attention), 1);
    if (stage->layout->cp > 1) {
        scratch->dattended = take(arena, n->attention_rows * n->attention_width, act);
        scratch->dattended_output = take(arena, n->rows * n->mixed_width, act);
        scratch->exchange = take(
            arena, larger(n->attention_rows * n->attention_width, n->rows * n->mixed_width), act);
    }
    if (stage->dropout.rate > 0)
        scratch->dropped = take(arena, n->shard_rows * n->hidden, act);
    if (stage->recompute_layers > 0)
        lay_out_block(stage, &scratch->again, arena);
    if (!stage->last)
        return;
    scratch->final_normed = take(arena, n->shard_rows * n->hidden, act);
    scratch->final_mean = take(arena, n->shard_rows, sizeof(float));
    scratch->final_rstd = take(arena, n->shard_rows, sizeof(float));
    scratch->logits = take(arena, n->head_rows * n->vocab_count, act);
    scratch->maximum = take(arena, n->head_rows, sizeof(float));
    scratch->global = take(arena, n->head_rows, sizeof(float));
    scratch->sums = take(arena, 2 * n->head_rows, sizeof(float));
    scratch->loss = take(arena, n->rows, sizeof(float));
    scratch->best = take(arena, n->rows, sizeof(int32_t));
    if (stage->layout->tp > 1) {
        scratch->share_maxima = take(arena, stage->layout->tp * n->head_rows, sizeof(float));
        scratch->share_bests = take(arena, stage->layout->tp * n->head_rows, sizeof(int32_t));
    }
}

static void lay_out_state(struct stage *stage, enum stage_state state, struct arena *arena)
{
    int64_t elements = stage->state_elements;
    size_t bytes = dtype_bytes(stage->moments);

    if (state == STAGE_EVALUATES)
        return;
    stage->gradients = take(arena, stage->parameters.elements, sizeof(float));
    stage->gradient_bytes = arena->used - stage->weight_bytes;
    stage->exp_avg = take(arena, elements, bytes);
    stage->exp_avg_sq = take(arena, elements, bytes);
    if (stage->kernels->dtype != DTYPE_F32 && state == STAGE_TRAINS)
        stage->master = take(arena, elements, sizeof(float));
    stage->state_bytes = arena->used - stage->weight_bytes - stage->gradient_bytes;
}

static void lay_out(struct stage *stage, enum stage_state state, struct arena *arena)
{
    const struct stage_sizes *n = &stage->sizes;
    size_t act = dtype_bytes(stage->kernels->dtype);

    stage->weights = take(arena, stage->parameters.elements, act);
    stage->weight_bytes = arena->used;
    lay_out_state(stage, state, arena);
    stage->loss_sum = take(arena, 1, sizeof(double));
    stage->cosine = take(arena, stage->seq_length * n->head_dim / 2, sizeof(float));
    stage->sine = take(arena, stage->seq_length * n->head_dim / 2, sizeof(float));
    lay_out_scratch(stage, arena);
    for (int c = 0; c < layout_chunks(stage->layout); c++)
        lay_out_chunk(stage, &stage->model_chunks[c], arena);
    for (int64_t i = 0; i < stage->deferred_count * stage->layers; i++) {
        stage->deferred[i].mlp = take(arena, n->rows * n->hidden, act);
        stage->deferred[i].attention = take(arena, n->rows * n->hidden, act);
    }
}

/* cos and sin of position * frequency, from the fp32 angle, as transformers takes them. */
static int set_positions(struct stage *stage)
{
    int64_t half = stage->model->head_dim / 2, count = stage->seq_length * half;
    float *cosine = malloc((size_t)count * sizeof(float));
    float *sine = malloc((size_t)count * sizeof(float));
    double *frequencies = malloc((size_t)half * sizeof(double)), factor;
    const struct kernels *k = stage->kernels;
    struct error error;
    int result = -1;

    if (!cosine || !sine || !frequencies)
        goto out;
    rope_frequencies(stage->model, stage->seq_length, frequencies, &factor);
    for (int64_t i = 0; i < half; i++) {
        float frequency = (float)frequencies[i];

        for (int64_t position = 0; position < stage->seq_length; position++) {
            float angle = (float)position * frequency;

            cosine[position * half + i] = (float)(cos((double)angle) * factor);
            sine[position * half + i] = (float)(sin((double)angle) * factor);
        }
    }
    k->to_device(stage->stream, stage->cosine, cosine, (size_t)count * sizeof(float));
    k->to_device(stage->stream, stage->sine, sine, (size_t)count * sizeof(float));
    result = k->stream_sync(stage->stream, &error);
out:
    free(cosine);
    free(sine);
    free(frequencies);
    return result;
}

static int prepare_product(const struct stage *stage, int64_t rows, int64_t in, int64_t out,
                           struct error *error)
{
    return rows == 0 ? 0 : stage->kernels->linear_prepare(rows, in, out, error);
}

static int prepare_layers(const struct stage *stage, int64_t rows, struct error *error)
{
    const struct stage_sizes *n = &stage->sizes;

    if (prepare_product(stage, rows, n->hidden, n->qkv_width, error) < 0 ||
        prepare_product(stage, rows, n->mixed_width, n->hidden, error) < 0 ||
        prepare_product(stage, rows, n->hidden, n->mlp_width, error) < 0)
        return -1;
    return prepare_product(stage, rows, n->ffn, n->hidden, error);
}

/* Before the memory is taken, because measuring takes some too. */
static int prepare_products(const struct stage *stage, struct error *error)
{
    const struct stage_sizes *n = &stage->sizes;
    int64_t near = stage->layout->tp / 2 * n->shard_rows, rest = n->rows % n->head_rows;

    if (prepare_layers(stage, n->rows, error) < 0 ||
        (stage->sequence_parallel && (prepare_layers(stage, near, error) < 0 ||
                                      prepare_layers(stage, n->rows - near, error) < 0)))
        return -1;
    if (stage->last &&
        (prepare_product(stage, n->head_rows, n->hidden, n->vocab_count, error) < 0 ||
         prepare_product(stage, rest, n->hidden, n->vocab_count, error) < 0))
        return -1;
    return 0;
}

/* Splitting backward pays where the simulated batch is shorter, forward, the gradient of the input
 * and that of the weights taking alike and the latter a twentieth more when it comes later, for
 * what is copied. Not with tensor parallelism, whose sums travel beside the weights' gradients, nor
 * where backward computes again what these need. */
static bool splitting_pays(const struct stage *stage, struct pipeline_shape shape)
{
    static const struct pipeline_costs costs = {{[PIPELINE_FORWARD] = 1,
                                                 [PIPELINE_BACKWARD] = 2,
                                                 [PIPELINE_INPUT_GRADIENT] = 1,
                                                 [PIPELINE_WEIGHT_GRADIENT] = 1.05}};
    double whole, split;

    if (shape.stages == 1 || shape.chunks > 1 || stage->layout->tp > 1 ||
        stage->recompute != RECOMPUTE_NONE)
        return false;
    whole = pipeline_duration(&shape, &costs);
    shape.schedule = PIPELINE_ZERO_BUBBLE;
    split = pipeline_duration(&shape, &costs);
    return split > 0 && split < whole;
}

static enum pipeline_schedule schedule_of(const struct stage *stage, const struct stage_work *work,
                                          struct pipeline_shape shape)
{
    if (work->state == STAGE_EVALUATES)
        return PIPELINE_FORWARD_ONLY;
    shape.schedule = PIPELINE_1F1B;
    return work->split == STAGE_SPLIT_ALWAYS ||
                   (work->split == STAGE_SPLIT_AUTO && splitting_pays(stage, shape))
               ? PIPELINE_ZERO_BUBBLE
               : PIPELINE_1F1B;
}

/* How many buffers the chunks need, whatever the number of microbatches in a step. */
static int count_buffers(struct stage *stage, const struct stage_work *work)
{
    bool training = work->state != STAGE_EVALUATES;
    int64_t fewest = work->fewest_microbatches > 0 ? work->fewest_microbatches : work->microbatches;
    struct pipeline_shape *shape = &stage->pipeline;

    *shape = (struct pipeline_shape){
        .stages = stage->layout->pp,
        .chunks = layout_chunks(stage->layout),
        .microbatches = work->microbatches,
    };
    shape->schedule = schedule_of(stage, work, *shape);
    if (pipeline_order_create(&stage->order, shape) < 0)
        return -1;
    for (shape->microbatches = fewest;;
         shape->microbatches = pipeline_next_count(shape, fewest, work->microbatches)) {
        int64_t waiting = pipeline_gradients_waiting(shape, stage->place.pp);

        pipeline_order_set(&stage->order, shape, stage->place.pp);
        stage->deferred_count =
            larger(stage->deferred_count, pipeline_order_deferred(&stage->order));
        for (int c = 0; c < shape->chunks; c++) {
            struct model_chunk *chunk = &stage->model_chunks[c];
            int64_t slots = pipeline_order_in_flight(&stage->order, c);

            chunk->slot_count = larger(chunk->slot_count, slots);
            chunk->input_count =
                chunk->slot_count + (!chunk->first && chunk->slot_count < work->microbatches);
            if (training)
                chunk->gradient_count = larger(chunk->gradient_count, slots + waiting);
        }
        if (shape->microbatches == work->microbatches)
            return 0;
    }
}

static int create_slots(struct model_chunk *chunk)
{
    chunk->slots = calloc((size_t)chunk->slot_count, sizeof(*chunk->slots));
    chunk->inputs = calloc((size_t)chunk->input_count, sizeof(*chunk->inputs));
    chunk->gradients = calloc((size_t)chunk->gradient_count + 1, sizeof(*chunk->gradients));
    if (!chunk->slots || !chunk->inputs || !chunk->gradients)
        return -1;
    for (int64_t i = 0; i < chunk->slot_count; i++) {
        struct slot *slot = &chunk->slots[i];

        slot->chunk = chunk;
        slot->blocks = calloc((size_t)chunk->layers, sizeof(*slot->blocks));
        if (!slot->blocks)
            return -1;
    }
    return 0;
}

static int create_chunks(struct stage *stage, const struct stage_work *work)
{
    const struct layout *layout = stage->layout;
    int64_t recompute = work->recompute == RECOMPUTE_FULL ? work->recompute_layers : 0;
    int count = layout_chunks(layout);

    stage->model_chunks = calloc((size_t)count, sizeof(*stage->model_chunks));
    if (!stage->model_chunks)
        return -1;
    for (int c = 0; c < count; c++) {
        struct model_chunk *chunk = &stage->model_chunks[c];
        int at = c * layout->pp + stage->place.pp;
        int64_t first = layout_first_layer(layout, stage->model, at);
        int64_t layers = layout_first_layer(layout, stage->model, at + 1) - first;
        int64_t again = recompute - stage->recompute_layers;

        *chunk = (struct model_chunk){
            .first_layer = first,
            .layers = layers,
            .recompute_layers = again < layers ? again : layers,
            .first = at == 0,
            .last = at == layout_virtual_stages(layout) - 1,
        };
        stage->layers += layers;
        stage->recompute_layers += chunk->recompute_layers;
    }
    if (count_buffers(stage, work) < 0)
        return -1;
    for (int c = 0; c < count; c++)
        if (create_slots(&stage->model_chunks[c]) < 0)
            return -1;
    stage->deferred =
        calloc((size_t)(stage->deferred_count * stage->layers) + 1, sizeof(*stage->deferred));
    return stage->deferred ? 0 : -1;
}

static void destroy_chunks(struct stage *stage)
{
    for (int c = 0; stage->model_chunks && c < layout_chunks(stage->layout); c++) {
        struct model_chunk *chunk = &stage->model_chunks[c];

        for (int64_t i = 0; chunk->slots && i < chunk->slot_count; i++)
            free(chunk->slots[i].blocks);
        free(chunk->slots);
        free(chunk->inputs);
        free(chunk->gradients);
    }
    free(stage->model_chunks);
    free(stage->deferred);
}

/* Pieces of the stage's memory, of which there is none yet where it is measured only. */
static size_t lay_out_all(struct stage *stage, enum stage_state state)
{
    struct arena arena = {.base = stage->memory};

    lay_out(stage, state, &arena);
    return arena.used;
}

int stage_measure(struct stage *stage, const struct kernels *kernels, const struct model *model,
                  const struct layout *layout, struct layout_place place,
                  const struct stage_work *work, struct error *error)
{
    *stage = (struct stage){
        .kernels = kernels,
        .model = model,
        .layout = layout,
        .place = place,
        .micro_batch = work->micro_batch,
        .seq_length = work->seq_length,
        .sequences = work->sequences,
        .recompute = work->recompute,
        .dropout = work->dropout,
        .first = place.pp == 0,
        .last = place.pp == layout->pp - 1,
        .moments = work->state == STAGE_TRAINS_BF16 ? DTYPE_BF16 : DTYPE_F32,
        .shares = work->zero && work->state != STAGE_EVALUATES ? layout_replicas(layout) : 1,
        .replica = layout_replica(layout, place),
    };
    stage->sequence_parallel = work->sequence_parallel && layout->tp > 1;
    set_sizes(stage);
    if (parameters_create(&stage->parameters, model, layout, place, error) < 0)
        return -1;
    if (parameters_share(&stage->parameters, stage->shares > 1 ? stage->replica : 0, stage->shares,
                         &stage->pieces, &stage->piece_count, error) < 0) {
        stage_destroy(stage);
        return -1;
    }
    stage->state_elements = stage->parameters.elements / stage->shares;
    stage->gathered = stage->gathering = stage->parameters.bucket_count;
    if (create_chunks(stage, work) < 0)
        goto no_memory;
    stage->memory_bytes = lay_out_all(stage, work->state);
    return 0;
no_memory:
    stage_destroy(stage);
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

int stage_create(struct stage *stage, const struct kernels *kernels, const struct model *model,
                 const struct layout *layout, struct layout_place place,
                 const struct comm_groups *groups, const struct stage_work *work,
                 struct error *error)
{
    if (stage_measure(stage, kernels, model, layout, place, work, error) < 0)
        return -1;
    stage->groups = groups;
    if (prepare_products(stage, error) < 0) {
        stage_destroy(stage);
        return -1;
    }
    stage->memory = kernels->allocate(stage->memory_bytes);
    if (!stage->memory)
        goto no_memory;
    lay_out_all(stage, work->state);
    if (set_positions(stage) < 0)
        goto no_memory;
    if (layout_replicas(layout) > 1 && work->state != STAGE_EVALUATES)
        stage->reductions = kernels->stream_create();
    if (layout->tp > 1)
        stage->sums = kernels->stream_create();
    if (stage->sequence_parallel)
        stage->gathers = kernels->stream_create();
    stage->timeline = timeline_create(kernels);
    if (!stage->timeline)
        goto no_memory;
    return 0;
no_memory:
    error_set(error, EXIT_STATUS_SYSTEM,
              "out of memory: this rank needs %.2f GiB; use more ranks (--tp, --pp), a smaller "
              "--micro-batch-size or --recompute=selective or full",
              (double)stage->memory_bytes / (1 << 30));
    stage_destroy(stage);
    return -1;
}

void stage_destroy(struct stage *stage)
{
    if (!stage->kernels)
        return;
    if (stage->reductions)
        stage->kernels->stream_destroy(stage->reductions);
    if (stage->sums)
        stage->kernels->stream_destroy(stage->sums);
    if (stage->gathers)
        stage->kernels->stream_destroy(stage->gathers);
    timeline_destroy(stage->timeline);
    if (stage->memory)
        stage->kernels->release(stage->memory);
    destroy_chunks(stage);
    pipeline_order_destroy(&stage->order);
    free(stage->pieces);
    parameters_destroy(&stage->parameters);
    *stage = (struct stage){0};
}

int stage_connect(struct stage *stage, struct error *error)
{
    void *const parts[] = {
        [STAGE_WHOLE_NORMED] = stage->scratch.whole[STAGE_WHOLE_NORMED],
        [STAGE_WHOLE_GRADIENT] = stage->scratch.whole[STAGE_WHOLE_GRADIENT],
        [STAGE_WHOLE_COUNT] = stage->scratch.arriving,
    };

    if (!stage->sequence_parallel)
        return 0;
    return comm_window_open(&stage->window, stage->groups->tp, stage->memory, parts,
                            STAGE_WHOLE_COUNT + 1, stage->scratch.flags, error);
}

void stage_disconnect(struct stage *stage)
{
    comm_window_close(stage->window);
    stage->window = NULL;
}

void *stage_weight(const struct stage *stage, int64_t offset)
{
    return (char *)stage->weights + (size_t)offset * dtype_bytes(stage->kernels->dtype);
}

/* The initial values of a rectangle of a parameter. */
static void fill(struct stage *stage, const struct parameter *parameter, const struct tile *tile,
                 void *values, enum dtype dtype, uint64_t seed)
{
    const struct kernels *k = stage->kernels;

    if (parameter->dimensions == 1)
        k->fill(stage->stream, values, dtype, parameter->init_value, tile->rows * tile->columns);
    else
        k->random_normal(stage->stream, values, dtype, tile, parameter->init_std, seed,
                         parameter->random);
}

void stage_randomize(struct stage *stage, uint64_t seed)
{
    for (size_t i = 0; i < stage->parameters.count; i++) {
        const struct parameter *parameter = &stage->parameters.list[i];

        if (parameter->count > 0)
            fill(stage, parameter, &parameter->local, stage_weight(stage, parameter->offset),
                 stage->kernels->dtype, seed);
    }
    for (size_t i = 0; stage->master && i < stage->piece_count; i++) {
        const struct piece *piece = &stage->pieces[i];

        fill(stage, piece->parameter, &piece->tile, stage->master + piece->state, DTYPE_F32, seed);
    }
}

void stage_load(struct stage *stage, struct slot *slot, const struct microbatch *microbatch)
{
    const struct kernels *k = stage->kernels;
    size_t bytes = (size_t)stage->sizes.rows * sizeof(int32_t);

    assert(microbatch->sequences <= stage->sequences);
    if (slot->chunk->first)
        k->to_device(stage->stream, slot->tokens, microbatch->tokens, bytes);
    if (slot->chunk->last) {
        k->to_device(stage->stream, slot->targets, microbatch->targets, bytes);
        k->to_device(stage->stream, slot->weights, microbatch->weights,
                     (size_t)stage->sizes.rows * sizeof(float));
    }
    k->to_device(stage->stream, slot->positions, microbatch->positions, bytes);
    k->to_device(stage->stream, slot->starts, microbatch->starts,
                 (size_t)(microbatch->sequences + 1) * sizeof(int32_t));
    slot->attention = attention_of(stage, microbatch->sequences, microbatch->longest);
    slot->attention.starts = microbatch->starts;
    slot->attention.device_starts = slot->starts;
    slot->first_row = microbatch->first_row;
    slot->training = microbatch->training;
}
