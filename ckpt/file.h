/* Small files read whole, and writes that cannot come out short. */
#ifndef MTLLM_CKPT_FILE_H
#define MTLLM_CKPT_FILE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/error.h"

/* Open a regular file for reading and learn its size; -1 with `error` for anything else (a
 * directory, a pipe that would block). */
int file_open(const char *path, int64_t *size, struct error *error);

/* Read `bytes` bytes at `offset`. Error: EXIT_STATUS_IO, also at an early end of the file. */
int file_read_at(int descriptor, const char *path, int64_t offset, int64_t bytes, void *data,
                 struct error *error);

/* Read a whole file of at most `limit` bytes; *data, with a zero byte behind it, is the caller's
 * to free. Error: EXIT_STATUS_IO, EXIT_STATUS_DATA for one that is larger. */
int file_read(const char *path, int64_t limit, char **data, size_t *size, struct error *error);

int file_write_all(int descriptor, const char *path, const void *data, size_t bytes,
                   struct error *error);

/* Write a new file and fsync it. */
int file_create(const char *path, const void *data, size_t bytes, struct error *error);

/* fsync a directory. */
int file_sync_directory(const char *path, struct error *error);

#endif
