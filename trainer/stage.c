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
    int tp = stage->layout->tp;
    struct stage_sizes *sizes = &stage->sizes;

    *sizes = (struct stage_sizes){
        .rows = stage->micro_batch * stage->seq_length,
        .hidden = model->hidden_size,
        .ffn = model->ffn_size / tp,
        .heads = (int)(model->heads / tp),
        .kv_heads = (int)(model->kv_heads * layout_kv_sharing(stage->layout, model) / tp),
        .head_dim = (int)model->head_dim,
    };
    sizes->qkv_width = (int64_t)(sizes->heads + 2 * sizes->kv_heads) * sizes->head_dim;
    sizes->mixed_width = (int64_t)sizes->heads * sizes->head_dim;
    sizes->mlp_width = (model->mlp == MODEL_MLP_SWIGLU ? 2 : 1) * sizes->ffn;
    vocabulary_shard(model, stage->layout, stage->place.tp, &sizes->vocab_first,
                     &sizes->vocab_count);
    sizes->head_rows =
        sizes->rows < stage->kernels->head_rows ? sizes->rows : stage->kernels->head_rows;
}

/* A stage whose microbatches have one sequence a row has no others. */
static struct attention_shape attention_of(const struct stage *stage, int64_t sequences,
                                           int64_t longest)
{
    return (struct attention_shape){
        .rows = stage->sizes.rows,
        .heads = stage->sizes.heads,
        .kv_heads = stage->sizes.kv_heads,
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

    block->normed = keep_normed ? take(arena, n->rows * n->hidden, act) : stage->scratch.dnormed;
    block->mean = layer_norm ? take(arena, n->rows, sizeof(float)) : NULL;
    block->rstd = take(arena, n->rows, sizeof(float));
    block->qkv = take(arena, n->rows * n->qkv_width, act);
    block->mixed = take(arena, n->rows * n->mixed_width, act);
    block->lse = take(arena, n->rows * n->heads, sizeof(float));
    block->middle = sequential ? take(arena, n->rows * n->hidden, act) : NULL;
    block->middle_normed = !two_norms    ? block->normed
                           : keep_normed ? take(arena, n->rows * n->hidden, act)
                                         : stage->scratch.dnormed;
    block->middle_mean = layer_norm && two_norms ? take(arena, n->rows, sizeof(float)) : NULL;
    block->middle_rstd = two_norms ? take(arena, n->rows, sizeof(float)) : NULL;
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
            block->input = take(arena, n->rows * n->hidden, dtype_bytes(stage->kernels->dtype));
    }
}

static void lay_out_chunk(struct stage *stage, struct chunk *chunk, struct arena *arena)
{
    const struct stage_sizes *n = &stage->sizes;
    size_t act = dtype_bytes(stage->kernels->dtype);

    for (int64_t i = 0; i < chunk->input_count; i++)
        chunk->inputs[i] = take(arena, n->rows * n->hidden, act);
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
        slot->output = take(arena, n->rows * n->hidden, act);
    }
    for (int64_t i = 0; i < chunk->gradient_count; i++)
        chunk->gradients[i].buffer = take(arena, n->rows * n->hidden, act);
}

static bool recomputes_layers(const struct stage *stage)
{
    return stage->chunks[0].recompute_layers > 0;
}

static void lay_out_scratch(struct stage *stage, struct arena *arena)
{
    const struct stage_sizes *n = &stage->sizes;
    struct scratch *scratch = &stage->scratch;
    size_t act = dtype_bytes(stage->kernels->dtype);
    struct attention_shape attention = attention_of(stage, stage->sequences, stage->seq_length);

    scratch->branch = take(arena, n->rows * n->hidden, act);
    scratch->dnormed = take(arena, n->rows * n->hidden, act);
    scratch->dwide = take(arena, n->rows * larger(n->mlp_width, n->qkv_width), act);
    scratch->dmixed = take(arena, n->rows * larger(n->ffn, n->mixed_width), act);
    scratch->attention = take(arena, (int64_t)stage->kernels->attention_workspace(&attention), 1);
    if (stage->dropout.rate > 0)
        scratch->dropped = take(arena, n->rows * n->hidden, act);
    if (recomputes_layers(stage))
        lay_out_block(stage, &scratch->again, arena);
    if (!stage->last)
        return;
    scratch->final_normed = take(arena, n->rows * n->hidden, act);
    scratch->final_mean = take(arena, n->rows, sizeof(float));
    scratch->final_rstd = take(arena, n->rows, sizeof(float));
    scratch->logits = take(arena, n->head_rows * n->vocab_count, act);
    scratch->maximum = take(arena, n->head_rows, sizeof(float));
    scratch->global = take(arena, n->head_rows, sizeof(float));
    scratch->sums = take(arena, 2 * n->head_rows, sizeof(float));
    scratch->loss = take(arena, n->rows, sizeof(float));
    scratch->best = take(arena, n->head_rows, sizeof(int32_t));
}

static void lay_out_state(struct stage *stage, enum stage_state state, struct arena *arena)
{
    int64_t elements = stage->parameters.elements;
    size_t bytes = dtype_bytes(stage->moments);

    if (state == STAGE_EVALUATES)
        return;
    stage->gradients = take(arena, elements, sizeof(float));
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
    for (int c = 0; c < stage->layout->chunks; c++)
        lay_out_chunk(stage, &stage->chunks[c], arena);
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

/* Before the memory is taken, because measuring takes some too. */
static int prepare_products(const struct stage *stage, struct error *error)
{
    const struct stage_sizes *n = &stage->sizes;
    int64_t rest = n->rows % n->head_rows;
    const int64_t products[][3] = {
        {n->rows, n->hidden, n->qkv_width},        {n->rows, n->mixed_width, n->hidden},
        {n->rows, n->hidden, n->mlp_width},        {n->rows, n->ffn, n->hidden},
        {n->head_rows, n->hidden, n->vocab_count}, {rest, n->hidden, n->vocab_count},
    };
    int count = !stage->last ? 4 : rest == 0 ? 5 : 6;

    for (int i = 0; i < count; i++)
        if (stage->kernels->linear_prepare(products[i][0], products[i][1], products[i][2], error) <
            0)
            return -1;
    return 0;
}

/* In what order the stage will work, which says how many microbatches are in flight. */
static int plan_pipeline(struct stage *stage, const struct stage_work *work)
{
    struct pipeline_shape evaluation;

    stage->pipeline = (struct pipeline_shape){
        .stages = stage->layout->pp,
        .chunks = stage->layout->chunks,
        .microbatches = work->microbatches,
        .schedule = PIPELINE_1F1B,
    };
    evaluation = stage->pipeline;
    evaluation.schedule = PIPELINE_FORWARD_ONLY;
    if (work->state != STAGE_EVALUATES &&
        pipeline_order_create(&stage->training, &stage->pipeline, stage->place.pp) < 0)
        return -1;
    return pipeline_order_create(&stage->evaluation, &evaluation, stage->place.pp);
}

static int create_slots(const struct stage *stage, struct chunk *chunk, int64_t microbatches)
{
    bool training = stage->training.count > 0;

    chunk->input_count = chunk->slot_count;
    if (!chunk->first && chunk->input_count < microbatches)
        chunk->input_count++;
    chunk->slots = calloc((size_t)chunk->slot_count, sizeof(*chunk->slots));
    chunk->inputs = calloc((size_t)chunk->input_count, sizeof(*chunk->inputs));
    if (training)
        chunk->gradient_count =
            chunk->slot_count + pipeline_gradients_waiting(&stage->pipeline, stage->place.pp);
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

    stage->chunks = calloc((size_t)layout->chunks, sizeof(*stage->chunks));
    if (!stage->chunks)
        return -1;
    for (int c = 0; c < layout->chunks; c++) {
        struct chunk *chunk = &stage->chunks[c];
        int at = c * layout->pp + stage->place.pp;
        int64_t first = layout_first_layer(layout, stage->model, at);
        int64_t layers = layout_first_layer(layout, stage->model, at + 1) - first;

        *chunk = (struct chunk){
            .first_layer = first,
            .layers = layers,
            .recompute_layers = recompute < layers ? recompute : layers,
            .first = at == 0,
            .last = at == layout_virtual_stages(layout) - 1,
            .slot_count = pipeline_order_in_flight(
                stage->training.count > 0 ? &stage->training : &stage->evaluation, c),
        };
        recompute -= chunk->recompute_layers;
        if (create_slots(stage, chunk, work->microbatches) < 0)
            return -1;
    }
    return 0;
}

static void destroy_chunks(struct stage *stage)
{
    for (int c = 0; stage->chunks && c < stage->layout->chunks; c++) {
        struct chunk *chunk = &stage->chunks[c];

        for (int64_t i = 0; chunk->slots && i < chunk->slot_count; i++)
            free(chunk->slots[i].blocks);
        free(chunk->slots);
        free(chunk->inputs);
        free(chunk->gradients);
    }
    free(stage->chunks);
}

int stage_create(struct stage *stage, const struct kernels *kernels, const struct model *model,
                 const struct layout *layout, struct layout_place place,
                 const struct comm_groups *groups, const struct stage_work *work,
                 struct error *error)
{
    struct arena arena = {0};

    *stage = (struct stage){
        .kernels = kernels,
        .model = model,
        .layout = layout,
        .place = place,
        .groups = groups,
        .micro_batch = work->micro_batch,
        .seq_length = work->seq_length,
        .sequences = work->sequences,
        .recompute = work->recompute,
        .dropout = work->dropout,
        .first = place.pp == 0,
        .last = place.pp == layout->pp - 1,
        .moments = work->state == STAGE_TRAINS_BF16 ? DTYPE_BF16 : DTYPE_F32,
    };
    set_sizes(stage);
    if (parameters_create(&stage->parameters, model, layout, place, error) < 0)
        return -1;
    if (plan_pipeline(stage, work) < 0 || create_chunks(stage, work) < 0)
        goto no_memory;
    lay_out(stage, work->state, &arena);
    stage->memory_bytes = arena.used;
    if (prepare_products(stage, error) < 0) {
        stage_destroy(stage);
        return -1;
    }
    stage->memory = kernels->allocate(arena.used);
    if (!stage->memory)
        goto no_memory;
    arena = (struct arena){.base = stage->memory};
    lay_out(stage, work->state, &arena);
    if (set_positions(stage) < 0)
        goto no_memory;
    if (layout->dp > 1 && work->state != STAGE_EVALUATES)
        stage->reductions = kernels->stream_create();
    if (layout->tp > 1 && work->state != STAGE_EVALUATES)
        stage->sums = kernels->stream_create();
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
    stage->kernels->stream_destroy(stage->reductions);
    stage->kernels->stream_destroy(stage->sums);
    if (stage->memory)
        stage->kernels->release(stage->memory);
    destroy_chunks(stage);
    pipeline_order_destroy(&stage->training);
    pipeline_order_destroy(&stage->evaluation);
    parameters_destroy(&stage->parameters);
    *stage = (struct stage){0};
}

void *stage_weight(const struct stage *stage, int64_t offset)
{
    return (char *)stage->weights + (size_t)offset * dtype_bytes(stage->kernels->dtype);
}

void stage_randomize(struct stage *stage, uint64_t seed)
{
    const struct kernels *k = stage->kernels;

    for (size_t i = 0; i < stage->parameters.count; i++) {
        const struct parameter *parameter = &stage->parameters.list[i];
        void *weight = stage_weight(stage, parameter->offset);
        void *finest = stage->master ? stage->master + parameter->offset : weight;
        enum dtype dtype = stage->master ? DTYPE_F32 : k->dtype;

        if (parameter->count == 0)
            continue;
        if (parameter->dimensions == 1)
            k->fill(stage->stream, finest, dtype, parameter->init_value, parameter->count);
        else
            k->random_normal(stage->stream, finest, dtype, &parameter->local, parameter->init_std,
                             seed, parameter->random);
        if (finest != weight)
            k->convert(stage->stream, weight, k->dtype, finest, dtype, parameter->count);
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

static void sum_over_tp(struct stage *stage, void *buffer, struct stream *stream)
{
    static const enum comm_type types[] = {
        [DTYPE_F32] = COMM_F32,
        [DTYPE_BF16] = COMM_BF16,
        [DTYPE_F16] = COMM_F16,
    };

    comm_all_reduce(stage->groups->tp, buffer, stage->sizes.rows * stage->sizes.hidden,
                    types[stage->kernels->dtype], COMM_SUM, stream);
}

void stage_sum_over_tp(struct stage *stage, void *buffer)
{
    if (stage->layout->tp > 1)
        sum_over_tp(stage, buffer, stage->stream);
}

void stage_sum_begin(struct stage *stage, void *buffer)
{
    if (stage->layout->tp == 1)
        return;
    stage->kernels->stream_wait(stage->sums, stage->stream);
    sum_over_tp(stage, buffer, stage->sums);
}

void stage_sum_end(struct stage *stage)
{
    if (stage->layout->tp > 1)
        stage->kernels->stream_wait(stage->stream, stage->sums);
}

void stage_gradients_done(struct stage *stage, int64_t offset)
{
    int64_t count = stage->unreduced - offset;

    if (!stage->last_microbatch || stage->layout->dp == 1 || count <= 0)
        return;
    stage->kernels->stream_wait(stage->reductions, stage->stream);
    comm_all_reduce(stage->groups->dp, stage->gradients + offset, count, COMM_F32, COMM_SUM,
                    stage->reductions);
    stage->unreduced = offset;
}
