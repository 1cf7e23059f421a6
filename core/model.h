/* The description of a model: what its config.json says, in the field's own terms. */
#ifndef MTLLM_CORE_MODEL_H
#define MTLLM_CORE_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "core/settings.h"

enum model_family {
    MODEL_FAMILY_LLAMA,
    MODEL_FAMILY_MISTRAL,
    MODEL_FAMILY_QWEN2,
    MODEL_FAMILY_FALCON,
    MODEL_FAMILIES
};

enum model_norm { MODEL_NORM_RMS, MODEL_NORM_LAYER /* with bias */ };

enum model_mlp {
    MODEL_MLP_SWIGLU,
    MODEL_MLP_GELU /* exact (erf), no gate */
};

enum model_block {
    MODEL_BLOCK_SEQUENTIAL,        /* x + attention(norm(x)), and of that the same with the MLP */
    MODEL_BLOCK_PARALLEL,          /* x + attention(norm(x)) + mlp(norm(x)), one norm (Falcon 7B) */
    MODEL_BLOCK_PARALLEL_TWO_NORMS /* each its own (Falcon 40B, 180B) */
};

enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_YARN, ROPE_LLAMA3, ROPE_KINDS };

/* How rotary positions are stretched beyond the context that a model was first trained with; what a
 * kind has no use for is 0. core/rope.h has the formulas. */
struct rope_scaling {
    enum rope_kind kind;
    double factor;
    int64_t original_positions;                         /* llama3, yarn */
    double low_frequency_factor, high_frequency_factor; /* llama3 */
    double beta_fast, beta_slow;                        /* yarn */
    double attention_factor, mscale, mscale_all_dim;    /* yarn; 0: not given */
    bool truncate;                                      /* yarn */
};

struct model {
    enum model_family family;
    enum model_norm norm;
    enum model_mlp mlp;
    enum model_block block;
    bool qkv_bias, output_bias, mlp_bias; /* of q, k and v; of o; of the MLP's products */
    int64_t layers;
    int64_t hidden_size;
    int64_t ffn_size;
    int64_t heads;    /* query heads */
    int64_t kv_heads; /* key and value heads; divides heads */
    int64_t head_dim; /* heads * head_dim need not be hidden_size */
    int64_t vocab_size;
    int64_t max_positions;
    double norm_eps;
    int64_t sliding_window; /* tokens that a token sees, itself included; 0: all before it */
    double rope_theta;
    struct rope_scaling rope;
    double init_std;
    bool tied_embeddings;
    int64_t bos_token, eos_token; /* -1: not known */
};

/* "llama", ..., as settings and config.json's model_type spell them; "default", ..., as rope_type.
 */
extern const char *const model_family_names[MODEL_FAMILIES];
extern const char *const rope_kind_names[ROPE_KINDS];

/* What is the same in all models of a family: norm, mlp, and Qwen2's biases. */
void model_set_family(struct model *model, enum model_family family);

/* The model that the settings describe, checked by model_check().
 * Error: EXIT_STATUS_CONFIGURATION when something is missing or contradicts. */
int model_from_settings(struct model *model, const struct settings *settings, struct error *error);

/* Give a stored model the context that the settings name, if they do: max-positions, rope-theta,
 * rope-scaling and what goes with it, sliding-window. Of a yarn or llama3 scaling, the original
 * positions are the stored model's if not given. Error: EXIT_STATUS_CONFIGURATION, also when a
 * setting contradicts what the weights are. */
int model_override(struct model *model, const struct settings *settings, struct error *error);

/* Refuse sizes that cannot work (kv_heads that do not divide heads, odd head_dim, ...).
 * Error: EXIT_STATUS_CONFIGURATION. */
int model_check(const struct model *model, struct error *error);

/* Name the first field in which two descriptions differ, or NULL; init_std and token ids do not
 * count. */
const char *model_difference(const struct model *a, const struct model *b);

/* Number of weights, tied ones counted once. */
int64_t model_parameters(const struct model *model);

/* Floating-point operations of training one token (forward and backward) in sequences of
 * `seq_length`: 6 for every weight of a product, head included and embedding not, and
 * 12 * layers * heads * head_dim * seq_length for attention, of which `causal` counts the part that
 * a causal mask and a sliding window leave (reference: PaLM, appendix B). */
double model_flops_per_token(const struct model *model, int64_t seq_length, bool causal);

#endif
