#include "ckpt/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

int disk_path(char path[DISK_PATH_SIZE], struct error *error, const char *format, ...)
{
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(path, DISK_PATH_SIZE, format, arguments);
    va_end(arguments);
    if (length < 0 || length >= DISK_PATH_SIZE)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%.200s...: this path is longer than %d bytes; use a shorter one", path,
                         DISK_PATH_SIZE - 1);
    return 0;
}

/* The file system's free bytes for this user where `path` is or would be. */
static bool available_bytes(const char *path, uint64_t *bytes)
{
    char directory[DISK_PATH_SIZE];
    struct statvfs space;
    char *slash;

    snprintf(directory, sizeof(directory), "%s", path);
    slash = strrchr(directory, '/');
    if (slash)
        slash[slash == directory] = '\0';
    else
        strcpy(directory, ".");
    if (statvfs(directory, &space) < 0)
        return false;
    *bytes = (uint64_t)space.f_bavail * space.f_frsize;
    return true;
}

int disk_error(struct error *error, const char *what, const char *path, uint64_t needed)
{
    int saved = errno;
    uint64_t available;

    if (saved == ENOSPC && available_bytes(path, &available))
        return error_set(error, EXIT_STATUS_IO,
                         "%s: %s: %s: %llu bytes needed, %llu available; make room or use another "
                         "directory",
                         path, what, strerror(saved), (unsigned long long)needed,
                         (unsigned long long)available);
    if (saved == ENOSPC || saved == EDQUOT || saved == EFBIG)
        return error_set(error, EXIT_STATUS_IO, "%s: %s: %s: %llu bytes needed", path, what,
                         strerror(saved), (unsigned long long)needed);
    errno = saved;
    return error_set_errno(error, "%s: %s", path, what);
}

int disk_make_directory(const char *path, struct error *error)
{
    char partial[DISK_PATH_SIZE];
    struct stat status;

    if (mkdir(path, 0777) == 0 || (errno == EEXIST && disk_is_directory(path)))
        return 0;
    if (errno != ENOENT)
        return disk_error(error, "cannot make this directory", path, 4096);
    if (disk_path(partial, error, "%s", path) < 0)
        return -1;
    for (char *p = partial + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        if (stat(partial, &status) < 0 && mkdir(partial, 0777) < 0 && errno != EEXIST)
            return disk_error(error, "cannot make this directory", partial, 4096);
        *p = '/';
    }
    if (mkdir(path, 0777) < 0 && (errno != EEXIST || !disk_is_directory(path)))
        return disk_error(error, "cannot make this directory", path, 4096);
    return 0;
}

int disk_create(const char *path, uint64_t size, struct error *error)
{
    int fd, result;

    /* Not truncated but made anew: whoever still reads a file of that name keeps what it had. */
    if (unlink(path) < 0 && errno != ENOENT)
        return disk_error(error, "cannot replace this file", path, size);
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return disk_error(error, "cannot create this file", path, size);
    if (size == 0)
        return fd;
    /* fallocate, not posix_fallocate: where the file system cannot reserve, glibc's would write
     * every block instead. Those file systems (NFS before 4.2, some FUSE) find out later. */
    do
        result = fallocate(fd, 0, 0, (off_t)size);
    while (result < 0 && errno == EINTR);
    if (result < 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) {
        disk_error(error, "cannot reserve space", path, size);
        close(fd);
        unlink(path);
        return -1;
    }
    return fd;
}

int disk_write(int fd, const char *path, const void *bytes, size_t size, uint64_t offset,
               struct error *error)
{
    const char *from = bytes;
    size_t done = 0;

    while (done < size) {
        ssize_t written = pwrite(fd, from + done, size - done, (off_t)(offset + done));

        if (written < 0 && errno == EINTR)
            continue;
        if (written == 0)
            errno = ENOSPC;
        if (written <= 0)
            return disk_error(error, "cannot write", path, size - done);
        done += (size_t)written;
    }
    return 0;
}

int disk_finish(int fd, const char *path, struct error *error)
{
    int result = 0;

    if (fsync(fd) < 0)
        result = disk_error(error, "cannot bring this file to the disk", path, 0);
    if (close(fd) < 0 && result == 0)
        result = disk_error(error, "cannot close this file", path, 0);
    return result;
}

int disk_write_file(const char *path, const void *bytes, size_t size, struct error *error)
{
    int fd = disk_create(path, size, error), result;

    if (fd < 0)
        return -1;
    result = disk_write(fd, path, bytes, size, 0, error);
    if (result == 0)
        result = disk_finish(fd, path, error);
    else
        close(fd);
    if (result < 0)
        unlink(path);
    return result;
}

int disk_read(int fd, void *bytes, size_t size, uint64_t offset)
{
    size_t done = 0;

    while (done < size) {
        ssize_t got = pread(fd, (char *)bytes + done, size - done, (off_t)(offset + done));

        if (got < 0 && errno == EINTR)
            continue;
        if (got == 0)
            errno = ENODATA;
        if (got <= 0)
            return -1;
        done += (size_t)got;
    }
    return 0;
}

int disk_read_file(const char *path, size_t limit, void **bytes, size_t *size, struct error *error)
{
    /* Nonblocking: a pipe of that name is refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), result = -1;
    struct stat status;
    char *buffer = NULL;

    if (fd < 0) {
        int missing = errno == ENOENT;

        error_set_errno(error, "%s: cannot open", path);
        if (missing)
            error->status = EXIT_STATUS_DATA;
        return -1;
    }
    if (fstat(fd, &status) < 0) {
        error_set_errno(error, "%s", path);
        goto out;
    }
    if (!S_ISREG(status.st_mode)) {
        error_set(error, EXIT_STATUS_DATA, "%s: is not a file", path);
        goto out;
    }
    if ((uint64_t)status.st_size > limit) {
        error_set(error, EXIT_STATUS_DATA, "%s: %lld bytes, more than the %zu that it may have",
                  path, (long long)status.st_size, limit);
        goto out;
    }
    buffer = malloc((size_t)status.st_size + 1);
    if (!buffer) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory for its %lld bytes", path,
                  (long long)status.st_size);
        goto out;
    }
    if (disk_read(fd, buffer, (size_t)status.st_size, 0) < 0) {
        error_set_errno(error, "%s: cannot read", path);
        error->status = EXIT_STATUS_DATA;
        goto out;
    }
    buffer[status.st_size] = '\0';
    *bytes = buffer;
    *size = (size_t)status.st_size;
    buffer = NULL;
    result = 0;
out:
    free(buffer);
    close(fd);
    return result;
}

int disk_sync_directory(const char *path, struct error *error)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), result = 0;

    if (fd < 0)
        return disk_error(error, "cannot open this directory", path, 0);
    /* Some network file systems keep directories in step by themselves and refuse this. */
    if (fsync(fd) < 0 && errno != EINVAL && errno != EOPNOTSUPP)
        result = disk_error(error, "cannot bring this directory to the disk", path, 0);
    close(fd);
    return result;
}

int disk_rename(const char *from, const char *to, struct error *error)
{
    if (rename(from, to) < 0)
        return error_set_errno(error, "%s: cannot rename to %s", from, to);
    return 0;
}

int disk_exchange(const char *one, const char *other, struct error *error)
{
    if (renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) == 0)
        return 1;
    if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
        return 0;
    return error_set_errno(error, "%s: cannot exchange with %s", one, other);
}

int disk_link(const char *target, const char *path, struct error *error)
{
    char temporary[DISK_PATH_SIZE];

    if (disk_path(temporary, error, "%s.tmp", path) < 0)
        return -1;
    if (unlink(temporary) < 0 && errno != ENOENT)
        return disk_error(error, "cannot replace this link", temporary, 0);
    if (symlink(target, temporary) < 0) {
        if (errno == EPERM || errno == EOPNOTSUPP || errno == ENOSYS)
            return 0;
        return disk_error(error, "cannot make this link", temporary, 4096);
    }
    if (rename(temporary, path) < 0) {
        error_set_errno(error, "%s: cannot rename to %s", temporary, path);
        unlink(temporary);
        return -1;
    }
    return 0;
}

int disk_unlink(const char *path, struct error *error)
{
    if (unlink(path) < 0 && errno != ENOENT)
        return disk_error(error, "cannot remove this file", path, 0);
    return 0;
}

int disk_remove_tree(const char *path, struct error *error)
{
    struct disk_names names = {0};
    struct stat status;
    int result = 0;

    if (lstat(path, &status) < 0)
        return errno == ENOENT ? 0 : disk_error(error, "cannot look at it", path, 0);
    if (!S_ISDIR(status.st_mode))
        return disk_unlink(path, error);
    if (disk_list(path, &names, error) < 0)
        return -1;
    for (size_t i = 0; i < names.count && result == 0; i++) {
        char *inside;

        if (asprintf(&inside, "%s/%s", path, names.names[i]) < 0) {
            result = error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory", path);
            break;
        }
        result = disk_remove_tree(inside, error);
        free(inside);
    }
    if (result == 0 && rmdir(path) < 0 && errno != ENOENT)
        result = disk_error(error, "cannot remove this directory", path, 0);
    disk_names_free(&names);
    return result;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int disk_list(const char *path, struct disk_names *names, struct error *error)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    size_t capacity = 0;
    int result = -1;

    *names = (struct disk_names){0};
    if (!directory)
        return errno == ENOENT ? 0 : error_set_errno(error, "%s: cannot list", path);
    while (errno = 0, (entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (names->count == capacity) {
            size_t larger = capacity ? 2 * capacity : 16;
            char **grown = reallocarray(names->names, larger, sizeof(*grown));

            if (!grown)
                goto no_memory;
            names->names = grown;
            capacity = larger;
        }
        names->names[names->count] = strdup(entry->d_name);
        if (!names->names[names->count])
            goto no_memory;
        names->count++;
    }
    if (errno != 0) {
        error_set_errno(error, "%s: cannot list", path);
        goto out;
    }
    if (names->count)
        qsort(names->names, names->count, sizeof(*names->names), compare_names);
    result = 0;
    goto out;
no_memory:
    error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory to list it", path);
out:
    closedir(directory);
    if (result < 0)
        disk_names_free(names);
    return result;
}

void disk_names_free(struct disk_names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->names[i]);
    free(names->names);
    *names = (struct disk_names){0};
}

bool disk_is_directory(const char *path)
{
    struct stat status;

    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}
