/* The system calls of the checkpoint library, with messages that name the file.
 *
 * Everything that reaches a disk passes through here: a test can make each of these calls fail or
 * kill the process at it. Errors: EXIT_STATUS_IO unless said otherwise. */
#ifndef MTLLM_CKPT_DISK_H
#define MTLLM_CKPT_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

enum { DISK_PATH_SIZE = 4096 };

/* Format a path. Error: EXIT_STATUS_CONFIGURATION when it is too long. */
int disk_path(char path[DISK_PATH_SIZE], struct error *error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As error_set_errno() with the current errno; when the disk is full it says how many bytes
 * `needed` are and how many there are. */
int disk_error(struct error *error, const char *what, const char *path, uint64_t needed);

/* Make a directory and those above it; one that is there already is fine. */
int disk_make_directory(const char *path, struct error *error);

/* Create a file for writing (replacing another) with `size` bytes reserved; -1 or the descriptor.
 * On failure nothing is left. */
int disk_create(const char *path, uint64_t size, struct error *error);

/* Write all bytes at `offset`. */
int disk_write(int fd, const char *path, const void *bytes, size_t size, uint64_t offset,
               struct error *error);

/* fsync and close; the descriptor is gone either way. */
int disk_finish(int fd, const char *path, struct error *error);

/* A whole file: create, write, fsync, close. On failure nothing is left. */
int disk_write_file(const char *path, const void *bytes, size_t size, struct error *error);

/* A whole file into memory, the caller's to free; one NUL beyond the end. Larger than `limit` is
 * an error. EXIT_STATUS_DATA when it is missing, shortened meanwhile or too large. */
int disk_read_file(const char *path, size_t limit, void **bytes, size_t *size, struct error *error);

/* Read exactly `size` bytes; 0, or -1 with errno (ENODATA when the file ends before). */
int disk_read(int fd, void *bytes, size_t size, uint64_t offset);

int disk_sync_directory(const char *path, struct error *error);
int disk_rename(const char *from, const char *to, struct error *error);

/* Swap two names atomically. Returns 1, or 0 where the file system cannot. */
int disk_exchange(const char *one, const char *other, struct error *error);

/* Point the symbolic link `path` at `target`, atomically. A file system without links is fine. */
int disk_link(const char *target, const char *path, struct error *error);

int disk_unlink(const char *path, struct error *error);

/* Remove a directory and everything in it, or a file; a missing one is fine. */
int disk_remove_tree(const char *path, struct error *error);

/* The names in a directory (without . and ..), sorted; disk_names_free() them. A missing directory
 * has none. */
struct disk_names {
    char **names;
    size_t count;
};
int disk_list(const char *path, struct disk_names *names, struct error *error);
void disk_names_free(struct disk_names *names);

bool disk_is_directory(const char *path);

#endif
