/* The tokenizer's files, which travel with every checkpoint as they are. */
#ifndef MTLLM_TRAINER_TOKENIZER_FILES_H
#define MTLLM_TRAINER_TOKENIZER_FILES_H

#include "ckpt/checkpoint.h"

struct tokenizer_files {
    struct checkpoint_file *list;
    size_t count;
};

/* Read `path`: one file, or those of a Hugging Face directory that belong to a tokenizer. Error:
 * EXIT_STATUS_DATA naming what is missing or unreadable. */
int tokenizer_files_read(struct tokenizer_files *files, const char *path, struct error *error);
/* A copy of those that a checkpoint holds. Error: EXIT_STATUS_SYSTEM. */
int tokenizer_files_copy(struct tokenizer_files *files, const struct checkpoint_state *state,
                         struct error *error);
void tokenizer_files_destroy(struct tokenizer_files *files);

#endif
