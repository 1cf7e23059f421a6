#include "core/model.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

const char *const model_family_names[MODEL_FAMILIES] = {
    [MODEL_FAMILY_LLAMA] = "llama",
    [MODEL_FAMILY_MISTRAL] = "mistral",
    [MODEL_FAMILY_QWEN2] = "qwen2",
    [MODEL_FAMILY_FALCON] = "falcon",
};

const char *const rope_kind_names[ROPE_KINDS] = {
    [ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear", [ROPE_DYNAMIC] = "dynamic",
    [ROPE_YARN] = "yarn",       [ROPE_LLAMA3] = "llama3",
};

/* The index of a word that the settings' table has let through, or -1. */
static int find_word(const char *const *words, int count, const char *word)
{
    for (int i = 0; i < count; i++)
        if (strcmp(words[i], word) == 0)
            return i;
    return -1;
}

void model_set_family(struct model *model, enum model_family family)
{
    bool falcon = family == MODEL_FAMILY_FALCON;

    model->family = family;
    model->norm = falcon ? MODEL_NORM_LAYER : MODEL_NORM_RMS;
    model->mlp = falcon ? MODEL_MLP_GELU : MODEL_MLP_SWIGLU;
    if (family == MODEL_FAMILY_QWEN2)
        model->qkv_bias = true;
}

/* What a family's config.json has no field for would be lost with the first checkpoint. */
static int check_family(const struct model *model, struct error *error)
{
    const bool llama = model->family == MODEL_FAMILY_LLAMA;
    const bool falcon = model->family == MODEL_FAMILY_FALCON;
    const struct {
        const char *setting;
        bool refused;
        const char *why;
    } rules[] = {
        {"sliding-window", model->sliding_window > 0 && (llama || falcon),
         "has none; mistral and qwen2 do"},
        {"qkv-bias", llama && model->qkv_bias != model->output_bias,
         "has it together with output-bias or not at all"},
        {"qkv-bias", model->qkv_bias && (falcon || model->family == MODEL_FAMILY_MISTRAL),
         "has no biases"},
        {"output-bias", model->output_bias && !llama, "has none; llama does"},
        {"mlp-bias", model->mlp_bias && !llama, "has none; llama does"},
        {"head-dim", falcon && model->head_dim * model->heads != model->hidden_size,
         "has hidden-size / heads; leave it away"},
    };

    for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++)
        if (rules[i].refused)
            return error_set(error, EXIT_STATUS_CONFIGURATION, "%s: family %s %s", rules[i].setting,
                             model_family_names[model->family], rules[i].why);
    return 0;
}

int model_check(const struct model *model, struct error *error)
{
    if (model->heads % model->kv_heads != 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "kv-heads=%lld does not divide heads=%lld", (long long)model->kv_heads,
                         (long long)model->heads);
    if (model->head_dim % 2 != 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "head-dim=%lld is odd; rotary positions need an even one",
                         (long long)model->head_dim);
    if (check_family(model, error) < 0)
        return -1;
    if (model->rope.kind != ROPE_DEFAULT && !(model->rope.factor >= 1))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "rope-scaling=%s: rope-factor=%g is less than 1",
                         rope_kind_names[model->rope.kind], model->rope.factor);
    if ((model->rope.kind == ROPE_YARN || model->rope.kind == ROPE_LLAMA3) &&
        model->rope.original_positions < 1)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "rope-scaling=%s: needs rope-original-positions, the context that the "
                         "model had before",
                         rope_kind_names[model->rope.kind]);
    if (model->rope.kind == ROPE_LLAMA3 &&
        !(model->rope.high_frequency_factor > model->rope.low_frequency_factor))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "rope-scaling=llama3: rope-high-frequency-factor=%g is not above "
                         "rope-low-frequency-factor=%g",
                         model->rope.high_frequency_factor, model->rope.low_frequency_factor);
    return 0;
}

static struct rope_scaling rope_from_settings(const struct settings *settings)
{
    const char *kind = setting_text(settings, SETTING_ROPE_SCALING);
    struct rope_scaling rope = {
        .kind = (enum rope_kind)find_word(rope_kind_names, ROPE_KINDS, kind),
    };

    if (rope.kind == ROPE_DEFAULT)
        return rope;
    rope.factor = setting_real(settings, SETTING_ROPE_FACTOR);
    if (rope.kind == ROPE_YARN || rope.kind == ROPE_LLAMA3)
        rope.original_positions = setting_integer(settings, SETTING_ROPE_ORIGINAL_POSITIONS);
    if (rope.kind == ROPE_LLAMA3) {
        rope.low_frequency_factor = setting_real(settings, SETTING_ROPE_LOW_FREQUENCY_FACTOR);
        rope.high_frequency_factor = setting_real(settings, SETTING_ROPE_HIGH_FREQUENCY_FACTOR);
    }
    if (rope.kind == ROPE_YARN) {
        rope.beta_fast = setting_real(settings, SETTING_ROPE_BETA_FAST);
        rope.beta_slow = setting_real(settings, SETTING_ROPE_BETA_SLOW);
        rope.attention_factor = setting_real(settings, SETTING_ROPE_ATTENTION_FACTOR);
        rope.truncate = true;
    }
    return rope;
}

int model_from_settings(struct model *model, const struct settings *settings, struct error *error)
{
    static const enum setting_id needed[] = {SETTING_LAYERS, SETTING_HIDDEN_SIZE, SETTING_FFN_SIZE,
                                             SETTING_HEADS, SETTING_VOCAB_SIZE};

    for (size_t i = 0; i < sizeof(needed) / sizeof(*needed); i++)
        if (!setting_is_set(settings, needed[i]))
            return error_set(error, EXIT_STATUS_CONFIGURATION,
                             "no model: give --model=NAME, or --init with a checkpoint, or --%s "
                             "and the other sizes",
                             setting_table[needed[i]].name);
    *model = (struct model){
        .qkv_bias = setting_boolean(settings, SETTING_QKV_BIAS),
        .output_bias = setting_boolean(settings, SETTING_OUTPUT_BIAS),
        .mlp_bias = setting_boolean(settings, SETTING_MLP_BIAS),
        .sliding_window = setting_integer(settings, SETTING_SLIDING_WINDOW),
        .rope = rope_from_settings(settings),
        .layers = setting_integer(settings, SETTING_LAYERS),
        .hidden_size = setting_integer(settings, SETTING_HIDDEN_SIZE),
        .ffn_size = setting_integer(settings, SETTING_FFN_SIZE),
        .heads = setting_integer(settings, SETTING_HEADS),
        .vocab_size = setting_integer(settings, SETTING_VOCAB_SIZE),
        .max_positions = setting_integer(settings, SETTING_MAX_POSITIONS),
        .norm_eps = setting_real(settings, SETTING_NORM_EPS),
        .rope_theta = setting_real(settings, SETTING_ROPE_THETA),
        .init_std = setting_real(settings, SETTING_INIT_STD),
        .tied_embeddings = setting_boolean(settings, SETTING_TIED_EMBEDDINGS),
        .bos_token = -1,
        .eos_token = -1,
    };
    model_set_family(model, (enum model_family)find_word(model_family_names, MODEL_FAMILIES,
                                                         setting_text(settings, SETTING_FAMILY)));
    if (model->family == MODEL_FAMILY_FALCON)
        model->block = setting_integer(settings, SETTING_PARALLEL_NORMS) == 2
                           ? MODEL_BLOCK_PARALLEL_TWO_NORMS
                           : MODEL_BLOCK_PARALLEL;
    model->kv_heads = setting_is_set(settings, SETTING_KV_HEADS)
                          ? setting_integer(settings, SETTING_KV_HEADS)
                          : model->heads;
    if (setting_is_set(settings, SETTING_HEAD_DIM))
        model->head_dim = setting_integer(settings, SETTING_HEAD_DIM);
    else if (model->hidden_size % model->heads == 0)
        model->head_dim = model->hidden_size / model->heads;
    else
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "heads=%lld does not divide hidden-size=%lld; give head-dim",
                         (long long)model->heads, (long long)model->hidden_size);
    return model_check(model, error);
}

static bool is_given(const struct settings *settings, enum setting_id id)
{
    return setting_source(settings, id) != SETTING_SOURCE_DEFAULT && setting_is_set(settings, id);
}

/* Settings that a model's weights leave open: how far it looks, and how positions turn. */
static int override_context(struct model *model, const struct settings *settings,
                            struct error *error)
{
    static const enum setting_id scaling[] = {
        SETTING_ROPE_FACTOR,
        SETTING_ROPE_ORIGINAL_POSITIONS,
        SETTING_ROPE_LOW_FREQUENCY_FACTOR,
        SETTING_ROPE_HIGH_FREQUENCY_FACTOR,
        SETTING_ROPE_BETA_FAST,
        SETTING_ROPE_BETA_SLOW,
        SETTING_ROPE_ATTENTION_FACTOR,
    };

    if (is_given(settings, SETTING_ROPE_SCALING)) {
        struct rope_scaling before = model->rope;

        model->rope = rope_from_settings(settings);
        if (model->rope.kind == ROPE_YARN || model->rope.kind == ROPE_LLAMA3)
            if (!is_given(settings, SETTING_ROPE_ORIGINAL_POSITIONS))
                model->rope.original_positions = before.original_positions > 0
                                                     ? before.original_positions
                                                     : model->max_positions;
    } else {
        for (size_t i = 0; i < sizeof(scaling) / sizeof(*scaling); i++)
            if (is_given(settings, scaling[i]))
                return error_set(error, EXIT_STATUS_CONFIGURATION,
                                 "%s: goes with rope-scaling, which is not given",
                                 setting_table[scaling[i]].name);
    }
    if (is_given(settings, SETTING_MAX_POSITIONS))
        model->max_positions = setting_integer(settings, SETTING_MAX_POSITIONS);
    if (is_given(settings, SETTING_ROPE_THETA))
        model->rope_theta = setting_real(settings, SETTING_ROPE_THETA);
    if (is_given(settings, SETTING_SLIDING_WINDOW))
        model->sliding_window = setting_integer(settings, SETTING_SLIDING_WINDOW);
    return 0;
}

/* A setting as a number, the family by its place in the list of them. */
static double number_of(const struct settings *settings, enum setting_id id)
{
    switch (setting_table[id].type) {
    case SETTING_TYPE_INTEGER:
        return (double)setting_integer(settings, id);
    case SETTING_TYPE_BOOLEAN:
        return setting_boolean(settings, id);
    case SETTING_TYPE_REAL:
        return setting_real(settings, id);
    default:
        return find_word(model_family_names, MODEL_FAMILIES, setting_text(settings, id));
    }
}

/* `value` as the setting would be written. */
static const char *text_of(enum setting_id id, double value, char *text, size_t size)
{
    if (id == SETTING_FAMILY)
        return model_family_names[(int)value];
    if (setting_table[id].type == SETTING_TYPE_BOOLEAN)
        return value != 0 ? "yes" : "no";
    snprintf(text, size, "%.10g", value);
    return text;
}

int model_override(struct model *model, const struct settings *settings, struct error *error)
{
    const struct {
        enum setting_id id;
        double value;
    } fixed[] = {
        {SETTING_FAMILY, model->family},
        {SETTING_HIDDEN_SIZE, (double)model->hidden_size},
        {SETTING_FFN_SIZE, (double)model->ffn_size},
        {SETTING_HEADS, (double)model->heads},
        {SETTING_KV_HEADS, (double)model->kv_heads},
        {SETTING_HEAD_DIM, (double)model->head_dim},
        {SETTING_VOCAB_SIZE, (double)model->vocab_size},
        {SETTING_NORM_EPS, model->norm_eps},
        {SETTING_QKV_BIAS, model->qkv_bias},
        {SETTING_OUTPUT_BIAS, model->output_bias},
        {SETTING_MLP_BIAS, model->mlp_bias},
        {SETTING_PARALLEL_NORMS, model->block == MODEL_BLOCK_PARALLEL_TWO_NORMS ? 2 : 1},
        {SETTING_TIED_EMBEDDINGS, model->tied_embeddings},
    };
    char text[32];

    for (size_t i = 0; i < sizeof(fixed) / sizeof(*fixed); i++)
        if (is_given(settings, fixed[i].id) && number_of(settings, fixed[i].id) != fixed[i].value)
            return error_set(error, EXIT_STATUS_CONFIGURATION,
                             "%s=%s: the stored model has %s; leave the setting away",
                             setting_table[fixed[i].id].name, setting_text(settings, fixed[i].id),
                             text_of(fixed[i].id, fixed[i].value, text, sizeof(text)));
    if (override_context(model, settings, error) < 0)
        return -1;
    return model_check(model, error);
}

const char *model_difference(const struct model *a, const struct model *b)
{
    if (a->family != b->family)
        return "family";
    if (a->layers != b->layers)
        return "layers";
    if (a->hidden_size != b->hidden_size)
        return "hidden-size";
    if (a->ffn_size != b->ffn_size)
        return "ffn-size";
    if (a->heads != b->heads)
        return "heads";
    if (a->kv_heads != b->kv_heads)
        return "kv-heads";
    if (a->head_dim != b->head_dim)
        return "head-dim";
    if (a->vocab_size != b->vocab_size)
        return "vocab-size";
    if (a->max_positions != b->max_positions)
        return "max-positions";
    if (a->norm_eps != b->norm_eps)
        return "norm-eps";
    if (a->rope_theta != b->rope_theta)
        return "rope-theta";
    if (a->tied_embeddings != b->tied_embeddings)
        return "tied-embeddings";
    if (a->block != b->block)
        return "parallel-norms";
    if (a->qkv_bias != b->qkv_bias)
        return "qkv-bias";
    if (a->output_bias != b->output_bias)
        return "output-bias";
    if (a->mlp_bias != b->mlp_bias)
        return "mlp-bias";
    if (a->sliding_window != b->sliding_window)
        return "sliding-window";
    if (a->rope.kind != b->rope.kind)
        return "rope-scaling";
    if (a->rope.factor != b->rope.factor)
        return "rope-factor";
    if (a->rope.original_positions != b->rope.original_positions)
        return "rope-original-positions";
    if (a->rope.low_frequency_factor != b->rope.low_frequency_factor ||
        a->rope.high_frequency_factor != b->rope.high_frequency_factor ||
        a->rope.beta_fast != b->rope.beta_fast || a->rope.beta_slow != b->rope.beta_slow ||
        a->rope.attention_factor != b->rope.attention_factor || a->rope.mscale != b->rope.mscale ||
        a->rope.mscale_all_dim != b->rope.mscale_all_dim || a->rope.truncate != b->rope.truncate)
        return "its scaling of rotary positions";
    return NULL;
}

/* Matrices of the MLP: gate, up and down. */
static int64_t mlp_matrices(const struct model *model)
{
    return model->mlp == MODEL_MLP_SWIGLU ? 3 : 2;
}

/* Weights of the matrices of one layer. */
static int64_t layer_matrix_weights(const struct model *model)
{
    int64_t attention = (2 * model->heads + 2 * model->kv_heads) * model->head_dim;

    return (attention + mlp_matrices(model) * model->ffn_size) * model->hidden_size;
}

/* Weights of one norm. */
static int64_t norm_weights(const struct model *model)
{
    return (model->norm == MODEL_NORM_LAYER ? 2 : 1) * model->hidden_size;
}

/* Weights of the vectors of one layer: norms and biases. */
static int64_t layer_vector_weights(const struct model *model)
{
    int64_t norms = model->block == MODEL_BLOCK_PARALLEL ? 1 : 2;
    int64_t qkv = (model->heads + 2 * model->kv_heads) * model->head_dim;
    int64_t mlp = (mlp_matrices(model) - 1) * model->ffn_size + model->hidden_size;

    return norms * norm_weights(model) + (model->qkv_bias ? qkv : 0) +
           (model->output_bias ? model->hidden_size : 0) + (model->mlp_bias ? mlp : 0);
}

int64_t model_parameters(const struct model *model)
{
    int64_t embedding = model->vocab_size * model->hidden_size;

    return model->layers * (layer_matrix_weights(model) + layer_vector_weights(model)) +
           norm_weights(model) + embedding * (model->tied_embeddings ? 1 : 2);
}

double model_flops_per_token(const struct model *model, int64_t seq_length, bool causal)
{
    double products = (double)(model->layers * layer_matrix_weights(model) +
                               model->vocab_size * model->hidden_size);
    double length = (double)seq_length, window = (double)model->sliding_window;
    double seen = causal ? length / 2 : length; /* by a token, in the mean */

    if (causal && window > 0 && window < length)
        seen = window - window * window / (2 * length);
    return 6 * products + 12.0 * (double)(model->layers * model->heads * model->head_dim) * seen;
}
