/* The description of a model: what its config.json says, in the field's own terms. */
#ifndef MTLLM_CORE_MODEL_H
#define MTLLM_CORE_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"
#include "core/settings.h"

enum model_family { MODEL_FAMILY_LLAMA };

struct model {
    enum model_family family;
    int64_t layers;
    int64_t hidden_size;
    int64_t ffn_size;
    int64_t heads;    /* query heads */
    int64_t kv_heads; /* key and value heads; divides heads */
    int64_t head_dim; /* heads * head_dim need not be hidden_size */
    int64_t vocab_size;
    int64_t max_positions;
    double norm_eps;
    double rope_theta;
    double init_std;
    bool tied_embeddings;
    int64_t bos_token, eos_token; /* -1: not known */
};

/* The model that the settings describe, checked by model_check().
 * Error: EXIT_STATUS_CONFIGURATION when something is missing or contradicts. */
int model_from_settings(struct model *model, const struct settings *settings, struct error *error);

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
 * 12 * layers * heads * head_dim * seq_length for attention, of which `causal` counts the half
 * that a causal mask leaves (reference: PaLM, appendix B). */
double model_flops_per_token(const struct model *model, int64_t seq_length, bool causal);

#endif
