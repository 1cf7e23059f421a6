/* Frequencies of rotary positions, stretched as the model's config says. */
#ifndef MTLLM_CORE_ROPE_H
#define MTLLM_CORE_ROPE_H

#include "core/model.h"

/* frequencies[head_dim / 2]: radians a position, of dimension pairs (i, i + head_dim / 2), for
 * sequences of `seq_length`; *attention_factor scales cosine and sine. As transformers'
 * modeling_rope_utils.py has it; dynamic takes `seq_length` for the current length. */
void rope_frequencies(const struct model *model, int64_t seq_length, double *frequencies,
                      double *attention_factor);

#endif
