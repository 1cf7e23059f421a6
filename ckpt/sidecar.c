#include "ckpt/sidecar.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/checksum.h"
#include "ckpt/disk.h"

enum {
    MAGIC_WORD = 0x4d544c4c, /* changes with what follows */
    HEADER_WORDS = 6,        /* magic, step, number, size, tensors, pieces */
    TENSOR_WORDS = 4,        /* bytes of the name, dimensions, shape; then the name */
    PIECE_WORDS = 10,
};

static size_t name_words(size_t length)
{
    return length / sizeof(uint64_t) + 1; /* at least one NUL behind it */
}

int sidecar_write(const char *path, const struct sidecar *sidecar, struct error *error)
{
    const struct table *table = &sidecar->table;
    size_t blocks = format_block_count(sidecar->size), words = HEADER_WORDS + blocks + 1;
    uint64_t *buffer, *p;
    int result;

    for (size_t i = 0; i < table->tensor_count; i++)
        words += TENSOR_WORDS + name_words(strlen(table->tensors[i].name));
    words += table->piece_count * PIECE_WORDS;
    p = buffer = calloc(words, sizeof(*buffer));
    if (!buffer)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory", path);
    *p++ = MAGIC_WORD;
    *p++ = (uint64_t)sidecar->step;
    *p++ = (uint64_t)sidecar->number;
    *p++ = sidecar->size;
    *p++ = table->tensor_count;
    *p++ = table->piece_count;
    for (size_t i = 0; i < table->tensor_count; i++) {
        const struct table_tensor *tensor = &table->tensors[i];
        size_t length = strlen(tensor->name);

        *p++ = length;
        *p++ = (uint64_t)tensor->dimensions;
        *p++ = (uint64_t)tensor->shape[0];
        *p++ = (uint64_t)tensor->shape[1];
        memcpy(p, tensor->name, length);
        p += name_words(length);
    }
    for (size_t i = 0; i < table->piece_count; i++) {
        const struct table_piece *piece = &table->pieces[i];

        *p++ = piece->tensor;
        *p++ = piece->shard;
        *p++ = piece->kind;
        *p++ = piece->dtype;
        for (int d = 0; d < 2; d++) {
            *p++ = (uint64_t)piece->start[d];
            *p++ = (uint64_t)piece->extent[d];
        }
        *p++ = piece->offset;
        *p++ = piece->element;
    }
    if (blocks)
        memcpy(p, sidecar->blocks, blocks * sizeof(*p));
    buffer[words - 1] = checksum(buffer, (words - 1) * sizeof(*buffer));
    result = disk_write_file(path, buffer, words * sizeof(*buffer), error);
    free(buffer);
    return result;
}

/* The words behind the checksum that held; what is read from them is still not taken on trust. */
struct words {
    const uint64_t *next;
    size_t left;
};

static bool read_tensors(struct words *words, uint64_t count, struct table *table,
                         struct error *error)
{
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t *p = words->next;
        const char *name = (const char *)(p + TENSOR_WORDS);
        size_t size;

        if (words->left < TENSOR_WORDS || p[0] > TABLE_NAME_LIMIT)
            return false;
        size = TENSOR_WORDS + name_words(p[0]);
        if (words->left < size || name[p[0]] != '\0')
            return false;
        if (table_add_tensor(table, name, (int)p[1],
                             (const int64_t[2]){(int64_t)p[2], (int64_t)p[3]}, error) != (int64_t)i)
            return false;
        words->next += size;
        words->left -= size;
    }
    return true;
}

static bool read_pieces(struct words *words, uint64_t count, const struct sidecar *sidecar,
                        struct table *table, struct error *error)
{
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t *p = words->next;
        struct table_piece piece;

        if (words->left < PIECE_WORDS || p[0] >= table->tensor_count ||
            p[1] != (uint64_t)sidecar->number || p[2] >= CHECKPOINT_KINDS || p[3] > DTYPE_F16)
            return false;
        piece = (struct table_piece){.tensor = (uint32_t)p[0],
                                     .shard = (uint32_t)p[1],
                                     .kind = (uint8_t)p[2],
                                     .dtype = (uint8_t)p[3],
                                     .start = {(int64_t)p[4], (int64_t)p[6]},
                                     .extent = {(int64_t)p[5], (int64_t)p[7]},
                                     .offset = p[8],
                                     .element = p[9]};
        if (table_add_piece(table, &piece, error) < 0)
            return false;
        words->next += PIECE_WORDS;
        words->left -= PIECE_WORDS;
    }
    return true;
}

int sidecar_read(const char *path, struct sidecar *sidecar, struct error *error)
{
    void *bytes = NULL;
    const uint64_t *header;
    struct words words;
    size_t size, count, blocks;
    int result = -1;

    *sidecar = (struct sidecar){0};
    if (disk_read_file(path, SIZE_MAX / 2, &bytes, &size, error) < 0)
        return -1;
    header = bytes;
    count = size / sizeof(*header);
    error->text[0] = '\0';
    if (size % sizeof(*header) != 0 || count <= HEADER_WORDS || header[0] != MAGIC_WORD ||
        checksum(header, (count - 1) * sizeof(*header)) != header[count - 1])
        goto bad;
    sidecar->step = (int64_t)header[1];
    sidecar->number = (int)header[2];
    sidecar->size = header[3];
    words = (struct words){header + HEADER_WORDS, count - 1 - HEADER_WORDS};
    blocks = format_block_count(sidecar->size);
    if (!read_tensors(&words, header[4], &sidecar->table, error) ||
        !read_pieces(&words, header[5], sidecar, &sidecar->table, error) || words.left != blocks)
        goto bad;
    sidecar->blocks = calloc(blocks + 1, sizeof(*sidecar->blocks));
    if (!sidecar->blocks) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory", path);
        goto out;
    }
    memcpy(sidecar->blocks, words.next, blocks * sizeof(*sidecar->blocks));
    result = 0;
    goto out;
bad:
    if (error->text[0] == '\0')
        error_set(error, EXIT_STATUS_DATA, "was damaged between its writing and now");
    error_prefix(error, "%s: ", path);
    error->status = EXIT_STATUS_DATA;
out:
    if (result < 0)
        sidecar_free(sidecar);
    free(bytes);
    return result;
}

void sidecar_free(struct sidecar *sidecar)
{
    table_free(&sidecar->table);
    free(sidecar->blocks);
    *sidecar = (struct sidecar){0};
}
