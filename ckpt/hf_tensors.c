/* Names and shapes: transformers, models/llama/modeling_llama.py. */
#include "ckpt/hf_tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const layer_tensors[] = {
    "input_layernorm.weight",  "self_attn.q_proj.weight", "self_attn.k_proj.weight",
    "self_attn.v_proj.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",    "mlp.up_proj.weight",      "mlp.down_proj.weight",
};
#define LAYER_TENSORS (sizeof(layer_tensors) / sizeof(*layer_tensors))

size_t hf_tensor_count(const struct model *model)
{
    return (size_t)model->layers * LAYER_TENSORS + (model->tied_embeddings ? 2 : 3);
}

static void set_shape(struct hf_tensor *tensor, int64_t out, int64_t in)
{
    tensor->dimensions = in ? 2 : 1;
    tensor->shape[0] = out;
    tensor->shape[1] = in ? in : 1;
}

static void set_layer_shape(const struct model *model, size_t which, struct hf_tensor *tensor)
{
    int64_t hidden = model->hidden_size, ffn = model->ffn_size;
    int64_t query = model->heads * model->head_dim, key = model->kv_heads * model->head_dim;
    const int64_t shapes[LAYER_TENSORS][2] = {
        {hidden, 0}, {query, hidden}, {key, hidden}, {key, hidden}, {hidden, query},
        {hidden, 0}, {ffn, hidden},   {ffn, hidden}, {hidden, ffn},
    };

    set_shape(tensor, shapes[which][0], shapes[which][1]);
}

void hf_tensor_get(const struct model *model, size_t i, struct hf_tensor *tensor)
{
    size_t in_layers = (size_t)model->layers * LAYER_TENSORS;

    if (i == 0) {
        strcpy(tensor->name, HF_EMBEDDING);
        set_shape(tensor, model->vocab_size, model->hidden_size);
    } else if (i <= in_layers) {
        snprintf(tensor->name, sizeof(tensor->name), "model.layers.%zu.%s", (i - 1) / LAYER_TENSORS,
                 layer_tensors[(i - 1) % LAYER_TENSORS]);
        set_layer_shape(model, (i - 1) % LAYER_TENSORS, tensor);
    } else if (i == in_layers + 1) {
        strcpy(tensor->name, "model.norm.weight");
        set_shape(tensor, model->hidden_size, 0);
    } else {
        strcpy(tensor->name, HF_HEAD);
        set_shape(tensor, model->vocab_size, model->hidden_size);
    }
}

/* The layer's number behind "model.layers.", -1 if there is none; *rest is what follows its dot. */
static int64_t layer_number(const char *name, const char **rest)
{
    static const char prefix[] = "model.layers.";
    const char *digits = name + sizeof(prefix) - 1;
    size_t count;

    if (strncmp(name, prefix, sizeof(prefix) - 1) != 0)
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
    int64_t layer = layer_number(name, &rest);

    if (layer >= 0 && layer < model->layers)
        for (size_t i = 0; i < LAYER_TENSORS; i++)
            if (strcmp(rest, layer_tensors[i]) == 0)
                return true;
    return strcmp(name, HF_EMBEDDING) == 0 || strcmp(name, "model.norm.weight") == 0 ||
           (strcmp(name, HF_HEAD) == 0 && !model->tied_embeddings);
}

bool hf_tensor_is_buffer(const char *name)
{
    static const char *const buffers[] = {
        "self_attn.rotary_emb.inv_freq",
        "self_attn.rotary_emb.cos_cached",
        "self_attn.rotary_emb.sin_cached",
    };
    const char *rest = NULL;

    if (strcmp(name, "model.rotary_emb.inv_freq") == 0)
        return true;
    if (layer_number(name, &rest) < 0)
        return false;
    for (size_t i = 0; i < sizeof(buffers) / sizeof(*buffers); i++)
        if (strcmp(rest, buffers[i]) == 0)
            return true;
    return false;
}
