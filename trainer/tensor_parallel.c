/* How tensor-parallel ranks come by the same activations.
 *
 * Each rank computes a part of every branch for all rows of a microbatch; what a branch adds to the
 * residual stream is the sum of the parts. Without sequence parallelism that is an all-reduce, and
 * every rank holds the whole stream. With it (Korthikanti et al., 2022) a rank holds the stream's
 * shard of rows: what a branch reads is gathered, what it gives is reduce-scattered, and norms,
 * dropout and messages between pipeline stages are of a shard.
 *
 * Where ranks have their memory open to each other, shards are copied there by copy engines, and
 * products are done in two pieces: of the half of the rows that this rank's shard is in, and of the
 * other one. What is gathered of the far half travels while the near half is multiplied; what is
 * to be summed there travels while the near half is computed. With two ranks nothing is left to
 * wait for; with more, the other shards of the near half are. Through NCCL, whose kernels take
 * multiprocessors from the products beside them, pieces cost more than they gain: there everything
 * travels at once, in backward beside a product.
 */
#include "trainer/profile.h"
#include "trainer/stage.h"

/* The part of the window in which parts of sums arrive. */
enum { WINDOW_SUM = STAGE_WHOLE_COUNT };

enum comm_type stage_comm_type(const struct stage *stage)
{
    static const enum comm_type types[] = {
        [DTYPE_F32] = COMM_F32,
        [DTYPE_BF16] = COMM_BF16,
        [DTYPE_F16] = COMM_F16,
    };

    return types[stage->kernels->dtype];
}

enum time_part stage_communicates(const struct stage *stage, const struct stream *stream)
{
    return stream ? timeline_part(stage->timeline)
                  : timeline_enter(stage->timeline, TIME_COMMUNICATION);
}

void stage_wait_for(const struct stage *stage, struct stream *stream)
{
    enum time_part part = timeline_part(stage->timeline);

    if (stream)
        timeline_enter(stage->timeline, TIME_COMMUNICATION);
    stage->kernels->stream_wait(stage->stream, stream);
    timeline_enter(stage->timeline, part);
}

void *stage_rows(const struct stage *stage, const void *buffer, int64_t row, int64_t width)
{
    return (char *)buffer + (size_t)(row * width) * dtype_bytes(stage->kernels->dtype);
}

/* --- pieces ----------------------------------------------------------------------------------- */

/* Ranks, and shards, [first, end). */
struct ranks {
    int first, end;
};

static struct ranks half(const struct stage *stage, bool near)
{
    int tp = stage->layout->tp, middle = tp / 2;

    return near == (stage->place.tp < middle) ? (struct ranks){0, middle}
                                              : (struct ranks){middle, tp};
}

static struct piece_of_rows rows_of(const struct stage *stage, struct ranks ranks)
{
    int64_t shard = stage->sizes.shard_rows;

    return (struct piece_of_rows){ranks.first * shard, (ranks.end - ranks.first) * shard};
}

static struct piece_of_rows all_rows(const struct stage *stage)
{
    return (struct piece_of_rows){0, stage->sizes.rows};
}

int stage_pieces(const struct stage *stage)
{
    return stage->window ? 2 : 1;
}

static size_t shard_bytes(const struct stage *stage)
{
    return (size_t)(stage->sizes.shard_rows * stage->sizes.hidden) *
           dtype_bytes(stage->kernels->dtype);
}

/* Of a [rows, hidden] buffer. */
static void *shard_of(const struct stage *stage, const void *whole, int rank)
{
    return (char *)whole + (size_t)rank * shard_bytes(stage);
}

/* What ranks have put into a part, and, unless it is NULL, what `stream` does. A mark of time holds
 * up the stream that computes a little, so there are none where nothing is waited for. */
static void wait_for(struct stage *stage, int part, struct ranks ranks, struct stream *stream)
{
    enum time_part doing;

    if (!stream && ranks.end - ranks.first == 1 && ranks.first == stage->place.tp)
        return;
    doing = timeline_enter(stage->timeline, TIME_COMMUNICATION);
    profile_begin(stage->profile, PROFILE_COMPUTE, "tp wait");
    for (int rank = ranks.first; rank < ranks.end; rank++)
        if (rank != stage->place.tp)
            comm_window_wait(stage->window, part, rank, stage->stream);
    if (stream)
        stage->kernels->stream_wait(stage->stream, stream);
    profile_end(stage->profile);
    timeline_enter(stage->timeline, doing);
}

/* --- gathering -------------------------------------------------------------------------------- */

static void put_shard(struct stage *stage, const void *shard, int which, struct ranks ranks)
{
    size_t bytes = shard_bytes(stage);

    for (int rank = ranks.first; rank < ranks.end; rank++)
        if (rank != stage->place.tp)
            comm_window_put(stage->window, which, rank, (size_t)stage->place.tp * bytes, shard,
                            bytes, stage->gathers);
}

/* Through NCCL or MPI: whole. */
static void gather_all(struct stage *stage, const void *shard, void *whole)
{
    enum time_part doing = stage_communicates(stage, stage->gathers);

    comm_all_gather(stage->groups->tp, whole, shard, stage->sizes.shard_rows * stage->sizes.hidden,
                    stage_comm_type(stage), stage->gathers);
    timeline_enter(stage->timeline, doing);
}

static void gather_by_pieces(struct stage *stage, const void *shard, enum stage_whole which,
                             bool keep)
{
    const struct kernels *k = stage->kernels;
    void *mine = shard_of(stage, stage->scratch.whole[which], stage->place.tp);
    bool alone = stage->layout->tp == 2; /* in its half */

    comm_window_turn(stage->window, which, stage->gathers);
    if (!alone)
        k->copy(stage->stream, mine, shard, shard_bytes(stage));
    put_shard(stage, shard, which, half(stage, true));
    put_shard(stage, shard, which, half(stage, false));
    if (alone && keep)
        k->copy(stage->gathers, mine, shard, shard_bytes(stage));
}

void stage_gather_begin(struct stage *stage, const void *shard, enum stage_whole which, bool keep)
{
    if (!stage->sequence_parallel)
        return;
    stage->kernels->stream_wait(stage->gathers, stage->stream);
    profile_begin(stage->profile, PROFILE_GATHERS, "tp gather");
    if (stage->window)
        gather_by_pieces(stage, shard, which, keep);
    else
        gather_all(stage, shard, stage->scratch.whole[which]);
    profile_end(stage->profile);
}

const void *stage_gathered_piece(struct stage *stage, const void *shard, enum stage_whole which,
                                 int i, struct piece_of_rows *piece)
{
    struct ranks ranks;

    if (!stage->window) {
        *piece = all_rows(stage);
        return stage_gathered(stage, shard, which);
    }
    ranks = half(stage, i == 0);
    *piece = rows_of(stage, ranks);
    /* With the last one the shard has left, too, and all is there. */
    wait_for(stage, which, ranks, i > 0 ? stage->gathers : NULL);
    if (i == 0 && stage->layout->tp == 2)
        return shard;
    return shard_of(stage, stage->scratch.whole[which], ranks.first);
}

const void *stage_gathered(struct stage *stage, const void *shard, enum stage_whole which)
{
    if (!stage->sequence_parallel)
        return shard;
    if (stage->window)
        wait_for(stage, which, (struct ranks){0, stage->layout->tp}, stage->gathers);
    else
        stage_wait_for(stage, stage->gathers);
    return stage->scratch.whole[which];
}

const void *stage_whole(const struct stage *stage, const void *shard, enum stage_whole which)
{
    return stage->sequence_parallel ? stage->scratch.whole[which] : shard;
}

const void *stage_gather(struct stage *stage, const void *shard, enum stage_whole which)
{
    stage_gather_begin(stage, shard, which, true);
    return stage_gathered(stage, shard, which);
}

/* --- sums ------------------------------------------------------------------------------------- */

void *stage_parts(const struct stage *stage, void *shard)
{
    return stage->sequence_parallel ? stage->scratch.parts : shard;
}

struct piece_of_rows stage_parts_piece(const struct stage *stage, int i)
{
    return stage->window ? rows_of(stage, half(stage, i > 0)) : all_rows(stage);
}

/* This rank's parts of the shards of others. */
static void put_parts(struct stage *stage, struct ranks ranks)
{
    size_t bytes = shard_bytes(stage);

    for (int rank = ranks.first; rank < ranks.end; rank++)
        if (rank != stage->place.tp)
            comm_window_put(stage->window, WINDOW_SUM, rank, (size_t)stage->place.tp * bytes,
                            shard_of(stage, stage->scratch.parts, rank), bytes, stage->sums);
}

void stage_sum_piece(struct stage *stage, void *shard, int i)
{
    int64_t count = stage->sizes.shard_rows * stage->sizes.hidden;
    enum time_part part;

    if (stage->layout->tp == 1)
        return;
    part = stage_communicates(stage, stage->sums);
    stage->kernels->stream_wait(stage->sums, stage->stream);
    profile_begin(stage->profile, PROFILE_SUMS, "tp sum");
    if (stage->window) {
        if (i == 0)
            comm_window_turn(stage->window, WINDOW_SUM, stage->sums);
        put_parts(stage, half(stage, i > 0));
    } else if (stage->sequence_parallel) {
        comm_reduce_scatter(stage->groups->tp, shard, stage->scratch.parts, count,
                            stage_comm_type(stage), stage->sums);
    } else {
        comm_all_reduce(stage->groups->tp, shard, count, stage_comm_type(stage), COMM_SUM,
                        stage->sums);
    }
    profile_end(stage->profile);
    timeline_enter(stage->timeline, part);
}

void stage_sum_end(struct stage *stage, void *shard)
{
    if (stage->layout->tp == 1)
        return;
    if (!stage->window) {
        stage_wait_for(stage, stage->sums);
        return;
    }
    wait_for(stage, WINDOW_SUM, (struct ranks){0, stage->layout->tp}, stage->sums);
    comm_window_sum(stage->window, WINDOW_SUM, shard,
                    shard_of(stage, stage->scratch.parts, stage->place.tp),
                    stage->sizes.shard_rows * stage->sizes.hidden, stage->stream);
}

void stage_sum(struct stage *stage, void *shard)
{
    for (int i = 0; i < stage_pieces(stage); i++)
        stage_sum_piece(stage, shard, i);
    stage_sum_end(stage, shard);
}

int64_t stage_first_row(const struct stage *stage)
{
    return stage->place.cp * stage->sizes.rows +
           (stage->sequence_parallel ? stage->place.tp * stage->sizes.shard_rows : 0);
}
