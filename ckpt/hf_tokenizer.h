/* What transformers must be told about a tokenizer that comes without tokenizer_config.json. */
#ifndef MTLLM_CKPT_HF_TOKENIZER_H
#define MTLLM_CKPT_HF_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "core/error.h"

/* A SentencePiece model's own words about itself. */
struct hf_sentencepiece {
    int model_type;  /* 1 unigram, 2 BPE */
    bool normalizes; /* text is changed before it is split: not what Llama's tokenizer does */
    int64_t unk_id, bos_id, eos_id, pad_id; /* -1: none */
    char unk[64], bos[64], eos[64], pad[64];
};

/* Read the trainer's and the normalizer's settings out of tokenizer.model. -1 when the bytes are
 * not a SentencePiece model. */
int hf_sentencepiece_read(struct hf_sentencepiece *tokenizer, const void *bytes, size_t size);

/* Every piece of tokenizer.model in the order of ids; `text` is NULL for one that is no UTF-8.
 * -1 when the bytes are not a SentencePiece model. */
int hf_sentencepiece_pieces(const void *bytes, size_t size,
                            void (*see)(void *user, const char *text, int64_t id), void *user);

/* tokenizer_config.json for such a tokenizer with the tokens of an added_tokens.json of `size`
 * bytes, which may be NULL; the caller frees it. NULL when memory runs out. */
char *hf_sentencepiece_config(const struct hf_sentencepiece *tokenizer, const char *added,
                              size_t size, int64_t max_positions);

/* A special token as transformers describes it in added_tokens_decoder; NULL when memory runs out.
 */
json_t *hf_special_token(const char *text);

/* tokenizer_config.json for a tokenizer.json of `size` bytes; `bos` and `eos` are token ids, or -1.
 * The caller frees it. NULL when memory runs out. */
char *hf_tokenizer_json_config(const char *text, size_t size, int64_t bos, int64_t eos,
                               int64_t max_positions);

#endif
