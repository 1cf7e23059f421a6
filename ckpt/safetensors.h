/* Safetensors files: a JSON header that names tensors, then their bytes.
 *
 *     u64 little-endian N | N bytes of JSON | data
 *
 * Reading opens one file or a model's directory (model.safetensors, or the files that
 * model.safetensors.index.json names) as one set of tensors. Headers are checked completely before
 * anything is handed out: every later read is inside its file and every tensor has exactly the
 * bytes its shape asks for. Writing streams: the header is known before the data.
 * Format: https://github.com/huggingface/safetensors, section "Format" of its README.
 */
#ifndef MTLLM_CKPT_SAFETENSORS_H
#define MTLLM_CKPT_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/error.h"

#define SAFETENSORS_DIMENSIONS 8

struct safetensors; /* open for reading */

struct safetensors_tensor {
    const char *name;
    const char *path; /* of the file that holds it */
    char type[16];    /* as the file spells it: "F32", "BF16", "I64" */
    int dtype;        /* enum dtype, or -1 for a type that is none of the three */
    int dimensions;
    int64_t shape[SAFETENSORS_DIMENSIONS];
    int64_t elements;
    int64_t bytes;
    int64_t offset; /* in the file */
    int file;
};

/* Open one file. Error: EXIT_STATUS_DATA or EXIT_STATUS_IO, naming file and tensor. */
int safetensors_open(struct safetensors **set, const char *path, struct error *error);

/* Open the tensors of a model's directory. The index and the files it names must agree exactly.
 * A directory that has pytorch_model.bin only is refused with the way to convert it. */
int safetensors_open_model(struct safetensors **set, const char *directory, struct error *error);
void safetensors_close(struct safetensors *set);

/* Tensors are numbered in the order of their names. */
size_t safetensors_count(const struct safetensors *set);
const struct safetensors_tensor *safetensors_get(const struct safetensors *set, size_t i);
/* NULL when there is none. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *set, const char *name);

/* Read `bytes` bytes from byte `offset` of a tensor, as they are. Error: EXIT_STATUS_IO. */
int safetensors_read(const struct safetensors *set, const struct safetensors_tensor *tensor,
                     int64_t offset, int64_t bytes, void *data, struct error *error);

/* "[2, 64]"; returns `text`. */
const char *safetensors_shape_text(const struct safetensors_tensor *tensor, char *text,
                                   size_t size);

struct safetensors_entry {
    const char *name;
    enum dtype dtype;
    int dimensions; /* 1 or 2 */
    int64_t shape[2];
};

struct safetensors_writer;

/* Begin PATH.tmp with a header for `entries`, whose bytes follow in this order. */
int safetensors_writer_open(struct safetensors_writer **writer, const char *path,
                            const struct safetensors_entry *entries, size_t count,
                            struct error *error);
int safetensors_writer_append(struct safetensors_writer *writer, const void *data, size_t bytes,
                              struct error *error);
/* fsync and rename to PATH. Every entry's bytes must have been appended. */
int safetensors_writer_commit(struct safetensors_writer *writer, struct error *error);
/* Also without commit: PATH.tmp is removed then. NULL is allowed. */
void safetensors_writer_close(struct safetensors_writer *writer);

/* Bytes of one entry's data. */
int64_t safetensors_entry_bytes(const struct safetensors_entry *entry);

#endif
