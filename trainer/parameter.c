#include "trainer/parameter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* SPLIT_KV: like rows, but ranks share a head where there are fewer heads than ranks. */
enum split { SPLIT_NONE, SPLIT_ROWS, SPLIT_KV, SPLIT_COLUMNS, SPLIT_VOCABULARY };

/* What does not depend on the rank. */
struct description {
    enum split split;
    bool follows;       /* it lies right behind the role before it, if that is there */
    bool residual_init; /* the product feeds the residual stream: smaller initial values */
    double init_value;  /* of vectors */
};

static const struct description descriptions[TENSOR_ROLES] = {
    [TENSOR_EMBEDDING] = {.split = SPLIT_VOCABULARY},
    [TENSOR_INPUT_NORM] = {.init_value = 1},
    [TENSOR_INPUT_NORM_BIAS] = {.init_value = 0},
    [TENSOR_Q] = {.split = SPLIT_ROWS},
    [TENSOR_K] = {.split = SPLIT_KV, .follows = true},
    [TENSOR_V] = {.split = SPLIT_KV, .follows = true},
    [TENSOR_Q_BIAS] = {.split = SPLIT_ROWS},
    [TENSOR_K_BIAS] = {.split = SPLIT_KV, .follows = true},
    [TENSOR_V_BIAS] = {.split = SPLIT_KV, .follows = true},
    [TENSOR_O] = {.split = SPLIT_COLUMNS, .residual_init = true},
    [TENSOR_O_BIAS] = {.init_value = 0},
    [TENSOR_MLP_NORM] = {.init_value = 1},
    [TENSOR_MLP_NORM_BIAS] = {.init_value = 0},
    [TENSOR_GATE] = {.split = SPLIT_ROWS},
    [TENSOR_UP] = {.split = SPLIT_ROWS, .follows = true},
    [TENSOR_GATE_BIAS] = {.split = SPLIT_ROWS},
    [TENSOR_UP_BIAS] = {.split = SPLIT_ROWS, .follows = true},
    [TENSOR_DOWN] = {.split = SPLIT_COLUMNS, .residual_init = true},
    [TENSOR_DOWN_BIAS] = {.init_value = 0},
    [TENSOR_FINAL_NORM] = {.init_value = 1},
    [TENSOR_FINAL_NORM_BIAS] = {.init_value = 0},
    [TENSOR_HEAD] = {.split = SPLIT_VOCABULARY},
};

void vocabulary_shard(const struct model *model, const struct layout *layout, int tp,
                      int64_t *first, int64_t *count)
{
    int64_t each = (model->vocab_size + layout->tp - 1) / layout->tp;
    int64_t end = (tp + 1) * each;

    *first = tp * each < model->vocab_size ? tp * each : model->vocab_size;
    *count = (end < model->vocab_size ? end : model->vocab_size) - *first;
}

/* One rank's table while it is made. */
struct table {
    struct parameters *parameters;
    const struct model *model;
    const struct layout *layout;
    int tp;
    int64_t unit; /* elements: buckets begin and end with a multiple */
};

/* The rectangle of the role's matrix that this rank holds, and whether it counts for it. */
static struct tile local_tile(const struct table *table, const struct tensor_place *place,
                              enum split split, bool *counts)
{
    struct tile tile = {0, place->rows, 0, place->columns, place->columns};
    int tp = table->tp, parts = table->layout->tp,
        sharing = layout_kv_sharing(table->layout, table->model);

    *counts = true;
    switch (split) {
    case SPLIT_NONE:
        *counts = tp == 0;
        break;
    case SPLIT_KV:
        *counts = tp % sharing == 0;
        tp /= sharing;
        parts /= sharing;
        /* fall through */
    case SPLIT_ROWS:
        tile.rows /= parts;
        tile.row = tp * tile.rows;
        break;
    case SPLIT_COLUMNS:
        tile.columns /= parts;
        tile.column = tp * tile.columns;
        break;
    case SPLIT_VOCABULARY:
        vocabulary_shard(table->model, table->layout, tp, &tile.row, &tile.rows);
        break;
    }
    return tile;
}

/* `tile` in the stored tensor. */
static int append_tile(const struct table *table, enum tensor_role role, int64_t layer,
                       const struct tensor_place *place, struct tile tile, bool counts,
                       bool follows, struct error *error)
{
    const struct description *description = &descriptions[role];
    struct parameters *parameters = table->parameters;
    struct parameter *list =
        realloc(parameters->list, (parameters->count + 1) * sizeof(*parameters->list));
    struct parameter *parameter;
    double std = table->model->init_std;

    if (!list)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for the parameter table");
    parameters->list = list;
    parameter = &list[parameters->count++];
    *parameter = (struct parameter){
        .role = role,
        .layer = layer,
        .dimensions = place->tensor.dimensions,
        .shape = {place->tensor.shape[0], place->tensor.shape[1]},
        .local = tile,
        .count = tile.rows * tile.columns,
        .init_std =
            description->residual_init ? std / sqrt(2.0 * (double)table->model->layers) : std,
        .init_value = description->init_value,
        .decay = place->tensor.dimensions == 2,
        .counts = counts,
        .random = (uint64_t)(layer + 1) * TENSOR_ROLES + role,
    };
    memcpy(parameter->name, place->tensor.name, sizeof(parameter->name));
    if (!follows)
        parameters->elements = (parameters->elements + 63) / 64 * 64;
    parameter->offset = parameters->elements;
    parameters->elements += parameter->count;
    return 0;
}

/* Nothing where the model has no such tensor. */
static int append(const struct table *table, enum tensor_role role, int64_t layer, bool copy,
                  struct error *error)
{
    struct tensor_place place;
    struct tile rest;
    bool counts, follows = descriptions[role].follows;

    if (!tensor_place(table->model, role, layer, &place))
        return 0;
    rest = local_tile(table, &place, descriptions[role].split, &counts);
    do {
        int64_t block = rest.row / place.block_rows, within = rest.row % place.block_rows;
        int64_t left = place.block_rows - within;
        struct tile tile = rest;

        tile.row = place.first_row + block * place.stride + within;
        tile.rows = left < rest.rows ? left : rest.rows;
        if (append_tile(table, role, layer, &place, tile, counts && !copy, follows, error) < 0)
            return -1;
        follows = true;
        rest.row += tile.rows;
        rest.rows -= tile.rows;
    } while (rest.rows > 0);
    return 0;
}

static void round_up(int64_t *elements, int64_t unit)
{
    *elements = (*elements + unit - 1) / unit * unit;
}

/* What has been appended since the bucket before becomes one. */
static int end_bucket(const struct table *table, struct error *error)
{
    struct parameters *parameters = table->parameters;
    size_t count = parameters->bucket_count;
    struct bucket *buckets = realloc(parameters->buckets, (count + 1) * sizeof(*buckets));
    int64_t first;

    if (!buckets)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for the parameter table");
    parameters->buckets = buckets;
    first = count > 0 ? buckets[count - 1].first + buckets[count - 1].count : 0;
    round_up(&parameters->elements, table->unit);
    if (parameters->elements == first)
        return 0;
    buckets[parameters->bucket_count++] = (struct bucket){first, parameters->elements - first};
    return 0;
}

/* Roles [first, last] of a layer, or outside layers, as a bucket. `copy`: they are another rank's
 * too, where they count. */
static int append_bucket(const struct table *table, enum tensor_role first, enum tensor_role last,
                         int64_t layer, bool copy, struct error *error)
{
    for (int role = (int)first; role <= (int)last; role++)
        if (append(table, (enum tensor_role)role, layer, copy, error) < 0)
            return -1;
    return end_bucket(table, error);
}

/* Every replica's share begins where 16 elements of any type are aligned. */
static int64_t bucket_unit(int replicas)
{
    int64_t unit = 16 * (int64_t)replicas;

    while (unit % 64 != 0)
        unit *= 2;
    return unit;
}

/* Those of a virtual stage, a bucket each. */
static int append_layers(const struct table *table, int stage, struct error *error)
{
    int64_t end = layout_first_layer(table->layout, table->model, stage + 1);

    for (int64_t layer = layout_first_layer(table->layout, table->model, stage); layer < end;
         layer++)
        if (append_bucket(table, TENSOR_INPUT_NORM, TENSOR_DOWN_BIAS, layer, false, error) < 0)
            return -1;
    return 0;
}

int parameters_create(struct parameters *parameters, const struct model *model,
                      const struct layout *layout, struct layout_place place, struct error *error)
{
    const struct table table = {parameters, model, layout, place.tp,
                                bucket_unit(layout_replicas(layout))};
    bool last = place.pp == layout->pp - 1;
    int result = 0;

    *parameters = (struct parameters){0};
    if (place.pp == 0)
        result = append_bucket(&table, TENSOR_EMBEDDING, TENSOR_EMBEDDING, -1, false, error);
    for (int chunk = 0; chunk < layout_chunks(layout) && result == 0; chunk++)
        result = append_layers(&table, chunk * layout->pp + place.pp, error);
    if (last && result == 0)
        result = append_bucket(&table, TENSOR_FINAL_NORM, TENSOR_HEAD, -1, false, error);
    /* The tied embedding's second home. */
    if (last && result == 0 && model->tied_embeddings && layout->pp > 1)
        result = append_bucket(&table, TENSOR_EMBEDDING, TENSOR_EMBEDDING, -1, true, error);
    if (result < 0)
        parameters_destroy(parameters);
    return result;
}

void parameters_destroy(struct parameters *parameters)
{
    free(parameters->list);
    free(parameters->buckets);
    *parameters = (struct parameters){0};
}

/* --- shares of replicas ------------------------------------------------------------------------
 */

/* Appends to a list that has room for all. */
struct piece_list {
    struct piece *list;
    size_t count;
};

/* Elements [from, to) of a parameter's own, which lie within one row or are whole rows. */
static void add_rectangle(struct piece_list *pieces, const struct parameter *parameter,
                          int64_t from, int64_t to, int64_t state)
{
    int64_t width = parameter->local.columns;
    struct piece *piece = &pieces->list[pieces->count];

    if (from == to)
        return;
    *piece = (struct piece){.parameter = parameter,
                            .tile = parameter->local,
                            .offset = parameter->offset + from,
                            .state = state,
                            .count = to - from};
    piece->tile.row += from / width;
    if (to - from < width) {
        piece->tile.rows = 1;
        piece->tile.column += from % width;
        piece->tile.columns = to - from;
    } else {
        piece->tile.rows = (to - from) / width;
    }
    pieces->count++;
}

static int64_t bounded(int64_t value, int64_t least, int64_t most)
{
    return value < least ? least : value > most ? most : value;
}

/* What the replica has of a parameter, `share` of whose bucket begins at element `start` of the
 * rank's arrays and `state` of the state's: the rest of a row, rows, the beginning of one. */
static void add_share(struct piece_list *pieces, const struct parameter *parameter, int64_t start,
                      int64_t share, int64_t state)
{
    int64_t width = parameter->local.columns;
    int64_t from = bounded(start - parameter->offset, 0, parameter->count);
    int64_t to = bounded(start + share - parameter->offset, 0, parameter->count);
    int64_t rows = bounded((from + width - 1) / width * width, from, to);
    int64_t tail = bounded(to / width * width, rows, to);

    state += parameter->offset - start;
    add_rectangle(pieces, parameter, from, rows, state + from);
    add_rectangle(pieces, parameter, rows, tail, state + rows);
    add_rectangle(pieces, parameter, tail, to, state + tail);
}

int parameters_share(const struct parameters *parameters, int replica, int replicas,
                     struct piece **list, size_t *count, struct error *error)
{
    struct piece_list pieces = {calloc(3 * parameters->count + 1, sizeof(*pieces.list)), 0};
    size_t i = 0;

    if (!pieces.list)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for the parameter table");
    for (size_t b = 0; b < parameters->bucket_count; b++) {
        const struct bucket *bucket = &parameters->buckets[b];
        int64_t share = bucket->count / replicas, start = bucket->first + replica * share;

        for (; i < parameters->count && parameters->list[i].offset < bucket->first + bucket->count;
             i++)
            add_share(&pieces, &parameters->list[i], start, share, bucket->first / replicas);
    }
    *list = pieces.list;
    *count = pieces.count;
    return 0;
}

const struct parameter *parameters_find(const struct parameters *parameters, enum tensor_role role,
                                        int64_t layer)
{
    for (size_t i = 0; i < parameters->count; i++)
        if (parameters->list[i].role == role && parameters->list[i].layer == layer)
            return &parameters->list[i];
    return NULL;
}
