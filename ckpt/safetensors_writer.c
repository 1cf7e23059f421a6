#include "ckpt/safetensors.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "ckpt/disk.h"

/* The data begins on a page, for readers that map the file or bypass the page cache. */
#define ALIGNMENT 4096

/* The disk is kept at work by pieces of this size, and what it has is not kept in memory. */
#define WRITEBACK_BYTES ((uint64_t)16 << 20)

struct safetensors_writer {
    char *path, *temporary;
    int descriptor;
    bool stands;               /* the temporary file is there */
    int64_t expected, written; /* bytes of data */
    uint64_t offset;           /* where the next ones go */
    uint64_t started, done;    /* up to here the disk has been told to write, and has */
};

int64_t safetensors_entry_bytes(const struct safetensors_entry *entry)
{
    return entry->shape[0] * (entry->dimensions > 1 ? entry->shape[1] : 1) *
           (int64_t)dtype_bytes(entry->dtype);
}

static json_t *header_json(const struct safetensors_entry *entries, size_t count, int64_t *end)
{
    static const char *const type_names[] = {
        [DTYPE_F32] = "F32",
        [DTYPE_BF16] = "BF16",
        [DTYPE_F16] = "F16",
    };
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");

    *end = 0;
    for (size_t i = 0; header && i < count; i++) {
        const struct safetensors_entry *entry = &entries[i];
        json_int_t begin = *end;
        json_t *shape = entry->dimensions > 1 ? json_pack("[I, I]", (json_int_t)entry->shape[0],
                                                          (json_int_t)entry->shape[1])
                                              : json_pack("[I]", (json_int_t)entry->shape[0]);
        json_t *tensor;

        *end += safetensors_entry_bytes(entry);
        tensor = json_pack("{s:s, s:o, s:[I, I]}", "dtype", type_names[entry->dtype], "shape",
                           shape, "data_offsets", begin, (json_int_t)*end);
        if (!tensor || json_object_set_new(header, entry->name, tensor) < 0) {
            json_decref(header);
            header = NULL;
        }
    }
    return header;
}

/* Create the file, with room for all of it, and write its header. */
static int write_header(struct safetensors_writer *writer, const struct safetensors_entry *entries,
                        size_t count, struct error *error)
{
    json_t *json = header_json(entries, count, &writer->expected);
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL, *header = NULL;
    size_t length = text ? strlen(text) : 0;
    size_t padded = (8 + length + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT - 8;
    uint64_t size = htole64(padded);
    int rc = -1;

    if (text && padded < INT_MAX && asprintf(&header, "%-*s", (int)padded, text) < 0)
        header = NULL;
    if (!header) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", writer->path);
        goto out;
    }
    writer->offset = 8 + padded;
    writer->descriptor =
        disk_create(writer->temporary, writer->offset + (uint64_t)writer->expected, error);
    if (writer->descriptor < 0)
        goto out;
    writer->stands = true;
    rc = disk_write(writer->descriptor, writer->temporary, &size, sizeof(size), 0, error);
    if (rc == 0)
        rc = disk_write(writer->descriptor, writer->temporary, header, padded, sizeof(size), error);
out:
    free(header);
    free(text);
    json_decref(json);
    return rc;
}

int safetensors_writer_open(struct safetensors_writer **opened, const char *path,
                            const struct safetensors_entry *entries, size_t count,
                            struct error *error)
{
    struct safetensors_writer *writer = calloc(1, sizeof(*writer));

    *opened = NULL;
    if (!writer)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
    writer->descriptor = -1;
    writer->path = strdup(path);
    if (!writer->path || asprintf(&writer->temporary, "%s.tmp", path) < 0) {
        writer->temporary = NULL;
        error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
        goto fail;
    }
    if (write_header(writer, entries, count, error) < 0)
        goto fail;
    *opened = writer;
    return 0;
fail:
    safetensors_writer_close(writer);
    return -1;
}

/* Only hints; what goes wrong on the way to the disk, the fsync tells. */
static void write_behind(struct safetensors_writer *writer)
{
    const unsigned wait =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    off_t done = (off_t)writer->done, started = (off_t)writer->started;

    if (writer->offset - writer->started < WRITEBACK_BYTES)
        return;
    (void)sync_file_range(writer->descriptor, started, (off_t)writer->offset - started,
                          SYNC_FILE_RANGE_WRITE);
    if (started > done && sync_file_range(writer->descriptor, done, started - done, wait) == 0)
        (void)posix_fadvise(writer->descriptor, done, started - done, POSIX_FADV_DONTNEED);
    writer->done = writer->started;
    writer->started = writer->offset;
}

int safetensors_writer_append(struct safetensors_writer *writer, const void *data, size_t bytes,
                              struct error *error)
{
    if ((int64_t)bytes > writer->expected - writer->written)
        return error_set(error, EXIT_STATUS_BUG, "%s: more data than its header announced",
                         writer->path);
    if (disk_write(writer->descriptor, writer->temporary, data, bytes, writer->offset, error) < 0)
        return -1;
    writer->written += (int64_t)bytes;
    writer->offset += bytes;
    write_behind(writer);
    return 0;
}

int safetensors_writer_commit(struct safetensors_writer *writer, struct error *error)
{
    int descriptor = writer->descriptor;

    if (writer->written != writer->expected)
        return error_set(error, EXIT_STATUS_BUG,
                         "%s: %" PRId64 " bytes of data; its header announced %" PRId64,
                         writer->path, writer->written, writer->expected);
    writer->descriptor = -1;
    if (disk_finish(descriptor, writer->temporary, error) < 0 ||
        disk_rename(writer->temporary, writer->path, error) < 0)
        return -1;
    writer->stands = false;
    return 0;
}

void safetensors_writer_close(struct safetensors_writer *writer)
{
    int saved = errno;

    if (!writer)
        return;
    if (writer->descriptor >= 0)
        close(writer->descriptor);
    if (writer->stands && writer->temporary)
        unlink(writer->temporary);
    free(writer->temporary);
    free(writer->path);
    free(writer);
    errno = saved;
}
