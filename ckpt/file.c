#include "ckpt/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* One system call moves at most this much (Linux stops a little below 2 GiB). */
#define CALL_MAX ((int64_t)1 << 30)

int file_open(const char *path, int64_t *size, struct error *error)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status;

    if (descriptor < 0)
        return error_set_errno(error, "%s", path);
    if (fstat(descriptor, &status) < 0) {
        error_set_errno(error, "%s", path);
        close(descriptor);
        return -1;
    }
    if (!S_ISREG(status.st_mode)) {
        close(descriptor);
        return error_set(error, EXIT_STATUS_DATA, "%s: not a regular file", path);
    }
    *size = status.st_size;
    return descriptor;
}

int file_read_at(int descriptor, const char *path, int64_t offset, int64_t bytes, void *data,
                 struct error *error)
{
    char *to = data;

    while (bytes > 0) {
        ssize_t got =
            pread(descriptor, to, (size_t)(bytes < CALL_MAX ? bytes : CALL_MAX), (off_t)offset);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set_errno(error, "%s: reading at byte %" PRId64, path, offset);
        if (got == 0)
            return error_set(error, EXIT_STATUS_IO,
                             "%s: ends at byte %" PRId64 ", %" PRId64
                             " bytes early; was it cut while it was read?",
                             path, offset, bytes);
        to += got;
        offset += got;
        bytes -= got;
    }
    return 0;
}

int file_read(const char *path, int64_t limit, char **data, size_t *size, struct error *error)
{
    int64_t bytes;
    int descriptor = file_open(path, &bytes, error), rc;

    *data = NULL;
    if (descriptor < 0)
        return -1;
    if (bytes > limit) {
        close(descriptor);
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: %" PRId64 " bytes; at most %" PRId64 " are expected", path, bytes,
                         limit);
    }
    *data = malloc((size_t)bytes + 1);
    if (*data)
        rc = file_read_at(descriptor, path, 0, bytes, *data, error);
    else
        rc = error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
    close(descriptor);
    if (rc < 0) {
        free(*data);
        *data = NULL;
        return -1;
    }
    (*data)[bytes] = '\0';
    *size = (size_t)bytes;
    return 0;
}

int file_write_all(int descriptor, const char *path, const void *data, size_t bytes,
                   struct error *error)
{
    const char *from = data;

    while (bytes > 0) {
        ssize_t put = write(descriptor, from, bytes < CALL_MAX ? bytes : (size_t)CALL_MAX);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return error_set_errno(error, "%s: writing %zu bytes", path, bytes);
        from += put;
        bytes -= (size_t)put;
    }
    return 0;
}

int file_create(const char *path, const void *data, size_t bytes, struct error *error)
{
    int descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666), rc;

    if (descriptor < 0)
        return error_set_errno(error, "%s: creating", path);
    rc = file_write_all(descriptor, path, data, bytes, error);
    if (rc == 0 && fsync(descriptor) < 0)
        rc = error_set_errno(error, "%s: fsync", path);
    if (close(descriptor) < 0 && rc == 0)
        rc = error_set_errno(error, "%s: close", path);
    return rc;
}

int file_sync_directory(const char *path, struct error *error)
{
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;

    if (descriptor < 0)
        return error_set_errno(error, "%s", path);
    /* Some network file systems cannot sync a directory and need not. */
    if (fsync(descriptor) < 0 && errno != EINVAL && errno != ENOTSUP)
        rc = error_set_errno(error, "%s: fsync", path);
    close(descriptor);
    return rc;
}
