/* Opening safetensors files as one set of named tensors; the headers are judged in
 * safetensors_header.c. */
#include "ckpt/safetensors.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/disk.h"
#include "ckpt/safetensors_header.h"

/* The largest header the reference reader takes. */
#define HEADER_MAX ((uint64_t)100000000)
#define INDEX_MAX  ((size_t)64 << 20)

struct tensor_file {
    char *path;
    int descriptor;
};

struct safetensors {
    struct tensor_file *files;
    size_t file_count;
    struct safetensors_tensor *tensors; /* by name */
    size_t count;
};

static int by_name(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;

    return strcmp(x->name, y->name);
}

/* Open a regular file and learn its size; a pipe would block. */
static int open_file(const char *path, int64_t *size, struct error *error)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status;

    if (descriptor < 0)
        return error_set_errno(error, "%s: cannot open", path);
    if (fstat(descriptor, &status) < 0) {
        error_set_errno(error, "%s", path);
    } else if (!S_ISREG(status.st_mode)) {
        error_set(error, EXIT_STATUS_DATA, "%s: not a regular file", path);
    } else {
        *size = status.st_size;
        return descriptor;
    }
    close(descriptor);
    return -1;
}

/* A file that ends early here was cut while it was read: its size has been looked at. */
static int read_at(const struct tensor_file *file, int64_t offset, int64_t bytes, void *data,
                   struct error *error)
{
    if (disk_read(file->descriptor, data, (size_t)bytes, (uint64_t)offset) == 0)
        return 0;
    return error_set_errno(error, "%s: cannot read %" PRId64 " bytes at byte %" PRId64, file->path,
                           bytes, offset);
}

/* Add the tensors of one more file; set->files has room for it. Takes `path`. */
static int add_file(struct safetensors *set, char *path, struct error *error)
{
    struct tensor_file *file = &set->files[set->file_count];
    struct safetensors_tensor *tensors = NULL, *all;
    uint64_t header;
    int64_t size = 0, data;
    size_t count = 0;
    char *text = NULL;
    int rc = -1;

    file->path = path;
    file->descriptor = open_file(path, &size, error);
    set->file_count++;
    if (file->descriptor < 0)
        return -1;
    if (size < 8)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: %" PRId64 " bytes are too short for a safetensors file", path, size);
    if (read_at(file, 0, 8, &header, error) < 0)
        return -1;
    header = le64toh(header);
    if (header > HEADER_MAX || (int64_t)header > size - 8)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: asks for a header of %" PRIu64 " bytes in a file of %" PRId64
                         "; not a safetensors file, or not complete",
                         path, header, size);
    data = 8 + (int64_t)header;
    text = malloc((size_t)header + 1);
    if (!text)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
    if (read_at(file, 8, (int64_t)header, text, error) < 0 ||
        safetensors_header_parse(text, (size_t)header, data, size - data, path,
                                 (int)set->file_count - 1, &tensors, &count, error) < 0)
        goto out;
    all = realloc(set->tensors, (set->count + count + 1) * sizeof(*all));
    if (!all) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
        safetensors_tensors_destroy(tensors, count);
        goto out;
    }
    set->tensors = all;
    memcpy(all + set->count, tensors, count * sizeof(*tensors));
    set->count += count;
    free(tensors);
    rc = 0;
out:
    free(text);
    return rc;
}

static struct safetensors *create(size_t files, const char *path, struct error *error)
{
    struct safetensors *set = calloc(1, sizeof(*set));

    if (set)
        set->files = calloc(files, sizeof(*set->files));
    if (!set || !set->files) {
        free(set);
        error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
        return NULL;
    }
    return set;
}

int safetensors_open(struct safetensors **set, const char *path, struct error *error)
{
    char *copy = strdup(path);

    *set = create(1, path, error);
    if (!*set || !copy) {
        free(copy);
        safetensors_close(*set);
        *set = NULL;
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
    }
    if (add_file(*set, copy, error) < 0) {
        safetensors_close(*set);
        *set = NULL;
        return -1;
    }
    return 0;
}

/* Index and files must say the same: a tensor that only one of them knows is a file of another
 * version, or a download that stopped. */
static int compare_with_index(const struct safetensors *set, const struct safetensors_index *index,
                              const char *path, struct error *error)
{
    size_t i, j;

    for (i = 1; i < set->count; i++)
        if (strcmp(set->tensors[i - 1].name, set->tensors[i].name) == 0)
            return error_set(error, EXIT_STATUS_DATA, "%s: tensor %.200s is in %s too",
                             set->tensors[i].path, set->tensors[i].name, set->tensors[i - 1].path);
    for (i = 0, j = 0; i < set->count || j < index->mapping_count; i++, j++) {
        const struct safetensors_tensor *tensor = i < set->count ? &set->tensors[i] : NULL;
        const struct safetensors_mapping *mapping =
            j < index->mapping_count ? &index->mappings[j] : NULL;
        int order = !tensor ? 1 : !mapping ? -1 : strcmp(tensor->name, mapping->tensor);

        if (order < 0)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: tensor %.200s is not in the weight_map of %s", tensor->path,
                             tensor->name, path);
        if (order > 0)
            return error_set(error, EXIT_STATUS_DATA, "%s: tensor %.200s is not in %s", path,
                             mapping->tensor, index->files[mapping->file]);
        if (tensor->file != mapping->file)
            return error_set(error, EXIT_STATUS_DATA, "%s: tensor %.200s is not in %s but in %s",
                             path, mapping->tensor, index->files[mapping->file],
                             index->files[tensor->file]);
    }
    return 0;
}

static int open_indexed(struct safetensors **set, const char *directory, const char *path,
                        struct error *error)
{
    struct safetensors_index index = {0};
    void *text;
    char *file;
    size_t size;
    int rc = -1;

    if (disk_read_file(path, INDEX_MAX, &text, &size, error) < 0)
        return -1;
    if (safetensors_index_parse(&index, text, size, path, error) < 0)
        goto out;
    *set = create(index.file_count, path, error);
    if (!*set)
        goto out;
    for (size_t i = 0; i < index.file_count; i++) {
        if (asprintf(&file, "%s/%s", directory, index.files[i]) < 0) {
            error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
            goto out;
        }
        if (access(file, F_OK) < 0 && errno == ENOENT) {
            error_set(error, EXIT_STATUS_DATA, "%s: missing, although %s names it", file, path);
            free(file);
            goto out;
        }
        if (add_file(*set, file, error) < 0)
            goto out;
    }
    qsort((*set)->tensors, (*set)->count, sizeof(*(*set)->tensors), by_name);
    rc = compare_with_index(*set, &index, path, error);
out:
    safetensors_index_destroy(&index);
    free(text);
    return rc;
}

static bool exists(const char *directory, const char *name, char *path, size_t size)
{
    int length = snprintf(path, size, "%s/%s", directory, name);

    return length > 0 && (size_t)length < size && access(path, F_OK) == 0;
}

int safetensors_open_model(struct safetensors **set, const char *directory, struct error *error)
{
    char path[4096];
    int rc;

    *set = NULL;
    if (exists(directory, "model.safetensors", path, sizeof(path)))
        return safetensors_open(set, path, error);
    if (exists(directory, "model.safetensors.index.json", path, sizeof(path))) {
        rc = open_indexed(set, directory, path, error);
        if (rc < 0) {
            safetensors_close(*set);
            *set = NULL;
        }
        return rc;
    }
    if (exists(directory, "pytorch_model.bin", path, sizeof(path)) ||
        exists(directory, "pytorch_model.bin.index.json", path, sizeof(path)))
        return error_set(
            error, EXIT_STATUS_DATA,
            "%s: pickled weights are not read; convert them first, where transformers is: python3 "
            "-c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('%s', "
            "torch_dtype='auto').save_pretrained('NEW_DIR')\"",
            path, directory);
    return error_set(error, EXIT_STATUS_DATA,
                     "%s: neither model.safetensors nor model.safetensors.index.json is there",
                     directory);
}

void safetensors_close(struct safetensors *set)
{
    if (!set)
        return;
    for (size_t i = 0; i < set->file_count; i++) {
        if (set->files[i].descriptor >= 0)
            close(set->files[i].descriptor);
        free(set->files[i].path);
    }
    free(set->files);
    safetensors_tensors_destroy(set->tensors, set->count);
    free(set);
}

size_t safetensors_count(const struct safetensors *set)
{
    return set->count;
}

const struct safetensors_tensor *safetensors_get(const struct safetensors *set, size_t i)
{
    return &set->tensors[i];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *set, const char *name)
{
    const struct safetensors_tensor key = {.name = name};

    if (set->count == 0)
        return NULL;
    return bsearch(&key, set->tensors, set->count, sizeof(*set->tensors), by_name);
}

int safetensors_read(const struct safetensors *set, const struct safetensors_tensor *tensor,
                     int64_t offset, int64_t bytes, void *data, struct error *error)
{
    const struct tensor_file *file = &set->files[tensor->file];

    if (offset < 0 || bytes < 0 || offset > tensor->bytes || bytes > tensor->bytes - offset)
        return error_set(error, EXIT_STATUS_BUG,
                         "%s: bytes %" PRId64 " to %" PRId64
                         " of tensor %.200s, which has %" PRId64,
                         file->path, offset, offset + bytes, tensor->name, tensor->bytes);
    return read_at(file, tensor->offset + offset, bytes, data, error);
}

const char *safetensors_shape_text(const struct safetensors_tensor *tensor, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "[");

    for (int i = 0; i < tensor->dimensions && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%" PRId64, i ? ", " : "",
                                 tensor->shape[i]);
    if (used < size)
        snprintf(text + used, size - used, "]");
    return text;
}
