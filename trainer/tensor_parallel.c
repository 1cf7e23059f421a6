/* How tensor-parallel ranks come by the same activations.
 *
 * Each rank computes a part of every branch for all rows of a microbatch; what a branch adds to the
 * residual stream is the sum of the parts. Without sequence parallelism that is an all-reduce, and
 * every rank holds the whole stream. With it (Korthikanti et al., 2022) a rank holds the stream's
 * shard of rows: what a branch reads is gathered, what it gives is reduce-scattered, and norms,
 * dropout and messages between pipeline stages are of a shard.
 * In backward, what travels does so beside a product. Cutting rows into chunks, so that one travels
 * while another one is multiplied in forward too, was slower on GPUs: products of half the rows,
 * and with NCCL's kernels beside them, lost more than that gained.
 */
#include "trainer/profile.h"
#include "trainer/stage.h"

enum comm_type stage_comm_type(const struct stage *stage)
{
    static const enum comm_type types[] = {
        [DTYPE_F32] = COMM_F32,
        [DTYPE_BF16] = COMM_BF16,
        [DTYPE_F16] = COMM_F16,
    };

    return types[stage->kernels->dtype];
}

void *stage_rows(const struct stage *stage, const void *buffer, int64_t row, int64_t width)
{
    return (char *)buffer + (size_t)(row * width) * dtype_bytes(stage->kernels->dtype);
}

const void *stage_gather_begin(struct stage *stage, const void *shard, void *whole)
{
    if (!stage->sequence_parallel)
        return shard;
    stage->kernels->stream_wait(stage->sums, stage->stream);
    profile_begin(stage->profile, PROFILE_SUMS, "tp gather");
    comm_all_gather(stage->groups->tp, whole, shard, stage->sizes.shard_rows * stage->sizes.hidden,
                    stage_comm_type(stage), stage->sums);
    profile_end(stage->profile);
    return whole;
}

void stage_gather_end(struct stage *stage)
{
    if (stage->sequence_parallel)
        stage->kernels->stream_wait(stage->stream, stage->sums);
}

const void *stage_gather(struct stage *stage, const void *shard, void *whole)
{
    const void *gathered = stage_gather_begin(stage, shard, whole);

    stage_gather_end(stage);
    return gathered;
}

void *stage_parts(const struct stage *stage, void *shard)
{
    return stage->sequence_parallel ? stage->scratch.parts : shard;
}

void stage_sum_begin(struct stage *stage, void *shard)
{
    int64_t count = stage->sizes.shard_rows * stage->sizes.hidden;

    if (stage->layout->tp == 1)
        return;
    stage->kernels->stream_wait(stage->sums, stage->stream);
    profile_begin(stage->profile, PROFILE_SUMS, "tp sum");
    if (stage->sequence_parallel)
        comm_reduce_scatter(stage->groups->tp, shard, stage->scratch.parts, count,
                            stage_comm_type(stage), stage->sums);
    else
        comm_all_reduce(stage->groups->tp, shard, count, stage_comm_type(stage), COMM_SUM,
                        stage->sums);
    profile_end(stage->profile);
}

void stage_sum_end(struct stage *stage)
{
    if (stage->layout->tp > 1)
        stage->kernels->stream_wait(stage->stream, stage->sums);
}

void stage_sum(struct stage *stage, void *shard)
{
    stage_sum_begin(stage, shard);
    stage_sum_end(stage);
}

int64_t stage_first_row(const struct stage *stage)
{
    return stage->place.cp * stage->sizes.rows +
           (stage->sequence_parallel ? stage->place.tp * stage->sizes.shard_rows : 0);
}
