/* Writing token files.
 *
 * Both files grow under fixed names beside the final ones: the data as it will be; of the index a
 * header of zeros, which no reader takes for one, and the lengths behind it, so that what was
 * written can be gone on with, and the length of the files is all that has to be remembered. The
 * rest of the index, and last its header, come on commit. Then the index of an older token file
 * goes first and the new one comes last: at no moment do an index and data of different runs stand
 * together under the final names.
 *
 * The unfinished index is locked as long as its writer is open.
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/token_file.h"
#include "data/token_format.h"

enum { WRITER_BUFFER_BYTES = 1 << 20, LENGTHS_AT_ONCE = 1 << 14 };

/* One file on its way to its final name. */
struct output {
    char *path;
    char *partial; /* temporary name; NULL when it has its final one */
    FILE *stream;
};

struct token_writer {
    char *prefix;
    struct output data, index;
    const struct token_dtype *dtype;
    int64_t vocab_size;                     /* 0: any token */
    int64_t sequences, tokens, open_tokens; /* the last are of the sequence being written */
    int64_t *starts;                        /* [documents]; NULL: each sequence is one */
    int64_t documents, capacity;
    bool keep;
};

/* Only of one's own: a name in a directory of everybody's may lead anywhere. */
static int output_open(struct output *output, const char *prefix, const char *suffix,
                       struct error *error)
{
    struct stat status;
    int fd;

    if (asprintf(&output->path, "%s%s", prefix, suffix) < 0 ||
        asprintf(&output->partial, "%s%s.partial", prefix, suffix) < 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s%s: out of memory", prefix, suffix);
    fd = open(output->partial, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0)
        return error_set_errno(error, "%s: cannot create", output->partial);
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode)) {
        close(fd);
        return error_set(error, EXIT_STATUS_IO, "%s: not a regular file", output->partial);
    }
    output->stream = fdopen(fd, "r+");
    if (!output->stream) {
        error_set_errno(error, "%s: cannot open", output->partial);
        close(fd);
        return -1;
    }
    setvbuf(output->stream, NULL, _IOFBF, WRITER_BUFFER_BYTES);
    return 0;
}

static int output_error(const struct output *output, struct error *error)
{
    return error_set_errno(error, "%s: cannot write", output->partial);
}

static int output_write(struct output *output, const void *bytes, size_t size, struct error *error)
{
    if (fwrite(bytes, 1, size, output->stream) != size)
        return output_error(output, error);
    return 0;
}

static int output_write_i64(struct output *output, int64_t value, struct error *error)
{
    uint64_t bytes = htole64((uint64_t)value);

    return output_write(output, &bytes, sizeof(bytes), error);
}

/* Forget what is behind `size` bytes, and go on writing there. */
static int output_truncate(struct output *output, int64_t size, struct error *error)
{
    if (fflush(output->stream) != 0 || ftruncate(fileno(output->stream), size) < 0 ||
        fseeko(output->stream, size, SEEK_SET) < 0)
        return output_error(output, error);
    return 0;
}

static int output_sync(struct output *output, struct error *error)
{
    if (fflush(output->stream) != 0 || fdatasync(fileno(output->stream)) != 0)
        return output_error(output, error);
    return 0;
}

static int64_t output_size(const struct output *output)
{
    struct stat status;

    return fstat(fileno(output->stream), &status) < 0 ? -1 : (int64_t)status.st_size;
}

static int output_rename(struct output *output, struct error *error)
{
    if (rename(output->partial, output->path) != 0)
        return error_set_errno(error, "%s: cannot rename to %s", output->partial, output->path);
    free(output->partial);
    output->partial = NULL;
    return 0;
}

/* In this order: who gets the lock finds no file of another's. */
static void output_close(struct output *output, bool keep)
{
    if (output->stream && output->partial && !keep)
        unlink(output->partial);
    if (output->stream)
        fclose(output->stream);
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

/* Open and lock the unfinished index. The name can go to another file before the lock is had. Where
 * the file system has no locks, there is nothing to be done about it. */
static int lock_index(struct token_writer *writer, struct error *error)
{
    struct output *index = &writer->index;
    struct stat locked, named;

    for (;;) {
        if (output_open(index, writer->prefix, ".idx", error) < 0)
            return -1;
        if (flock(fileno(index->stream), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            error_set(error, EXIT_STATUS_CONFIGURATION,
                      "%s: another process is writing it; wait for that, or give another --output",
                      writer->prefix);
            output_close(index, true);
            *index = (struct output){NULL, NULL, NULL};
            return -1;
        }
        if (fstat(fileno(index->stream), &locked) == 0 && stat(index->partial, &named) == 0 &&
            locked.st_ino == named.st_ino && locked.st_dev == named.st_dev)
            return 0;
        output_close(index, true);
        *index = (struct output){NULL, NULL, NULL};
    }
}

static int writer_open(struct token_writer **result, const char *prefix,
                       const struct token_dtype *dtype, int64_t vocab_size, struct error *error)
{
    struct token_writer *writer = calloc(1, sizeof(*writer));

    *result = NULL;
    if (!writer || !(writer->prefix = strdup(prefix))) {
        free(writer);
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", prefix);
    }
    writer->vocab_size = vocab_size;
    writer->dtype = dtype;
    if (lock_index(writer, error) < 0 || output_open(&writer->data, prefix, ".bin", error) < 0) {
        token_writer_close(writer);
        return -1;
    }
    *result = writer;
    return 0;
}

int token_writer_find(struct token_writer **writer, const char *prefix, int64_t vocab_size,
                      struct error *error)
{
    int code = vocab_size < TOKEN_UINT16_VOCAB ? 8 : 4;

    return writer_open(writer, prefix, token_dtype_find(code), vocab_size, error);
}

static int begun(struct token_writer **writer, int opened, struct error *error)
{
    if (opened < 0)
        return -1;
    if (token_writer_begin(*writer, NULL, error) == 0)
        return 0;
    token_writer_close(*writer);
    *writer = NULL;
    return -1;
}

int token_writer_open(struct token_writer **writer, const char *prefix, int64_t vocab_size,
                      struct error *error)
{
    return begun(writer, token_writer_find(writer, prefix, vocab_size, error), error);
}

int token_writer_open_like(struct token_writer **writer, const char *prefix,
                           const struct token_file *file, struct error *error)
{
    return begun(writer, writer_open(writer, prefix, token_file_dtype(file), 0, error), error);
}

/* Tokens of the sequences in the unfinished index; -1: they cannot be read. */
static int64_t count_tokens(const struct token_writer *writer, int64_t sequences)
{
    uint32_t lengths[LENGTHS_AT_ONCE];
    int64_t tokens = 0;

    for (int64_t done = 0; done < sequences;) {
        int64_t count = sequences - done < LENGTHS_AT_ONCE ? sequences - done : LENGTHS_AT_ONCE;
        ssize_t size = count * (ssize_t)sizeof(*lengths);

        if (pread(fileno(writer->index.stream), lengths, (size_t)size,
                  TOKEN_INDEX_HEADER_BYTES + 4 * done) != size)
            return -1;
        for (int64_t i = 0; i < count; i++)
            tokens += le32toh(lengths[i]);
        done += count;
    }
    return tokens;
}

bool token_writer_holds(const struct token_writer *writer, const struct token_writer_mark *mark)
{
    int64_t tokens = output_size(&writer->data) / writer->dtype->bytes;
    int64_t sequences = (output_size(&writer->index) - TOKEN_INDEX_HEADER_BYTES) / 4;

    return mark->tokens >= 0 && mark->tokens <= tokens && mark->sequences >= 0 &&
           mark->sequences <= sequences && mark->open_tokens >= 0 &&
           mark->open_tokens <= INT32_MAX &&
           count_tokens(writer, mark->sequences) == mark->tokens - mark->open_tokens;
}

/* Of the index; its stream stays where it is. */
static int write_header(struct token_writer *writer, const void *header, struct error *error)
{
    if (pwrite(fileno(writer->index.stream), header, TOKEN_INDEX_HEADER_BYTES, 0) !=
        TOKEN_INDEX_HEADER_BYTES)
        return output_error(&writer->index, error);
    return 0;
}

int token_writer_begin(struct token_writer *writer, const struct token_writer_mark *mark,
                       struct error *error)
{
    static const char header[TOKEN_INDEX_HEADER_BYTES];
    struct token_writer_mark at = mark ? *mark : (struct token_writer_mark){0, 0, 0};

    writer->tokens = at.tokens;
    writer->sequences = at.sequences;
    writer->open_tokens = at.open_tokens;
    /* The header may be there already: of a process that ended between it and the final names. */
    if (output_truncate(&writer->data, at.tokens * writer->dtype->bytes, error) < 0 ||
        output_truncate(&writer->index, TOKEN_INDEX_HEADER_BYTES + 4 * at.sequences, error) < 0)
        return -1;
    return write_header(writer, header, error);
}

int token_writer_sync(struct token_writer *writer, struct token_writer_mark *mark,
                      struct error *error)
{
    assert(!writer->starts);
    *mark = (struct token_writer_mark){writer->tokens, writer->sequences, writer->open_tokens};
    if (output_sync(&writer->data, error) < 0)
        return -1;
    return output_sync(&writer->index, error);
}

/* Room for `count` more tokens in the open sequence? */
static int check_length(const struct token_writer *writer, int64_t count, struct error *error)
{
    if (count <= INT32_MAX - writer->open_tokens)
        return 0;
    return error_set(error, EXIT_STATUS_DATA,
                     "%s: document %lld has more than %d tokens, the most that the format can hold;"
                     " divide it",
                     writer->prefix, (long long)token_writer_documents(writer), INT32_MAX);
}

int token_writer_append(struct token_writer *writer, const int32_t *tokens, int64_t count,
                        struct error *error)
{
    bool narrow = writer->dtype->bytes == 2;
    uint32_t chunk[4096];
    uint16_t narrow_chunk[4096];

    if (check_length(writer, count, error) < 0)
        return -1;
    for (int64_t done = 0; done < count;) {
        int64_t n = count - done < 4096 ? count - done : 4096;

        for (int64_t i = 0; i < n; i++) {
            int32_t token = tokens[done + i];

            if (token < 0 || token >= writer->vocab_size)
                return error_set(error, EXIT_STATUS_DATA,
                                 "%s: document %lld holds token %d, outside the vocabulary of %lld",
                                 writer->prefix, (long long)token_writer_documents(writer), token,
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
    writer->open_tokens += count;
    writer->tokens += count;
    return 0;
}

static int copy_sequence(struct token_writer *writer, const struct token_file *file, int64_t i,
                         struct error *error)
{
    int64_t count = token_file_length(file, i);

    if (count > 0 && output_write(&writer->data, token_file_bytes(file, i),
                                  (size_t)count * (size_t)writer->dtype->bytes, error) < 0)
        return -1;
    writer->open_tokens = count;
    writer->tokens += count;
    return token_writer_end_document(writer, error);
}

static int note_start(struct token_writer *writer, struct error *error)
{
    if (writer->documents == writer->capacity) {
        int64_t capacity = writer->capacity ? 2 * writer->capacity : 1024;
        int64_t *starts = realloc(writer->starts, (size_t)capacity * sizeof(*starts));

        if (!starts)
            return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory after %lld documents",
                             writer->prefix, (long long)writer->documents);
        writer->starts = starts;
        writer->capacity = capacity;
    }
    writer->starts[writer->documents++] = writer->sequences;
    return 0;
}

int token_writer_copy(struct token_writer *writer, const struct token_file *file, int64_t begin,
                      int64_t end, bool divided, struct error *error)
{
    assert(writer->dtype == token_file_dtype(file) && writer->open_tokens == 0);
    for (int64_t d = begin; d < end; d++) {
        if (divided && note_start(writer, error) < 0)
            return -1;
        for (int64_t i = token_file_document(file, d); i < token_file_document(file, d + 1); i++)
            if (copy_sequence(writer, file, i, error) < 0)
                return -1;
    }
    return 0;
}

int token_writer_end_document(struct token_writer *writer, struct error *error)
{
    uint32_t length = htole32((uint32_t)writer->open_tokens);

    if (output_write(&writer->index, &length, sizeof(length), error) < 0)
        return -1;
    writer->sequences++;
    writer->open_tokens = 0;
    return 0;
}

int token_writer_drop_document(struct token_writer *writer, struct error *error)
{
    if (writer->open_tokens == 0)
        return 0;
    writer->tokens -= writer->open_tokens;
    writer->open_tokens = 0;
    return output_truncate(&writer->data, writer->tokens * writer->dtype->bytes, error);
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
    return writer->starts ? writer->documents : writer->sequences;
}

int64_t token_writer_tokens(const struct token_writer *writer)
{
    return writer->tokens;
}

int64_t token_writer_open_tokens(const struct token_writer *writer)
{
    return writer->open_tokens;
}

const char *token_writer_prefix(const struct token_writer *writer)
{
    return writer->prefix;
}

const char *token_writer_partial_path(const struct token_writer *writer, int which)
{
    return which == 0 ? writer->data.partial : writer->index.partial;
}

const char *token_writer_dtype_name(const struct token_writer *writer)
{
    return writer->dtype->name;
}

/* Behind the lengths, which are read back. */
static int write_offsets(struct token_writer *writer, struct error *error)
{
    uint32_t lengths[LENGTHS_AT_ONCE];
    int64_t offset = 0;

    if (fflush(writer->index.stream) != 0)
        return output_error(&writer->index, error);
    for (int64_t done = 0; done < writer->sequences;) {
        int64_t left = writer->sequences - done;
        int64_t count = left < LENGTHS_AT_ONCE ? left : LENGTHS_AT_ONCE;
        ssize_t size = count * (ssize_t)sizeof(*lengths);

        if (pread(fileno(writer->index.stream), lengths, (size_t)size,
                  TOKEN_INDEX_HEADER_BYTES + 4 * done) != size)
            return error_set_errno(error, "%s: cannot read back", writer->index.partial);
        for (int64_t i = 0; i < count; i++) {
            if (output_write_i64(&writer->index, offset, error) < 0)
                return -1;
            offset += (int64_t)le32toh(lengths[i]) * writer->dtype->bytes;
        }
        done += count;
    }
    return 0;
}

/* Everything on the disk, under the temporary names. */
static int finish(struct token_writer *writer, struct error *error)
{
    struct output *index = &writer->index;
    char header[TOKEN_INDEX_HEADER_BYTES];
    int64_t documents;
    uint64_t field;

    if (writer->open_tokens > 0 && token_writer_end_document(writer, error) < 0)
        return -1;
    documents = token_writer_documents(writer);
    if (write_offsets(writer, error) < 0)
        return -1;
    for (int64_t i = 0; i < documents; i++)
        if (output_write_i64(index, writer->starts ? writer->starts[i] : i, error) < 0)
            return -1;
    if (output_write_i64(index, writer->sequences, error) < 0)
        return -1;
    memcpy(header, TOKEN_INDEX_MAGIC, TOKEN_INDEX_MAGIC_BYTES);
    field = htole64(TOKEN_INDEX_VERSION);
    memcpy(header + 9, &field, sizeof(field));
    header[17] = (char)writer->dtype->code;
    field = htole64((uint64_t)writer->sequences);
    memcpy(header + 18, &field, sizeof(field));
    field = htole64((uint64_t)documents + 1);
    memcpy(header + 26, &field, sizeof(field));
    if (output_sync(&writer->data, error) < 0)
        return -1;
    if (fflush(index->stream) != 0)
        return output_error(index, error);
    if (write_header(writer, header, error) < 0)
        return -1;
    return output_sync(index, error);
}

int token_writer_commit_all(struct token_writer *const *writers, int count, struct error *error)
{
    for (int i = 0; i < count; i++)
        if (finish(writers[i], error) < 0)
            return -1;
    for (int i = 0; i < count; i++)
        if (unlink(writers[i]->index.path) != 0 && errno != ENOENT)
            return error_set_errno(error, "%s: cannot replace", writers[i]->index.path);
    for (int i = 0; i < count; i++) {
        if (output_rename(&writers[i]->data, error) < 0)
            return -1;
        if (output_rename(&writers[i]->index, error) < 0) {
            unlink(writers[i]->data.path); /* data without its index is of no use */
            return -1;
        }
    }
    for (int i = 0; i < count; i++)
        if (sync_directory(writers[i]->index.path, error) < 0)
            return -1;
    return 0;
}

int token_writer_commit(struct token_writer *writer, struct error *error)
{
    return token_writer_commit_all(&writer, 1, error);
}

void token_writer_keep(struct token_writer *writer, bool keep)
{
    writer->keep = keep;
}

void token_writer_close(struct token_writer *writer)
{
    if (!writer)
        return;
    output_close(&writer->data, writer->keep);
    output_close(&writer->index, writer->keep);
    free(writer->starts);
    free(writer->prefix);
    free(writer);
}
