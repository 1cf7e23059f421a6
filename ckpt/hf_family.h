/* What reading and writing config.json both know of transformers' classes. */
#ifndef MTLLM_CKPT_HF_FAMILY_H
#define MTLLM_CKPT_HF_FAMILY_H

#include "core/model.h"

extern const char *const hf_architectures[MODEL_FAMILIES];

/* Defaults of fields. */
#define YARN_BETA_FAST          32.0
#define YARN_BETA_SLOW          1.0
#define QWEN2_MAX_WINDOW_LAYERS 28

#endif
