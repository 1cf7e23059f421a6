/* Writing config.json and generation_config.json: in the spelling of transformers 4, which every
 * version reads, and without what is the default of a family's class. */
#include "ckpt/hf_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "ckpt/hf_family.h"
#include "ckpt/json_text.h"

const char *const hf_architectures[MODEL_FAMILIES] = {
    [MODEL_FAMILY_LLAMA] = "LlamaForCausalLM",
    [MODEL_FAMILY_MISTRAL] = "MistralForCausalLM",
    [MODEL_FAMILY_QWEN2] = "Qwen2ForCausalLM",
    [MODEL_FAMILY_FALCON] = "FalconForCausalLM",
};

/* Digits after which every real number in `json` comes back as it was: 1e-05, not
 * 1.0000000000000001e-05. At least `digits`. */
static int digits_needed(const json_t *json, int digits)
{
    const json_t *value;
    const char *key;
    size_t i;

    if (json_is_real(json)) {
        char text[64];

        do
            snprintf(text, sizeof(text), "%.*g", digits, json_real_value(json));
        while (strtod(text, NULL) != json_real_value(json) && digits++ < 17);
    }
    json_object_foreach((json_t *)json, key, value)
    {
        digits = digits_needed(value, digits);
    }
    json_array_foreach(json, i, value)
    {
        digits = digits_needed(value, digits);
    }
    return digits;
}

static json_t *token_json(int64_t token)
{
    return token < 0 ? json_null() : json_integer(token);
}

/* `json` as text with a newline at its end, keys sorted as transformers does; takes the
 * reference. */
static char *dump(json_t *json)
{
    int digits = json ? digits_needed(json, 9) : 0;
    char *line = json_text_dump(json, JSON_SORT_KEYS | JSON_REAL_PRECISION((size_t)digits));

    json_decref(json);
    return line;
}

/* With the key torch_dtype every version reads it; version 4 knows no other. An old
 * transformers_version keeps newer ones from applying repairs that this file does not need. */
#define TRANSFORMERS_VERSION "4.51.0"

/* rope_scaling as transformers 4 has it, which every version reads; real numbers with a point. */
static json_t *rope_json(const struct rope_scaling *rope)
{
    json_t *json;

    if (rope->kind == ROPE_DEFAULT)
        return json_null();
    json =
        json_pack("{s:s, s:f}", "rope_type", rope_kind_names[rope->kind], "factor", rope->factor);
    if (json && (rope->kind == ROPE_YARN || rope->kind == ROPE_LLAMA3))
        json_object_set_new(json, "original_max_position_embeddings",
                            json_integer(rope->original_positions));
    if (json && rope->kind == ROPE_LLAMA3) {
        json_object_set_new(json, "low_freq_factor", json_real(rope->low_frequency_factor));
        json_object_set_new(json, "high_freq_factor", json_real(rope->high_frequency_factor));
    }
    if (json && rope->kind == ROPE_YARN) {
        const struct {
            const char *key;
            double value;
        } given[] = {
            {"attention_factor", rope->attention_factor},
            {"mscale", rope->mscale},
            {"mscale_all_dim", rope->mscale_all_dim},
        };

        /* What is left out is the default. */
        if (rope->beta_fast != YARN_BETA_FAST)
            json_object_set_new(json, "beta_fast", json_real(rope->beta_fast));
        if (rope->beta_slow != YARN_BETA_SLOW)
            json_object_set_new(json, "beta_slow", json_real(rope->beta_slow));
        if (!rope->truncate)
            json_object_set_new(json, "truncate", json_false());
        for (size_t i = 0; i < sizeof(given) / sizeof(*given); i++)
            if (given[i].value > 0)
                json_object_set_new(json, given[i].key, json_real(given[i].value));
    }
    return json;
}

/* What only one family has. */
static json_t *llama_json(const struct model *model)
{
    json_t *json = json_pack("{s:I, s:s, s:I, s:I, s:f}", "head_dim", (json_int_t)model->head_dim,
                             "hidden_act", "silu", "intermediate_size", (json_int_t)model->ffn_size,
                             "num_key_value_heads", (json_int_t)model->kv_heads, "rms_norm_eps",
                             model->norm_eps);

    if (json && model->family == MODEL_FAMILY_LLAMA) {
        json_object_set_new(json, "attention_bias", json_boolean(model->qkv_bias));
        json_object_set_new(json, "mlp_bias", json_boolean(model->mlp_bias));
        json_object_set_new(json, "pretraining_tp", json_integer(1));
    } else if (json) {
        json_object_set_new(json, "sliding_window",
                            model->sliding_window ? json_integer(model->sliding_window)
                                                  : json_null());
    }
    if (json && model->family == MODEL_FAMILY_QWEN2) {
        /* No field of its class, but heeded where it is there. */
        if (model->head_dim * model->heads == model->hidden_size)
            json_object_del(json, "head_dim");
        json_object_set_new(json, "use_sliding_window", json_boolean(model->sliding_window > 0));
        /* The window is in the layers from this one on. */
        json_object_set_new(json, "max_window_layers",
                            json_integer(model->sliding_window ? 0 : QWEN2_MAX_WINDOW_LAYERS));
    }
    return json;
}

static json_t *falcon_json(const struct model *model)
{
    bool newer = model->block == MODEL_BLOCK_PARALLEL_TWO_NORMS || model->kv_heads > 1;

    json_t *json = json_pack(
        "{s:s, s:b, s:b, s:I, s:f, s:f, s:b, s:b, s:I, s:b}", "activation", "gelu", "alibi", 0,
        "bias", 0, "ffn_hidden_size", (json_int_t)model->ffn_size, "hidden_dropout", 0.0,
        "layer_norm_epsilon", model->norm_eps, "multi_query", 1, "new_decoder_architecture", newer,
        /* Counts in the newer kind alone; the other has the query heads' number there. */
        "num_kv_heads", (json_int_t)(newer ? model->kv_heads : model->heads), "parallel_attn", 1);

    if (json && newer)
        json_object_set_new(json, "num_ln_in_parallel_attn",
                            json_integer(model->block == MODEL_BLOCK_PARALLEL_TWO_NORMS ? 2 : 1));
    return json;
}

char *hf_config_write(const struct model *model, enum dtype dtype)
{
    static const char *const dtype_names[] = {
        [DTYPE_F32] = "float32",
        [DTYPE_BF16] = "bfloat16",
        [DTYPE_F16] = "float16",
    };
    json_t *json = json_pack(
        "{s:[s], s:s, s:f, s:o, s:o}", "architectures", hf_architectures[model->family],
        "model_type", model_family_names[model->family], "attention_dropout", 0.0, "bos_token_id",
        token_json(model->bos_token), "eos_token_id", token_json(model->eos_token));
    json_t *sizes =
        json_pack("{s:I, s:I, s:I, s:I, s:I}", "hidden_size", (json_int_t)model->hidden_size,
                  "max_position_embeddings", (json_int_t)model->max_positions,
                  "num_attention_heads", (json_int_t)model->heads, "num_hidden_layers",
                  (json_int_t)model->layers, "vocab_size", (json_int_t)model->vocab_size);
    json_t *rest =
        json_pack("{s:f, s:o, s:f, s:b, s:s, s:s, s:b}", "initializer_range", model->init_std,
                  "rope_scaling", rope_json(&model->rope), "rope_theta", model->rope_theta,
                  "tie_word_embeddings", model->tied_embeddings, "torch_dtype", dtype_names[dtype],
                  "transformers_version", TRANSFORMERS_VERSION, "use_cache", 1);
    json_t *own = model->family == MODEL_FAMILY_FALCON ? falcon_json(model) : llama_json(model);

    if (!json || !sizes || !rest || !own || json_object_update(json, sizes) < 0 ||
        json_object_update(json, rest) < 0 || json_object_update(json, own) < 0) {
        json_decref(json);
        json = NULL;
    }
    json_decref(sizes);
    json_decref(rest);
    json_decref(own);
    return dump(json);
}

char *hf_generation_config_write(const struct model *model)
{
    json_t *json =
        json_pack("{s:b, s:o, s:o, s:s}", "_from_model_config", 1, "bos_token_id",
                  token_json(model->bos_token), "eos_token_id", token_json(model->eos_token),
                  "transformers_version", TRANSFORMERS_VERSION);

    /* A null here would read as "no end token" instead of "not known". */
    if (model->bos_token < 0)
        json_object_del(json, "bos_token_id");
    if (model->eos_token < 0)
        json_object_del(json, "eos_token_id");
    return dump(json);
}

char *hf_config_take_token_ids(const char *text, const char *from, size_t length,
                               enum hf_token_ids which)
{
    static const char *const keys[] = {"bos_token_id", "eos_token_id", "pad_token_id"};
    json_t *to = json_loads(text, 0, NULL);
    json_t *source = json_text_parse(from, length, JSON_CONFIG_VALUES, 0, NULL);
    json_t *list = json_object_get(source, "eos_token_id");
    int rc = 0;

    if (!json_is_object(to) || !json_is_object(source)) {
        json_decref(to);
        json_decref(source);
        return strdup(text);
    }
    if (which == HF_TOKEN_IDS_ALL) {
        for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++)
            if (json_object_get(source, keys[i]))
                rc |= json_object_set(to, keys[i], json_object_get(source, keys[i]));
    } else if (json_is_array(list) &&
               json_equal(json_array_get(list, 0), json_object_get(to, "eos_token_id"))) {
        rc = json_object_set(to, "eos_token_id", list);
    }
    json_decref(source);
    if (rc < 0) {
        json_decref(to);
        return NULL;
    }
    return dump(to);
}

const char *const hf_tokenizer_files[] = {
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    NULL,
};
