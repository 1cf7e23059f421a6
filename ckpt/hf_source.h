/* A Hugging Face model directory, open for reading: its config.json, the tensors that a model of
 * that description has, and the files that travel with a model.
 *
 * Opening checks everything but the values: that each tensor is there once, of the right shape and
 * of a type that is supported, and that there are no others.
 */
#ifndef MTLLM_CKPT_HF_SOURCE_H
#define MTLLM_CKPT_HF_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "ckpt/checkpoint.h"
#include "core/model.h"

struct hf_source;

/* Does the directory hold a Hugging Face model, or something that was meant for one? */
bool hf_source_is_one(const char *directory);

/* With `allow_nonfinite`, NaN and infinity are read as they are; else they are an error.
 * Error: EXIT_STATUS_DATA, EXIT_STATUS_IO, naming file and tensor. */
int hf_source_open(struct hf_source **source, const char *directory, bool allow_nonfinite,
                   struct error *error);
void hf_source_close(struct hf_source *source); /* NULL is allowed */

const char *hf_source_directory(const struct hf_source *source);
const struct model *hf_source_model(const struct hf_source *source);

/* config.json as it is, and the files to keep: those of its tokenizer, and generation_config.json,
 * which is made up where there is none. */
const struct checkpoint_state *hf_source_state(const struct hf_source *source);

/* The type that a tensor of the model is stored in. */
enum dtype hf_source_dtype(const struct hf_source *source, const char *name);

/* Read the rectangle start, extent of a tensor of the model into data[extent[0] * extent[1]],
 * converted to `dtype`. Only its bytes are read. Thread-safe. Error: EXIT_STATUS_DATA for a value
 * that is not finite, or that the type cannot hold; EXIT_STATUS_IO. */
int hf_source_read(const struct hf_source *source, const char *name, const int64_t start[2],
                   const int64_t extent[2], enum dtype dtype, void *data, struct error *error);

#endif
