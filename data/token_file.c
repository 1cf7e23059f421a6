/* Reading token files.
 *
 * Everything in PREFIX.idx is checked once, when the file is opened; after that every access is
 * inside the mapping, whatever bytes the files hold. The index begins with a header of 34 bytes, so
 * that none of its arrays is aligned: elements are copied out, never pointed to.
 */
#include "data/token_file.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "data/token_format.h"

struct mapping {
    char *path;
    const uint8_t *bytes;
    size_t size;
};

struct token_file {
    char *prefix;
    struct mapping index, data;
    const struct token_dtype *dtype;
    int64_t sequences, documents, tokens;
    const uint8_t *lengths, *offsets, *starts; /* int32[sequences], int64[sequences], int64[] */
    bool starts_known;                         /* else every sequence is a document of its own */
};

/* The codes of Megatron's files. It gives float tokens a code too (6 and 7); they are refused. */
static const struct token_dtype token_dtypes[] = {
    {1, 1, "uint8"}, {2, 1, "int8"},  {3, 2, "int16"},
    {4, 4, "int32"}, {5, 8, "int64"}, {8, 2, "uint16"},
};

const struct token_dtype *token_dtype_find(int code)
{
    for (size_t i = 0; i < sizeof(token_dtypes) / sizeof(token_dtypes[0]); i++)
        if (token_dtypes[i].code == code)
            return &token_dtypes[i];
    return NULL;
}

static int32_t load_i32(const uint8_t *bytes)
{
    uint32_t value;

    memcpy(&value, bytes, sizeof(value));
    return (int32_t)le32toh(value);
}

static int64_t load_i64(const uint8_t *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof(value));
    return (int64_t)le64toh(value);
}

static int map_file(struct mapping *mapping, const char *prefix, const char *suffix,
                    struct error *error)
{
    struct stat status;
    void *bytes;
    int result = -1, fd = -1;

    if (asprintf(&mapping->path, "%s%s", prefix, suffix) < 0) {
        mapping->path = NULL;
        return error_set(error, EXIT_STATUS_SYSTEM, "%s%s: out of memory", prefix, suffix);
    }
    fd = open(mapping->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int saved = errno;

        error_set_errno(error, "%s: cannot open", mapping->path);
        if (saved == ENOENT)
            error_prefix(error,
                         "no token file %s (two files, %s.bin and %s.idx, as mtllm-data"
                         " tokenize writes them): ",
                         prefix, prefix, prefix);
        goto out;
    }
    if (fstat(fd, &status) < 0) {
        error_set_errno(error, "%s: cannot stat", mapping->path);
        goto out;
    }
    if (!S_ISREG(status.st_mode)) {
        error_set(error, EXIT_STATUS_IO, "%s: not a regular file", mapping->path);
        goto out;
    }
    mapping->size = (size_t)status.st_size;
    if (mapping->size > 0) { /* mmap() refuses nothing at all */
        bytes = mmap(NULL, mapping->size, PROT_READ, MAP_SHARED, fd, 0);
        if (bytes == MAP_FAILED) {
            error_set_errno(error, "%s: cannot map", mapping->path);
            goto out;
        }
        mapping->bytes = bytes;
    }
    result = 0;
out:
    if (fd >= 0)
        close(fd);
    return result;
}

static void unmap_file(struct mapping *mapping)
{
    if (mapping->bytes)
        munmap((void *)mapping->bytes, mapping->size);
    free(mapping->path);
}

/* Header and array bounds of the index. */
static int check_index(struct token_file *file, struct error *error)
{
    const struct mapping *index = &file->index;
    uint64_t version, sequences, starts, room;
    int code;

    if (index->size < TOKEN_INDEX_HEADER_BYTES)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: %zu bytes, but the header of an index has %d; the file is cut short",
                         index->path, index->size, TOKEN_INDEX_HEADER_BYTES);
    if (memcmp(index->bytes, TOKEN_INDEX_MAGIC, TOKEN_INDEX_MAGIC_BYTES) != 0)
        return error_set(error, EXIT_STATUS_DATA,
                         memcmp(index->bytes, "TNTIDX", 6) == 0
                             ? "%s: an index of Megatron's \"lazy\" or \"cached\" kind (magic"
                               " TNTIDX); only the \"mmap\" kind can be read, tokenize again"
                             : "%s: not the index of a token file (magic MMIDIDX expected)",
                         index->path);
    version = (uint64_t)load_i64(index->bytes + 9);
    if (version != TOKEN_INDEX_VERSION)
        return error_set(error, EXIT_STATUS_DATA, "%s: index version %llu, expected %d",
                         index->path, (unsigned long long)version, TOKEN_INDEX_VERSION);
    code = index->bytes[17];
    file->dtype = token_dtype_find(code);
    if (!file->dtype)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: dtype code %d, expected 1 to 5 or 8 (an integer type)", index->path,
                         code);
    sequences = (uint64_t)load_i64(index->bytes + 18);
    starts = (uint64_t)load_i64(index->bytes + 26);
    room = index->size - TOKEN_INDEX_HEADER_BYTES;
    if (sequences > room / 12 || starts > (room - 12 * sequences) / 8 ||
        12 * sequences + 8 * starts != room)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: %zu bytes, but an index of %llu sequences and %llu document entries"
                         " has 34 + 12 x sequences + 8 x entries; the file is damaged or cut short",
                         index->path, index->size, (unsigned long long)sequences,
                         (unsigned long long)starts);
    file->sequences = (int64_t)sequences;
    file->lengths = index->bytes + TOKEN_INDEX_HEADER_BYTES;
    file->offsets = file->lengths + 4 * sequences;
    file->starts = file->offsets + 8 * sequences;
    file->documents = (int64_t)starts - 1;
    return 0;
}

/* Every writer of the format puts one sequence behind the other, so anything else is damage. */
static int check_sequences(struct token_file *file, struct error *error)
{
    uint64_t width = (uint64_t)file->dtype->bytes, end = 0;

    for (int64_t i = 0; i < file->sequences; i++) {
        int32_t length = load_i32(file->lengths + 4 * i);
        int64_t offset = load_i64(file->offsets + 8 * i);
        uint64_t bytes = (uint64_t)length * width;

        if (length < 0)
            return error_set(error, EXIT_STATUS_DATA, "%s: sequence %lld has length %d; damaged",
                             file->index.path, (long long)i, length);
        if ((uint64_t)offset != end)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: sequence %lld is said to be at offset %lld, expected %llu (the"
                             " end of the one before); damaged",
                             file->index.path, (long long)i, (long long)offset,
                             (unsigned long long)end);
        if (bytes > file->data.size - end)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: %zu bytes, but %s has sequence %lld end at %llu; one of the two"
                             " is damaged or cut short",
                             file->data.path, file->data.size, file->index.path, (long long)i,
                             (unsigned long long)end + bytes);
        end += bytes;
        file->tokens += length;
    }
    if (end != file->data.size)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: %zu bytes, but %s accounts for %llu; the two do not belong together",
                         file->data.path, file->data.size, file->index.path,
                         (unsigned long long)end);
    return 0;
}

static int check_documents(struct token_file *file, struct error *error)
{
    int64_t entries = file->documents + 1, previous = 0;

    if (entries < 1)
        return error_set(error, EXIT_STATUS_DATA, "%s: no document entry, expected at least one",
                         file->index.path);
    if (load_i64(file->starts) != 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: the first document begins at sequence %lld, expected 0",
                         file->index.path, (long long)load_i64(file->starts));
    /* Megatron-LLM's instruction files never record a document. */
    if (entries == 1 && file->sequences > 0) {
        file->documents = file->sequences;
        return 0;
    }
    file->starts_known = true;
    for (int64_t i = 1; i < entries; i++) {
        int64_t start = load_i64(file->starts + 8 * i);

        if (start < previous || start > file->sequences)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: document %lld begins at sequence %lld, expected %lld to %lld",
                             file->index.path, (long long)i, (long long)start, (long long)previous,
                             (long long)file->sequences);
        previous = start;
    }
    if (previous != file->sequences)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: the last document ends at sequence %lld, expected %lld",
                         file->index.path, (long long)previous, (long long)file->sequences);
    return 0;
}

int token_file_open(struct token_file **result, const char *prefix, struct error *error)
{
    struct token_file *file = calloc(1, sizeof(*file));

    *result = NULL;
    if (!file || !(file->prefix = strdup(prefix))) {
        free(file);
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", prefix);
    }
    if (map_file(&file->index, prefix, ".idx", error) < 0 ||
        map_file(&file->data, prefix, ".bin", error) < 0 || check_index(file, error) < 0 ||
        check_sequences(file, error) < 0 || check_documents(file, error) < 0) {
        token_file_close(file);
        return -1;
    }
    *result = file;
    return 0;
}

void token_file_close(struct token_file *file)
{
    if (!file)
        return;
    unmap_file(&file->index);
    unmap_file(&file->data);
    free(file->prefix);
    free(file);
}

const char *token_file_prefix(const struct token_file *file)
{
    return file->prefix;
}

int64_t token_file_sequences(const struct token_file *file)
{
    return file->sequences;
}

int64_t token_file_documents(const struct token_file *file)
{
    return file->documents;
}

int64_t token_file_tokens(const struct token_file *file)
{
    return file->tokens;
}

int token_file_bytes_per_token(const struct token_file *file)
{
    return file->dtype->bytes;
}

const char *token_file_dtype_name(const struct token_file *file)
{
    return file->dtype->name;
}

uint64_t token_file_index_hash(const struct token_file *file)
{
    return XXH3_64bits(file->index.bytes, file->index.size);
}

int64_t token_file_size_bytes(const struct token_file *file)
{
    return (int64_t)(file->index.size + file->data.size);
}

int32_t token_file_length(const struct token_file *file, int64_t i)
{
    return load_i32(file->lengths + 4 * i);
}

int64_t token_file_document(const struct token_file *file, int64_t i)
{
    return file->starts_known ? load_i64(file->starts + 8 * i) : i;
}

const struct token_dtype *token_file_dtype(const struct token_file *file)
{
    return file->dtype;
}

const void *token_file_bytes(const struct token_file *file, int64_t i)
{
    return file->data.bytes + load_i64(file->offsets + 8 * i);
}

bool token_file_divides(const struct token_file *file)
{
    for (int64_t i = 0; i <= file->documents; i++)
        if (token_file_document(file, i) != i)
            return true;
    return false;
}

/* Outside int32 no token id can be right: the nearest int32 keeps it wrong for every vocabulary. */
static int32_t narrow(int64_t token)
{
    return token > INT32_MAX ? INT32_MAX : token < INT32_MIN ? INT32_MIN : (int32_t)token;
}

void token_file_read(const struct token_file *file, int64_t i, int64_t offset, int64_t count,
                     int32_t *tokens)
{
    const uint8_t *from;

    if (count == 0)
        return; /* there may be no mapping to point into */
    from = file->data.bytes + load_i64(file->offsets + 8 * i) + offset * file->dtype->bytes;
    switch (file->dtype->code) {
    case 1:
        for (int64_t k = 0; k < count; k++)
            tokens[k] = from[k];
        break;
    case 2:
        for (int64_t k = 0; k < count; k++)
            tokens[k] = (from[k] ^ 0x80) - 0x80;
        break;
    case 3:
        for (int64_t k = 0; k < count; k++)
            tokens[k] = (int16_t)(from[2 * k] | from[2 * k + 1] << 8);
        break;
    case 4:
        for (int64_t k = 0; k < count; k++)
            tokens[k] = load_i32(from + 4 * k);
        break;
    case 5:
        for (int64_t k = 0; k < count; k++)
            tokens[k] = narrow(load_i64(from + 8 * k));
        break;
    default: /* 8: token_dtype_find() let nothing else pass */
        for (int64_t k = 0; k < count; k++)
            tokens[k] = from[2 * k] | from[2 * k + 1] << 8;
        break;
    }
}
