/* Reading is strict about what changes the arithmetic and deaf to the rest: a config.json carries
 * dozens of fields of no meaning here, and new ones appear with every release of transformers. */
#include "ckpt/hf_config.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

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

static int check_family(const struct config *config)
{
    const json_t *type = member(config->root, "model_type");
    const json_t *architectures = member(config->root, "architectures");
    const char *architecture = json_string_value(json_array_get(architectures, 0));

    if (!type && !architecture)
        return refuse(config, "has neither model_type nor architectures: is it a model's config?");
    if (type && !json_is_string(type))
        return refuse(config, "model_type is not a string");
    if (type && strcmp(json_string_value(type), "llama") != 0)
        return refuse(config, "model_type %.100s is not supported; mtllm knows llama",
                      json_string_value(type));
    /* LLaMAForCausalLM is how the first uploads of 2023 spelled it. */
    if (architecture && strcmp(architecture, "LlamaForCausalLM") != 0 &&
        strcmp(architecture, "LLaMAForCausalLM") != 0)
        return refuse(config, "architecture %.100s is not supported; mtllm knows LlamaForCausalLM",
                      architecture);
    return 0;
}

/* What would change the logits and is not computed. */
static int check_supported(const struct config *config)
{
    static const char *const biases[] = {"attention_bias", "mlp_bias"};
    const json_t *activation = member(config->root, "hidden_act");
    const json_t *layer_types = member(config->root, "layer_types");
    const json_t *layer_type;
    size_t i;

    for (i = 0; i < sizeof(biases) / sizeof(*biases); i++) {
        bool bias;

        if (read_boolean(config, biases[i], false, &bias) < 0)
            return -1;
        if (bias)
            return refuse(config, "%s true is not supported; mtllm computes Llama without biases",
                          biases[i]);
    }
    if (activation &&
        (!json_is_string(activation) || (strcmp(json_string_value(activation), "silu") != 0 &&
                                         strcmp(json_string_value(activation), "swish") != 0)))
        return refuse(config, "hidden_act %.100s is not supported; mtllm computes silu",
                      json_is_string(activation) ? json_string_value(activation) : "(no string)");
    if (member(config->root, "quantization_config"))
        return refuse(config, "quantization_config: quantized weights are not supported; convert "
                              "the model to bf16 first");
    json_array_foreach(layer_types, i, layer_type)
    {
        const char *kind = json_string_value(layer_type);

        if (!kind || strcmp(kind, "full_attention") != 0)
            return refuse(config,
                          "layer_types %.100s is not supported; mtllm computes full_attention",
                          kind ? kind : "(no string)");
    }
    return 0;
}

/* The base of the rotary embedding. A dictionary may stand in rope_scaling (v4) or in
 * rope_parameters (v5), the first wins; its own rope_theta beats the one at the top. */
static int read_rope(const struct config *config, double *theta)
{
    const char *key = member(config->root, "rope_scaling") ? "rope_scaling" : "rope_parameters";
    const json_t *rope = member(config->root, key), *type;
    double factor;

    if (read_real(config, config->root, "rope_theta", 10000, 1, 1e15, theta) < 0)
        return -1;
    if (!rope)
        return 0;
    if (!json_is_object(rope))
        return refuse(config, "%s is not an object", key);
    if (json_is_object(json_object_get(rope, "full_attention")) ||
        json_is_object(json_object_get(rope, "sliding_attention")))
        return refuse(config, "%s by layer type is not supported; mtllm computes one for all", key);
    type = member(rope, "rope_type");
    if (!type)
        type = member(rope, "type");
    if (!type && strcmp(key, "rope_scaling") == 0 && json_object_size(rope) > 0)
        return refuse(config, "%s has no rope_type", key);
    if (type && !json_is_string(type))
        return refuse(config, "%s: rope_type is not a string", key);
    if (type && strcmp(json_string_value(type), "default") != 0)
        return refuse(config,
                      "%s of type %.100s is not supported; mtllm computes the default rotary "
                      "embedding",
                      key, json_string_value(type));
    if (read_real(config, rope, "partial_rotary_factor", 1, 0, 1, &factor) < 0)
        return -1;
    if (factor != 1)
        return refuse(config,
                      "%s: partial_rotary_factor %g is not supported; mtllm rotates whole "
                      "heads",
                      key, factor);
    return read_real(config, rope, "rope_theta", *theta, 1, 1e15, theta);
}

static int read_sizes(const struct config *config, struct model *model)
{
    if (read_integer(config, "vocab_size", 32000, 1 << 24, &model->vocab_size) < 0 ||
        read_integer(config, "hidden_size", 4096, 1 << 20, &model->hidden_size) < 0 ||
        read_integer(config, "intermediate_size", 11008, 1 << 22, &model->ffn_size) < 0 ||
        read_integer(config, "num_hidden_layers", 32, 100000, &model->layers) < 0 ||
        read_integer(config, "num_attention_heads", 32, 65536, &model->heads) < 0 ||
        read_integer(config, "num_key_value_heads", model->heads, 65536, &model->kv_heads) < 0)
        return -1;
    /* Llama 1 said max_sequence_length. */
    if (read_integer(config, "max_sequence_length", 2048, 1 << 30, &model->max_positions) < 0 ||
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

static int read_model(const struct config *config, struct model *model)
{
    double layer_weights;
    struct error reason = {0};

    if (check_family(config) < 0 || check_supported(config) < 0 || read_sizes(config, model) < 0 ||
        read_rope(config, &model->rope_theta) < 0)
        return -1;
    if (read_real(config, config->root, "rms_norm_eps", 1e-6, 0, 1, &model->norm_eps) < 0 ||
        read_real(config, config->root, "initializer_range", 0.02, 0, 10, &model->init_std) < 0 ||
        read_boolean(config, "tie_word_embeddings", false, &model->tied_embeddings) < 0 ||
        read_token(config, "bos_token_id", 1, &model->bos_token) < 0 ||
        read_token(config, "eos_token_id", 2, &model->eos_token) < 0)
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
    struct model read = {.family = MODEL_FAMILY_LLAMA};
    int rc;

    if (!root)
        return error_set(error, EXIT_STATUS_DATA, "%s:%d: %s", path, reason.line, reason.text);
    rc = json_is_object(root) ? read_model(&config, &read) : refuse(&config, "not a JSON object");
    if (rc == 0)
        *model = read;
    json_decref(root);
    return rc;
}

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
    char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_SORT_KEYS |
                                             JSON_REAL_PRECISION((size_t)digits))
                      : NULL;
    char *line = NULL;

    if (text && asprintf(&line, "%s\n", text) < 0)
        line = NULL;
    free(text);
    json_decref(json);
    return line;
}

/* With the key torch_dtype every version reads it; version 4 knows no other. An old
 * transformers_version keeps newer ones from applying repairs that this file does not need. */
#define TRANSFORMERS_VERSION "4.51.0"

char *hf_config_write(const struct model *model, enum dtype dtype)
{
    static const char *const dtype_names[] = {
        [DTYPE_F32] = "float32",
        [DTYPE_BF16] = "bfloat16",
        [DTYPE_F16] = "float16",
    };
    json_t *json = json_pack(
        "{s:[s], s:s, s:b, s:b, s:f, s:o, s:o}", "architectures", "LlamaForCausalLM", "model_type",
        "llama", "attention_bias", 0, "mlp_bias", 0, "attention_dropout", 0.0, "bos_token_id",
        token_json(model->bos_token), "eos_token_id", token_json(model->eos_token));
    json_t *sizes =
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "head_dim",
                  (json_int_t)model->head_dim, "hidden_size", (json_int_t)model->hidden_size,
                  "intermediate_size", (json_int_t)model->ffn_size, "max_position_embeddings",
                  (json_int_t)model->max_positions, "num_attention_heads", (json_int_t)model->heads,
                  "num_hidden_layers", (json_int_t)model->layers, "num_key_value_heads",
                  (json_int_t)model->kv_heads, "vocab_size", (json_int_t)model->vocab_size);
    json_t *rest =
        json_pack("{s:s, s:f, s:i, s:f, s:n, s:f, s:b, s:s, s:s, s:b}", "hidden_act", "silu",
                  "initializer_range", model->init_std, "pretraining_tp", 1, "rms_norm_eps",
                  model->norm_eps, "rope_scaling", "rope_theta", model->rope_theta,
                  "tie_word_embeddings", model->tied_embeddings, "torch_dtype", dtype_names[dtype],
                  "transformers_version", TRANSFORMERS_VERSION, "use_cache", 1);

    if (!json || !sizes || !rest || json_object_update(json, sizes) < 0 ||
        json_object_update(json, rest) < 0) {
        json_decref(json);
        json = NULL;
    }
    json_decref(sizes);
    json_decref(rest);
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
