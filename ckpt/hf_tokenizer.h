/* What transformers must be told about a tokenizer that comes without it. */
#ifndef MTLLM_CKPT_HF_TOKENIZER_H
#define MTLLM_CKPT_HF_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "ckpt/hf_sentencepiece.h"

/* tokenizer.json that splits every text as the tokenizer.model of `size` bytes does, with the
 * tokens of an added_tokens.json, which may be NULL; the caller frees it. NULL with *trouble when
 * it cannot be: "is not a BPE model"; NULL without when memory runs out. */
char *hf_sentencepiece_json(const void *bytes, size_t size, const struct hf_sentencepiece *about,
                            const char *added, size_t added_size, const char **trouble);

/* tokenizer_config.json for a tokenizer.model with the tokens of an added_tokens.json of `size`
 * bytes, which may be NULL; `with_json` when hf_sentencepiece_json() stands beside it. The caller
 * frees it. NULL when memory runs out. */
char *hf_sentencepiece_config(const struct hf_sentencepiece *about, const char *added, size_t size,
                              bool with_json, int64_t max_positions);

/* Does a tokenizer.json split text into words as Qwen's does? */
bool hf_tokenizer_json_is_qwen(const char *text, size_t size);

/* A special token as transformers describes it in added_tokens_decoder; NULL when memory runs out.
 */
json_t *hf_special_token(const char *text);

/* The same with its id, as in the list added_tokens. */
json_t *hf_added_token(const char *text, int64_t id);

/* tokenizer_config.json for a tokenizer.json of `size` bytes; `bos` and `eos` are token ids, or -1.
 * The caller frees it. NULL when memory runs out. */
char *hf_tokenizer_json_config(const char *text, size_t size, int64_t bos, int64_t eos,
                               int64_t max_positions);

#endif
