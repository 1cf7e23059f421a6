/* Hugging Face's config.json <-> the model description. */
#ifndef MTLLM_CKPT_HF_CONFIG_H
#define MTLLM_CKPT_HF_CONFIG_H

#include <stddef.h>

#include "core/dtype.h"
#include "core/error.h"
#include "core/model.h"

/* Parse config.json text of `length` bytes; `path` is for messages. v4 (rope_theta, rope_scaling)
 * and v5 (rope_parameters) spellings. What mtllm does not compute (rope scaling, biases, other
 * families, quantization) is refused by name. Error: EXIT_STATUS_DATA. */
int hf_config_read(struct model *model, const char *text, size_t length, const char *path,
                   struct error *error);

/* config.json text that transformers v4 and v5 read, with torch_dtype `dtype`; the caller frees
 * it. NULL when memory runs out. */
char *hf_config_write(const struct model *model, enum dtype dtype);

#endif
