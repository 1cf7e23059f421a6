#include "trainer/replacement.h"

#include <errno.h>
#include <libgen.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/disk.h"

int replacement_open(struct replacement *file, const char *path, const char *beside,
                     struct error *error)
{
    file->stream = NULL;
    if (disk_path(file->path, error, "%s", path) < 0 ||
        disk_path(file->beside, error, "%s%s", beside ? beside : path, beside ? "" : ".tmp") < 0) {
        errno = ENAMETOOLONG;
        return -1;
    }
    file->stream = fopen(file->beside, "we");
    return file->stream ? 0 : error_set_errno(error, "cannot write %s", path);
}

/* Closed either way. */
static int write_rest(struct replacement *file, bool durable, struct error *error)
{
    bool written = !ferror(file->stream) && fflush(file->stream) == 0 &&
                   (!durable || fsync(fileno(file->stream)) == 0);
    int reason = errno;

    if (fclose(file->stream) != 0 && written) {
        written = false;
        reason = errno;
    }
    errno = reason;
    return written ? 0 : error_set_errno(error, "cannot write %s", file->path);
}

int replacement_close(struct replacement *file, int result, bool durable, struct error *error)
{
    char directory[DISK_PATH_SIZE];
    int reason;

    if (result < 0)
        fclose(file->stream);
    else
        result = write_rest(file, durable, error);
    if (result == 0)
        result = disk_rename(file->beside, file->path, error);
    if (result < 0) {
        reason = errno;
        (void)unlink(file->beside);
        errno = reason;
        return -1;
    }
    return durable ? disk_sync_directory(dirname(strcpy(directory, file->path)), error) : 0;
}
