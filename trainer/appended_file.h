/* A file that grows by whole records, one write each, and whose trouble never stops a training:
 * the first failure is a warning, later ones are counted, and no record is ever there in part.
 */
#ifndef MTLLM_TRAINER_APPENDED_FILE_H
#define MTLLM_TRAINER_APPENDED_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

struct appended_file {
    int descriptor;
    char *path;
    int64_t size; /* bytes; of a device those written */
    int64_t lost; /* records that could not be written */
    bool torn;    /* holds part of a record behind `size` */
};

/* Open `path` to append to, made when missing; with `fresh` it must be missing.
 * Error: EXIT_STATUS_IO. */
int appended_file_open(struct appended_file *file, const char *path, bool fresh,
                       struct error *error);
/* Does the file end within a line? Whoever goes on with it begins a new one. */
bool appended_file_ends_within_line(const char *path);
/* Says how many records were lost, if any were. A file that was not opened, all zeros, is fine. */
void appended_file_close(struct appended_file *file);

/* Append a record in one write. False: it is lost, and the file as it was. */
bool appended_file_write(struct appended_file *file, const void *record, size_t length);
/* As appended_file_write(), but says and counts nothing: 0, or an errno. */
int appended_file_try(struct appended_file *file, const void *record, size_t length);
/* A record that could not be written for another reason, an errno: the same warning. */
void appended_file_lose(struct appended_file *file, int reason);
/* Likewise something that belongs to the file and goes to `path`. */
void appended_file_lose_beside(struct appended_file *file, const char *path, int reason);

#endif
