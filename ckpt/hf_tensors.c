/* Names and shapes: transformers, models/llama/modeling_llama.py and models/falcon/
 * modeling_falcon.py. Mistral and Qwen2 have Llama's names. */
#include "ckpt/hf_tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* By role; the parts of one stored tensor have the same name. NULL: the family has none. */
static const char *const llama_names[TENSOR_ROLES] = {
    [TENSOR_EMBEDDING] = "model.embed_tokens.weight",
    [TENSOR_INPUT_NORM] = "input_layernorm.weight",
    [TENSOR_Q] = "self_attn.q_proj.weight",
    [TENSOR_K] = "self_attn.k_proj.weight",
    [TENSOR_V] = "self_attn.v_proj.weight",
    [TENSOR_Q_BIAS] = "self_attn.q_proj.bias",
    [TENSOR_K_BIAS] = "self_attn.k_proj.bias",
    [TENSOR_V_BIAS] = "self_attn.v_proj.bias",
    [TENSOR_O] = "self_attn.o_proj.weight",
    [TENSOR_O_BIAS] = "self_attn.o_proj.bias",
    [TENSOR_MLP_NORM] = "post_attention_layernorm.weight",
    [TENSOR_GATE] = "mlp.gate_proj.weight",
    [TENSOR_UP] = "mlp.up_proj.weight",
    [TENSOR_GATE_BIAS] = "mlp.gate_proj.bias",
    [TENSOR_UP_BIAS] = "mlp.up_proj.bias",
    [TENSOR_DOWN] = "mlp.down_proj.weight",
    [TENSOR_DOWN_BIAS] = "mlp.down_proj.bias",
    [TENSOR_FINAL_NORM] = "model.norm.weight",
    [TENSOR_HEAD] = HF_HEAD,
};

static const char *const falcon_names[TENSOR_ROLES] = {
    [TENSOR_EMBEDDING] = "transformer.word_embeddings.weight",
    [TENSOR_INPUT_NORM] = "input_layernorm.weight",
    [TENSOR_INPUT_NORM_BIAS] = "input_layernorm.bias",
    [TENSOR_Q] = "self_attention.query_key_value.weight",
    [TENSOR_K] = "self_attention.query_key_value.weight",
    [TENSOR_V] = "self_attention.query_key_value.weight",
    [TENSOR_O] = "self_attention.dense.weight",
    [TENSOR_UP] = "mlp.dense_h_to_4h.weight",
    [TENSOR_DOWN] = "mlp.dense_4h_to_h.weight",
    [TENSOR_FINAL_NORM] = "transformer.ln_f.weight",
    [TENSOR_FINAL_NORM_BIAS] = "transformer.ln_f.bias",
    [TENSOR_HEAD] = HF_HEAD,
};

/* With two norms their names are others. */
static const char *const falcon_two_norms[TENSOR_ROLES] = {
    [TENSOR_INPUT_NORM] = "ln_attn.weight",
    [TENSOR_INPUT_NORM_BIAS] = "ln_attn.bias",
    [TENSOR_MLP_NORM] = "ln_mlp.weight",
    [TENSOR_MLP_NORM_BIAS] = "ln_mlp.bias",
};

static bool is_falcon(const struct model *model)
{
    return model->family == MODEL_FAMILY_FALCON;
}

static bool in_layers(enum tensor_role role)
{
    return role >= TENSOR_INPUT_NORM && role <= TENSOR_DOWN_BIAS;
}

static const char *layer_prefix(const struct model *model)
{
    return is_falcon(model) ? "transformer.h." : "model.layers.";
}

/* The name of a role's tensor, within its layer; NULL when the model has none. */
static const char *name_of(const struct model *model, enum tensor_role role)
{
    switch (role) {
    case TENSOR_Q_BIAS:
    case TENSOR_K_BIAS:
    case TENSOR_V_BIAS:
        return model->qkv_bias ? llama_names[role] : NULL;
    case TENSOR_O_BIAS:
        return model->output_bias ? llama_names[role] : NULL;
    case TENSOR_GATE_BIAS:
    case TENSOR_UP_BIAS:
    case TENSOR_DOWN_BIAS:
        return model->mlp_bias ? llama_names[role] : NULL;
    case TENSOR_HEAD:
        return model->tied_embeddings ? NULL : HF_HEAD;
    default:
        if (model->block == MODEL_BLOCK_PARALLEL_TWO_NORMS && falcon_two_norms[role])
            return falcon_two_norms[role];
        return (is_falcon(model) ? falcon_names : llama_names)[role];
    }
}

/* Rows and columns of a role's matrix; columns 0 for a vector. */
static void role_shape(const struct model *model, enum tensor_role role, int64_t shape[2])
{
    const int64_t hidden = model->hidden_size, ffn = model->ffn_size;
    const int64_t query = model->heads * model->head_dim, key = model->kv_heads * model->head_dim;
    const int64_t shapes[TENSOR_ROLES][2] = {
        [TENSOR_EMBEDDING] = {model->vocab_size, hidden},
        [TENSOR_INPUT_NORM] = {hidden, 0},
        [TENSOR_INPUT_NORM_BIAS] = {hidden, 0},
        [TENSOR_Q] = {query, hidden},
        [TENSOR_K] = {key, hidden},
        [TENSOR_V] = {key, hidden},
        [TENSOR_Q_BIAS] = {query, 0},
        [TENSOR_K_BIAS] = {key, 0},
        [TENSOR_V_BIAS] = {key, 0},
        [TENSOR_O] = {hidden, query},
        [TENSOR_O_BIAS] = {hidden, 0},
        [TENSOR_MLP_NORM] = {hidden, 0},
        [TENSOR_MLP_NORM_BIAS] = {hidden, 0},
        [TENSOR_GATE] = {ffn, hidden},
        [TENSOR_UP] = {ffn, hidden},
        [TENSOR_GATE_BIAS] = {ffn, 0},
        [TENSOR_UP_BIAS] = {ffn, 0},
        [TENSOR_DOWN] = {hidden, ffn},
        [TENSOR_DOWN_BIAS] = {hidden, 0},
        [TENSOR_FINAL_NORM] = {hidden, 0},
        [TENSOR_FINAL_NORM_BIAS] = {hidden, 0},
        [TENSOR_HEAD] = {model->vocab_size, hidden},
    };

    memcpy(shape, shapes[role], sizeof(shapes[role]));
}

/* Falcon's q, k and v are one tensor: for each key/value head the query heads that it serves, then
 * its key, then its value. */
static void set_fused(const struct model *model, enum tensor_role role, struct tensor_place *place)
{
    int64_t group = model->heads / model->kv_heads, dim = model->head_dim;

    place->tensor.shape[0] = (model->heads + 2 * model->kv_heads) * dim;
    place->block_rows = (role == TENSOR_Q ? group : 1) * dim;
    place->stride = (group + 2) * dim;
    place->first_row = role == TENSOR_Q ? 0 : role == TENSOR_K ? group * dim : (group + 1) * dim;
}

bool tensor_place(const struct model *model, enum tensor_role role, int64_t layer,
                  struct tensor_place *place)
{
    const char *name = name_of(model, role);
    int64_t shape[2];

    if (!name || in_layers(role) != (layer >= 0))
        return false;
    role_shape(model, role, shape);
    *place = (struct tensor_place){
        .tensor = {.dimensions = shape[1] ? 2 : 1, .shape = {shape[0], shape[1] ? shape[1] : 1}},
        .rows = shape[0],
        .columns = shape[1] ? shape[1] : 1,
        .block_rows = shape[0],
        .stride = shape[0],
    };
    if (layer >= 0)
        snprintf(place->tensor.name, sizeof(place->tensor.name), "%s%" PRId64 ".%s",
                 layer_prefix(model), layer, name);
    else
        snprintf(place->tensor.name, sizeof(place->tensor.name), "%s", name);
    if (is_falcon(model) && (role == TENSOR_Q || role == TENSOR_K || role == TENSOR_V))
        set_fused(model, role, place);
    return true;
}

/* The roles that stand for the stored tensors of a layer, each tensor once. */
static size_t layer_roles(const struct model *model, enum tensor_role roles[TENSOR_ROLES])
{
    size_t count = 0;

    for (int role = TENSOR_INPUT_NORM; role <= TENSOR_DOWN_BIAS; role++) {
        const char *name = name_of(model, (enum tensor_role)role);
        bool again = name && count > 0 && strcmp(name, name_of(model, roles[count - 1])) == 0;

        if (name && !again)
            roles[count++] = (enum tensor_role)role;
    }
    return count;
}

/* The same for what comes behind the layers. */
static size_t last_roles(const struct model *model, enum tensor_role roles[TENSOR_ROLES])
{
    size_t count = 0;

    for (int role = TENSOR_FINAL_NORM; role <= TENSOR_HEAD; role++)
        if (name_of(model, (enum tensor_role)role))
            roles[count++] = (enum tensor_role)role;
    return count;
}

size_t hf_tensor_count(const struct model *model)
{
    enum tensor_role roles[TENSOR_ROLES];

    return 1 + (size_t)model->layers * layer_roles(model, roles) + last_roles(model, roles);
}

void hf_tensor_get(const struct model *model, size_t i, struct hf_tensor *tensor)
{
    enum tensor_role roles[TENSOR_ROLES];
    size_t in_layer = layer_roles(model, roles), layers = (size_t)model->layers;
    struct tensor_place place = {0};

    if (i == 0) {
        (void)tensor_place(model, TENSOR_EMBEDDING, -1, &place);
    } else if (i <= layers * in_layer) {
        (void)tensor_place(model, roles[(i - 1) % in_layer], (int64_t)((i - 1) / in_layer), &place);
    } else {
        (void)last_roles(model, roles);
        (void)tensor_place(model, roles[i - 1 - layers * in_layer], -1, &place);
    }
    *tensor = place.tensor;
}

/* The layer's number behind the family's prefix, -1 if there is none; *rest is what follows its
 * dot. */
static int64_t layer_number(const char *prefix, const char *name, const char **rest)
{
    const char *digits = name + strlen(prefix);
    size_t count;

    if (strncmp(name, prefix, strlen(prefix)) != 0)
        return -1;
    count = strspn(digits, "0123456789");
    if (count == 0 || count > 9 || digits[count] != '.' || (*digits == '0' && count > 1))
        return -1;
    *rest = digits + count + 1;
    return strtoll(digits, NULL, 10);
}

bool hf_tensor_known(const struct model *model, const char *name)
{
    const char *rest = NULL;
    int64_t layer = layer_number(layer_prefix(model), name, &rest);

    if (layer >= model->layers)
        return false;
    for (int role = 0; role < TENSOR_ROLES; role++) {
        const char *own = name_of(model, (enum tensor_role)role);

        if (own && in_layers((enum tensor_role)role) == (layer >= 0) &&
            strcmp(layer >= 0 ? rest : name, own) == 0)
            return true;
    }
    return false;
}

bool hf_tensor_is_buffer(const char *name)
{
    static const char *const buffers[] = {
        "self_attn.rotary_emb.inv_freq",   "self_attn.rotary_emb.cos_cached",
        "self_attn.rotary_emb.sin_cached", "self_attention.rotary_emb.inv_freq",
        "self_attention.rotary.inv_freq",
    };
    const char *rest = NULL;

    if (strcmp(name, "model.rotary_emb.inv_freq") == 0)
        return true;
    if (layer_number("model.layers.", name, &rest) < 0 &&
        layer_number("transformer.h.", name, &rest) < 0)
        return false;
    for (size_t i = 0; i < sizeof(buffers) / sizeof(*buffers); i++)
        if (strcmp(rest, buffers[i]) == 0)
            return true;
    return false;
}

const char *hf_embedding_name(const struct model *model)
{
    return name_of(model, TENSOR_EMBEDDING);
}
