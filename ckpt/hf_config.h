/* Hugging Face's config.json <-> the model description.
 *
 * Field names, defaults and spellings are those of transformers' configuration classes; version 4
 * spells the rotary embedding rope_theta and rope_scaling, version 5 rope_parameters.
 */
#ifndef MTLLM_CKPT_HF_CONFIG_H
#define MTLLM_CKPT_HF_CONFIG_H

#include <stddef.h>

#include "core/dtype.h"
#include "core/error.h"
#include "core/model.h"

/* Parse config.json text of `length` bytes; `path` is for messages. v4 and v5 spellings; a field
 * that is absent has the default of the family's class. What mtllm does not compute (other
 * families, ALiBi, a window in some layers only, quantization) is refused by name; of a list of end
 * tokens the first is taken. Error: EXIT_STATUS_DATA. */
int hf_config_read(struct model *model, const char *text, size_t length, const char *path,
                   struct error *error);

/* config.json text that transformers v4 and v5 read, with torch_dtype `dtype`; the caller frees
 * it. NULL when memory runs out. */
char *hf_config_write(const struct model *model, enum dtype dtype);

/* generation_config.json text for a model that came without one; the caller frees it. NULL when
 * memory runs out. */
char *hf_generation_config_write(const struct model *model);

/* Where token ids may be taken from. */
enum hf_token_ids {
    HF_TOKEN_IDS_ALL,       /* bos, eos (a number or a list) and pad */
    HF_TOKEN_IDS_EOS_LISTS, /* eos, where `from` has a list that begins with the id in `text` */
};

/* JSON `text` with the token ids that the JSON object `from` (`length` bytes) gives; the model
 * description knows only one end token and no padding token, and they must survive a conversion.
 * A `from` that is not a JSON object changes nothing. The caller frees the result; NULL when
 * memory runs out. */
char *hf_config_take_token_ids(const char *text, const char *from, size_t length,
                               enum hf_token_ids which);

/* tokenizer.model, tokenizer.json, ...: what lies beside config.json and is carried along with a
 * model, byte for byte. Ends with NULL. */
extern const char *const hf_tokenizer_files[];

#endif
