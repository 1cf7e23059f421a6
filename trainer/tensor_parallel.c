/* How tensor-parallel ranks come by the same activations.
 *
 * Each rank computes a part of every branch for all rows of a microbatch; what a branch adds to the
 * residual stream is the sum of the parts. Without sequence parallelism that is an all-reduce, and
 * every rank holds the whole stream. With it (Korthikanti et al., 2022) a rank holds the stream's
 * shard of rows: what a branch reads is gathered, what it gives is reduce-scattered, and norms,
 * dropout and messages between pipeline stages are of a shard.
 *
 * Rows go in chunks, so that one chunk travels while another one is multiplied. Of every chunk each
 * rank's shard has its part, in rank order: a gathered chunk is rows that follow each other.
 */
#include "trainer/stage.h"

static enum comm_type type_of(const struct stage *stage)
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

static void *chunk_of_shard(const struct stage *stage, const void *shard, int chunk)
{
    const struct stage_sizes *n = &stage->sizes;

    return stage_rows(stage, shard, chunk * n->part_rows, n->hidden);
}

static void *chunk_of_whole(const struct stage *stage, const void *whole, int chunk)
{
    const struct stage_sizes *n = &stage->sizes;

    return stage_rows(stage, whole, chunk * n->chunk_rows, n->hidden);
}

static void gather(struct stage *stage, const void *shard, void *whole, int chunk)
{
    comm_all_gather(stage->groups->tp, chunk_of_whole(stage, whole, chunk),
                    chunk_of_shard(stage, shard, chunk),
                    stage->sizes.part_rows * stage->sizes.hidden, type_of(stage), stage->sums);
}

const void *stage_gather_chunk(struct stage *stage, const void *shard, void *whole, int chunk)
{
    const struct kernels *k = stage->kernels;

    if (!stage->sequence_parallel)
        return chunk_of_whole(stage, shard, chunk);
    if (chunk == 0) {
        k->stream_wait(stage->sums, stage->stream);
        gather(stage, shard, whole, chunk);
    }
    k->stream_wait(stage->stream, stage->sums);
    if (chunk + 1 < stage->sizes.chunks)
        gather(stage, shard, whole, chunk + 1);
    return chunk_of_whole(stage, whole, chunk);
}

const void *stage_gather_begin(struct stage *stage, const void *shard, void *whole)
{
    if (!stage->sequence_parallel)
        return shard;
    stage->kernels->stream_wait(stage->sums, stage->stream);
    for (int chunk = 0; chunk < stage->sizes.chunks; chunk++)
        gather(stage, shard, whole, chunk);
    return whole;
}

void stage_gather_end(struct stage *stage)
{
    if (stage->sequence_parallel)
        stage->kernels->stream_wait(stage->stream, stage->sums);
}

void *stage_parts(const struct stage *stage, void *shard)
{
    return stage->sequence_parallel ? stage->scratch.parts : shard;
}

void stage_sum_chunk(struct stage *stage, void *shard, int chunk)
{
    const struct stage_sizes *n = &stage->sizes;

    if (stage->layout->tp == 1)
        return;
    stage->kernels->stream_wait(stage->sums, stage->stream);
    if (stage->sequence_parallel)
        comm_reduce_scatter(stage->groups->tp, chunk_of_shard(stage, shard, chunk),
                            chunk_of_whole(stage, stage->scratch.parts, chunk),
                            n->part_rows * n->hidden, type_of(stage), stage->sums);
    else
        comm_all_reduce(stage->groups->tp, chunk_of_whole(stage, shard, chunk),
                        n->chunk_rows * n->hidden, type_of(stage), COMM_SUM, stage->sums);
}

void stage_sum_begin(struct stage *stage, void *shard)
{
    for (int chunk = 0; chunk < stage->sizes.chunks; chunk++)
        stage_sum_chunk(stage, shard, chunk);
}

void stage_sum_end(struct stage *stage)
{
    if (stage->layout->tp > 1)
        stage->kernels->stream_wait(stage->stream, stage->sums);
}

int64_t stage_shard_row(const struct stage *stage, int chunk)
{
    const struct stage_sizes *n = &stage->sizes;

    return stage->place.cp * n->rows + chunk * n->chunk_rows +
           (stage->sequence_parallel ? stage->place.tp * n->part_rows : 0);
}
