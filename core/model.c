#include "core/model.h"

#include <stddef.h>

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
    return 0;
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
        .family = MODEL_FAMILY_LLAMA,
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
    return NULL;
}

/* Weights of the matrices of one layer: q, k, v, o, gate, up, down. */
static int64_t layer_matrix_weights(const struct model *model)
{
    int64_t attention = (2 * model->heads + 2 * model->kv_heads) * model->head_dim;

    return (attention + 3 * model->ffn_size) * model->hidden_size;
}

int64_t model_parameters(const struct model *model)
{
    int64_t embedding = model->vocab_size * model->hidden_size;

    return model->layers * (layer_matrix_weights(model) + 2 * model->hidden_size) +
           model->hidden_size + embedding * (model->tied_embeddings ? 1 : 2);
}

double model_flops_per_token(const struct model *model, int64_t seq_length, bool causal)
{
    double products = (double)(model->layers * layer_matrix_weights(model) +
                               model->vocab_size * model->hidden_size);
    double attention = 12.0 * (double)(model->layers * model->heads * model->head_dim * seq_length);

    return 6 * products + (causal ? attention / 2 : attention);
}
