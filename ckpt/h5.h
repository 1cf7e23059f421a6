/* What the checkpoint library needs of libhdf5, and the lock around it.
 *
 * HDF5 files are made in memory (an anonymous sparse file: bulk data that is only reserved takes no
 * memory) and their bytes brought to the disk by the caller. So a full disk never happens inside
 * libhdf5, which does not survive it everywhere, and every byte on the disk has passed our
 * checksum.
 */
#ifndef MTLLM_CKPT_H5_H
#define MTLLM_CKPT_H5_H

#include <hdf5.h>
#include <stdint.h>

#include "ckpt/checkpoint.h"

/* libhdf5 belongs to one thread at a time, whoever in this process calls it: everything between
 * h5_enter() and h5_leave() has it alone, and it prints nothing. */
struct h5_guard {
    H5E_auto2_t function;
    void *data;
};
void h5_enter(struct h5_guard *guard);
void h5_leave(const struct h5_guard *guard);

/* As error_set(), with the innermost of libhdf5's own messages appended. */
int h5_error(struct error *error, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The type of one element, in file and memory alike; the caller closes it. bf16, which HDF5 before
 * 2.0 has no name for, is a float of 1 sign, 8 exponent and 7 fraction bits. */
hid_t h5_type(enum dtype dtype);

/* An HDF5 file in memory. h5_image_create() opens it as `file`; once that is closed by
 * h5_image_finish(), its `size` bytes are read from `fd`. */
struct h5_image {
    int fd;
    hid_t file;
    uint64_t size;
};
int h5_image_create(struct h5_image *image, struct error *error);
int h5_image_finish(struct h5_image *image, struct error *error);
void h5_image_free(struct h5_image *image); /* also after a failure anywhere */

/* Attributes and small datasets. 0 or -1, libhdf5 knows why. */
int h5_write_text_attribute(hid_t object, const char *name, const char *text);
int h5_write_integer_attribute(hid_t object, const char *name, int64_t value);
int h5_write_real_attribute(hid_t object, const char *name, double value);
int h5_write_text(hid_t group, const char *name, const char *text);
int h5_write_bytes(hid_t group, const char *name, hid_t type, const void *bytes, size_t count);

#endif
