/* Files that travel with a model as they are: those of its tokenizer, generation_config.json. */
#ifndef MTLLM_CKPT_KEPT_FILES_H
#define MTLLM_CKPT_KEPT_FILES_H

#include "ckpt/checkpoint.h"

struct kept_files {
    struct checkpoint_file *list;
    size_t count;
};

/* NULL when there is none of this name. */
struct checkpoint_file *kept_files_find(const struct kept_files *files, const char *name);

/* The SentencePiece model, tokenizer.model or whatever the user called it; NULL when there is none.
 */
struct checkpoint_file *kept_files_sentencepiece(const struct kept_files *files);

/* Put `bytes`, which are taken, in the place of what is kept under this name, if anything is.
 * Error: EXIT_STATUS_SYSTEM. */
int kept_files_put(struct kept_files *files, const char *name, void *bytes, size_t size,
                   struct error *error);

/* Those of a Hugging Face directory that are there. Error: EXIT_STATUS_DATA naming what cannot be
 * read. */
int kept_files_read_directory(struct kept_files *files, const char *directory, struct error *error);

/* A tokenizer at `path`: one file, or those of a Hugging Face directory. Error: EXIT_STATUS_DATA
 * naming what is missing or unreadable. */
int kept_files_read_tokenizer(struct kept_files *files, const char *path, struct error *error);

/* A copy of those that a checkpoint holds. Error: EXIT_STATUS_SYSTEM. */
int kept_files_copy(struct kept_files *files, const struct checkpoint_state *state,
                    struct error *error);

void kept_files_destroy(struct kept_files *files);

#endif
