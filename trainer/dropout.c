/* Which elements are dropped depends on the sample, the token and the layer, and not on the layout:
 * the masks of a microbatch are those of its rows among all rows of the run. */
#include "trainer/stage.h"

struct attention_shape stage_attention(const struct stage *stage, const struct slot *slot,
                                       int64_t layer)
{
    struct attention_shape shape = slot->attention;

    if (slot->training)
        shape.dropout = (struct attention_dropout){
            .rate = stage->dropout.attention,
            .seed = stage->dropout.seed,
            .place = 1 + (uint32_t)layer,
            .first_row = slot->first_row,
            .first_head = stage->place.tp * stage->sizes.heads +
                          stage->place.cp * stage->sizes.attention_heads,
        };
    return shape;
}

double stage_dropout_rate(const struct stage_dropout *dropout, int64_t layers, int64_t layer)
{
    if (!dropout->lima)
        return dropout->rate;
    return layer <= 0 || layers == 1 ? 0 : dropout->rate * (double)layer / (double)(layers - 1);
}

static void drop(struct stage *stage, const struct slot *slot, enum dropout_place place,
                 int64_t layer, double rate, void *y, const void *x)
{
    const struct stage_sizes *n = &stage->sizes;
    uint32_t number = place == DROPOUT_EMBEDDING ? 0 : 1 + 2 * (uint32_t)layer + (uint32_t)place;

    stage->kernels->dropout(stage->stream, y, x, n->shard_rows * n->hidden, rate,
                            stage->dropout.seed, number,
                            (slot->first_row + stage_first_row(stage)) * n->hidden);
}

void stage_drop(struct stage *stage, const struct slot *slot, enum dropout_place place,
                int64_t layer, void *x)
{
    double rate = stage_dropout_rate(&stage->dropout, stage->model->layers, layer);

    if (slot->training && rate > 0)
        drop(stage, slot, place, layer, rate, x, x);
}

const void *stage_dropped(struct stage *stage, const struct slot *slot, enum dropout_place place,
                          int64_t layer, const void *gradient)
{
    double rate = stage_dropout_rate(&stage->dropout, stage->model->layers, layer);

    if (!slot->training || rate == 0)
        return gradient;
    drop(stage, slot, place, layer, rate, stage->scratch.dropped, gradient);
    return stage->scratch.dropped;
}
