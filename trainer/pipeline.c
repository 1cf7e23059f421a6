#include "trainer/pipeline.h"

/* One walk through a batch. */
struct walk {
    struct stage *stage;
    const struct batch *batch;
    bool training;
    pipeline_logits see;
    void *user;
    int64_t microbatch; /* whose logits are being seen */
};

static struct slot *slot_of(const struct walk *walk, int64_t microbatch)
{
    return &walk->stage->slots[microbatch % walk->stage->slot_count];
}

static int64_t boundary_bytes(const struct stage *stage)
{
    return stage->sizes.shard_rows * stage->sizes.hidden *
           (int64_t)dtype_bytes(stage->kernels->dtype);
}

static void load(const struct walk *walk, struct slot *slot, int64_t m)
{
    const struct batch *batch = walk->batch;
    int64_t at = m * walk->stage->sizes.rows;
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
}

static void see_logits(void *user, int64_t row, int64_t rows, const void *logits)
{
    const struct walk *walk = user;

    walk->see(walk->user, walk->microbatch, row, rows, logits);
}

static void forward(struct walk *walk, int64_t microbatch)
{
    struct stage *stage = walk->stage;
    struct slot *slot = slot_of(walk, microbatch);
    struct comm *pp = stage->groups->pp;
    struct comm_request request = {0};

    stage->last_microbatch = microbatch == walk->batch->microbatches - 1;
    /* What the microbatch that had the slot before sent from its buffers. */
    comm_wait(&slot->sent_forward);
    comm_wait(&slot->sent_backward);
    load(walk, slot, microbatch);
    if (stage->first) {
        embedding_forward(stage, slot);
    } else {
        comm_receive(pp, slot->blocks[0].input, boundary_bytes(stage), stage->place.pp - 1,
                     &request, stage->stream);
        comm_wait(&request);
    }
    blocks_forward(stage, slot);
    if (stage->last) {
        walk->microbatch = microbatch;
        head_forward_backward(stage, slot, walk->training, walk->see ? see_logits : NULL, walk);
    } else {
        comm_send(pp, slot->output, boundary_bytes(stage), stage->place.pp + 1, &slot->sent_forward,
                  stage->stream);
    }
}

static void backward(struct walk *walk, int64_t microbatch)
{
    struct stage *stage = walk->stage;
    struct slot *slot = slot_of(walk, microbatch);
    struct comm *pp = stage->groups->pp;
    struct comm_request request = {0};

    stage->last_microbatch = microbatch == walk->batch->microbatches - 1;
    if (!stage->last) {
        comm_receive(pp, slot->gradient, boundary_bytes(stage), stage->place.pp + 1, &request,
                     stage->stream);
        comm_wait(&request);
    }
    blocks_backward(stage, slot);
    if (stage->first)
        embedding_backward(stage, slot);
    else
        comm_send(pp, slot->gradient, boundary_bytes(stage), stage->place.pp - 1,
                  &slot->sent_backward, stage->stream);
}

static void finish_sends(struct stage *stage)
{
    for (int i = 0; i < stage->slot_count; i++) {
        comm_wait(&stage->slots[i].sent_forward);
        comm_wait(&stage->slots[i].sent_backward);
    }
}

void pipeline_train(struct stage *stage, const struct batch *batch)
{
    struct walk walk = {.stage = stage, .batch = batch, .training = true};
    int64_t ahead = stage->layout->pp - stage->place.pp - 1;

    stage->unreduced = stage->parameters.bucket_count;
    if (ahead > batch->microbatches)
        ahead = batch->microbatches;
    for (int64_t m = 0; m < ahead; m++)
        forward(&walk, m);
    for (int64_t m = 0; m < batch->microbatches; m++) {
        if (m + ahead < batch->microbatches)
            forward(&walk, m + ahead);
        backward(&walk, m);
    }
    finish_sends(stage);
}

void pipeline_evaluate(struct stage *stage, const struct batch *batch, pipeline_logits see,
                       void *user)
{
    struct walk walk = {.stage = stage, .batch = batch, .see = see, .user = user};

    for (int64_t m = 0; m < batch->microbatches; m++)
        forward(&walk, m);
    finish_sends(stage);
}
