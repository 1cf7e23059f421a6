/* A .wandb file: records in LevelDB's log framing behind a header of seven bytes.
 *
 * The file is cut into blocks of 32 KiB, counted from its first byte; a record is one chunk, or
 * several where it does not fit into what is left of a block, and each chunk has a checksum.
 * https://github.com/wandb/wandb, sdk/internal/datastore.py
 */
#ifndef MTLLM_TRAINER_WANDB_FILE_H
#define MTLLM_TRAINER_WANDB_FILE_H

#include "core/error.h"
#include "trainer/appended_file.h"
#include "trainer/protobuf.h"

struct wandb_file {
    struct appended_file file;
    struct protobuf framed; /* the record that is being written */
};

/* Open `path`, made when missing. Whole records are shown to `keep` by their order; the file ends
 * before the first that it refuses, or that is torn or damaged. Error: EXIT_STATUS_IO;
 * EXIT_STATUS_DATA for a file that is something else. */
int wandb_file_open(struct wandb_file *file, const char *path,
                    bool (*keep)(void *user, const unsigned char *record, size_t length),
                    void *user, struct error *error);
void wandb_file_close(struct wandb_file *file); /* all zeros is fine */

/* Append a record, in one write; false: it is lost (appended_file.h). */
bool wandb_file_append(struct wandb_file *file, const struct protobuf *record);

#endif
