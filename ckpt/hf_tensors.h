/* The tensors of a model as Hugging Face names and shapes them, in the order of the forward pass,
 * and where in them each matrix of the model lies.
 */
#ifndef MTLLM_CKPT_HF_TENSORS_H
#define MTLLM_CKPT_HF_TENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/model.h"

/* --- stored tensors -------------------------------------------------------------------------- */

struct hf_tensor {
    char name[96];
    int dimensions;   /* 1 or 2 */
    int64_t shape[2]; /* [out, in]; [n, 1] for vectors */
};

size_t hf_tensor_count(const struct model *model);

/* Tensor i < hf_tensor_count(). The first is the embedding. */
void hf_tensor_get(const struct model *model, size_t i, struct hf_tensor *tensor);

/* Is there a tensor of this name? */
bool hf_tensor_known(const struct model *model, const char *name);

/* Buffers that old files carry and that follow from the config. */
bool hf_tensor_is_buffer(const char *name);

/* What the embedding and the head are called; the second also where they are tied. */
const char *hf_embedding_name(const struct model *model);
#define HF_HEAD "lm_head.weight"

/* --- matrices of the model -------------------------------------------------------------------- */

enum tensor_role {
    TENSOR_EMBEDDING,
    TENSOR_INPUT_NORM,
    TENSOR_INPUT_NORM_BIAS,
    TENSOR_Q,
    TENSOR_K,
    TENSOR_V,
    TENSOR_Q_BIAS,
    TENSOR_K_BIAS,
    TENSOR_V_BIAS,
    TENSOR_O,
    TENSOR_O_BIAS,
    TENSOR_MLP_NORM,
    TENSOR_MLP_NORM_BIAS,
    TENSOR_GATE,
    TENSOR_UP,
    TENSOR_GATE_BIAS,
    TENSOR_UP_BIAS,
    TENSOR_DOWN,
    TENSOR_DOWN_BIAS,
    TENSOR_FINAL_NORM,
    TENSOR_FINAL_NORM_BIAS,
    TENSOR_HEAD,
    TENSOR_ROLES
};

/* Row r of the role's matrix [rows, columns] is row first_row + r / block_rows * stride +
 * r % block_rows of the stored tensor. */
struct tensor_place {
    struct hf_tensor tensor;
    int64_t rows, columns;
    int64_t first_row, block_rows, stride;
};

/* False when the model has no such matrix; layer -1 outside layers. */
bool tensor_place(const struct model *model, enum tensor_role role, int64_t layer,
                  struct tensor_place *place);

#endif
