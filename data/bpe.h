/* Byte pair encoding as tokenizer.json describes it: a vocabulary of strings, and pairs of them to
 * be joined, the best first.
 *
 * A piece of text is joined by itself. The result is that of Hugging Face's tokenizers: of the
 * pairs that stand side by side, the one of the lowest rank is joined, the leftmost of several.
 */
#ifndef MTLLM_DATA_BPE_H
#define MTLLM_DATA_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "core/error.h"
#include "data/tokenizer.h"

struct bpe;

/* From the member "model" of a tokenizer.json. Error: EXIT_STATUS_DATA when it is none, or has
 * settings that are not supported. */
int bpe_create(struct bpe **bpe, json_t *model, struct error *error);
void bpe_destroy(struct bpe *bpe); /* NULL is allowed */

int64_t bpe_vocab_size(const struct bpe *bpe); /* greatest id + 1 */
int32_t bpe_unk(const struct bpe *bpe);        /* -1: none */

/* The id of a string of the vocabulary; -1: it is none. */
int32_t bpe_find(const struct bpe *bpe, const char *text, size_t bytes);

/* The string of an id; NULL when the vocabulary has none of it. */
const char *bpe_text(const struct bpe *bpe, int32_t id, size_t *bytes);

/* Room to work in, and pieces that were seen before; one for each thread. */
struct bpe_scratch;
struct bpe_scratch *bpe_scratch_create(void); /* NULL: out of memory */
void bpe_scratch_destroy(struct bpe_scratch *scratch);

/* Append the ids of a piece of UTF-8. `ends`, unless NULL, has room for as many numbers as there
 * are bytes, and is told where each of these tokens ends in the piece. -1: out of memory. */
int bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *text, size_t bytes,
               struct token_list *list, uint32_t *ends);

#endif
