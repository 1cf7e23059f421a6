/* Carrying out a pipeline's order.
 *
 * A message is sent when the action that made it is done, and nobody waits for that until its
 * buffer is wanted again. What an action needs is received while the one before it is computed,
 * where waiting for it costs nothing meanwhile.
 *
 * That this never stops, also where messages need both ends and are carried out one after the other
 * in each direction (comm_nccl.c):
 *
 * - All stages have the same order of forwards, and one of backwards. So between two neighbours the
 *   messages of a direction are sent in the order in which they are received; those that wrap round
 *   have two directions of their own, in each of which a rank only sends or only receives.
 * - A message from a stage to the next waits, if for anything, for messages before it, and for the
 *   next stage to come to the action that wants it. All that this stage does before that needs only
 *   forwards that are before it in the order too, and backwards of such, because a stage is at most
 *   as many actions ahead of the next as there are microbatches between them. So there is a first
 *   message that waits for nothing, and then a next one.
 * - A receive that is begun early does not wait for what the action at hand will send
 *   (pipeline_receives_early()).
 * - Messages that wrap round may be early: forward they wait in their slot, backward in gradients
 *   that there are more of for that (pipeline_gradients_waiting()).
 *
 * test_pipeline_order.c goes through every such pipeline of up to eight stages.
 */
#include "trainer/pipeline.h"

#include <assert.h>

#include "trainer/profile.h"

/* One walk through a batch. */
struct walk {
    struct stage *stage;
    const struct batch *batch;
    struct pipeline_shape shape;
    const struct pipeline_order *order;
    bool training;
    struct pipeline_observer observer;
    int64_t microbatch; /* whose logits are being seen */
    /* Receives of the action at hand and of the next one. */
    struct comm_request received[2];
    int64_t received_count; /* actions whose receives have begun */
};

static struct slot *slot_of(const struct walk *walk, const struct pipeline_action *action)
{
    const struct model_chunk *chunk = &walk->stage->model_chunks[action->chunk];

    return &chunk->slots[action->microbatch % chunk->slot_count];
}

static void *input_of(const struct walk *walk, const struct pipeline_action *action)
{
    const struct model_chunk *chunk = &walk->stage->model_chunks[action->chunk];

    return chunk->inputs[action->microbatch % chunk->input_count];
}

/* Of a stage that trains. */
static struct boundary_gradient *gradient_of(const struct walk *walk,
                                             const struct pipeline_action *action)
{
    const struct model_chunk *chunk = &walk->stage->model_chunks[action->chunk];

    return &chunk->gradients[action->microbatch % chunk->gradient_count];
}

static int64_t boundary_bytes(const struct stage *stage)
{
    return stage->sizes.shard_rows * stage->sizes.hidden *
           (int64_t)dtype_bytes(stage->kernels->dtype);
}

/* The group that a message goes through, and the other end's rank in it. */
static struct comm *group_of(const struct stage *stage, const struct pipeline_end *end, int *rank)
{
    *rank = end->wraps ? end->stage != 0 : end->stage;
    return end->wraps ? stage->groups->wrap : stage->groups->pp;
}

static void wait_for(struct stage *stage, struct comm_request *request, const char *name)
{
    if (!request->handle)
        return;
    profile_begin(stage->profile, PROFILE_COMPUTE, name);
    comm_wait(request);
    profile_end(stage->profile);
}

/* What the actions up to the given one need. */
static void begin_receives(struct walk *walk, int64_t last)
{
    struct stage *stage = walk->stage;

    for (; walk->received_count <= last && walk->received_count < walk->order->count;
         walk->received_count++) {
        const struct pipeline_action *action = &walk->order->actions[walk->received_count];
        struct pipeline_end source = pipeline_source(&walk->shape, stage->place.pp, action);
        struct comm *group;
        void *buffer;
        int rank;

        if (source.stage < 0)
            continue;
        if (action->work == PIPELINE_FORWARD) {
            buffer = input_of(walk, action);
        } else {
            wait_for(stage, &gradient_of(walk, action)->sent, "send wait");
            buffer = gradient_of(walk, action)->buffer;
        }
        group = group_of(stage, &source, &rank);
        comm_receive(group, buffer, boundary_bytes(stage), rank,
                     &walk->received[walk->received_count % 2], stage->stream);
    }
}

static void send(const struct walk *walk, const struct pipeline_action *action, const void *buffer,
                 struct comm_request *request)
{
    const struct stage *stage = walk->stage;
    struct pipeline_end target = pipeline_target(&walk->shape, stage->place.pp, action);
    struct comm *group;
    int rank;

    if (target.stage < 0)
        return;
    group = group_of(stage, &target, &rank);
    comm_send(group, buffer, boundary_bytes(stage), rank, request, stage->stream);
}

static void load(const struct walk *walk, struct slot *slot, const struct pipeline_action *action)
{
    const struct batch *batch = walk->batch;
    const struct stage *stage = walk->stage;
    int64_t m = action->microbatch;
    int64_t at = m * stage->sizes.attention_rows + stage->place.cp * stage->sizes.rows;
    struct microbatch microbatch = {
        .tokens = batch->tokens + at,
        .targets = batch->targets + at,
        .positions = batch->positions + at,
        .weights = batch->weights + at,
        .sequences = batch->sequences[m].count,
        .longest = batch->sequences[m].longest,
        .starts = batch->sequences[m].starts,
        .first_row = batch->sequences[m].first_row,
        .training = walk->training,
    };

    stage_load(walk->stage, slot, &microbatch);
    slot->blocks[0].input = input_of(walk, action);
    slot->gradient = walk->training ? gradient_of(walk, action)->buffer : NULL;
}

static void see_logits(void *user, int64_t row, int64_t rows, const void *logits)
{
    const struct walk *walk = user;

    walk->observer.see(walk->observer.user, walk->microbatch, row, rows, logits);
}

/* Of a microbatch, while they are there. */
static void hand_out_results(const struct walk *walk, int64_t microbatch)
{
    const struct token_results *results = &walk->observer.results;
    const struct stage *stage = walk->stage;
    const struct kernels *k = stage->kernels;
    int64_t rows = stage->sizes.rows, at = microbatch * rows;

    if (results->loss)
        k->to_host(stage->stream, results->loss + at, stage->scratch.loss,
                   (size_t)rows * sizeof(float));
    if (results->best)
        k->to_host(stage->stream, results->best + at, stage->scratch.best,
                   (size_t)rows * sizeof(int32_t));
}

static void forward(struct walk *walk, const struct pipeline_action *action)
{
    struct stage *stage = walk->stage;
    struct slot *slot = slot_of(walk, action);

    load(walk, slot, action);
    if (slot->chunk->first)
        embedding_forward(stage, slot);
    blocks_forward(stage, slot);
    if (slot->chunk->last) {
        if (walk->training)
            wait_for(stage, &gradient_of(walk, action)->sent, "send wait");
        walk->microbatch = action->microbatch;
        head_forward_backward(stage, slot, walk->training, walk->observer.see ? see_logits : NULL,
                              walk);
        hand_out_results(walk, action->microbatch);
    }
    send(walk, action, slot->output, &slot->sent);
}

static void backward(struct walk *walk, const struct pipeline_action *action)
{
    struct stage *stage = walk->stage;
    struct slot *slot = slot_of(walk, action);
    struct boundary_gradient *gradient = gradient_of(walk, action);

    slot->deferred = NULL;
    if (action->work == PIPELINE_INPUT_GRADIENT)
        slot->deferred =
            &stage->deferred[action->microbatch % stage->deferred_count * stage->layers];
    blocks_backward(stage, slot);
    if (slot->chunk->first)
        embedding_backward(stage, slot);
    send(walk, action, gradient->buffer, &gradient->sent);
}

static void finish_sends(struct stage *stage)
{
    for (int c = 0; c < layout_chunks(stage->layout); c++) {
        struct model_chunk *chunk = &stage->model_chunks[c];

        for (int64_t i = 0; i < chunk->slot_count; i++)
            wait_for(stage, &chunk->slots[i].sent, "send wait");
        for (int64_t i = 0; i < chunk->gradient_count; i++)
            wait_for(stage, &chunk->gradients[i].sent, "send wait");
    }
}

static void profile_begin_action(struct profile *profile, const struct pipeline_action *action)
{
    static const char *const names[] = {
        [PIPELINE_FORWARD] = "forward",
        [PIPELINE_BACKWARD] = "backward",
        [PIPELINE_INPUT_GRADIENT] = "input gradient",
        [PIPELINE_WEIGHT_GRADIENT] = "weight gradient",
    };

    if (profile)
        profile_span_begin(profile, PROFILE_COMPUTE, names[action->work], action->microbatch,
                           action->chunk);
}

static void go(struct walk *walk, enum pipeline_schedule schedule)
{
    struct stage *stage = walk->stage;
    int early;

    walk->shape = stage->pipeline;
    walk->shape.microbatches = walk->batch->microbatches;
    walk->shape.schedule = schedule;
    assert(walk->shape.microbatches <= stage->pipeline.microbatches);
    pipeline_order_set(&stage->order, &walk->shape, stage->place.pp);
    walk->order = &stage->order;
    early = comm_waits_cheaply(stage->groups->pp) && pipeline_receives_early(&walk->shape);
    for (int64_t i = 0; i < walk->order->count; i++) {
        const struct pipeline_action *action = &walk->order->actions[i];

        if (stage->layout->pp > 1)
            timeline_enter(stage->timeline, TIME_PIPELINE);
        begin_receives(walk, i + early);
        wait_for(stage, &walk->received[i % 2], "receive wait");
        if (action->work == PIPELINE_FORWARD) /* by the microbatch before it */
            wait_for(stage, &slot_of(walk, action)->sent, "send wait");
        timeline_enter(stage->timeline,
                       action->work == PIPELINE_FORWARD ? TIME_FORWARD : TIME_BACKWARD);
        stage->last_microbatch = action->microbatch == walk->batch->microbatches - 1;
        profile_begin_action(stage->profile, action);
        if (action->work == PIPELINE_FORWARD)
            forward(walk, action);
        else if (action->work == PIPELINE_WEIGHT_GRADIENT)
            blocks_weights(stage, slot_of(walk, action));
        else
            backward(walk, action);
        profile_end(stage->profile);
    }
    if (stage->layout->pp > 1)
        timeline_enter(stage->timeline, TIME_PIPELINE);
    finish_sends(stage);
    timeline_enter(stage->timeline, TIME_OTHER);
}

void pipeline_train(struct stage *stage, const struct batch *batch)
{
    struct walk walk = {.stage = stage, .batch = batch, .training = true};

    stage->unreduced = stage->parameters.bucket_count;
    go(&walk, stage->pipeline.schedule);
}

void pipeline_evaluate(struct stage *stage, const struct batch *batch,
                       const struct pipeline_observer *observer)
{
    struct walk walk = {.stage = stage, .batch = batch};

    if (observer)
        walk.observer = *observer;
    go(&walk, PIPELINE_FORWARD_ONLY);
}
