/* Reading an index.
 *
 * The bytes' checksum held, so this is what somebody's writer wrote; whether that somebody means
 * well is another question. Sizes are bounded by the file's own and everything is looked at.
 */
#include <stdlib.h>
#include <string.h>

#include "ckpt/format.h"
#include "ckpt/h5.h"
#include "ckpt/h5_table.h"
#include "ckpt/index.h"

static hid_t open_image(void *bytes, size_t size)
{
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), file = -1;

    /* What was checked is what is parsed: the file is not opened again. The name must be one that
     * no file can have. */
    if (access >= 0 && H5Pset_fapl_core(access, FORMAT_BLOCK, false) >= 0 &&
        H5Pset_file_image(access, bytes, size) >= 0)
        file = H5Fopen("/dev/null/" FORMAT_INDEX, H5F_ACC_RDONLY, access);
    if (access >= 0)
        (void)H5Pclose(access);
    return file;
}

static int read_integer(hid_t group, const char *name, int64_t *value)
{
    hid_t attribute = H5Aopen(group, name, H5P_DEFAULT), space = -1;
    int result = -1;

    if (attribute >= 0)
        space = H5Aget_space(attribute);
    if (space >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
        H5Aread(attribute, H5T_NATIVE_INT64, value) >= 0)
        result = 0;
    if (space >= 0)
        (void)H5Sclose(space);
    if (attribute >= 0)
        (void)H5Aclose(attribute);
    return result;
}

static int read_real(hid_t group, const char *name, double *value)
{
    hid_t attribute = H5Aopen(group, name, H5P_DEFAULT), space = -1;
    int result = -1;

    if (attribute >= 0)
        space = H5Aget_space(attribute);
    if (space >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
        H5Aread(attribute, H5T_NATIVE_DOUBLE, value) >= 0)
        result = 0;
    if (space >= 0)
        (void)H5Sclose(space);
    if (attribute >= 0)
        (void)H5Aclose(attribute);
    return result;
}

/* Room for a scalar text of this type, which is fixed in length, and a NUL; NULL for any other. */
static char *text_room(hid_t type, hid_t space, size_t limit)
{
    size_t size =
        H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 ? H5Tget_size(type) : 0;

    if (size == 0 || size > limit || H5Sget_simple_extent_npoints(space) != 1)
        return NULL;
    return calloc(1, size + 1);
}

static char *read_text_attribute(hid_t group, const char *name, size_t limit)
{
    hid_t attribute = H5Aopen(group, name, H5P_DEFAULT), type = -1, space = -1;
    char *text = NULL;

    if (attribute >= 0) {
        type = H5Aget_type(attribute);
        space = H5Aget_space(attribute);
    }
    if (type >= 0 && space >= 0)
        text = text_room(type, space, limit);
    if (text && H5Aread(attribute, type, text) < 0) {
        free(text);
        text = NULL;
    }
    if (space >= 0)
        (void)H5Sclose(space);
    if (type >= 0)
        (void)H5Tclose(type);
    if (attribute >= 0)
        (void)H5Aclose(attribute);
    return text;
}

static char *read_text(hid_t group, const char *name, size_t limit)
{
    hid_t dataset = H5Dopen2(group, name, H5P_DEFAULT), type = -1, space = -1;
    char *text = NULL;

    if (dataset >= 0) {
        type = H5Dget_type(dataset);
        space = H5Dget_space(dataset);
    }
    if (type >= 0 && space >= 0)
        text = text_room(type, space, limit);
    if (text && H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) < 0) {
        free(text);
        text = NULL;
    }
    if (space >= 0)
        (void)H5Sclose(space);
    if (type >= 0)
        (void)H5Tclose(type);
    if (dataset >= 0)
        (void)H5Dclose(dataset);
    return text;
}

/* A 1-D dataset of elements of `type`, `size` bytes each, and one zero element more. */
static void *read_array(hid_t group, const char *name, hid_t type, size_t size, size_t limit,
                        size_t *count)
{
    hid_t dataset = H5Dopen2(group, name, H5P_DEFAULT), space = -1;
    hsize_t extent = 0;
    void *elements = NULL;

    if (dataset >= 0)
        space = H5Dget_space(dataset);
    if (space >= 0 && H5Sget_simple_extent_ndims(space) == 1 &&
        H5Sget_simple_extent_dims(space, &extent, NULL) == 1 && extent <= limit / size)
        elements = calloc((size_t)extent + 1, size);
    if (elements && extent && H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, elements) < 0) {
        free(elements);
        elements = NULL;
    }
    if (space >= 0)
        (void)H5Sclose(space);
    if (dataset >= 0)
        (void)H5Dclose(dataset);
    *count = (size_t)extent;
    return elements;
}

/* Written only since steps may differ in size; before that they did not. */
static int read_trained_samples(hid_t group, struct checkpoint_state *state)
{
    int64_t updates;

    if (H5Aexists(group, "trained_samples") > 0)
        return read_integer(group, "trained_samples", &state->trained_samples);
    if (state->step <= 0)
        return 0;
    return __builtin_sub_overflow(state->step, state->skipped, &updates) ||
                   __builtin_mul_overflow(state->samples / state->step, updates,
                                          &state->trained_samples)
               ? -1
               : 0;
}

static int read_state(hid_t file, size_t limit, struct checkpoint_state *state)
{
    hid_t group = H5Gopen2(file, "state", H5P_DEFAULT);
    char *layout = NULL;
    int result = -1;

    if (group >= 0 && read_integer(group, "step", &state->step) == 0 &&
        read_integer(group, "samples", &state->samples) == 0 &&
        read_integer(group, "tokens", &state->tokens) == 0 &&
        read_integer(group, "skipped", &state->skipped) == 0 &&
        read_trained_samples(group, state) == 0 &&
        read_real(group, "loss_scale", &state->loss_scale) == 0 &&
        read_integer(group, "scale_clean_steps", &state->scale_clean_steps) == 0 &&
        read_integer(group, "scale_overflows_left", &state->scale_overflows_left) == 0) {
        state->run_id = read_text_attribute(group, "run_id", limit);
        layout = read_text_attribute(group, "layout", limit);
        if (state->run_id && layout) {
            snprintf(state->layout, sizeof(state->layout), "%s", layout);
            result = 0;
        }
    }
    free(layout);
    if (group >= 0)
        (void)H5Gclose(group);
    return result;
}

static int read_config(hid_t file, size_t limit, struct checkpoint_state *state)
{
    hid_t group = H5Gopen2(file, "config", H5P_DEFAULT);

    if (group < 0)
        return -1;
    state->config = read_text(group, "config.json", limit);
    state->settings = read_text(group, "settings.ini", limit);
    (void)H5Gclose(group);
    return state->config && state->settings ? 0 : -1;
}

static int read_file(hid_t group, hsize_t number, size_t limit, struct checkpoint_file *file)
{
    ssize_t length =
        H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, number, NULL, 0, H5P_DEFAULT);

    if (length <= 0 || (size_t)length > limit)
        return -1;
    file->name = calloc(1, (size_t)length + 1);
    if (!file->name ||
        H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, number, file->name,
                           (size_t)length + 1, H5P_DEFAULT) != length ||
        strchr(file->name, '/') || strcmp(file->name, "..") == 0)
        return -1;
    file->bytes = read_array(group, file->name, H5T_NATIVE_UINT8, 1, limit, &file->size);
    return file->bytes ? 0 : -1;
}

static int read_files(hid_t file, size_t limit, struct checkpoint_state *state)
{
    hid_t group = H5Gopen2(file, "tokenizer", H5P_DEFAULT);
    H5G_info_t about = {0};
    int result = -1;

    if (group >= 0 && H5Gget_info(group, &about) >= 0 && about.nlinks <= limit)
        state->files = calloc((size_t)about.nlinks + 1, sizeof(*state->files));
    if (state->files) {
        result = 0;
        for (hsize_t i = 0; i < about.nlinks && result == 0; i++) {
            state->file_count++;
            result = read_file(group, i, limit, &state->files[i]);
        }
    }
    if (group >= 0)
        (void)H5Gclose(group);
    return result;
}

/* The sizes of the shards are the manifest's; here are as many checksums as they have blocks. */
static int read_checksums(hid_t file, size_t limit, struct index *index)
{
    hid_t group = H5Gopen2(file, "blocks", H5P_DEFAULT);
    int result = group < 0 ? -1 : 0;

    for (size_t i = 0; i < index->shard_count && result == 0; i++) {
        struct index_shard *shard = &index->shards[i];
        char name[FORMAT_NAME_SIZE];
        size_t count;

        format_shard_name(name, (int)i);
        shard->blocks =
            read_array(group, name, H5T_NATIVE_UINT64, sizeof(*shard->blocks), limit, &count);
        if (!shard->blocks || count != format_block_count(shard->size))
            result = -1;
    }
    if (group >= 0)
        (void)H5Gclose(group);
    return result;
}

static int check_pieces(const struct index *index, const char *path, struct error *error)
{
    for (size_t i = 0; i < index->table.piece_count; i++) {
        const struct table_piece *piece = &index->table.pieces[i];
        uint64_t bytes = table_piece_bytes(piece);

        if (piece->shard >= index->shard_count || bytes > index->shards[piece->shard].size ||
            piece->offset > index->shards[piece->shard].size - bytes)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: a piece of %s lies beyond the end of shard %u", path,
                             index->table.tensors[piece->tensor].name, piece->shard);
    }
    return 0;
}

int index_parse(struct index *index, struct checkpoint_state *state, void *bytes, size_t size,
                const char *path, struct error *error)
{
    struct h5_guard guard;
    const char *part = "beginning";
    hid_t file;
    int result = -1;

    h5_enter(&guard);
    file = open_image(bytes, size);
    if (file < 0 || (part = "state", read_state(file, size, state)) < 0 ||
        (part = "config", read_config(file, size, state)) < 0 ||
        (part = "tokenizer", read_files(file, size, state)) < 0 ||
        (part = "blocks", read_checksums(file, size, index)) < 0)
        h5_error(error, EXIT_STATUS_DATA, "%s: its %s cannot be read", path, part);
    else if (h5_table_read(file, size, &index->table, path, error) == 0)
        result = check_pieces(index, path, error);
    if (file >= 0)
        (void)H5Fclose(file);
    h5_leave(&guard);
    return result;
}

void index_free(struct index *index)
{
    table_free(&index->table);
    for (size_t i = 0; index->shards && i < index->shard_count; i++)
        free(index->shards[i].blocks);
    free(index->shards);
    *index = (struct index){0};
}

void index_state_free(struct checkpoint_state *state)
{
    free(state->config);
    free(state->settings);
    free(state->run_id);
    for (size_t i = 0; i < state->file_count; i++) {
        free(state->files[i].name);
        free(state->files[i].bytes);
    }
    free(state->files);
    *state = (struct checkpoint_state){0};
}
