#include "trainer/parameter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum split { SPLIT_NONE, SPLIT_ROWS, SPLIT_COLUMNS, SPLIT_VOCABULARY };

/* What does not depend on the rank. */
struct description {
    const char *name; /* printf format taking the layer's number inside layers */
    enum split split;
    bool residual_init; /* the product feeds the residual stream: smaller initial values */
};

static const struct description descriptions[PARAMETER_ROLES] = {
    [PARAMETER_EMBEDDING] = {"model.embed_tokens.weight", SPLIT_VOCABULARY, false},
    [PARAMETER_INPUT_NORM] = {"model.layers.%lld.input_layernorm.weight", SPLIT_NONE, false},
    [PARAMETER_Q] = {"model.layers.%lld.self_attn.q_proj.weight", SPLIT_ROWS, false},
    [PARAMETER_K] = {"model.layers.%lld.self_attn.k_proj.weight", SPLIT_ROWS, false},
    [PARAMETER_V] = {"model.layers.%lld.self_attn.v_proj.weight", SPLIT_ROWS, false},
    [PARAMETER_O] = {"model.layers.%lld.self_attn.o_proj.weight", SPLIT_COLUMNS, true},
    [PARAMETER_POST_NORM] = {"model.layers.%lld.post_attention_layernorm.weight", SPLIT_NONE,
                             false},
    [PARAMETER_GATE] = {"model.layers.%lld.mlp.gate_proj.weight", SPLIT_ROWS, false},
    [PARAMETER_UP] = {"model.layers.%lld.mlp.up_proj.weight", SPLIT_ROWS, false},
    [PARAMETER_DOWN] = {"model.layers.%lld.mlp.down_proj.weight", SPLIT_COLUMNS, true},
    [PARAMETER_FINAL_NORM] = {"model.norm.weight", SPLIT_NONE, false},
    [PARAMETER_HEAD] = {"lm_head.weight", SPLIT_VOCABULARY, false},
};

/* Rows and columns of the whole tensor; columns 0 for a vector. */
static void whole_shape(const struct model *model, enum parameter_role role, int64_t shape[2])
{
    const int64_t hidden = model->hidden_size, q = model->heads * model->head_dim;
    const int64_t kv = model->kv_heads * model->head_dim;
    const int64_t shapes[PARAMETER_ROLES][2] = {
        [PARAMETER_EMBEDDING] = {model->vocab_size, hidden},
        [PARAMETER_INPUT_NORM] = {hidden, 0},
        [PARAMETER_Q] = {q, hidden},
        [PARAMETER_K] = {kv, hidden},
        [PARAMETER_V] = {kv, hidden},
        [PARAMETER_O] = {hidden, q},
        [PARAMETER_POST_NORM] = {hidden, 0},
        [PARAMETER_GATE] = {model->ffn_size, hidden},
        [PARAMETER_UP] = {model->ffn_size, hidden},
        [PARAMETER_DOWN] = {hidden, model->ffn_size},
        [PARAMETER_FINAL_NORM] = {hidden, 0},
        [PARAMETER_HEAD] = {model->vocab_size, hidden},
    };

    memcpy(shape, shapes[role], 2 * sizeof(*shape));
}

void vocabulary_shard(const struct model *model, const struct layout *layout, int tp,
                      int64_t *first, int64_t *count)
{
    int64_t each = (model->vocab_size + layout->tp - 1) / layout->tp;
    int64_t end = (tp + 1) * each;

    *first = tp * each < model->vocab_size ? tp * each : model->vocab_size;
    *count = (end < model->vocab_size ? end : model->vocab_size) - *first;
}

static struct tile local_tile(const struct model *model, const struct layout *layout, int tp,
                              const int64_t shape[2], enum split split)
{
    int64_t columns = shape[1] ? shape[1] : 1;
    struct tile tile = {0, shape[0], 0, columns, columns};

    switch (split) {
    case SPLIT_NONE:
        break;
    case SPLIT_ROWS:
        tile.rows /= layout->tp;
        tile.row = tp * tile.rows;
        break;
    case SPLIT_COLUMNS:
        tile.columns /= layout->tp;
        tile.column = tp * tile.columns;
        break;
    case SPLIT_VOCABULARY:
        vocabulary_shard(model, layout, tp, &tile.row, &tile.rows);
        break;
    }
    return tile;
}

static void append(struct parameters *parameters, const struct model *model,
                   const struct layout *layout, int tp, enum parameter_role role, int64_t layer,
                   bool follows)
{
    const struct description *description = &descriptions[role];
    struct parameter *parameter = &parameters->list[parameters->count++];
    int64_t shape[2];

    whole_shape(model, role, shape);
    *parameter = (struct parameter){
        .role = role,
        .layer = layer,
        .dimensions = shape[1] ? 2 : 1,
        .shape = {shape[0], shape[1] ? shape[1] : 1},
        .local = local_tile(model, layout, tp, shape, description->split),
        .decay = shape[1] != 0,
        .replicated = description->split == SPLIT_NONE,
        .random = (uint64_t)(layer + 1) * PARAMETER_ROLES + role,
    };
    if (parameter->dimensions == 2)
        parameter->init_std = description->residual_init
                                  ? model->init_std / sqrt(2.0 * (double)model->layers)
                                  : model->init_std;
    /* The names have at most one %lld, and a layer's number is an int64_t. */
    if (layer >= 0)
        snprintf(parameter->name, sizeof(parameter->name), description->name, (long long)layer);
    else
        snprintf(parameter->name, sizeof(parameter->name), "%s", description->name);
    parameter->count = parameter->local.rows * parameter->local.columns;
    if (!follows)
        parameters->elements = (parameters->elements + 63) / 64 * 64;
    parameter->offset = parameters->elements;
    parameters->elements += parameter->count;
}

int parameters_create(struct parameters *parameters, const struct model *model,
                      const struct layout *layout, struct layout_place place, struct error *error)
{
    int64_t first = layout_first_layer(layout, model, place.pp);
    int64_t end = layout_first_layer(layout, model, place.pp + 1);
    bool last = place.pp == layout->pp - 1;

    *parameters = (struct parameters){0};
    parameters->list = calloc((size_t)((end - first) * 9 + 3), sizeof(*parameters->list));
    if (!parameters->list)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for the parameter table");
    if (place.pp == 0)
        append(parameters, model, layout, place.tp, PARAMETER_EMBEDDING, -1, false);
    for (int64_t layer = first; layer < end; layer++)
        for (int role = PARAMETER_INPUT_NORM; role <= PARAMETER_DOWN; role++)
            append(parameters, model, layout, place.tp, (enum parameter_role)role, layer,
                   role == PARAMETER_K || role == PARAMETER_V || role == PARAMETER_UP);
    if (last)
        append(parameters, model, layout, place.tp, PARAMETER_FINAL_NORM, -1, false);
    if (last && !model->tied_embeddings) {
        append(parameters, model, layout, place.tp, PARAMETER_HEAD, -1, false);
    } else if (last && layout->pp > 1) {
        append(parameters, model, layout, place.tp, PARAMETER_EMBEDDING, -1, false);
        parameters->list[parameters->count - 1].copy = true;
    }
    parameters->elements = (parameters->elements + 63) / 64 * 64;
    return 0;
}

void parameters_destroy(struct parameters *parameters)
{
    free(parameters->list);
    *parameters = (struct parameters){0};
}

const struct parameter *parameters_find(const struct parameters *parameters,
                                        enum parameter_role role, int64_t layer)
{
    for (size_t i = 0; i < parameters->count; i++)
        if (parameters->list[i].role == role && parameters->list[i].layer == layer)
            return &parameters->list[i];
    return NULL;
}
