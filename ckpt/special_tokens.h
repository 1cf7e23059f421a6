/* Which tokens of a vocabulary are no text: what templates put around messages, begins and ends of
 * documents, padding. */
#ifndef MTLLM_CKPT_SPECIAL_TOKENS_H
#define MTLLM_CKPT_SPECIAL_TOKENS_H

#include "ckpt/kept_files.h"

/* template_tokens[vocab_size], from zeros (data/dataset.h): 1 for a token that tokenizer.json or
 * tokenizer_config.json calls special, for any of added_tokens.json, and for a SentencePiece
 * model's control and unknown pieces. 3 for <|im_start|> and <|im_end|>: in files of Megatron-LLM
 * the two tokens behind these have the role of who speaks too. A file that cannot be understood
 * tells nothing. */
void special_tokens_mark(uint8_t *template_tokens, int64_t vocab_size,
                         const struct kept_files *files);

#endif
