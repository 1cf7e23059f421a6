/* Where the weights of a new run come from: a Hugging Face directory, or a checkpoint; one as the
 * other. Both may be given rows for new tokens.
 */
#ifndef MTLLM_CKPT_WEIGHTS_H
#define MTLLM_CKPT_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "ckpt/checkpoint.h"
#include "core/model.h"

struct weights;

/* `path` is a Hugging Face directory, a checkpoint, or a run, whose newest checkpoint is taken. It
 * has every tensor of its model, each of the right shape. Error: EXIT_STATUS_DATA or
 * EXIT_STATUS_IO, naming file and tensor. */
int weights_open(struct weights **weights, const char *path, struct error *error);

/* Only a checkpoint, or a run. */
int weights_open_checkpoint(struct weights **weights, const char *path, struct error *error);

/* Only a Hugging Face directory; hf_source_open() says what `allow_nonfinite` is. */
int weights_open_hf(struct weights **weights, const char *directory, bool allow_nonfinite,
                    struct error *error);
void weights_close(struct weights *weights); /* NULL is allowed */

const char *weights_directory(const struct weights *weights);

/* NULL for a Hugging Face directory. */
struct checkpoint *weights_checkpoint(const struct weights *weights);

const struct model *weights_model(const struct weights *weights);

/* Of a checkpoint, its state; of a Hugging Face directory, hf_source_state(). */
const struct checkpoint_state *weights_state(const struct weights *weights);

/* config.json for `model` with the source's token ids; the caller frees it. NULL when memory runs
 * out. */
char *weights_config(const struct weights *weights, const struct model *model, enum dtype dtype);

/* Make the vocabulary reach beyond token first + count - 1, if it does not, and let the rows of
 * these tokens in embedding and head be the mean of the rows before them, as Megatron-LM and
 * transformers (resize_token_embeddings) begin with. */
void weights_grow(struct weights *weights, int64_t first, int64_t count);

/* The type that a tensor of the model is stored in: of its fp32 master copy, if it has one. */
enum dtype weights_dtype(const struct weights *weights, const char *name);

/* Read the rectangle start, extent of a tensor into data[extent[0] * extent[1]], as `dtype`: fp32
 * from the finest copy there is. Not thread-safe. Error: as of hf_source_read() and
 * checkpoint_read(). */
int weights_read(struct weights *weights, const char *name, const int64_t start[2],
                 const int64_t extent[2], enum dtype dtype, void *data, struct error *error);

#endif
