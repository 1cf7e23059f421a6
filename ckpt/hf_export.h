/* A checkpoint as a Hugging Face directory: what h5-to-hf does. */
#ifndef MTLLM_CKPT_HF_EXPORT_H
#define MTLLM_CKPT_HF_EXPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"

struct hf_export {
    const char *checkpoint; /* a run directory, its ckpt/, or one step's directory */
    const char *directory;  /* to be made */
    int dtype;              /* enum dtype of the tensors, -1 for the checkpoint's own */
    int64_t shard_bytes;    /* no file has more bytes of tensors, unless of a single one */
    bool force;             /* replace the model that is in the directory */
};

/* Make the directory, or nothing at all. Memory does not grow with the model.
 * Error: EXIT_STATUS_USAGE when something is in the way, EXIT_STATUS_DATA or EXIT_STATUS_IO with
 * file and tensor, 128 + signal. */
int hf_export(const struct hf_export *options, struct error *error);

#endif
