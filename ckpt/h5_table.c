#include "ckpt/h5_table.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/format.h"
#include "ckpt/h5.h"

enum { FIXED_NAME_ALIGNMENT = 8 };

/* A record of /tensors in memory, behind the name, whose room differs from file to file. */
struct tensor_record {
    int64_t shape[2];
    int32_t dimensions;
    int8_t dtype[CHECKPOINT_KINDS];
};

struct piece_record {
    int64_t start[2], extent[2];
    uint64_t offset, element;
    uint32_t tensor, shard;
    int8_t kind, dtype;
};

static hid_t dtype_enum(void)
{
    hid_t type = H5Tenum_create(H5T_STD_I8LE);

    for (int8_t value = TABLE_ABSENT; type >= 0 && value <= DTYPE_F16; value++) {
        const char *name = value < 0 ? "absent" : dtype_name((enum dtype)value);

        if (H5Tenum_insert(type, name, &value) < 0) {
            (void)H5Tclose(type);
            type = -1;
        }
    }
    return type;
}

static hid_t kind_enum(void)
{
    hid_t type = H5Tenum_create(H5T_STD_I8LE);

    for (int8_t value = 0; type >= 0 && value < CHECKPOINT_KINDS; value++)
        if (H5Tenum_insert(type, checkpoint_kind_name((enum checkpoint_kind)value), &value) < 0) {
            (void)H5Tclose(type);
            type = -1;
        }
    return type;
}

static hid_t tensor_type(size_t name_size)
{
    hsize_t two = 2;
    hid_t name = H5Tcopy(H5T_C_S1), dtype = dtype_enum();
    hid_t pair = H5Tarray_create2(H5T_STD_I64LE, 1, &two);
    hid_t type = H5Tcreate(H5T_COMPOUND, name_size + sizeof(struct tensor_record));
    bool good =
        name >= 0 && dtype >= 0 && pair >= 0 && type >= 0 && H5Tset_size(name, name_size) >= 0 &&
        H5Tset_cset(name, H5T_CSET_UTF8) >= 0 && H5Tinsert(type, "name", 0, name) >= 0 &&
        H5Tinsert(type, "shape", name_size + offsetof(struct tensor_record, shape), pair) >= 0 &&
        H5Tinsert(type, "dimensions", name_size + offsetof(struct tensor_record, dimensions),
                  H5T_STD_I32LE) >= 0;

    for (int kind = 0; good && kind < CHECKPOINT_KINDS; kind++)
        good =
            H5Tinsert(type, checkpoint_kind_name((enum checkpoint_kind)kind),
                      name_size + offsetof(struct tensor_record, dtype) + (size_t)kind, dtype) >= 0;
    if (name >= 0)
        (void)H5Tclose(name);
    if (dtype >= 0)
        (void)H5Tclose(dtype);
    if (pair >= 0)
        (void)H5Tclose(pair);
    if (!good && type >= 0)
        (void)H5Tclose(type);
    return good ? type : -1;
}

static hid_t piece_type(void)
{
    hsize_t two = 2;
    hid_t dtype = dtype_enum(), kind = kind_enum();
    hid_t pair = H5Tarray_create2(H5T_STD_I64LE, 1, &two);
    hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(struct piece_record));
    bool good =
        dtype >= 0 && kind >= 0 && pair >= 0 && type >= 0 &&
        H5Tinsert(type, "tensor", offsetof(struct piece_record, tensor), H5T_STD_U32LE) >= 0 &&
        H5Tinsert(type, "shard", offsetof(struct piece_record, shard), H5T_STD_U32LE) >= 0 &&
        H5Tinsert(type, "kind", offsetof(struct piece_record, kind), kind) >= 0 &&
        H5Tinsert(type, "dtype", offsetof(struct piece_record, dtype), dtype) >= 0 &&
        H5Tinsert(type, "start", offsetof(struct piece_record, start), pair) >= 0 &&
        H5Tinsert(type, "extent", offsetof(struct piece_record, extent), pair) >= 0 &&
        H5Tinsert(type, "offset", offsetof(struct piece_record, offset), H5T_STD_U64LE) >= 0 &&
        H5Tinsert(type, "element", offsetof(struct piece_record, element), H5T_STD_U64LE) >= 0;

    if (dtype >= 0)
        (void)H5Tclose(dtype);
    if (kind >= 0)
        (void)H5Tclose(kind);
    if (pair >= 0)
        (void)H5Tclose(pair);
    if (!good && type >= 0)
        (void)H5Tclose(type);
    return good ? type : -1;
}

static int write_tensors(hid_t file, const struct table *table)
{
    size_t name_size = FIXED_NAME_ALIGNMENT, size;
    char *records;
    hid_t type;
    int result = -1;

    for (size_t i = 0; i < table->tensor_count; i++)
        while (name_size <= strlen(table->tensors[i].name))
            name_size += FIXED_NAME_ALIGNMENT;
    size = name_size + sizeof(struct tensor_record);
    type = tensor_type(name_size);
    records = calloc(table->tensor_count + 1, size);
    if (type >= 0 && records) {
        for (size_t i = 0; i < table->tensor_count; i++) {
            const struct table_tensor *tensor = &table->tensors[i];
            struct tensor_record record = {.shape = {tensor->shape[0], tensor->shape[1]},
                                           .dimensions = tensor->dimensions};

            memcpy(record.dtype, tensor->dtype, sizeof(record.dtype));
            memcpy(records + i * size, tensor->name, strlen(tensor->name));
            memcpy(records + i * size + name_size, &record, sizeof(record));
        }
        result = h5_write_bytes(file, "tensors", type, records, table->tensor_count);
    }
    free(records);
    if (type >= 0)
        (void)H5Tclose(type);
    return result;
}

static int write_pieces(hid_t file, const struct table *table)
{
    struct piece_record *records = calloc(table->piece_count + 1, sizeof(*records));
    hid_t type = piece_type();
    int result = -1;

    if (type >= 0 && records) {
        for (size_t i = 0; i < table->piece_count; i++) {
            const struct table_piece *piece = &table->pieces[i];

            records[i] = (struct piece_record){
                .start = {piece->start[0], piece->start[1]},
                .extent = {piece->extent[0], piece->extent[1]},
                .offset = piece->offset,
                .element = piece->element,
                .tensor = piece->tensor,
                .shard = piece->shard,
                .kind = (int8_t)piece->kind,
                .dtype = (int8_t)piece->dtype,
            };
        }
        result = h5_write_bytes(file, "pieces", type, records, table->piece_count);
    }
    free(records);
    if (type >= 0)
        (void)H5Tclose(type);
    return result;
}

int h5_table_write(hid_t file, const struct table *table)
{
    return write_tensors(file, table) < 0 ? -1 : write_pieces(file, table);
}

/* The room for a name in the records of /tensors; 0 when there is none. */
static size_t stored_name_size(hid_t dataset)
{
    hid_t type = H5Dget_type(dataset), name = -1;
    size_t size = 0;
    int member;

    if (type >= 0 && H5Tget_class(type) == H5T_COMPOUND) {
        member = H5Tget_member_index(type, "name");
        if (member >= 0)
            name = H5Tget_member_type(type, (unsigned)member);
        if (name >= 0 && H5Tget_class(name) == H5T_STRING && H5Tis_variable_str(name) == 0)
            size = H5Tget_size(name);
    }
    if (name >= 0)
        (void)H5Tclose(name);
    if (type >= 0)
        (void)H5Tclose(type);
    return size > 2 * (size_t)TABLE_NAME_LIMIT ? 0 : size;
}

/* All records of a 1-D dataset, the caller's to free; NULL when it has not that form. */
static void *read_records(hid_t dataset, hid_t type, size_t size, size_t limit, size_t *count)
{
    hid_t space = H5Dget_space(dataset);
    hsize_t extent = 0;
    void *records = NULL;

    if (space >= 0 && H5Sget_simple_extent_ndims(space) == 1 &&
        H5Sget_simple_extent_dims(space, &extent, NULL) == 1 && extent <= limit)
        records = calloc((size_t)extent + 1, size);
    if (records && extent && H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, records) < 0) {
        free(records);
        records = NULL;
    }
    if (space >= 0)
        (void)H5Sclose(space);
    *count = (size_t)extent;
    return records;
}

static int read_tensors(hid_t file, size_t limit, struct table *table, struct error *error)
{
    hid_t dataset = H5Dopen2(file, "tensors", H5P_DEFAULT), type = -1;
    size_t name_size = dataset < 0 ? 0 : stored_name_size(dataset), count = 0, size;
    char *records = NULL, *name = NULL;
    int result = -1;

    size = name_size + sizeof(struct tensor_record);
    if (name_size) {
        type = tensor_type(name_size);
        name = calloc(1, name_size + 1);
    }
    if (type >= 0 && name)
        records = read_records(dataset, type, size, limit, &count);
    if (!records) {
        h5_error(error, EXIT_STATUS_DATA, "the table of tensors cannot be read");
        goto out;
    }
    for (size_t i = 0; i < count; i++) {
        struct tensor_record record;
        int64_t number;

        memcpy(name, records + i * size, name_size);
        memcpy(&record, records + i * size + name_size, sizeof(record));
        number = table_add_tensor(table, name, record.dimensions, record.shape, error);
        if (number < 0)
            goto out;
        if (number != (int64_t)i) {
            error_set(error, EXIT_STATUS_DATA, "tensor %s is there twice", name);
            goto out;
        }
    }
    result = 0;
out:
    free(records);
    free(name);
    if (type >= 0)
        (void)H5Tclose(type);
    if (dataset >= 0)
        (void)H5Dclose(dataset);
    return result;
}

static int read_pieces(hid_t file, size_t limit, struct table *table, struct error *error)
{
    hid_t dataset = H5Dopen2(file, "pieces", H5P_DEFAULT), type = piece_type();
    struct piece_record *records = NULL;
    size_t count = 0;
    int result = -1;

    if (dataset >= 0 && type >= 0)
        records = read_records(dataset, type, sizeof(*records), limit, &count);
    if (!records) {
        h5_error(error, EXIT_STATUS_DATA, "the table of pieces cannot be read");
        goto out;
    }
    for (size_t i = 0; i < count; i++) {
        const struct piece_record *record = &records[i];
        struct table_piece piece = {
            .tensor = record->tensor,
            .shard = record->shard,
            .kind = (uint8_t)record->kind,
            .dtype = (uint8_t)record->dtype,
            .start = {record->start[0], record->start[1]},
            .extent = {record->extent[0], record->extent[1]},
            .offset = record->offset,
            .element = record->element,
        };

        if (record->tensor >= table->tensor_count || record->kind < 0 ||
            record->kind >= CHECKPOINT_KINDS || record->dtype < 0 || record->dtype > DTYPE_F16 ||
            record->offset % FORMAT_PIECE_ALIGNMENT != 0) {
            error_set(error, EXIT_STATUS_DATA, "piece %zu makes no sense", i);
            goto out;
        }
        if (table_add_piece(table, &piece, error) < 0)
            goto out;
    }
    result = 0;
out:
    free(records);
    if (type >= 0)
        (void)H5Tclose(type);
    if (dataset >= 0)
        (void)H5Dclose(dataset);
    return result;
}

int h5_table_read(hid_t file, size_t limit, struct table *table, const char *path,
                  struct error *error)
{
    if (read_tensors(file, limit, table, error) == 0 &&
        read_pieces(file, limit, table, error) == 0 && table_finish(table, error) == 0)
        return 0;
    error_prefix(error, "%s: ", path);
    error->status = EXIT_STATUS_DATA;
    return -1;
}
