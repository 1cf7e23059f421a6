/* Gradients become those of the global batch, and weights whole again.
 *
 * In the last microbatch backward finishes one bucket after the other, from the end of the model to
 * its beginning; each is summed over replicas while backward goes on. With sharded optimizer state
 * (ZeRO-1: Rajbhandari et al., 2020) a replica gets the sum of its share alone, updates that, and
 * the shares of weights are gathered while the next forward has begun: each bucket when the one
 * before it is computed with.
 */
#include "trainer/stage.h"

#include <assert.h>

#include "trainer/profile.h"

/* What this replica updates of a bucket: all of it where nothing is shared. */
static struct bucket share_of(const struct stage *stage, const struct bucket *bucket)
{
    int64_t count = bucket->count / stage->shares;

    return (struct bucket){bucket->first + (stage->shares > 1 ? stage->replica * count : 0), count};
}

/* --- sums --------------------------------------------------------------------------------------
 */

/* Of the roles `first` to `last` of a layer, as far as they are there. */
static void sum_over(struct stage *stage, struct comm *comm, enum tensor_role first,
                     enum tensor_role last, int64_t layer)
{
    const struct parameter *from = parameters_find(&stage->parameters, first, layer);
    const struct parameter *to = parameters_find(&stage->parameters, last, layer);
    enum time_part part;

    if (!from)
        return;
    if (!to)
        to = from;
    part = stage_communicates(stage, stage->stream);
    profile_begin(stage->profile, PROFILE_COMPUTE, "gradient sum");
    comm_all_reduce(comm, stage->gradients + from->offset, to->offset + to->count - from->offset,
                    COMM_F32, COMM_SUM, stage->stream);
    profile_end(stage->profile);
    timeline_enter(stage->timeline, part);
}

/* What tensor-parallel ranks hold the same of, and each has a part of the gradient: of norms, that
 * of its rows; of key/value heads that ranks share, that of its own query heads. */
static void sum_tp_parts(struct stage *stage, int64_t layer)
{
    if (stage->sequence_parallel && layer >= 0) {
        sum_over(stage, stage->groups->tp, TENSOR_INPUT_NORM, TENSOR_INPUT_NORM_BIAS, layer);
        sum_over(stage, stage->groups->tp, TENSOR_MLP_NORM, TENSOR_MLP_NORM_BIAS, layer);
    }
    if (stage->groups->kv && layer >= 0) {
        sum_over(stage, stage->groups->kv, TENSOR_K, TENSOR_V, layer);
        sum_over(stage, stage->groups->kv, TENSOR_K_BIAS, TENSOR_V_BIAS, layer);
    }
}

static void sum_bucket(struct stage *stage, const struct bucket *bucket)
{
    float *gradients = stage->gradients + bucket->first;
    struct bucket share = share_of(stage, bucket);
    enum time_part part;

    if (layout_replicas(stage->layout) == 1)
        return;
    part = stage_communicates(stage, stage->reductions);
    stage->kernels->stream_wait(stage->reductions, stage->stream);
    profile_begin(stage->profile, PROFILE_REDUCTIONS, "gradient bucket");
    if (stage->shares > 1)
        comm_reduce_scatter(stage->groups->replicas, stage->gradients + share.first, gradients,
                            share.count, COMM_F32, stage->reductions);
    else
        comm_all_reduce(stage->groups->replicas, gradients, bucket->count, COMM_F32, COMM_SUM,
                        stage->reductions);
    profile_end(stage->profile);
    timeline_enter(stage->timeline, part);
}

void stage_gradients_done(struct stage *stage, enum tensor_role first, int64_t layer)
{
    const struct parameters *parameters = &stage->parameters;
    int64_t offset = parameters_find(parameters, first, layer)->offset;

    if (!stage->last_microbatch)
        return;
    sum_tp_parts(stage, layer);
    if (stage->sequence_parallel && first == TENSOR_FINAL_NORM)
        sum_over(stage, stage->groups->tp, TENSOR_FINAL_NORM, TENSOR_FINAL_NORM_BIAS, -1);
    while (stage->unreduced > 0 && parameters->buckets[stage->unreduced - 1].first >= offset)
        sum_bucket(stage, &parameters->buckets[--stage->unreduced]);
}

void stage_finish_gradients(struct stage *stage)
{
    const struct parameter *embedding;
    const struct bucket *bucket;
    struct bucket share;
    enum time_part part;

    assert(stage->unreduced == 0);
    if (layout_replicas(stage->layout) > 1)
        stage_wait_for(stage, stage->reductions);
    if (!stage->model->tied_embeddings || !stage->groups->embedding)
        return;
    embedding = parameters_find(&stage->parameters, TENSOR_EMBEDDING, -1);
    if (embedding->count == 0) /* a small vocabulary, of which this rank has no row */
        return;
    /* Both homes of the embedding are a bucket of their own, so replicas share them alike. */
    bucket = stage->first ? stage->parameters.buckets
                          : &stage->parameters.buckets[stage->parameters.bucket_count - 1];
    assert(bucket->first == embedding->offset);
    share = share_of(stage, bucket);
    part = stage_communicates(stage, stage->stream);
    profile_begin(stage->profile, PROFILE_COMPUTE, "gradient sum");
    comm_all_reduce(stage->groups->embedding, stage->gradients + share.first, share.count, COMM_F32,
                    COMM_SUM, stage->stream);
    profile_end(stage->profile);
    timeline_enter(stage->timeline, part);
}

/* --- weights -----------------------------------------------------------------------------------
 */

static void gather_next(struct stage *stage)
{
    const struct bucket *bucket = &stage->parameters.buckets[stage->gathering++];
    struct bucket share = share_of(stage, bucket);
    enum time_part part = stage_communicates(stage, stage->reductions);

    stage->kernels->stream_wait(stage->reductions, stage->stream);
    profile_begin(stage->profile, PROFILE_REDUCTIONS, "weight gather");
    comm_all_gather(stage->groups->replicas, stage_weight(stage, bucket->first),
                    stage_weight(stage, share.first), share.count, stage_comm_type(stage),
                    stage->reductions);
    profile_end(stage->profile);
    timeline_enter(stage->timeline, part);
}

void stage_weights_updated(struct stage *stage)
{
    if (stage->shares == 1)
        return;
    stage->gathering = stage->gathered = 0;
    gather_next(stage);
}

void stage_need_weights(struct stage *stage, enum tensor_role role, int64_t layer)
{
    const struct parameters *parameters = &stage->parameters;
    int64_t offset;

    if (stage->gathered == parameters->bucket_count)
        return;
    offset = parameters_find(parameters, role, layer)->offset;
    while (stage->gathering < parameters->bucket_count &&
           parameters->buckets[stage->gathering].first <= offset)
        gather_next(stage);
    if (stage->gathered > 0 && parameters->buckets[stage->gathered - 1].first +
                                       parameters->buckets[stage->gathered - 1].count >
                                   offset)
        return;
    stage_wait_for(stage, stage->reductions);
    stage->gathered = stage->gathering;
    if (stage->gathering < parameters->bucket_count)
        gather_next(stage);
}
