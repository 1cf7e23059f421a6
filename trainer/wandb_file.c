#include "trainer/wandb_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK_SIZE = 32768, CHUNK_HEADER = 7, FILE_HEADER = 7 };
enum chunk_type { CHUNK_FULL = 1, CHUNK_FIRST, CHUNK_MIDDLE, CHUNK_LAST };

static const unsigned char file_header[FILE_HEADER] = {':', 'W', '&', 'B', 0xe1, 0xbe, 0};

/* Bytes left in the block; fewer than a chunk's header are filled with zeros. */
static size_t block_left(int64_t offset)
{
    return BLOCK_SIZE - (size_t)(offset % BLOCK_SIZE);
}

/* Everything that is read, with the place in the file behind it. */
struct reader {
    FILE *stream;
    int64_t offset;
    struct protobuf record;
};

static bool read_bytes(struct reader *reader, void *bytes, size_t length)
{
    if (fread(bytes, 1, length, reader->stream) != length)
        return false;
    reader->offset += (int64_t)length;
    return true;
}

/* Appends a chunk to the record; 0 when it is none, torn or damaged. */
static enum chunk_type read_chunk(struct reader *reader)
{
    unsigned char header[CHUNK_HEADER], payload[BLOCK_SIZE];
    size_t left = block_left(reader->offset), length;
    uint32_t crc;

    if (left < CHUNK_HEADER && !read_bytes(reader, payload, left))
        return 0;
    if (!read_bytes(reader, header, sizeof(header)))
        return 0;
    length = header[4] | (size_t)header[5] << 8;
    if (length > block_left(reader->offset) % BLOCK_SIZE || !read_bytes(reader, payload, length))
        return 0;
    crc = crc32_ieee(crc32_ieee(0, &header[6], 1), payload, length);
    if (crc != (header[0] | (uint32_t)header[1] << 8 | (uint32_t)header[2] << 16 |
                (uint32_t)header[3] << 24))
        return 0;
    protobuf_append(&reader->record, payload, length);
    return header[6] <= CHUNK_LAST ? header[6] : 0;
}

static bool read_record(struct reader *reader)
{
    enum chunk_type type;

    protobuf_clear(&reader->record);
    type = read_chunk(reader);
    if (type == CHUNK_FULL)
        return !reader->record.failed;
    if (type != CHUNK_FIRST)
        return false;
    do
        type = read_chunk(reader);
    while (type == CHUNK_MIDDLE);
    return type == CHUNK_LAST && !reader->record.failed;
}

/* Where the file is to end: 0 when not even its header is whole. -1: see `error`. */
static int64_t find_end(const char *path,
                        bool (*keep)(void *user, const unsigned char *record, size_t length),
                        void *user, struct error *error)
{
    struct reader reader = {.stream = fopen(path, "re")};
    unsigned char header[FILE_HEADER];
    int64_t end = 0;

    if (!reader.stream)
        return errno == ENOENT ? 0 : error_set_errno(error, "%s: cannot read", path);
    if (read_bytes(&reader, header, sizeof(header))) {
        end = FILE_HEADER;
        if (memcmp(header, file_header, sizeof(header)) != 0) {
            end = error_set(error, EXIT_STATUS_DATA, "%s: not a file of W&B", path);
            goto out;
        }
    }
    while (end > 0 && read_record(&reader) && keep(user, reader.record.bytes, reader.record.length))
        end = reader.offset;
    if (ferror(reader.stream))
        end = error_set_errno(error, "%s: cannot read", path);
out:
    fclose(reader.stream);
    protobuf_destroy(&reader.record);
    return end;
}

int wandb_file_open(struct wandb_file *file, const char *path,
                    bool (*keep)(void *user, const unsigned char *record, size_t length),
                    void *user, struct error *error)
{
    int64_t end = find_end(path, keep, user, error);

    *file = (struct wandb_file){0};
    if (end < 0)
        return -1;
    if (end > 0 && truncate(path, end) < 0)
        return error_set_errno(error, "%s: cannot shorten", path);
    if (end == 0 && unlink(path) < 0 && errno != ENOENT)
        return error_set_errno(error, "%s: cannot replace", path);
    if (appended_file_open(&file->file, path, end == 0, error) < 0)
        return -1;
    /* Records behind no header would be nobody's. */
    if (end == 0 && !appended_file_write(&file->file, file_header, sizeof(file_header)))
        return error_set(error, EXIT_STATUS_IO, "%s: cannot begin it; the next start tries again",
                         path);
    return 0;
}

void wandb_file_close(struct wandb_file *file)
{
    appended_file_close(&file->file);
    protobuf_destroy(&file->framed);
}

static void append_chunk(struct protobuf *framed, enum chunk_type type, const void *bytes,
                         size_t length)
{
    unsigned char header[CHUNK_HEADER] = {
        [4] = (unsigned char)length, [5] = (unsigned char)(length >> 8), [6] = (unsigned char)type};
    uint32_t crc = crc32_ieee(crc32_ieee(0, &header[6], 1), bytes, length);

    for (int i = 0; i < 4; i++)
        header[i] = (unsigned char)(crc >> (8 * i));
    protobuf_append(framed, header, sizeof(header));
    protobuf_append(framed, bytes, length);
}

bool wandb_file_append(struct wandb_file *file, const struct protobuf *record)
{
    static const unsigned char zeros[CHUNK_HEADER];
    struct protobuf *framed = &file->framed;
    size_t done = 0;
    bool first = true, last = false;

    protobuf_clear(framed);
    while (!last) {
        size_t left = block_left(file->file.size + (int64_t)framed->length), length;

        if (left < CHUNK_HEADER) {
            protobuf_append(framed, zeros, left);
            left = BLOCK_SIZE;
        }
        length = record->length - done;
        last = length <= left - CHUNK_HEADER;
        if (!last)
            length = left - CHUNK_HEADER;
        append_chunk(framed,
                     first ? (last ? CHUNK_FULL : CHUNK_FIRST) : (last ? CHUNK_LAST : CHUNK_MIDDLE),
                     record->bytes + done, length);
        done += length;
        first = false;
        if (framed->failed)
            break;
    }
    if (record->failed || framed->failed) {
        appended_file_lose(&file->file, ENOMEM);
        return false;
    }
    return appended_file_write(&file->file, framed->bytes, framed->length);
}
