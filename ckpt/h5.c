#include "ckpt/h5.h"

#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/format.h"

/* One lock a process, since there is one libhdf5 a process. */
static pthread_mutex_t h5_lock = PTHREAD_MUTEX_INITIALIZER;

void h5_enter(struct h5_guard *guard)
{
    pthread_mutex_lock(&h5_lock);
    *guard = (struct h5_guard){0};
    (void)H5Eget_auto2(H5E_DEFAULT, &guard->function, &guard->data);
    (void)H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

void h5_leave(const struct h5_guard *guard)
{
    (void)H5Eset_auto2(H5E_DEFAULT, guard->function, guard->data);
    pthread_mutex_unlock(&h5_lock);
}

static herr_t innermost(unsigned depth, const H5E_error2_t *entry, void *user)
{
    char *text = user;

    if (depth == 0)
        snprintf(text, 256, "%s", entry->desc ? entry->desc : "");
    return 0;
}

int h5_error(struct error *error, int status, const char *format, ...)
{
    char reason[256] = "";
    va_list arguments;
    char *text;
    int length;

    va_start(arguments, format);
    length = vasprintf(&text, format, arguments);
    va_end(arguments);
    (void)H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, reason);
    if (length < 0)
        return error_set(error, status, "libhdf5: %s", reason);
    error_set(error, status, "%s: libhdf5: %s", text, *reason ? reason : "no reason given");
    free(text);
    return -1;
}

hid_t h5_type(enum dtype dtype)
{
    hid_t type = H5Tcopy(H5T_IEEE_F32LE);

    if (type < 0 || dtype == DTYPE_F32)
        return type;
    if (dtype == DTYPE_BF16) {
        if (H5Tset_fields(type, 15, 7, 8, 0, 7) >= 0 && H5Tset_size(type, 2) >= 0 &&
            H5Tset_precision(type, 16) >= 0 && H5Tset_ebias(type, 127) >= 0)
            return type;
    } else if (H5Tset_fields(type, 15, 10, 5, 0, 10) >= 0 && H5Tset_size(type, 2) >= 0 &&
               H5Tset_precision(type, 16) >= 0 && H5Tset_ebias(type, 15) >= 0) {
        return type;
    }
    (void)H5Tclose(type);
    return -1;
}

int h5_image_create(struct h5_image *image, struct error *error)
{
    char path[64];
    hid_t access = -1, creation = -1;

    *image = (struct h5_image){.fd = memfd_create("mtllm-checkpoint", MFD_CLOEXEC), .file = -1};
    if (image->fd < 0) {
        error_set_errno(error, "no memory for the description of a checkpoint file");
        error->status = EXIT_STATUS_SYSTEM;
        return -1;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", image->fd);
    access = H5Pcreate(H5P_FILE_ACCESS);
    creation = H5Pcreate(H5P_FILE_CREATE);
    /* V110 and not LATEST: every byte of metadata has a checksum, and 1.10 reads what a newer
     * library writes. The stdio driver, because others resolve the name, and there is none. */
    if (access >= 0 && creation >= 0 && H5Pset_fapl_stdio(access) >= 0 &&
        H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 &&
        H5Pset_alignment(access, FORMAT_BLOB_ALIGNMENT, FORMAT_BLOB_ALIGNMENT) >= 0 &&
        H5Pset_obj_track_times(creation, false) >= 0)
        image->file = H5Fcreate(path, H5F_ACC_TRUNC, creation, access);
    if (image->file < 0)
        h5_error(error, EXIT_STATUS_SYSTEM,
                 "%s: cannot make an HDF5 file in memory (is /proc "
                 "mounted?)",
                 path);
    if (creation >= 0)
        (void)H5Pclose(creation);
    if (access >= 0)
        (void)H5Pclose(access);
    if (image->file < 0)
        h5_image_free(image);
    return image->file < 0 ? -1 : 0;
}

int h5_image_finish(struct h5_image *image, struct error *error)
{
    hid_t file = image->file;
    struct stat status;

    image->file = -1;
    if (H5Fclose(file) < 0)
        return h5_error(error, EXIT_STATUS_SYSTEM, "cannot finish an HDF5 file in memory");
    if (fstat(image->fd, &status) < 0) {
        error_set_errno(error, "cannot look at an HDF5 file in memory");
        error->status = EXIT_STATUS_SYSTEM;
        return -1;
    }
    image->size = (uint64_t)status.st_size;
    return 0;
}

void h5_image_free(struct h5_image *image)
{
    if (image->file >= 0)
        (void)H5Fclose(image->file);
    if (image->fd >= 0)
        close(image->fd);
    *image = (struct h5_image){.fd = -1, .file = -1};
}

static int write_attribute(hid_t object, const char *name, hid_t type, const void *value)
{
    hid_t space = H5Screate(H5S_SCALAR), attribute = -1;
    int result = -1;

    if (space >= 0)
        attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (attribute >= 0 && H5Awrite(attribute, type, value) >= 0)
        result = 0;
    if (attribute >= 0 && H5Aclose(attribute) < 0)
        result = -1;
    if (space >= 0)
        (void)H5Sclose(space);
    return result;
}

/* A type for `text` and the NUL behind it. */
static hid_t text_type(const char *text)
{
    hid_t type = H5Tcopy(H5T_C_S1);

    if (type >= 0 && H5Tset_size(type, strlen(text) + 1) >= 0 &&
        H5Tset_cset(type, H5T_CSET_UTF8) >= 0)
        return type;
    if (type >= 0)
        (void)H5Tclose(type);
    return -1;
}

int h5_write_text_attribute(hid_t object, const char *name, const char *text)
{
    hid_t type = text_type(text);
    int result = type < 0 ? -1 : write_attribute(object, name, type, text);

    if (type >= 0)
        (void)H5Tclose(type);
    return result;
}

int h5_write_integer_attribute(hid_t object, const char *name, int64_t value)
{
    return write_attribute(object, name, H5T_NATIVE_INT64, &value);
}

int h5_write_real_attribute(hid_t object, const char *name, double value)
{
    return write_attribute(object, name, H5T_NATIVE_DOUBLE, &value);
}

/* A contiguous dataset of what is in memory. */
static int write_dataset(hid_t group, const char *name, hid_t type, hid_t space, const void *data,
                         bool empty)
{
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE), dataset = -1;
    int result = -1;

    if (creation >= 0 && H5Pset_obj_track_times(creation, false) >= 0)
        dataset = H5Dcreate2(group, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    if (dataset >= 0 &&
        (empty || H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0))
        result = 0;
    if (dataset >= 0 && H5Dclose(dataset) < 0)
        result = -1;
    if (creation >= 0)
        (void)H5Pclose(creation);
    return result;
}

int h5_write_text(hid_t group, const char *name, const char *text)
{
    hid_t type = text_type(text), space = H5Screate(H5S_SCALAR);
    int result = -1;

    if (type >= 0 && space >= 0)
        result = write_dataset(group, name, type, space, text, false);
    if (space >= 0)
        (void)H5Sclose(space);
    if (type >= 0)
        (void)H5Tclose(type);
    return result;
}

int h5_write_bytes(hid_t group, const char *name, hid_t type, const void *bytes, size_t count)
{
    hsize_t extent = count;
    hid_t space = H5Screate_simple(1, &extent, NULL);
    int result = -1;

    if (space >= 0) {
        result = write_dataset(group, name, type, space, bytes, count == 0);
        (void)H5Sclose(space);
    }
    return result;
}
