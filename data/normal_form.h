/* Normal forms of Unicode (NFC and the like), as Hugging Face's tokenizers has them. */
#ifndef MTLLM_DATA_NORMAL_FORM_H
#define MTLLM_DATA_NORMAL_FORM_H

#include <utf8proc.h>

#include "data/pieces.h"

/* Append the piece in the form that utf8proc calls `option`, as a piece. -1: out of memory. */
int normal_form_append(utf8proc_option_t option, const struct piece *piece, struct pieces *to);

#endif
