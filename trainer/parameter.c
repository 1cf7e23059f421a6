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

/* Those of a virtual stage. */
static int append_layers(const struct table *table, int stage, struct error *error)
{
    int64_t end = layout_first_layer(table->layout, table->model, stage + 1);
    int result = 0;

    for (int64_t layer = layout_first_layer(table->layout, table->model, stage); layer < end;
         layer++)
        for (int role = TENSOR_INPUT_NORM; result == 0 && role <= TENSOR_DOWN_BIAS; role++)
            result = append(table, (enum tensor_role)role, layer, false, error);
    return result;
}

int parameters_create(struct parameters *parameters, const struct model *model,
                      const struct layout *layout, struct layout_place place, struct error *error)
{
    const struct table table = {parameters, model, layout, place.tp};
    bool last = place.pp == layout->pp - 1;
    int result = 0;

    *parameters = (struct parameters){0};
    if (place.pp == 0)
        result = append(&table, TENSOR_EMBEDDING, -1, false, error);
    for (int chunk = 0; chunk < layout->chunks && result == 0; chunk++)
        result = append_layers(&table, chunk * layout->pp + place.pp, error);
    for (int role = TENSOR_FINAL_NORM; last && result == 0 && role <= TENSOR_HEAD; role++)
        result = append(&table, (enum tensor_role)role, -1, false, error);
    /* The tied embedding's second home. */
    if (last && result == 0 && model->tied_embeddings && layout->pp > 1)
        result = append(&table, TENSOR_EMBEDDING, -1, true, error);
    parameters->elements = (parameters->elements + 63) / 64 * 64;
    if (result < 0)
        parameters_destroy(parameters);
    return result;
}

void parameters_destroy(struct parameters *parameters)
{
    free(parameters->list);
    *parameters = (struct parameters){0};
}

const struct parameter *parameters_find(const struct parameters *parameters, enum tensor_role role,
                                        int64_t layer)
{
    for (size_t i = 0; i < parameters->count; i++)
        if (parameters->list[i].role == role && parameters->list[i].layer == layer)
            return &parameters->list[i];
    return NULL;
}
