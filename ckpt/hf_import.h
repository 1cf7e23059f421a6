/* A Hugging Face directory as a checkpoint: what hf-to-h5 does. */
#ifndef MTLLM_CKPT_HF_IMPORT_H
#define MTLLM_CKPT_HF_IMPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"

struct hf_import {
    const char *directory;
    const char *run_directory; /* the checkpoint becomes ckpt/step-00000000 in it */
    int dtype;                 /* enum dtype of the weights, -1 for each tensor's own */
    const char *add_tokens;    /* as added_tokens_parse() takes them; NULL for none */
    bool allow_nonfinite;      /* NaN and infinity are taken over as they are */
    bool force;                /* replace step-00000000 */
};

/* Make the checkpoint, or nothing at all. Memory does not grow with the model: one shard is written
 * while the next is read. Error: EXIT_STATUS_USAGE when something is in the way, EXIT_STATUS_DATA
 * or EXIT_STATUS_IO with file and tensor, 128 + signal. */
int hf_import(const struct hf_import *options, struct error *error);

#endif
