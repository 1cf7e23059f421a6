/* The tensors of a model as Hugging Face names and shapes them, in the order of the forward pass.
 */
#ifndef MTLLM_CKPT_HF_TENSORS_H
#define MTLLM_CKPT_HF_TENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/model.h"

struct hf_tensor {
    char name[96];
    int dimensions;   /* 1 or 2 */
    int64_t shape[2]; /* [out, in]; [n, 1] for vectors */
};

size_t hf_tensor_count(const struct model *model);

/* Tensor i < hf_tensor_count(). */
void hf_tensor_get(const struct model *model, size_t i, struct hf_tensor *tensor);

/* Is there a tensor of this name? */
bool hf_tensor_known(const struct model *model, const char *name);

/* Buffers that old files carry and that follow from the config. */
bool hf_tensor_is_buffer(const char *name);

#define HF_EMBEDDING "model.embed_tokens.weight"
#define HF_HEAD      "lm_head.weight"

#endif
