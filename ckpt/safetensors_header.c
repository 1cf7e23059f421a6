/* Everything here comes from a file that somebody else may have made: nothing is used before it
 * was checked, no sum or product can overflow, and recursion is bounded by jansson's own limit of
 * 2048 levels. */
#include "ckpt/safetensors_header.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "ckpt/json_text.h"

static const struct {
    const char *name;
    int bits;
    int dtype;
} types[] = {
    {"F32", 32, DTYPE_F32}, {"BF16", 16, DTYPE_BF16},
    {"F16", 16, DTYPE_F16}, {"F64", 64, -1},
    {"I64", 64, -1},        {"I32", 32, -1},
    {"I16", 16, -1},        {"I8", 8, -1},
    {"U64", 64, -1},        {"U32", 32, -1},
    {"U16", 16, -1},        {"U8", 8, -1},
    {"BOOL", 8, -1},        {"C64", 64, -1},
    {"F8_E4M3", 8, -1},     {"F8_E5M2", 8, -1},
    {"F8_E8M0", 8, -1},     {"F8_E4M3FNUZ", 8, -1},
    {"F8_E5M2FNUZ", 8, -1}, {"F6_E2M3", 6, -1},
    {"F6_E3M2", 6, -1},     {"F4", 4, -1},
};

/* Names in messages are cut, they may be a megabyte long. */
#define NAME "%.200s"

static int parse_type(struct safetensors_tensor *tensor, const json_t *entry, int *bits,
                      struct error *error)
{
    const char *type = json_string_value(json_object_get(entry, "dtype"));

    if (!type)
        return error_set(error, EXIT_STATUS_DATA, "%s: tensor " NAME " has no dtype", tensor->path,
                         tensor->name);
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (strcmp(type, types[i].name) == 0) {
            strcpy(tensor->type, types[i].name);
            tensor->dtype = types[i].dtype;
            *bits = types[i].bits;
            return 0;
        }
    return error_set(error, EXIT_STATUS_DATA, "%s: tensor " NAME ": unknown dtype %.50s",
                     tensor->path, tensor->name, type);
}

static int parse_shape(struct safetensors_tensor *tensor, const json_t *entry, int bits,
                       struct error *error)
{
    const json_t *shape = json_object_get(entry, "shape"), *value;
    int64_t bits_in_all;
    size_t i;

    if (!json_is_array(shape))
        return error_set(error, EXIT_STATUS_DATA, "%s: tensor " NAME " has no shape", tensor->path,
                         tensor->name);
    if (json_array_size(shape) > SAFETENSORS_DIMENSIONS)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: tensor " NAME " has %zu dimensions; at most "
                         "%d are supported",
                         tensor->path, tensor->name, json_array_size(shape),
                         SAFETENSORS_DIMENSIONS);
    tensor->elements = 1;
    json_array_foreach(shape, i, value)
    {
        if (!json_is_integer(value) || json_integer_value(value) < 0)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: tensor " NAME ": dimension %zu of its "
                             "shape is not a size",
                             tensor->path, tensor->name, i);
        tensor->shape[i] = json_integer_value(value);
        if (__builtin_mul_overflow(tensor->elements, tensor->shape[i], &tensor->elements))
            return error_set(error, EXIT_STATUS_DATA, "%s: tensor " NAME ": shape overflows",
                             tensor->path, tensor->name);
    }
    tensor->dimensions = (int)json_array_size(shape);
    if (__builtin_mul_overflow(tensor->elements, bits, &bits_in_all))
        return error_set(error, EXIT_STATUS_DATA, "%s: tensor " NAME ": shape overflows",
                         tensor->path, tensor->name);
    if (bits_in_all % 8 != 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: tensor " NAME ": shape is no whole number of bytes", tensor->path,
                         tensor->name);
    tensor->bytes = bits_in_all / 8;
    return 0;
}

/* Fills offset with where the tensor begins in the data area. */
static int parse_offsets(struct safetensors_tensor *tensor, const json_t *entry, int64_t data_bytes,
                         struct error *error)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);

    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return error_set(error, EXIT_STATUS_DATA, "%s: tensor " NAME " has no data_offsets",
                         tensor->path, tensor->name);
    if (json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin) ||
        json_integer_value(end) > data_bytes)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: tensor " NAME ": data_offsets %" JSON_INTEGER_FORMAT
                         " to %" JSON_INTEGER_FORMAT " are not inside the file's %" PRId64
                         " bytes of data; is the file complete?",
                         tensor->path, tensor->name, json_integer_value(begin),
                         json_integer_value(end), data_bytes);
    if (json_integer_value(end) - json_integer_value(begin) != tensor->bytes)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: tensor " NAME ": shape and dtype ask for %" PRId64
                         " bytes, data_offsets give %" JSON_INTEGER_FORMAT,
                         tensor->path, tensor->name, tensor->bytes,
                         json_integer_value(end) - json_integer_value(begin));
    tensor->offset = json_integer_value(begin);
    return 0;
}

static int parse_tensor(struct safetensors_tensor *tensor, const json_t *entry, int64_t data_bytes,
                        struct error *error)
{
    int bits = 0;

    if (!json_is_object(entry))
        return error_set(error, EXIT_STATUS_DATA, "%s: tensor " NAME " is not described",
                         tensor->path, tensor->name);
    if (parse_type(tensor, entry, &bits, error) < 0 || parse_shape(tensor, entry, bits, error) < 0)
        return -1;
    return parse_offsets(tensor, entry, data_bytes, error);
}

static int by_offset(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;

    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

static int by_name(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;

    return strcmp(x->name, y->name);
}

/* Every byte of the data area must belong to exactly one tensor. */
static int check_tiling(struct safetensors_tensor *tensors, size_t count, int64_t data_bytes,
                        const char *path, struct error *error)
{
    int64_t end = 0;

    qsort(tensors, count, sizeof(*tensors), by_offset);
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].offset < end)
            return error_set(error, EXIT_STATUS_DATA, "%s: tensors " NAME " and " NAME " overlap",
                             path, tensors[i - 1].name, tensors[i].name);
        if (tensors[i].offset > end)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: %" PRId64 " bytes before tensor " NAME " belong to none", path,
                             tensors[i].offset - end, tensors[i].name);
        end += tensors[i].bytes;
    }
    if (end != data_bytes)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: %" PRId64 " bytes at the end of the file belong to no tensor", path,
                         data_bytes - end);
    return 0;
}

static int parse_tensors(json_t *root, int64_t data_bytes, const char *path, int file,
                         struct safetensors_tensor *tensors, size_t *count, struct error *error)
{
    const char *name;
    json_t *entry;

    json_object_foreach(root, name, entry)
    {
        struct safetensors_tensor *tensor = &tensors[*count];

        if (strcmp(name, "__metadata__") == 0)
            continue;
        *tensor = (struct safetensors_tensor){.path = path, .file = file};
        tensor->name = strdup(name);
        if (!tensor->name)
            return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
        (*count)++;
        if (parse_tensor(tensor, entry, data_bytes, error) < 0)
            return -1;
    }
    return check_tiling(tensors, *count, data_bytes, path, error);
}

int safetensors_header_parse(const char *text, size_t length, int64_t data_offset,
                             int64_t data_bytes, const char *path, int file,
                             struct safetensors_tensor **tensors, size_t *count,
                             struct error *error)
{
    json_error_t reason;
    json_t *root = NULL;
    int rc = -1;

    *tensors = NULL;
    *count = 0;
    /* The format asks for '{' as the first byte. */
    if (length > 0 && text[0] == '{')
        root = json_text_parse(text, length, JSON_TENSORS_VALUES, JSON_REJECT_DUPLICATES, &reason);
    else
        strcpy(reason.text, "it does not begin with {");
    if (!root)
        return error_set(error, EXIT_STATUS_DATA, "%s: not a safetensors header: %s", path,
                         reason.text);
    *tensors = calloc(json_object_size(root) + 1, sizeof(**tensors));
    if (!*tensors)
        error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
    else
        rc = parse_tensors(root, data_bytes, path, file, *tensors, count, error);
    json_decref(root);
    if (rc < 0) {
        safetensors_tensors_destroy(*tensors, *count);
        *tensors = NULL;
        *count = 0;
        return -1;
    }
    for (size_t i = 0; i < *count; i++)
        (*tensors)[i].offset += data_offset;
    qsort(*tensors, *count, sizeof(**tensors), by_name);
    return 0;
}

void safetensors_tensors_destroy(struct safetensors_tensor *tensors, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free((char *)tensors[i].name);
    free(tensors);
}

/* The number of `name` among the index's files, which it joins when it is new; -1 when memory runs
 * out. The array has room for all; `numbers` knows those that are there. */
static int index_file(struct safetensors_index *index, json_t *numbers, const char *name)
{
    const json_t *number = json_object_get(numbers, name);

    if (number)
        return (int)json_integer_value(number);
    if (json_object_set_new(numbers, name, json_integer((json_int_t)index->file_count)) < 0)
        return -1;
    index->files[index->file_count] = strdup(name);
    return index->files[index->file_count] ? (int)index->file_count++ : -1;
}

/* Whether a file of the index's directory can have this name. */
static bool is_file_name(const char *name)
{
    return name && *name && strlen(name) <= NAME_MAX && !strchr(name, '/') &&
           strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static int by_mapped_name(const void *a, const void *b)
{
    const struct safetensors_mapping *x = a, *y = b;

    return strcmp(x->tensor, y->tensor);
}

/* More files than any model has; keeps a hostile index from taking every descriptor. */
#define INDEX_FILES_MAX 4096

static int parse_weight_map(struct safetensors_index *index, json_t *map, json_t *numbers,
                            const char *path, struct error *error)
{
    const char *tensor;
    json_t *value;

    index->files = calloc(json_object_size(map) + 1, sizeof(*index->files));
    index->mappings = calloc(json_object_size(map) + 1, sizeof(*index->mappings));
    if (!numbers || !index->files || !index->mappings)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
    json_object_foreach(map, tensor, value)
    {
        struct safetensors_mapping *mapping = &index->mappings[index->mapping_count];
        const char *file = json_string_value(value);

        if (!is_file_name(file))
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: weight_map puts tensor " NAME " into %s%.200s%s, which is no "
                             "name of a file beside it",
                             path, tensor, file ? "\"" : "", file ? file : "something",
                             file ? "\"" : "");
        mapping->tensor = strdup(tensor);
        if (!mapping->tensor)
            return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
        index->mapping_count++;
        mapping->file = index_file(index, numbers, file);
        if (mapping->file < 0)
            return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
        if (index->file_count > INDEX_FILES_MAX)
            return error_set(error, EXIT_STATUS_DATA, "%s: weight_map names more than %d files",
                             path, INDEX_FILES_MAX);
    }
    if (index->mapping_count == 0)
        return error_set(error, EXIT_STATUS_DATA, "%s: weight_map is empty", path);
    qsort(index->mappings, index->mapping_count, sizeof(*index->mappings), by_mapped_name);
    return 0;
}

int safetensors_index_parse(struct safetensors_index *index, const char *text, size_t length,
                            const char *path, struct error *error)
{
    json_error_t reason;
    json_t *root =
        json_text_parse(text, length, JSON_TENSORS_VALUES, JSON_REJECT_DUPLICATES, &reason);
    json_t *map = json_object_get(root, "weight_map"), *numbers;
    int rc;

    *index = (struct safetensors_index){0};
    if (!root)
        return error_set(error, EXIT_STATUS_DATA, "%s:%d: %s", path, reason.line, reason.text);
    numbers = json_object();
    if (json_is_object(map))
        rc = parse_weight_map(index, map, numbers, path, error);
    else
        rc = error_set(error, EXIT_STATUS_DATA, "%s: has no weight_map", path);
    json_decref(numbers);
    json_decref(root);
    if (rc < 0)
        safetensors_index_destroy(index);
    return rc;
}

void safetensors_index_destroy(struct safetensors_index *index)
{
    for (size_t i = 0; i < index->file_count; i++)
        free(index->files[i]);
    for (size_t i = 0; i < index->mapping_count; i++)
        free(index->mappings[i].tensor);
    free(index->files);
    free(index->mappings);
    *index = (struct safetensors_index){0};
}
