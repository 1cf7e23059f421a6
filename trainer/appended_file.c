#include "trainer/appended_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/log.h"

int appended_file_open(struct appended_file *file, const char *path, bool fresh,
                       struct error *error)
{
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | (fresh ? O_EXCL : 0);
    struct stat status;

    *file = (struct appended_file){.descriptor = open(path, flags, 0666)};
    if (file->descriptor < 0 || fstat(file->descriptor, &status) < 0) {
        error_set_errno(error, "%s: cannot write", path);
        goto failed;
    }
    file->size = S_ISREG(status.st_mode) ? status.st_size : 0;
    file->path = strdup(path);
    if (file->path)
        return 0;
    error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
failed:
    if (file->descriptor >= 0)
        close(file->descriptor);
    *file = (struct appended_file){0};
    return -1;
}

void appended_file_close(struct appended_file *file)
{
    if (!file->path)
        return;
    if (file->lost > 0)
        log_info("%s: %lld records were lost", file->path, (long long)file->lost);
    close(file->descriptor);
    free(file->path);
    *file = (struct appended_file){0};
}

bool appended_file_ends_within_line(const char *path)
{
    FILE *stream = fopen(path, "re");
    int last = stream && fseek(stream, -1, SEEK_END) == 0 ? fgetc(stream) : '\n';

    if (stream)
        fclose(stream);
    return last != '\n';
}

void appended_file_lose_beside(struct appended_file *file, const char *path, int reason)
{
    if (file->lost++ == 0)
        log_warning_any_rank("%s: cannot write: %s; training goes on without these records", path,
                             strerror(reason));
}

void appended_file_lose(struct appended_file *file, int reason)
{
    appended_file_lose_beside(file, file->path, reason);
}

bool appended_file_write(struct appended_file *file, const void *record, size_t length)
{
    int reason = appended_file_try(file, record, length);

    if (reason)
        appended_file_lose(file, reason);
    return reason == 0;
}

int appended_file_try(struct appended_file *file, const void *record, size_t length)
{
    struct stat status = {0};
    ssize_t written;
    int reason;

    /* What is written into a file without a name is lost without an error. */
    if (fstat(file->descriptor, &status) == 0 && status.st_nlink == 0)
        return ENOENT;
    if (file->torn && ftruncate(file->descriptor, file->size) < 0)
        return errno;
    file->torn = false;
    do
        written = write(file->descriptor, record, length);
    while (written < 0 && errno == EINTR);
    if (written == (ssize_t)length) {
        file->size += (int64_t)length;
        return 0;
    }
    reason = written < 0 ? errno : ENOSPC;
    /* Part of a record would spoil the next one. Taking it back needs no space. */
    file->torn = written > 0 && ftruncate(file->descriptor, file->size) < 0;
    return reason;
}
