/* /tensors and /pieces: the piece table as two tables of an HDF5 file.
 *
 * A record of /tensors:  name (text), dimensions, shape[2], and for every kind its dtype or absent.
 * A record of /pieces:   tensor (row of /tensors), shard, kind, dtype, start[2], extent[2],
 *                        offset (bytes in the shard file), element (in the shard's dataset).
 * Call with libhdf5 held, h5_enter(). */
#ifndef MTLLM_CKPT_H5_TABLE_H
#define MTLLM_CKPT_H5_TABLE_H

#include <hdf5.h>

#include "ckpt/table.h"

/* 0 or -1, libhdf5 knows why. */
int h5_table_write(hid_t file, const struct table *table);

/* Fill an empty table and finish it. `limit` bounds the records: a file of that many bytes has no
 * more. `path` is for messages. Error: EXIT_STATUS_DATA. */
int h5_table_read(hid_t file, size_t limit, struct table *table, const char *path,
                  struct error *error);

#endif
