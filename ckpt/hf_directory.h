/* A Hugging Face model directory that appears whole or not at all.
 *
 * Files are written into a directory beside the final name, which is renamed when all are there.
 * Also what the files of such a directory are called.
 */
#ifndef MTLLM_CKPT_HF_DIRECTORY_H
#define MTLLM_CKPT_HF_DIRECTORY_H

#include <stdbool.h>
#include <stddef.h>

#include "ckpt/hf_config.h"
#include "core/error.h"

/* Weights, their index and config.json: what another export leaves no use for. */
bool hf_file_is_model(const char *name);

/* One of hf_tokenizer_files. */
bool hf_file_is_tokenizer(const char *name);

struct hf_directory {
    char *path;    /* the final name, symbolic links followed */
    char *partial; /* where the files are written */
    int lock;
    bool exists; /* the final name is taken, by a directory that may be replaced */
};

/* Prepare to write `path`, which must not exist or be empty unless `force`.
 * Error: EXIT_STATUS_USAGE when it is in the way, EXIT_STATUS_IO when it cannot be made. */
int hf_directory_begin(struct hf_directory *directory, const char *path, bool force,
                       struct error *error);

/* Rename. Of a directory that was replaced, files that are no part of a model (README.md, say) are
 * kept; all others are removed. */
int hf_directory_commit(struct hf_directory *directory, struct error *error);

/* Also without commit: then nothing is left of what was written. */
void hf_directory_close(struct hf_directory *directory);

#endif
