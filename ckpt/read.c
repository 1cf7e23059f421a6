/* Reading tensors: the bytes are found by the piece table and read with pread, a block at a time,
 * and none is used before its block's checksum has held. libhdf5 has no part in it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/checksum.h"
#include "ckpt/format.h"
#include "ckpt/reader.h"

int reader_shard_fd(struct checkpoint *checkpoint, uint32_t shard)
{
    char name[FORMAT_NAME_SIZE];
    int fd;

    pthread_mutex_lock(&checkpoint->lock);
    fd = checkpoint->shard_fds[shard];
    if (fd < 0) {
        format_shard_name(name, (int)shard);
        fd = openat(checkpoint->directory_fd, name, O_RDONLY | O_CLOEXEC);
        checkpoint->shard_fds[shard] = fd;
    }
    pthread_mutex_unlock(&checkpoint->lock);
    return fd;
}

size_t reader_block_size(const struct checkpoint *checkpoint, uint32_t shard, uint64_t number)
{
    uint64_t left = checkpoint->index.shards[shard].size - number * FORMAT_BLOCK;

    return left < FORMAT_BLOCK ? (size_t)left : FORMAT_BLOCK;
}

int reader_read_block(struct checkpoint *checkpoint, uint32_t shard, uint64_t number, void *bytes)
{
    size_t size = reader_block_size(checkpoint, shard, number);
    int fd = reader_shard_fd(checkpoint, shard);

    if (fd < 0 || disk_read(fd, bytes, size, number * FORMAT_BLOCK) < 0)
        return -1;
    return checksum(bytes, size) != checkpoint->index.shards[shard].blocks[number];
}

/* One call of checkpoint_read(): the rectangle wanted, and the block in hand. */
struct reading {
    struct checkpoint *checkpoint;
    const char *tensor;
    enum dtype dtype;
    const int64_t *start, *extent;
    char *data;
    struct reader_block block;
    struct error *error;
};

/* Take a block out of the cache, so that nobody else writes to it; NULL when it is not there. */
static char *cache_take(struct checkpoint *checkpoint, uint32_t shard, uint64_t number)
{
    char *bytes = NULL;

    pthread_mutex_lock(&checkpoint->lock);
    for (size_t i = 0; i < checkpoint->cache_blocks && !bytes; i++) {
        struct reader_block *entry = &checkpoint->cache[i];

        if (entry->bytes && entry->shard == shard && entry->number == number) {
            bytes = entry->bytes;
            entry->bytes = NULL;
        }
    }
    pthread_mutex_unlock(&checkpoint->lock);
    return bytes;
}

/* Put the block in hand into the cache, in the place of the one that was not used for longest. */
static void cache_put(struct reading *reading)
{
    struct checkpoint *checkpoint = reading->checkpoint;
    struct reader_block *oldest = &checkpoint->cache[0];

    if (!reading->block.bytes)
        return;
    pthread_mutex_lock(&checkpoint->lock);
    for (size_t i = 1; i < checkpoint->cache_blocks && oldest->bytes; i++)
        if (!checkpoint->cache[i].bytes || checkpoint->cache[i].used < oldest->used)
            oldest = &checkpoint->cache[i];
    free(oldest->bytes);
    *oldest = reading->block;
    oldest->used = ++checkpoint->clock;
    pthread_mutex_unlock(&checkpoint->lock);
    reading->block.bytes = NULL;
}

static int read_error(const struct reading *reading, const struct table_piece *piece,
                      uint64_t number, int result)
{
    const struct checkpoint *checkpoint = reading->checkpoint;
    unsigned long long first = number * FORMAT_BLOCK,
                       last = first + reader_block_size(checkpoint, piece->shard, number) - 1;
    const char *kind = checkpoint_kind_name((enum checkpoint_kind)piece->kind);
    char name[FORMAT_NAME_SIZE];

    format_shard_name(name, (int)piece->shard);
    if (result < 0) {
        error_set_errno(reading->error, "%s/%s: cannot read bytes %llu to %llu, of %s (%s)",
                        checkpoint->directory, name, first, last, reading->tensor, kind);
        reading->error->status = EXIT_STATUS_DATA;
        return -1;
    }
    return error_set(reading->error, EXIT_STATUS_DATA,
                     "%s/%s: bytes %llu to %llu, of %s (%s), differ from their checksum; use an "
                     "older checkpoint or a copy of this one",
                     checkpoint->directory, name, first, last, reading->tensor, kind);
}

/* Have a block of the piece's shard in hand. */
static int hold_block(struct reading *reading, const struct table_piece *piece, uint64_t number)
{
    struct reader_block *block = &reading->block;
    char *bytes;
    int result;

    if (block->bytes && block->shard == piece->shard && block->number == number)
        return 0;
    cache_put(reading);
    bytes = cache_take(reading->checkpoint, piece->shard, number);
    if (!bytes) {
        bytes = malloc(FORMAT_BLOCK);
        if (!bytes)
            return error_set(reading->error, EXIT_STATUS_SYSTEM, "%s: no memory to read it",
                             reading->checkpoint->directory);
        result = reader_read_block(reading->checkpoint, piece->shard, number, bytes);
        if (result != 0) {
            read_error(reading, piece, number, result);
            free(bytes);
            return -1;
        }
    }
    *block = (struct reader_block){.bytes = bytes, .shard = piece->shard, .number = number};
    return 0;
}

/* `count` elements that follow each other in the shard and in the result. */
static int read_run(struct reading *reading, const struct table_piece *piece, uint64_t offset,
                    uint64_t count, char *out)
{
    enum dtype stored = (enum dtype)piece->dtype;
    size_t size = dtype_bytes(stored);

    while (count) {
        uint64_t number = offset / FORMAT_BLOCK;
        size_t within = offset % FORMAT_BLOCK, whole, elements;

        whole = reader_block_size(reading->checkpoint, piece->shard, number);
        elements = (whole - within) / size;
        if (elements > count)
            elements = (size_t)count;
        if (within == 0 && elements * size == whole && stored == reading->dtype) {
            int result = reader_read_block(reading->checkpoint, piece->shard, number, out);

            if (result != 0)
                return read_error(reading, piece, number, result);
        } else {
            if (hold_block(reading, piece, number) < 0)
                return -1;
            dtype_convert(out, reading->dtype, reading->block.bytes + within, stored, elements);
        }
        out += elements * dtype_bytes(reading->dtype);
        offset += elements * size;
        count -= elements;
    }
    return 0;
}

/* The part of the wanted rectangle that lies in one piece. */
static int read_piece(struct reading *reading, const struct table_piece *piece)
{
    int64_t from[2], to[2], rows, columns;
    size_t size = dtype_bytes((enum dtype)piece->dtype);

    for (int i = 0; i < 2; i++) {
        int64_t piece_end = piece->start[i] + piece->extent[i];
        int64_t end = reading->start[i] + reading->extent[i];

        from[i] = piece->start[i] > reading->start[i] ? piece->start[i] : reading->start[i];
        to[i] = piece_end < end ? piece_end : end;
        if (from[i] >= to[i])
            return 0;
    }
    rows = to[0] - from[0];
    columns = to[1] - from[1];
    if (columns == piece->extent[1] && columns == reading->extent[1]) {
        columns *= rows; /* whole rows here and there are one run */
        rows = 1;
    }
    for (int64_t row = 0; row < rows; row++) {
        int64_t stored =
            (from[0] + row - piece->start[0]) * piece->extent[1] + from[1] - piece->start[1];
        int64_t wanted =
            (from[0] + row - reading->start[0]) * reading->extent[1] + from[1] - reading->start[1];

        if (read_run(reading, piece, piece->offset + (uint64_t)stored * size, (uint64_t)columns,
                     reading->data + (uint64_t)wanted * dtype_bytes(reading->dtype)) < 0)
            return -1;
    }
    return 0;
}

int checkpoint_read(struct checkpoint *checkpoint, const char *name, enum checkpoint_kind kind,
                    const int64_t start[2], const int64_t extent[2], enum dtype dtype, void *data,
                    struct error *error)
{
    const struct table *table = &checkpoint->index.table;
    struct reading reading = {.checkpoint = checkpoint,
                              .tensor = name,
                              .dtype = dtype,
                              .start = start,
                              .extent = extent,
                              .data = data,
                              .error = error};
    int64_t number = table_find(table, name);
    const struct table_tensor *tensor;
    int result = 0;

    if (number < 0)
        return error_set(error, EXIT_STATUS_DATA, "%s: holds no tensor %s", checkpoint->directory,
                         name);
    tensor = &table->tensors[number];
    if (tensor->count[kind] == 0)
        return error_set(error, EXIT_STATUS_DATA, "%s: holds no %s of %s", checkpoint->directory,
                         checkpoint_kind_name(kind), name);
    for (int i = 0; i < 2; i++)
        if (start[i] < 0 || extent[i] < 0 || start[i] > tensor->shape[i] ||
            extent[i] > tensor->shape[i] - start[i])
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: %s is %lld x %lld; asked for %lld x %lld from %lld, %lld on",
                             checkpoint->directory, name, (long long)tensor->shape[0],
                             (long long)tensor->shape[1], (long long)extent[0],
                             (long long)extent[1], (long long)start[0], (long long)start[1]);
    for (size_t i = 0; i < tensor->count[kind] && result == 0; i++)
        result = read_piece(&reading, &table->pieces[tensor->first[kind] + i]);
    cache_put(&reading);
    return result;
}
