/* gzip's members and Zstandard's frames may follow one another in a file; what is given is all of
 * them. A file that ends within one, or before the first, is cut short. */
#include "data/input.h"

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef HAVE_ZLIB
#include <zlib.h>
#endif
#ifdef HAVE_ZSTD
#include <zstd.h>
#include <zstd_errors.h>
#endif

enum { FILE_BYTES = 256 << 10 };

struct input {
    const char *path;
    int fd;
    int64_t offset, file_offset;

    /* Of a compressed one. */
    const struct compression *compression; /* NULL: none */
    unsigned char *file;                   /* [FILE_BYTES]; [file_at..file_end) is not used yet */
    size_t file_at, file_end;
    bool frame_open; /* within a member or frame */
    bool filled;     /* the last call filled its output: more may be waiting inside */
    int64_t frames;  /* that have ended */
    void *stream;    /* the library's */
};

/* A kind of compressed file. */
struct compression {
    const char *ending, *name, *package;
    int (*open)(struct input *input); /* -1: no memory; NULL: not built in */
    void (*close)(struct input *input);
    /* Up to `size` bytes from what is in input->file. */
    ssize_t (*decode)(struct input *input, char *bytes, size_t size, struct error *error);
};

#if defined(HAVE_ZLIB) || defined(HAVE_ZSTD)
static int damaged(const struct input *input, const char *what, struct error *error)
{
    return error_set(error, EXIT_STATUS_DATA,
                     "%s: damaged, or no %s file: %s, at byte %lld or not long before", input->path,
                     input->compression->name, what,
                     (long long)(input->file_offset - (int64_t)(input->file_end - input->file_at)));
}
#endif

#ifdef HAVE_ZLIB
static int gzip_open(struct input *input)
{
    z_stream *stream = calloc(1, sizeof(*stream));

    input->stream = stream;
    if (stream && inflateInit2(stream, 16 + MAX_WBITS) == Z_OK) /* 16: gzip's header */
        return 0;
    free(stream);
    input->stream = NULL;
    return -1;
}

static void gzip_close(struct input *input)
{
    if (input->stream)
        inflateEnd(input->stream);
    free(input->stream);
}

static ssize_t gzip_decode(struct input *input, char *bytes, size_t size, struct error *error)
{
    z_stream *stream = input->stream;
    int status;

    if (!input->frame_open) {
        /* Zeros behind a member are padding, to gzip too. */
        while (input->frames > 0 && input->file_at < input->file_end &&
               input->file[input->file_at] == 0)
            input->file_at++;
        if (input->file_at == input->file_end)
            return 0;
        inflateReset(stream);
        input->frame_open = true;
    }
    size = size < 1 << 30 ? size : 1 << 30; /* it counts in 32 bits */
    stream->next_in = input->file + input->file_at;
    stream->avail_in = (uInt)(input->file_end - input->file_at);
    stream->next_out = (unsigned char *)bytes;
    stream->avail_out = (uInt)size;
    status = inflate(stream, Z_NO_FLUSH);
    input->file_at = input->file_end - stream->avail_in;
    if (status == Z_STREAM_END) {
        input->frame_open = false;
        input->frames++;
    } else if (status != Z_OK && status != Z_BUF_ERROR) {
        return damaged(input, stream->msg ? stream->msg : "no such data", error);
    }
    return (ssize_t)(size - stream->avail_out);
}
#endif

#ifdef HAVE_ZSTD
static int zstd_open(struct input *input)
{
    input->stream = ZSTD_createDStream();
    if (!input->stream)
        return -1;
    /* As zstd --long=31, which large collections are made with; it takes what a frame asks for. */
    ZSTD_DCtx_setParameter(input->stream, ZSTD_d_windowLogMax, sizeof(size_t) == 4 ? 30 : 31);
    return 0;
}

static void zstd_close(struct input *input)
{
    ZSTD_freeDStream(input->stream);
}

static ssize_t zstd_decode(struct input *input, char *bytes, size_t size, struct error *error)
{
    ZSTD_inBuffer in = {input->file, input->file_end, input->file_at};
    ZSTD_outBuffer out = {bytes, size, 0};
    size_t status;

    if (!input->frame_open && in.pos == in.size)
        return 0;
    status = ZSTD_decompressStream(input->stream, &out, &in);
    input->file_at = in.pos;
    if (ZSTD_getErrorCode(status) == ZSTD_error_memory_allocation)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory for its window",
                         input->path);
    if (ZSTD_isError(status))
        return damaged(input, ZSTD_getErrorName(status), error);
    input->frame_open = status != 0;
    input->frames += status == 0;
    return (ssize_t)out.pos;
}
#endif

static const struct compression compressions[] = {
#ifdef HAVE_ZLIB
    {".gz", "gzip", "zlib1g-dev", gzip_open, gzip_close, gzip_decode},
#else
    {".gz", "gzip", "zlib1g-dev", NULL, NULL, NULL},
#endif
#ifdef HAVE_ZSTD
    {".zst", "Zstandard", "libzstd-dev", zstd_open, zstd_close, zstd_decode},
#else
    {".zst", "Zstandard", "libzstd-dev", NULL, NULL, NULL},
#endif
};

static const struct compression *find_compression(const char *path)
{
    size_t length = strlen(path);

    for (size_t i = 0; i < sizeof(compressions) / sizeof(compressions[0]); i++) {
        size_t tail = strlen(compressions[i].ending);

        if (length > tail && strcasecmp(path + length - tail, compressions[i].ending) == 0)
            return &compressions[i];
    }
    return NULL;
}

size_t input_name_length(const char *path)
{
    const struct compression *compression = find_compression(path);

    return strlen(path) - (compression ? strlen(compression->ending) : 0);
}

int input_check(const char *path, struct error *error)
{
    const struct compression *compression = find_compression(path);

    if (!compression || compression->open)
        return 0;
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "%s: built without %s; install %s (Debian) and build again, or decompress"
                     " into standard input",
                     path, compression->name, compression->package);
}

int input_open(struct input **result, const char *path, struct error *error)
{
    struct input *input = calloc(1, sizeof(*input));

    *result = NULL;
    if (!input)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
    if (input_check(path, error) < 0) {
        free(input);
        return -1;
    }
    input->path = path;
    input->fd = strcmp(path, "-") == 0 ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (input->fd < 0) {
        error_set_errno(error, "%s: cannot open", path);
        free(input);
        return -1;
    }
    input->compression = find_compression(path);
    if (input->compression &&
        (!(input->file = malloc(FILE_BYTES)) || input->compression->open(input) < 0)) {
        input_close(input);
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
    }
    *result = input;
    return 0;
}

void input_close(struct input *input)
{
    if (!input)
        return;
    if (input->compression)
        input->compression->close(input);
    if (input->fd != STDIN_FILENO)
        close(input->fd);
    free(input->file);
    free(input);
}

static ssize_t read_file(struct input *input, void *bytes, size_t size, struct error *error)
{
    ssize_t got;

    do
        got = read(input->fd, bytes, size);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return error_set_errno(error, "%s: cannot read", input->path);
    input->file_offset += got;
    return got;
}

/* Some of the next bytes; 0 at the end. */
static ssize_t read_some(struct input *input, char *bytes, size_t size, struct error *error)
{
    if (!input->compression)
        return read_file(input, bytes, size, error);
    for (;;) {
        ssize_t got;

        if (input->file_at == input->file_end && !input->filled) {
            got = read_file(input, input->file, FILE_BYTES, error);
            if (got == 0 && (input->frame_open || input->frames == 0))
                return error_set(error, EXIT_STATUS_DATA,
                                 "%s: cut short: the file ends, after %lld bytes, within what was"
                                 " compressed",
                                 input->path, (long long)input->file_offset);
            if (got <= 0)
                return got;
            input->file_at = 0;
            input->file_end = (size_t)got;
        }
        got = input->compression->decode(input, bytes, size, error);
        input->filled = got == (ssize_t)size;
        if (got != 0)
            return got;
    }
}

ssize_t input_read(struct input *input, char *bytes, size_t size, struct error *error)
{
    size_t done = 0;

    while (done < size) {
        ssize_t got = read_some(input, bytes + done, size - done, error);

        if (got < 0)
            return -1;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    input->offset += (int64_t)done;
    return (ssize_t)done;
}

int input_skip(struct input *input, int64_t offset, struct error *error)
{
    char bytes[64 << 10];
    struct stat status;

    if (!input->compression && fstat(input->fd, &status) == 0 && offset <= status.st_size &&
        lseek(input->fd, offset, SEEK_SET) == offset) {
        input->offset = input->file_offset = offset;
        return 0;
    }
    while (input->offset < offset) {
        int64_t left = offset - input->offset;
        size_t size = left < (int64_t)sizeof(bytes) ? (size_t)left : sizeof(bytes);
        ssize_t got = input_read(input, bytes, size, error);

        if (got < 0)
            return -1;
        if (got < (ssize_t)size)
            return error_set(error, EXIT_STATUS_DATA, "%s: ends before byte %lld", input->path,
                             (long long)offset);
    }
    return 0;
}

int64_t input_offset(const struct input *input)
{
    return input->offset;
}

int64_t input_file_offset(const struct input *input)
{
    return input->file_offset;
}
