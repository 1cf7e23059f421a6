/* Writing one shard.
 *
 * libhdf5 makes the shard's skeleton in memory: one contiguous dataset ("blob") for every kind and
 * dtype, nothing in it, and the table of pieces. Then the file's space is reserved, and its blocks
 * are written from first to last, skeleton and the caller's data alike, each with its checksum
 * taken on the way: one pwrite and one pass over bytes that are in the cache anyway.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/checkpoint.h"
#include "ckpt/checksum.h"
#include "ckpt/disk.h"
#include "ckpt/format.h"
#include "ckpt/h5.h"
#include "ckpt/h5_table.h"
#include "ckpt/sidecar.h"

enum { BLOBS = CHECKPOINT_KINDS * (DTYPE_F16 + 1) };

/* Start the disk after this many blocks and not only at the fsync. */
enum { WRITEBACK_BLOCKS = 16 };

struct segment {
    const char *data;
    uint64_t offset, bytes; /* in the file */
};

struct shard {
    struct sidecar sidecar;
    uint64_t blob_bytes[BLOBS], blob_offset[BLOBS];
    struct segment *segments; /* one a piece, by offset */
    size_t segment_count;
    struct h5_image image;
};

static int blob_number(const struct table_piece *piece)
{
    return piece->kind * (DTYPE_F16 + 1) + piece->dtype;
}

static uint64_t round_up(uint64_t value, uint64_t to)
{
    return (value + to - 1) / to * to;
}

/* Give every piece its place in its blob. */
static int place_pieces(struct shard *shard, const struct checkpoint_piece *pieces, size_t count,
                        struct error *error)
{
    struct table *table = &shard->sidecar.table;

    shard->segments = calloc(count + 1, sizeof(*shard->segments));
    if (!shard->segments)
        return error_set(error, EXIT_STATUS_SYSTEM, "no memory for the table of %zu pieces", count);
    for (size_t i = 0; i < count; i++) {
        const struct checkpoint_piece *from = &pieces[i];
        struct table_piece piece = {
            .shard = (uint32_t)shard->sidecar.number,
            .kind = (uint8_t)from->kind,
            .dtype = (uint8_t)from->dtype,
            .start = {from->start[0], from->start[1]},
            .extent = {from->extent[0], from->extent[1]},
        };
        uint64_t *blob = &shard->blob_bytes[blob_number(&piece)];
        int64_t tensor;

        if (from->extent[0] == 0 || from->extent[1] == 0)
            continue; /* a rank's share of a small tensor may be nothing */
        tensor = table_add_tensor(table, from->tensor, from->dimensions, from->shape, error);
        if (tensor < 0)
            return -1;
        piece.tensor = (uint32_t)tensor;
        *blob = round_up(*blob, FORMAT_PIECE_ALIGNMENT);
        piece.offset = *blob; /* in the blob; in the file once that is laid out */
        piece.element = *blob / dtype_bytes(from->dtype);
        if (table_add_piece(table, &piece, error) < 0)
            return -1;
        shard->segments[shard->segment_count++] =
            (struct segment){.data = from->data, .bytes = table_piece_bytes(&piece)};
        *blob += table_piece_bytes(&piece);
    }
    return 0;
}

/* An empty dataset of `bytes` reserved bytes; its place in the file. */
static int create_blob(hid_t file, int number, uint64_t bytes, uint64_t *offset)
{
    enum checkpoint_kind kind = (enum checkpoint_kind)(number / (DTYPE_F16 + 1));
    enum dtype dtype = (enum dtype)(number % (DTYPE_F16 + 1));
    hsize_t elements = bytes / dtype_bytes(dtype);
    hid_t type = h5_type(dtype), space = H5Screate_simple(1, &elements, NULL);
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE), dataset = -1;
    haddr_t address = HADDR_UNDEF;
    char name[FORMAT_NAME_SIZE];

    snprintf(name, sizeof(name), "%s_%s", checkpoint_kind_name(kind), dtype_name(dtype));
    if (type >= 0 && space >= 0 && creation >= 0 && H5Pset_layout(creation, H5D_CONTIGUOUS) >= 0 &&
        H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY) >= 0 &&
        H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER) >= 0 &&
        H5Pset_obj_track_times(creation, false) >= 0)
        dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    if (dataset >= 0)
        address = H5Dget_offset(dataset);
    if (dataset >= 0 && H5Dclose(dataset) < 0)
        address = HADDR_UNDEF;
    if (creation >= 0)
        (void)H5Pclose(creation);
    if (space >= 0)
        (void)H5Sclose(space);
    if (type >= 0)
        (void)H5Tclose(type);
    *offset = address;
    return address == HADDR_UNDEF ? -1 : 0;
}

static int create_skeleton(struct shard *shard, struct error *error)
{
    struct table *table = &shard->sidecar.table;
    hid_t file = shard->image.file;

    for (int i = 0; i < BLOBS; i++) {
        /* Whole pages: libhdf5 aligns only what is at least as large as the alignment. */
        uint64_t bytes = round_up(shard->blob_bytes[i], FORMAT_BLOB_ALIGNMENT);

        if (bytes && (create_blob(file, i, bytes, &shard->blob_offset[i]) < 0 ||
                      shard->blob_offset[i] % FORMAT_BLOB_ALIGNMENT != 0))
            return h5_error(error, EXIT_STATUS_BUG, "cannot lay out a shard of %llu bytes",
                            (unsigned long long)bytes);
    }
    for (size_t i = 0; i < table->piece_count; i++) {
        table->pieces[i].offset += shard->blob_offset[blob_number(&table->pieces[i])];
        shard->segments[i].offset = table->pieces[i].offset;
    }
    if (h5_table_write(file, table) < 0 ||
        h5_write_text_attribute(file, "format", FORMAT_NAME) < 0 ||
        h5_write_integer_attribute(file, "version", FORMAT_VERSION) < 0 ||
        h5_write_integer_attribute(file, "step", shard->sidecar.step) < 0 ||
        h5_write_integer_attribute(file, "shard", shard->sidecar.number) < 0)
        return h5_error(error, EXIT_STATUS_SYSTEM, "cannot describe a shard");
    return h5_image_finish(&shard->image, error);
}

static int make_skeleton(struct shard *shard, struct error *error)
{
    struct h5_guard guard;
    int result;

    h5_enter(&guard);
    result = h5_image_create(&shard->image, error);
    if (result == 0)
        result = create_skeleton(shard, error);
    if (result < 0)
        h5_image_free(&shard->image);
    h5_leave(&guard);
    shard->sidecar.size = shard->image.size;
    return result;
}

static int compare_segments(const void *a, const void *b)
{
    const struct segment *one = a, *other = b;

    return one->offset < other->offset ? -1 : one->offset > other->offset;
}

/* The bytes [offset, offset + size) of the file: where they are in one piece's data when that is
 * all there is, else put together in `buffer`. `*next` is the first segment not wholly before. */
static const char *block_bytes(const struct shard *shard, size_t *next, uint64_t offset,
                               size_t size, char *buffer)
{
    uint64_t end = offset + size;
    const struct segment *segment;

    while (*next < shard->segment_count &&
           shard->segments[*next].offset + shard->segments[*next].bytes <= offset)
        ++*next;
    segment = &shard->segments[*next];
    if (*next < shard->segment_count && segment->offset <= offset &&
        segment->offset + segment->bytes >= end)
        return segment->data + (offset - segment->offset);
    if (disk_read(shard->image.fd, buffer, size, offset) < 0)
        return NULL;
    for (size_t i = *next; i < shard->segment_count && shard->segments[i].offset < end; i++) {
        uint64_t from, to;

        segment = &shard->segments[i];
        from = segment->offset > offset ? segment->offset : offset;
        to = segment->offset + segment->bytes < end ? segment->offset + segment->bytes : end;
        memcpy(buffer + (from - offset), segment->data + (from - segment->offset), to - from);
    }
    return buffer;
}

static int write_blocks(struct shard *shard, int fd, const char *path, struct error *error)
{
    uint64_t size = shard->sidecar.size, count = format_block_count(size), started = 0;
    char *buffer = malloc(FORMAT_BLOCK);
    size_t next = 0;
    int result = -1;

    shard->sidecar.blocks = calloc(count + 1, sizeof(*shard->sidecar.blocks));
    if (!buffer || !shard->sidecar.blocks) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory to write it", path);
        goto out;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t offset = i * FORMAT_BLOCK;
        size_t bytes = size - offset < FORMAT_BLOCK ? size - offset : FORMAT_BLOCK;
        const char *block = block_bytes(shard, &next, offset, bytes, buffer);

        if (!block) {
            error_set_errno(error, "%s: cannot read its description back from memory", path);
            goto out;
        }
        shard->sidecar.blocks[i] = checksum(block, bytes);
        if (disk_write(fd, path, block, bytes, offset, error) < 0)
            goto out;
        if ((i + 1) % WRITEBACK_BLOCKS == 0) {
            /* Only a hint; what goes wrong on the way to the disk, the fsync tells. */
            (void)sync_file_range(fd, (off_t)started, (off_t)(offset + bytes - started),
                                  SYNC_FILE_RANGE_WRITE);
            started = offset + bytes;
        }
    }
    result = 0;
out:
    free(buffer);
    return result;
}

static int write_file(struct shard *shard, const char *path, struct error *error)
{
    int fd = disk_create(path, shard->sidecar.size, error), result;

    if (fd < 0)
        return -1;
    result = write_blocks(shard, fd, path, error);
    if (result == 0)
        result = disk_finish(fd, path, error);
    else
        close(fd);
    return result;
}

int checkpoint_write_shard(const char *root, int64_t step, int number,
                           const struct checkpoint_piece *pieces, size_t count, struct error *error)
{
    struct shard shard = {.sidecar = {.step = step, .number = number},
                          .image = {.fd = -1, .file = -1}};
    char directory[DISK_PATH_SIZE], path[DISK_PATH_SIZE], sidecar_path[DISK_PATH_SIZE];
    char step_name[FORMAT_NAME_SIZE], shard_name[FORMAT_NAME_SIZE], sidecar_name[FORMAT_NAME_SIZE];
    bool begun = false;
    int result = -1;

    assert(number >= 0 && number < FORMAT_MAX_SHARDS && step >= 0);
    format_step_name(step_name, step);
    format_shard_name(shard_name, number);
    format_sidecar_name(sidecar_name, number);
    if (disk_path(directory, error, "%s/.%s.tmp", root, step_name) < 0 ||
        disk_path(path, error, "%s/%s", directory, shard_name) < 0 ||
        disk_path(sidecar_path, error, "%s/%s", directory, sidecar_name) < 0)
        return -1;
    if (place_pieces(&shard, pieces, count, error) < 0 || make_skeleton(&shard, error) < 0) {
        error_prefix(error, "%s: ", path);
        goto out;
    }
    qsort(shard.segments, shard.segment_count, sizeof(*shard.segments), compare_segments);
    /* The sidecar of an earlier attempt goes first: there is never one beside another's shard. */
    if (disk_make_directory(directory, error) < 0 || disk_unlink(sidecar_path, error) < 0)
        goto out;
    begun = true;
    result = write_file(&shard, path, error);
    if (result == 0)
        result = sidecar_write(sidecar_path, &shard.sidecar, error);
out:
    if (result < 0 && begun) {
        unlink(sidecar_path);
        unlink(path);
    }
    h5_image_free(&shard.image);
    free(shard.segments);
    sidecar_free(&shard.sidecar);
    return result;
}
