#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/checksum.h"
#include "ckpt/disk.h"
#include "ckpt/format.h"
#include "ckpt/h5.h"
#include "ckpt/h5_table.h"
#include "ckpt/index.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the checkpoint format is little-endian and its bulk is written as it is in memory"
#endif

uint64_t index_shard_checksum(const struct index_shard *shard)
{
    return checksum(shard->blocks, format_block_count(shard->size) * sizeof(*shard->blocks));
}

static hid_t create_group(hid_t parent, const char *name)
{
    return H5Gcreate2(parent, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
}

/* Map one piece: a rectangle of the whole tensor from an interval of its shard's blob. */
static int map_piece(hid_t creation, hid_t whole, const struct table_piece *piece)
{
    hsize_t start[2] = {(hsize_t)piece->start[0], (hsize_t)piece->start[1]};
    hsize_t extent[2] = {(hsize_t)piece->extent[0], (hsize_t)piece->extent[1]};
    hsize_t first = piece->element, count = extent[0] * extent[1];
    /* The source's extent is not looked at beyond this selection. */
    hsize_t elements = first + count;
    hid_t source = H5Screate_simple(1, &elements, NULL), target = H5Scopy(whole);
    char file[FORMAT_NAME_SIZE], blob[FORMAT_NAME_SIZE];
    int result = -1;

    format_shard_name(file, (int)piece->shard);
    snprintf(blob, sizeof(blob), "%s_%s", checkpoint_kind_name((enum checkpoint_kind)piece->kind),
             dtype_name((enum dtype)piece->dtype));
    if (source >= 0 && target >= 0 &&
        H5Sselect_hyperslab(source, H5S_SELECT_SET, &first, NULL, &count, NULL) >= 0 &&
        H5Sselect_hyperslab(target, H5S_SELECT_SET, start, NULL, extent, NULL) >= 0 &&
        H5Pset_virtual(creation, target, file, blob, source) >= 0)
        result = 0;
    if (source >= 0)
        (void)H5Sclose(source);
    if (target >= 0)
        (void)H5Sclose(target);
    return result;
}

static int write_view(hid_t group, const struct table *table, const struct table_tensor *tensor,
                      int kind)
{
    hsize_t shape[2] = {(hsize_t)tensor->shape[0], (hsize_t)tensor->shape[1]};
    hid_t whole = H5Screate_simple(tensor->dimensions, shape, NULL);
    hid_t type = h5_type((enum dtype)tensor->dtype[kind]);
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE), dataset = -1;
    bool good =
        whole >= 0 && type >= 0 && creation >= 0 && H5Pset_obj_track_times(creation, false) >= 0;

    for (size_t i = 0; good && i < tensor->count[kind]; i++)
        good = map_piece(creation, whole, &table->pieces[tensor->first[kind] + i]) == 0;
    if (good)
        dataset = H5Dcreate2(group, tensor->name, type, whole, H5P_DEFAULT, creation, H5P_DEFAULT);
    good = dataset >= 0;
    if (dataset >= 0 && H5Dclose(dataset) < 0)
        good = false;
    if (creation >= 0)
        (void)H5Pclose(creation);
    if (type >= 0)
        (void)H5Tclose(type);
    if (whole >= 0)
        (void)H5Sclose(whole);
    return good ? 0 : -1;
}

/* A group of whole tensors; none where no tensor has this kind. */
static int write_views(hid_t parent, const char *name, const struct table *table, int kind)
{
    hid_t group = -1;
    int result = 0;

    for (size_t i = 0; i < table->tensor_count && result == 0; i++) {
        const struct table_tensor *tensor = &table->tensors[i];

        if (tensor->count[kind] == 0)
            continue;
        if (group < 0)
            group = create_group(parent, name);
        result = group < 0 ? -1 : write_view(group, table, tensor, kind);
    }
    if (group >= 0 && H5Gclose(group) < 0)
        result = -1;
    return result;
}

static int write_tensors(hid_t file, const struct table *table)
{
    hid_t group;
    int result;

    if (write_views(file, "model", table, CHECKPOINT_WEIGHT) < 0)
        return -1;
    group = create_group(file, "optimizer");
    if (group < 0)
        return -1;
    result = 0;
    for (int kind = CHECKPOINT_MASTER; kind < CHECKPOINT_KINDS && result == 0; kind++)
        result = write_views(group, checkpoint_kind_name((enum checkpoint_kind)kind), table, kind);
    return H5Gclose(group) < 0 ? -1 : result;
}

static int write_checksums(hid_t file, const struct index *index)
{
    hid_t group = create_group(file, "blocks");
    int result = group < 0 ? -1 : 0;

    for (size_t i = 0; i < index->shard_count && result == 0; i++) {
        const struct index_shard *shard = &index->shards[i];
        char name[FORMAT_NAME_SIZE];

        format_shard_name(name, (int)i);
        result = h5_write_bytes(group, name, H5T_STD_U64LE, shard->blocks,
                                format_block_count(shard->size));
    }
    if (group >= 0 && H5Gclose(group) < 0)
        result = -1;
    return result;
}

static const char *text_or_empty(const char *text)
{
    return text ? text : "";
}

static int write_state(hid_t file, const struct checkpoint_state *state)
{
    hid_t group = create_group(file, "state");
    int result = -1;

    if (group >= 0 && h5_write_integer_attribute(group, "step", state->step) == 0 &&
        h5_write_integer_attribute(group, "samples", state->samples) == 0 &&
        h5_write_integer_attribute(group, "tokens", state->tokens) == 0 &&
        h5_write_integer_attribute(group, "skipped", state->skipped) == 0 &&
        h5_write_integer_attribute(group, "trained_samples", state->trained_samples) == 0 &&
        h5_write_real_attribute(group, "loss_scale", state->loss_scale) == 0 &&
        h5_write_integer_attribute(group, "scale_clean_steps", state->scale_clean_steps) == 0 &&
        h5_write_integer_attribute(group, "scale_overflows_left", state->scale_overflows_left) ==
            0 &&
        h5_write_text_attribute(group, "run_id", text_or_empty(state->run_id)) == 0 &&
        h5_write_text_attribute(group, "layout", state->layout) == 0)
        result = 0;
    if (group >= 0 && H5Gclose(group) < 0)
        result = -1;
    return result;
}

static int write_config(hid_t file, const struct checkpoint_state *state, const char *created)
{
    hid_t group = create_group(file, "config");
    char host[256] = "";
    int result = -1;

    (void)gethostname(host, sizeof(host) - 1);
    if (group >= 0 && h5_write_text(group, "config.json", text_or_empty(state->config)) == 0 &&
        h5_write_text(group, "settings.ini", text_or_empty(state->settings)) == 0 &&
        h5_write_text_attribute(group, "producer", "mtllm " MTLLM_VERSION) == 0 &&
        h5_write_text_attribute(group, "host", host) == 0 &&
        h5_write_text_attribute(group, "created", created) == 0)
        result = 0;
    if (group >= 0 && H5Gclose(group) < 0)
        result = -1;
    return result;
}

static int write_files(hid_t file, const struct checkpoint_state *state)
{
    hid_t group = create_group(file, "tokenizer");
    int result = group < 0 ? -1 : 0;

    for (size_t i = 0; i < state->file_count && result == 0; i++)
        result = h5_write_bytes(group, state->files[i].name, H5T_STD_U8LE, state->files[i].bytes,
                                state->files[i].size);
    if (group >= 0 && H5Gclose(group) < 0)
        result = -1;
    return result;
}

static int write_all(struct h5_image *image, const struct index *index,
                     const struct checkpoint_state *state, const char *created, struct error *error)
{
    hid_t file = image->file;

    if (h5_write_text_attribute(file, "format", FORMAT_NAME) < 0 ||
        h5_write_integer_attribute(file, "version", FORMAT_VERSION) < 0 ||
        write_tensors(file, &index->table) < 0 || h5_table_write(file, &index->table) < 0 ||
        write_checksums(file, index) < 0 || write_state(file, state) < 0 ||
        write_config(file, state, created) < 0 || write_files(file, state) < 0)
        return h5_error(error, EXIT_STATUS_SYSTEM, "cannot put the index together");
    return h5_image_finish(image, error);
}

int index_compose(const struct index *index, const struct checkpoint_state *state,
                  const char *created, void **bytes, size_t *size, struct error *error)
{
    struct h5_image image = {.fd = -1, .file = -1};
    struct h5_guard guard;
    int result;

    for (size_t i = 0; i < state->file_count; i++) {
        const char *name = state->files[i].name;

        if (*name == '\0' || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            return error_set(error, EXIT_STATUS_BUG,
                             "\"%s\" cannot name a file in a checkpoint; use a name without '/'",
                             name);
    }
    h5_enter(&guard);
    result = h5_image_create(&image, error);
    if (result == 0)
        result = write_all(&image, index, state, created, error);
    *bytes = NULL;
    if (result == 0) {
        *size = image.size;
        *bytes = malloc(image.size);
        if (!*bytes || disk_read(image.fd, *bytes, image.size, 0) < 0)
            result = error_set(error, EXIT_STATUS_SYSTEM, "no memory for an index of %llu bytes",
                               (unsigned long long)image.size);
    }
    h5_image_free(&image);
    h5_leave(&guard);
    if (result < 0) {
        free(*bytes);
        *bytes = NULL;
    }
    return result;
}
