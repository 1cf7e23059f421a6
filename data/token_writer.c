/* Writing token files.
 *
 * Both files grow under temporary names beside the final ones. On commit the index of an older
 * token file goes first and the new one comes last: at no moment do an index and data of different
 * runs stand together under the final names.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/token_file.h"
#include "data/token_format.h"

enum { WRITER_BUFFER_BYTES = 1 << 20 };

/* One file on its way to its final name. */
struct output {
    char *path;
    char *partial; /* temporary name; NULL when there is nothing to remove */
    FILE *stream;
};

struct token_writer {
    char *prefix;
    struct output data, index;
    const struct token_dtype *dtype;
    int64_t vocab_size;
    int32_t *lengths; /* [documents] */
    int64_t documents, capacity;
    int64_t open_length; /* tokens of the document being written */
    int64_t tokens;
};

/* Open a file that nobody else has under a name that no reader looks for. */
static int output_open(struct output *output, const char *prefix, const char *suffix,
                       struct error *error)
{
    int fd = -1;

    if (asprintf(&output->path, "%s%s", prefix, suffix) < 0) {
        output->path = NULL;
        return error_set(error, EXIT_STATUS_SYSTEM, "%s%s: out of memory", prefix, suffix);
    }
    for (int attempt = 0; attempt < 100 && fd < 0; attempt++) {
        free(output->partial);
        if (asprintf(&output->partial, "%s.partial-%ld-%d", output->path, (long)getpid(), attempt) <
            0) {
            output->partial = NULL;
            return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", output->path);
        }
        fd = open(output->partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    if (fd < 0) {
        error_set_errno(error, "%s: cannot create", output->partial);
        free(output->partial); /* not ours to remove */
        output->partial = NULL;
        return -1;
    }
    output->stream = fdopen(fd, "w");
    if (!output->stream) {
        error_set_errno(error, "%s: cannot open", output->partial);
        close(fd);
        return -1;
    }
    setvbuf(output->stream, NULL, _IOFBF, WRITER_BUFFER_BYTES);
    return 0;
}

static int output_write(struct output *output, const void *bytes, size_t size, struct error *error)
{
    if (fwrite(bytes, 1, size, output->stream) != size)
        return error_set_errno(error, "%s: cannot write", output->partial);
    return 0;
}

static int output_write_i64(struct output *output, int64_t value, struct error *error)
{
    uint64_t bytes = htole64((uint64_t)value);

    return output_write(output, &bytes, sizeof(bytes), error);
}

/* Everything on the disk, the stream closed. */
static int output_finish(struct output *output, struct error *error)
{
    int result = 0;

    if (fflush(output->stream) != 0 || fsync(fileno(output->stream)) != 0)
        result = error_set_errno(error, "%s: cannot write", output->partial);
    if (fclose(output->stream) != 0 && result == 0)
        result = error_set_errno(error, "%s: cannot write", output->partial);
    output->stream = NULL;
    return result;
}

static int output_rename(struct output *output, struct error *error)
{
    if (rename(output->partial, output->path) != 0)
        return error_set_errno(error, "%s: cannot rename to %s", output->partial, output->path);
    free(output->partial);
    output->partial = NULL;
    return 0;
}

static void output_discard(struct output *output)
{
    if (output->stream)
        fclose(output->stream);
    if (output->partial)
        unlink(output->partial);
    free(output->partial);
    free(output->path);
}

/* A rename is durable when its directory is. */
static int sync_directory(const char *path, struct error *error)
{
    char *copy = strdup(path);
    int fd, result = 0;

    if (!copy)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
    fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Some file systems cannot sync a directory and say EINVAL. */
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL))
        result = error_set_errno(error, "%s: cannot sync its directory", path);
    if (fd >= 0)
        close(fd);
    free(copy);
    return result;
}

int token_writer_open(struct token_writer **result, const char *prefix, int64_t vocab_size,
                      struct error *error)
{
    struct token_writer *writer = calloc(1, sizeof(*writer));

    *result = NULL;
    if (!writer || !(writer->prefix = strdup(prefix))) {
        free(writer);
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", prefix);
    }
    writer->vocab_size = vocab_size;
    writer->dtype = token_dtype_find(vocab_size < TOKEN_UINT16_VOCAB ? 8 : 4);
    if (output_open(&writer->data, prefix, ".bin", error) < 0 ||
        output_open(&writer->index, prefix, ".idx", error) < 0) {
        token_writer_close(writer);
        return -1;
    }
    *result = writer;
    return 0;
}

int token_writer_append(struct token_writer *writer, const int32_t *tokens, int64_t count,
                        struct error *error)
{
    bool narrow = writer->dtype->bytes == 2;
    uint32_t chunk[4096];
    uint16_t narrow_chunk[4096];

    if (count > INT32_MAX - writer->open_length)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: document %lld has more than %d tokens, the most that the format can"
                         " hold; divide it",
                         writer->prefix, (long long)writer->documents, INT32_MAX);
    for (int64_t done = 0; done < count;) {
        int64_t n = count - done < 4096 ? count - done : 4096;

        for (int64_t i = 0; i < n; i++) {
            int32_t token = tokens[done + i];

            if (token < 0 || token >= writer->vocab_size)
                return error_set(error, EXIT_STATUS_DATA,
                                 "%s: document %lld holds token %d, outside the vocabulary of %lld",
                                 writer->prefix, (long long)writer->documents, token,
                                 (long long)writer->vocab_size);
            if (narrow)
                narrow_chunk[i] = htole16((uint16_t)token);
            else
                chunk[i] = htole32((uint32_t)token);
        }
        if (output_write(&writer->data, narrow ? (void *)narrow_chunk : (void *)chunk,
                         (size_t)n * (size_t)writer->dtype->bytes, error) < 0)
            return -1;
        done += n;
    }
    writer->open_length += count;
    writer->tokens += count;
    return 0;
}

int token_writer_end_document(struct token_writer *writer, struct error *error)
{
    if (writer->documents == writer->capacity) {
        int64_t capacity = writer->capacity ? 2 * writer->capacity : 1024;
        int32_t *lengths = realloc(writer->lengths, (size_t)capacity * sizeof(*lengths));

        if (!lengths)
            return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory after %lld documents",
                             writer->prefix, (long long)writer->documents);
        writer->lengths = lengths;
        writer->capacity = capacity;
    }
    writer->lengths[writer->documents++] = (int32_t)writer->open_length;
    writer->open_length = 0;
    return 0;
}

int token_writer_add(struct token_writer *writer, const int32_t *tokens, int64_t count,
                     struct error *error)
{
    if (token_writer_append(writer, tokens, count, error) < 0)
        return -1;
    return token_writer_end_document(writer, error);
}

int64_t token_writer_documents(const struct token_writer *writer)
{
    return writer->documents;
}

int64_t token_writer_tokens(const struct token_writer *writer)
{
    return writer->tokens;
}

const char *token_writer_partial_path(const struct token_writer *writer, int which)
{
    return which == 0 ? writer->data.partial : writer->index.partial;
}

const char *token_writer_dtype_name(const struct token_writer *writer)
{
    return writer->dtype->name;
}

static int write_index(struct token_writer *writer, struct error *error)
{
    struct output *index = &writer->index;
    uint8_t code = (uint8_t)writer->dtype->code;
    int64_t offset = 0;

    if (output_write(index, TOKEN_INDEX_MAGIC, TOKEN_INDEX_MAGIC_BYTES, error) < 0 ||
        output_write_i64(index, TOKEN_INDEX_VERSION, error) < 0 ||
        output_write(index, &code, 1, error) < 0 ||
        output_write_i64(index, writer->documents, error) < 0 ||
        output_write_i64(index, writer->documents + 1, error) < 0)
        return -1;
    for (int64_t i = 0; i < writer->documents; i++) {
        uint32_t length = htole32((uint32_t)writer->lengths[i]);

        if (output_write(index, &length, sizeof(length), error) < 0)
            return -1;
    }
    for (int64_t i = 0; i < writer->documents; i++) {
        if (output_write_i64(index, offset, error) < 0)
            return -1;
        offset += (int64_t)writer->lengths[i] * writer->dtype->bytes;
    }
    for (int64_t i = 0; i <= writer->documents; i++)
        if (output_write_i64(index, i, error) < 0)
            return -1;
    return 0;
}

int token_writer_commit(struct token_writer *writer, struct error *error)
{
    if (writer->open_length > 0 && token_writer_end_document(writer, error) < 0)
        return -1;
    if (output_finish(&writer->data, error) < 0 || write_index(writer, error) < 0 ||
        output_finish(&writer->index, error) < 0)
        return -1;
    if (unlink(writer->index.path) != 0 && errno != ENOENT)
        return error_set_errno(error, "%s: cannot replace", writer->index.path);
    if (output_rename(&writer->data, error) < 0)
        return -1;
    if (output_rename(&writer->index, error) < 0) {
        unlink(writer->data.path); /* data without its index is of no use */
        return -1;
    }
    return sync_directory(writer->index.path, error);
}

void token_writer_close(struct token_writer *writer)
{
    if (!writer)
        return;
    output_discard(&writer->data);
    output_discard(&writer->index);
    free(writer->lengths);
    free(writer->prefix);
    free(writer);
}
