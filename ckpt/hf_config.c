/* Reading is strict about what changes the arithmetic and deaf to the rest: a config.json carries
 * dozens of fields of no meaning here, and new ones appear with every release of transformers. */
#include "ckpt/hf_config.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "ckpt/hf_family.h"
#include "ckpt/json_text.h"

/* One config.json while it is read. */
struct config {
    const json_t *root;
    const char *path;
    struct error *error;
};

static int refuse(const struct config *config, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static int refuse(const struct config *config, const char *format, ...)
{
    char text[1024];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return error_set(config->error, EXIT_STATUS_DATA, "%s: %s", config->path, text);
}

/* The member `key`, NULL where it is absent or null. */
static const json_t *member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return json_is_null(value) ? NULL : value;
}

static int read_integer(const struct config *config, const char *key, int64_t otherwise,
                        int64_t maximum, int64_t *value)
{
    const json_t *json = member(config->root, key);

    *value = otherwise;
    if (!json)
        return 0;
    if (!json_is_integer(json))
        return refuse(config, "%s is not an integer", key);
    *value = json_integer_value(json);
    if (*value < 1 || *value > maximum)
        return refuse(config, "%s is %" PRId64 "; expected 1 to %" PRId64, key, *value, maximum);
    return 0;
}

/* Many files say 1000000 where 1000000.0 is meant. */
static int read_real(const struct config *config, const json_t *object, const char *key,
                     double otherwise, double minimum, double maximum, double *value)
{
    const json_t *json = member(object, key);

    *value = otherwise;
    if (!json)
        return 0;
    if (!json_is_number(json))
        return refuse(config, "%s is not a number", key);
    *value = json_number_value(json);
    if (!(*value >= minimum && *value <= maximum))
        return refuse(config, "%s is %g; expected %g to %g", key, *value, minimum, maximum);
    return 0;
}

static int read_boolean(const struct config *config, const char *key, bool otherwise, bool *value)
{
    const json_t *json = member(config->root, key);

    *value = otherwise;
    if (!json)
        return 0;
    if (!json_is_boolean(json))
        return refuse(config, "%s is neither true nor false", key);
    *value = json_is_true(json);
    return 0;
}

/* A token id: a number, or a list whose first is the one that counts here. */
static int read_token(const struct config *config, const char *key, int64_t otherwise,
                      int64_t *value)
{
    const json_t *json = json_object_get(config->root, key);
    const json_t *token;
    size_t i;

    *value = otherwise;
    if (!json)
        return 0;
    *value = -1;
    /* The others are kept for an export. */
    json_array_foreach(json, i, token)
    {
        if (!json_is_integer(token))
            return refuse(config, "%s is neither a token id nor a list of them", key);
    }
    if (json_is_array(json))
        json = json_array_get(json, 0);
    if (!json || json_is_null(json))
        return 0;
    if (!json_is_integer(json))
        return refuse(config, "%s is neither a token id nor a list of them", key);
    if (json_integer_value(json) >= 0)
        *value = json_integer_value(json);
    return 0;
}

/* --- families --------------------------------------------------------------------------------- */

/* What a family's class in transformers takes for a field that is absent. */
struct defaults {
    int64_t vocab_size, hidden_size, ffn_size, layers, heads;
    int64_t kv_heads; /* 0: as many as heads */
    int64_t max_positions;
    double norm_eps;
    bool tied_embeddings;
    int64_t bos_token, eos_token; /* -1: none */
};

static const struct defaults defaults[MODEL_FAMILIES] = {
    [MODEL_FAMILY_LLAMA] = {32000, 4096, 11008, 32, 32, 0, 2048, 1e-6, false, 1, 2},
    [MODEL_FAMILY_MISTRAL] = {32000, 4096, 14336, 32, 32, 8, 131072, 1e-6, false, 1, 2},
    [MODEL_FAMILY_QWEN2] = {151936, 4096, 22016, 32, 32, 32, 32768, 1e-6, false, -1, -1},
    [MODEL_FAMILY_FALCON] = {65024, 4544, 0, 32, 71, 0, 2048, 1e-5, true, 11, 11},
};

/* Other names that uploads have: LLaMAForCausalLM in 2023, RefinedWeb before Falcon was part of
 * transformers. */
static const struct alias {
    const char *name;
    enum model_family family;
} aliases[] = {
    {"LLaMAForCausalLM", MODEL_FAMILY_LLAMA},
    {"RWForCausalLM", MODEL_FAMILY_FALCON},
    {"RefinedWeb", MODEL_FAMILY_FALCON},
    {"RefinedWebModel", MODEL_FAMILY_FALCON},
};

/* The family of a model_type or an architecture, or -1. */
static int find_family(const char *name)
{
    for (int family = 0; family < MODEL_FAMILIES; family++)
        if (strcmp(name, model_family_names[family]) == 0 ||
            strcmp(name, hf_architectures[family]) == 0)
            return family;
    for (size_t i = 0; i < sizeof(aliases) / sizeof(*aliases); i++)
        if (strcmp(name, aliases[i].name) == 0)
            return (int)aliases[i].family;
    return -1;
}

static int read_family(const struct config *config, enum model_family *family)
{
    const json_t *type = member(config->root, "model_type");
    const json_t *architectures = member(config->root, "architectures");
    const char *architecture = json_string_value(json_array_get(architectures, 0));
    int found, other;

    if (!type && !architecture)
        return refuse(config, "has neither model_type nor architectures: is it a model's config?");
    if (type && !json_is_string(type))
        return refuse(config, "model_type is not a string");
    found = find_family(type ? json_string_value(type) : architecture);
    if (found < 0 && type)
        return refuse(config,
                      "model_type %.100s is not supported; mtllm knows llama, mistral, qwen2 and "
                      "falcon",
                      json_string_value(type));
    other = architecture ? find_family(architecture) : found;
    if (found < 0 || other != found)
        return refuse(config,
                      "architecture %.100s is not supported; mtllm knows LlamaForCausalLM, "
                      "MistralForCausalLM, Qwen2ForCausalLM and FalconForCausalLM",
                      architecture);
    *family = (enum model_family)found;
    return 0;
}

/* --- fields of several families ----------------------------------------------------------------
 */

static int check_activation(const struct config *config, const char *key, const char *first,
                            const char *second)
{
    const json_t *activation = member(config->root, key);
    const char *name = json_string_value(activation);

    if (!activation || (name && (strcmp(name, first) == 0 || strcmp(name, second) == 0)))
        return 0;
    return refuse(config, "%s %.100s is not supported; mtllm computes %s", key,
                  name ? name : "(no string)", first);
}

/* Whether all layers have the sliding window, or none; `*window` is then what it is. */
static int check_layer_types(const struct config *config, int64_t *window)
{
    const json_t *types = member(config->root, "layer_types"), *type;
    size_t sliding = 0, count = json_array_size(types), i;

    json_array_foreach(types, i, type)
    {
        const char *kind = json_string_value(type);

        if (kind && strcmp(kind, "sliding_attention") == 0)
            sliding++;
        else if (!kind || strcmp(kind, "full_attention") != 0)
            return refuse(config,
                          "layer_types %.100s is not supported; mtllm computes full_attention and "
                          "sliding_attention",
                          kind ? kind : "(no string)");
    }
    if (sliding > 0 && sliding < count)
        return refuse(config, "layer_types: some layers with a sliding window and some without are "
                              "not supported; mtllm computes one for all");
    if (sliding > 0 && *window == 0)
        return refuse(config, "layer_types sliding_attention, but there is no sliding window");
    if (count > 0 && sliding == 0)
        *window = 0;
    return 0;
}

/* Scaling of the kinds that have more than a factor. */
static int read_rope_details(const struct config *config, const json_t *rope, struct model *model)
{
    struct rope_scaling *scaling = &model->rope;
    const json_t *truncate = member(rope, "truncate");
    const char *key = "original_max_position_embeddings";
    double original;

    if (read_real(config, config->root, key, (double)model->max_positions, 1, 1 << 30, &original) <
            0 ||
        read_real(config, rope, key, original, 1, 1 << 30, &original) < 0)
        return -1;
    scaling->original_positions = (int64_t)original;
    if (scaling->kind == ROPE_LLAMA3) {
        if (!member(rope, "low_freq_factor") || !member(rope, "high_freq_factor"))
            return refuse(config, "rope scaling llama3 has no low_freq_factor or no "
                                  "high_freq_factor");
        return read_real(config, rope, "low_freq_factor", 1, 1e-6, 1e6,
                         &scaling->low_frequency_factor) < 0
                   ? -1
                   : read_real(config, rope, "high_freq_factor", 4, 1e-6, 1e6,
                               &scaling->high_frequency_factor);
    }
    scaling->truncate = !truncate || !json_is_false(truncate);
    if (read_real(config, rope, "beta_fast", YARN_BETA_FAST, 1e-6, 1e6, &scaling->beta_fast) < 0 ||
        read_real(config, rope, "beta_slow", YARN_BETA_SLOW, 1e-6, 1e6, &scaling->beta_slow) < 0 ||
        read_real(config, rope, "attention_factor", 0, 0, 1e6, &scaling->attention_factor) < 0 ||
        read_real(config, rope, "mscale", 0, 0, 1e6, &scaling->mscale) < 0)
        return -1;
    return read_real(config, rope, "mscale_all_dim", 0, 0, 1e6, &scaling->mscale_all_dim);
}

static int read_rope_kind(const struct config *config, const json_t *rope, const char *key,
                          enum rope_kind *kind)
{
    const json_t *type = member(rope, "rope_type");
    const char *name;

    if (!type)
        type = member(rope, "type");
    if (!type && strcmp(key, "rope_scaling") == 0 && json_object_size(rope) > 0)
        return refuse(config, "%s has no rope_type", key);
    if (type && !json_is_string(type))
        return refuse(config, "%s: rope_type is not a string", key);
    name = type ? json_string_value(type) : "default";
    for (*kind = ROPE_DEFAULT; *kind < ROPE_KINDS; (*kind)++)
        if (strcmp(name, rope_kind_names[*kind]) == 0)
            return 0;
    return refuse(config,
                  "%s of type %.100s is not supported; mtllm computes default, linear, dynamic, "
                  "yarn and llama3",
                  key, name);
}

/* The rotary embedding. A dictionary may stand in rope_scaling (v4) or in rope_parameters (v5), the
 * first wins; its own rope_theta beats the one at the top. After the sizes. */
static int read_rope(const struct config *config, struct model *model)
{
    const char *key = member(config->root, "rope_scaling") ? "rope_scaling" : "rope_parameters";
    const json_t *rope = member(config->root, key);
    double partial;

    if (read_real(config, config->root, "rope_theta", 10000, 1, 1e15, &model->rope_theta) < 0)
        return -1;
    if (!rope)
        return 0;
    if (!json_is_object(rope))
        return refuse(config, "%s is not an object", key);
    if (json_is_object(json_object_get(rope, "full_attention")) ||
        json_is_object(json_object_get(rope, "sliding_attention")))
        return refuse(config, "%s by layer type is not supported; mtllm computes one for all", key);
    if (read_rope_kind(config, rope, key, &model->rope.kind) < 0 ||
        read_real(config, rope, "rope_theta", model->rope_theta, 1, 1e15, &model->rope_theta) < 0 ||
        read_real(config, rope, "partial_rotary_factor", 1, 0, 1, &partial) < 0)
        return -1;
    if (partial != 1)
        return refuse(config,
                      "%s: partial_rotary_factor %g is not supported; mtllm rotates whole heads",
                      key, partial);
    if (model->rope.kind == ROPE_DEFAULT)
        return 0;
    if (!member(rope, "factor"))
        return refuse(config, "%s has no factor", key);
    if (read_real(config, rope, "factor", 1, 1, 1e6, &model->rope.factor) < 0)
        return -1;
    if (model->rope.kind == ROPE_YARN || model->rope.kind == ROPE_LLAMA3)
        return read_rope_details(config, rope, model);
    return 0;
}

/* The first of two spellings that is there. */
static const char *spelling(const struct config *config, const char *key, const char *old)
{
    return !member(config->root, key) && member(config->root, old) ? old : key;
}

/* --- Llama, Mistral, Qwen2 ---------------------------------------------------------------------
 */

static int read_biases(const struct config *config, struct model *model)
{
    if (model->family != MODEL_FAMILY_LLAMA)
        return 0;
    if (read_boolean(config, "attention_bias", false, &model->qkv_bias) < 0)
        return -1;
    model->output_bias = model->qkv_bias;
    return read_boolean(config, "mlp_bias", false, &model->mlp_bias);
}

static int read_window(const struct config *config, struct model *model)
{
    bool qwen2 = model->family == MODEL_FAMILY_QWEN2, use = model->family == MODEL_FAMILY_MISTRAL;
    int64_t window;
    double from_layer = 0;

    if (qwen2 && (read_boolean(config, "use_sliding_window", false, &use) < 0 ||
                  read_real(config, config->root, "max_window_layers", QWEN2_MAX_WINDOW_LAYERS, 0,
                            100000, &from_layer) < 0))
        return -1;
    /* null, unlike nothing at all, is no window. */
    if (!use || json_is_null(json_object_get(config->root, "sliding_window")))
        return check_layer_types(config, &model->sliding_window);
    if (read_integer(config, "sliding_window", 4096, 1 << 30, &window) < 0)
        return -1;
    model->sliding_window = window;
    if (member(config->root, "layer_types"))
        return check_layer_types(config, &model->sliding_window);
    if (from_layer >= (double)model->layers)
        model->sliding_window = 0;
    else if (from_layer > 0)
        return refuse(config,
                      "max_window_layers %g: a sliding window in the layers behind that is "
                      "not supported; mtllm computes one for all",
                      from_layer);
    return 0;
}

static int read_llama_sizes(const struct config *config, const struct defaults *otherwise,
                            struct model *model)
{
    if (read_integer(config, "vocab_size", otherwise->vocab_size, 1 << 24, &model->vocab_size) <
            0 ||
        read_integer(config, "hidden_size", otherwise->hidden_size, 1 << 20, &model->hidden_size) <
            0 ||
        read_integer(config, "intermediate_size", otherwise->ffn_size, 1 << 22, &model->ffn_size) <
            0 ||
        read_integer(config, "num_hidden_layers", otherwise->layers, 100000, &model->layers) < 0 ||
        read_integer(config, "num_attention_heads", otherwise->heads, 65536, &model->heads) < 0 ||
        read_integer(config, "num_key_value_heads",
                     otherwise->kv_heads ? otherwise->kv_heads : model->heads, 65536,
                     &model->kv_heads) < 0)
        return -1;
    /* Llama 1 said max_sequence_length. */
    if (read_integer(config, "max_sequence_length", otherwise->max_positions, 1 << 30,
                     &model->max_positions) < 0 ||
        read_integer(config, "max_position_embeddings", model->max_positions, 1 << 30,
                     &model->max_positions) < 0)
        return -1;
    if (!member(config->root, "head_dim") && model->hidden_size % model->heads != 0)
        return refuse(config,
                      "num_attention_heads %" PRId64 " does not divide hidden_size %" PRId64
                      ", and there is no head_dim",
                      model->heads, model->hidden_size);
    return read_integer(config, "head_dim", model->hidden_size / model->heads, 65536,
                        &model->head_dim);
}

static int read_llama(const struct config *config, const struct defaults *otherwise,
                      struct model *model)
{
    if (read_biases(config, model) < 0 ||
        check_activation(config, "hidden_act", "silu", "swish") < 0 ||
        read_llama_sizes(config, otherwise, model) < 0 || read_window(config, model) < 0)
        return -1;
    return read_real(config, config->root, "rms_norm_eps", otherwise->norm_eps, 0, 1,
                     &model->norm_eps);
}

/* --- Falcon ------------------------------------------------------------------------------------
 */

/* Key/value heads: num_kv_heads counts in the newer kind alone; falcon-7b's own file says 71 there
 * and has one. */
static int read_falcon_kv_heads(const struct config *config, bool newer, struct model *model)
{
    bool multi_query;

    if (read_boolean(config, "multi_query", true, &multi_query) < 0)
        return -1;
    if (newer)
        return read_integer(config, spelling(config, "num_kv_heads", "n_head_kv"), model->heads,
                            65536, &model->kv_heads);
    if (!multi_query)
        return refuse(config, "multi_query false is not supported; mtllm computes Falcon with "
                              "shared key/value heads");
    model->kv_heads = 1;
    return 0;
}

static int read_falcon_block(const struct config *config, bool newer, struct model *model)
{
    bool alibi, bias, parallel;
    int64_t norms;

    if (read_boolean(config, "alibi", false, &alibi) < 0 ||
        read_boolean(config, "bias", false, &bias) < 0 ||
        read_boolean(config, "parallel_attn", true, &parallel) < 0 ||
        read_integer(config, "num_ln_in_parallel_attn", newer ? 2 : 1, 2, &norms) < 0)
        return -1;
    if (alibi || bias || !parallel)
        return refuse(config,
                      "%s is not supported; mtllm computes Falcon with rotary positions, "
                      "without biases and with parallel attention",
                      alibi  ? "alibi true"
                      : bias ? "bias true"
                             : "parallel_attn false");
    if (norms == 2 && !newer)
        return refuse(config, "num_ln_in_parallel_attn 2 without new_decoder_architecture");
    model->block = norms == 2 ? MODEL_BLOCK_PARALLEL_TWO_NORMS : MODEL_BLOCK_PARALLEL;
    return 0;
}

static int read_falcon(const struct config *config, const struct defaults *otherwise,
                       struct model *model)
{
    bool newer;

    if (read_boolean(config, "new_decoder_architecture", member(config->root, "n_head_kv") != NULL,
                     &newer) < 0 ||
        check_activation(config, "activation", "gelu", "gelu") < 0 ||
        read_integer(config, "vocab_size", otherwise->vocab_size, 1 << 24, &model->vocab_size) <
            0 ||
        read_integer(config, spelling(config, "hidden_size", "n_embed"), otherwise->hidden_size,
                     1 << 20, &model->hidden_size) < 0 ||
        read_integer(config, spelling(config, "num_hidden_layers", "n_layer"), otherwise->layers,
                     100000, &model->layers) < 0 ||
        read_integer(config, spelling(config, "num_attention_heads", "n_head"), otherwise->heads,
                     65536, &model->heads) < 0 ||
        read_integer(config, "ffn_hidden_size", 4 * model->hidden_size, 1 << 24, &model->ffn_size) <
            0 ||
        read_integer(config, "max_position_embeddings", otherwise->max_positions, 1 << 30,
                     &model->max_positions) < 0 ||
        read_falcon_kv_heads(config, newer, model) < 0 ||
        read_falcon_block(config, newer, model) < 0)
        return -1;
    if (model->hidden_size % model->heads != 0)
        return refuse(config,
                      "num_attention_heads %" PRId64 " does not divide hidden_size %" PRId64,
                      model->heads, model->hidden_size);
    model->head_dim = model->hidden_size / model->heads;
    return read_real(config, config->root, "layer_norm_epsilon", otherwise->norm_eps, 0, 1,
                     &model->norm_eps);
}

/* -------------------------------------------------------------------------------------------- */

static int read_model(const struct config *config, struct model *model)
{
    const struct defaults *otherwise;
    enum model_family family = MODEL_FAMILY_LLAMA;
    double layer_weights;
    struct error reason = {0};
    int rc;

    if (read_family(config, &family) < 0)
        return -1;
    model_set_family(model, family);
    otherwise = &defaults[family];
    if (member(config->root, "quantization_config"))
        return refuse(config, "quantization_config: quantized weights are not supported; convert "
                              "the model to bf16 first");
    rc = family == MODEL_FAMILY_FALCON ? read_falcon(config, otherwise, model)
                                       : read_llama(config, otherwise, model);
    if (rc < 0 || read_rope(config, model) < 0)
        return -1;
    if (read_real(config, config->root, "initializer_range", 0.02, 0, 10, &model->init_std) < 0 ||
        read_boolean(config, "tie_word_embeddings", otherwise->tied_embeddings,
                     &model->tied_embeddings) < 0 ||
        read_token(config, "bos_token_id", otherwise->bos_token, &model->bos_token) < 0 ||
        read_token(config, "eos_token_id", otherwise->eos_token, &model->eos_token) < 0)
        return -1;
    if (model_check(model, &reason) < 0)
        return refuse(config, "%s", reason.text);
    /* Sizes are multiplied all over the program; no product may overflow. */
    layer_weights =
        (double)model->hidden_size *
        ((double)model->heads * (double)model->head_dim * 4 + (double)model->ffn_size * 3);
    if (layer_weights * (double)model->layers > 0x1p50)
        return refuse(config, "describes a model of more than 2^50 weights");
    return 0;
}

int hf_config_read(struct model *model, const char *text, size_t length, const char *path,
                   struct error *error)
{
    json_error_t reason;
    json_t *root =
        json_text_parse(text, length, JSON_CONFIG_VALUES, JSON_REJECT_DUPLICATES, &reason);
    struct config config = {root, path, error};
    struct model read = {0};
    int rc;

    if (!root)
        return error_set(error, EXIT_STATUS_DATA, "%s:%d: %s", path, reason.line, reason.text);
    rc = json_is_object(root) ? read_model(&config, &read) : refuse(&config, "not a JSON object");
    if (rc == 0)
        *model = read;
    json_decref(root);
    return rc;
}
