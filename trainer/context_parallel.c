/* Context parallelism: the rows of a microbatch are shared, each rank of a group having as many
 * that follow each other, and attention, where rows see each other, is shared by heads (DeepSpeed
 * Ulysses: Jacobs et al., 2023). An exchange turns all of a rank's heads of its rows into some
 * heads of all rows, and another one turns attention's output back. So each rank's attention is
 * that of whole sequences: causal work is balanced, and windows, packed sequences and dropout are
 * as they are without.
 *
 * Where there are more ranks than key/value heads, neighbours get the same head, and its gradient
 * is the sum of theirs.
 */
#include "trainer/profile.h"
#include "trainer/stage.h"

static void exchange(struct stage *stage, void *out, const void *in, int64_t width)
{
    enum time_part part = stage_communicates(stage, stage->stream);

    profile_begin(stage->profile, PROFILE_COMPUTE, "cp exchange");
    comm_all_to_all(stage->groups->cp, out, in, stage->sizes.rows * width, stage_comm_type(stage),
                    stage->stream);
    profile_end(stage->profile);
    timeline_enter(stage->timeline, part);
}

/* Columns of a rank's q, k and v that rank `peer` attends with: [first, first + count) of what it
 * has at column `at`. */
struct columns {
    int64_t first, count, at;
};

static void list_columns(const struct stage *stage, int peer, struct columns columns[3])
{
    const struct stage_sizes *n = &stage->sizes;
    int64_t q = (int64_t)n->attention_heads * n->head_dim;
    int64_t kv = (int64_t)n->attention_kv_heads * n->head_dim;
    int64_t key = (int64_t)peer * n->kv_heads / stage->layout->cp * n->head_dim;

    columns[0] = (struct columns){peer * q, q, 0};
    columns[1] = (struct columns){n->mixed_width + key, kv, q};
    columns[2] =
        (struct columns){n->mixed_width + (int64_t)n->kv_heads * n->head_dim + key, kv, q + kv};
}

/* Whether an earlier rank's part has the same key/value heads. */
static bool repeats(const struct stage *stage, int peer)
{
    int64_t heads = stage->sizes.kv_heads, cp = stage->layout->cp;

    return heads < cp && peer > 0 && peer * heads / cp == (peer - 1) * heads / cp;
}

/* Between q, k and v of this rank's rows and the parts of all ranks, one behind the other. */
static void split_heads(struct stage *stage, void *parts, const void *qkv)
{
    const struct stage_sizes *n = &stage->sizes;

    for (int peer = 0; peer < stage->layout->cp; peer++) {
        void *part = stage_rows(stage, parts, peer * n->rows, n->attention_width);
        struct columns columns[3];

        list_columns(stage, peer, columns);
        for (int i = 0; i < 3; i++)
            stage->kernels->copy_columns(stage->stream, stage_rows(stage, part, columns[i].at, 1),
                                         n->attention_width,
                                         stage_rows(stage, qkv, columns[i].first, 1), n->qkv_width,
                                         n->rows, columns[i].count, false);
    }
}

static void join_heads(struct stage *stage, void *qkv, const void *parts)
{
    const struct stage_sizes *n = &stage->sizes;

    for (int peer = 0; peer < stage->layout->cp; peer++) {
        const void *part = stage_rows(stage, parts, peer * n->rows, n->attention_width);
        struct columns columns[3];

        list_columns(stage, peer, columns);
        for (int i = 0; i < 3; i++)
            stage->kernels->copy_columns(stage->stream, stage_rows(stage, qkv, columns[i].first, 1),
                                         n->qkv_width, stage_rows(stage, part, columns[i].at, 1),
                                         n->attention_width, n->rows, columns[i].count,
                                         i > 0 && repeats(stage, peer));
    }
}

void *stage_qkv(const struct stage *stage, void *attended)
{
    return stage->layout->cp == 1 ? attended : stage->scratch.dwide;
}

void stage_to_heads(struct stage *stage, void *attended)
{
    struct scratch *scratch = &stage->scratch;

    if (stage->layout->cp == 1)
        return;
    split_heads(stage, scratch->exchange, scratch->dwide);
    exchange(stage, attended, scratch->exchange, stage->sizes.attention_width);
}

void stage_from_heads(struct stage *stage, void *dattended)
{
    struct scratch *scratch = &stage->scratch;

    if (stage->layout->cp == 1)
        return;
    exchange(stage, scratch->exchange, dattended, stage->sizes.attention_width);
    join_heads(stage, scratch->dwide, scratch->exchange);
}

void stage_output_from_heads(struct stage *stage, void *mixed, const void *output)
{
    const struct stage_sizes *n = &stage->sizes;
    int64_t width = n->mixed_width / stage->layout->cp;

    if (stage->layout->cp == 1)
        return;
    exchange(stage, stage->scratch.exchange, output, width);
    for (int peer = 0; peer < stage->layout->cp; peer++)
        stage->kernels->copy_columns(
            stage->stream, stage_rows(stage, mixed, peer * width, 1), n->mixed_width,
            stage_rows(stage, stage->scratch.exchange, peer * n->rows, width), width, n->rows,
            width, false);
}

const void *stage_output_to_heads(struct stage *stage, const void *dmixed)
{
    const struct stage_sizes *n = &stage->sizes;
    int64_t width = n->mixed_width / stage->layout->cp;

    if (stage->layout->cp == 1)
        return dmixed;
    for (int peer = 0; peer < stage->layout->cp; peer++)
        stage->kernels->copy_columns(
            stage->stream, stage_rows(stage, stage->scratch.exchange, peer * n->rows, width), width,
            stage_rows(stage, dmixed, peer * width, 1), n->mixed_width, n->rows, width, false);
    exchange(stage, stage->scratch.dattended_output, stage->scratch.exchange, width);
    return stage->scratch.dattended_output;
}
