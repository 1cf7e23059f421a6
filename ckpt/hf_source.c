#include "ckpt/hf_source.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/disk.h"
#include "ckpt/hf_config.h"
#include "ckpt/hf_tensors.h"
#include "ckpt/kept_files.h"
#include "ckpt/safetensors.h"
#include "ckpt/tensor_check.h"

#define CONFIG_MAX ((size_t)16 << 20)

/* Elements that are converted, or compared, at a time. */
#define SLICE_ELEMENTS ((int64_t)4 << 20)

struct hf_source {
    char *directory, *config_path;
    struct model model;
    struct safetensors *set;
    struct kept_files files;
    struct checkpoint_state state;
    bool allow_nonfinite;
};

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

/* --- does the directory hold the model that its config describes? ---------------------------- */

static bool holds(const char *directory, const char *name)
{
    char path[DISK_PATH_SIZE];
    int length = snprintf(path, sizeof(path), "%s/%s", directory, name);

    return length > 0 && (size_t)length < sizeof(path) && access(path, F_OK) == 0;
}

bool hf_source_is_one(const char *directory)
{
    static const char *const signs[] = {"config.json", "model.safetensors",
                                        "model.safetensors.index.json", "pytorch_model.bin",
                                        "pytorch_model.bin.index.json"};

    for (size_t i = 0; i < sizeof(signs) / sizeof(*signs); i++)
        if (holds(directory, signs[i]))
            return true;
    return false;
}

static int read_config(struct hf_source *source, struct error *error)
{
    void *text;
    size_t size;

    if (asprintf(&source->config_path, "%s/config.json", source->directory) < 0) {
        source->config_path = NULL;
        return out_of_memory(error);
    }
    if (access(source->config_path, F_OK) < 0 && errno == ENOENT)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: no config.json in it; is it a Hugging Face model?",
                         source->directory);
    if (disk_read_file(source->config_path, CONFIG_MAX, &text, &size, error) < 0)
        return -1;
    source->state.config = text;
    return hf_config_read(&source->model, text, size, source->config_path, error);
}

static int check_stored(const struct hf_source *source, const struct hf_tensor *tensor,
                        const struct safetensors_tensor *stored, struct error *error)
{
    struct safetensors_tensor expected = {.dimensions = tensor->dimensions};
    char found_text[128], expected_text[128];

    if (stored->dtype < 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: tensor %s is of type %s; F32, BF16 and F16 are supported",
                         stored->path, stored->name, stored->type);
    memcpy(expected.shape, tensor->shape, sizeof(tensor->shape));
    if (stored->dimensions == tensor->dimensions && stored->shape[0] == tensor->shape[0] &&
        (tensor->dimensions == 1 || stored->shape[1] == tensor->shape[1]))
        return 0;
    return error_set(error, EXIT_STATUS_DATA, "%s: tensor %s is %s, %s asks for %s", stored->path,
                     stored->name, safetensors_shape_text(stored, found_text, sizeof(found_text)),
                     source->config_path,
                     safetensors_shape_text(&expected, expected_text, sizeof(expected_text)));
}

/* Where a tensor of the model is stored; NULL when it is missing. */
static const struct safetensors_tensor *find_stored(const struct hf_source *source,
                                                    const char *name)
{
    const struct safetensors_tensor *stored = safetensors_find(source->set, name);

    /* Tied weights may be stored under either name. */
    if (!stored && source->model.tied_embeddings &&
        strcmp(name, hf_embedding_name(&source->model)) == 0)
        stored = safetensors_find(source->set, HF_HEAD);
    return stored;
}

static int check_tensors(const struct hf_source *source, struct error *error)
{
    for (size_t i = 0; i < hf_tensor_count(&source->model); i++) {
        const struct safetensors_tensor *stored;
        struct hf_tensor tensor;

        hf_tensor_get(&source->model, i, &tensor);
        stored = find_stored(source, tensor.name);
        if (!stored)
            return error_set(error, EXIT_STATUS_DATA, "%s: tensor %s is missing; %s asks for it",
                             source->directory, tensor.name, source->config_path);
        if (check_stored(source, &tensor, stored, error) < 0)
            return -1;
    }
    return 0;
}

static int refuse_unexpected(const struct hf_source *source, struct error *error)
{
    for (size_t i = 0; i < safetensors_count(source->set); i++) {
        const struct safetensors_tensor *stored = safetensors_get(source->set, i);

        if (hf_tensor_known(&source->model, stored->name) || hf_tensor_is_buffer(stored->name) ||
            (source->model.tied_embeddings && strcmp(stored->name, HF_HEAD) == 0))
            continue;
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: tensor %.200s is no part of the model that %s describes",
                         stored->path, stored->name, source->config_path);
    }
    return 0;
}

/* --- values ---------------------------------------------------------------------------------- */

/* Where two tensors first differ when both are widened to fp32, bit by bit; -1: nowhere.
 * `buffer` is for SLICE_ELEMENTS of three fp32 arrays. */
static int compare_slices(const struct hf_source *source, const struct safetensors_tensor *a,
                          const struct safetensors_tensor *b, uint32_t *buffer, int64_t first,
                          int64_t count, int64_t *differs, struct error *error)
{
    const struct safetensors_tensor *stored[] = {a, b};
    uint32_t *left = buffer, *right = buffer + SLICE_ELEMENTS, *raw = right + SLICE_ELEMENTS;
    uint32_t *values[] = {left, right};

    for (int i = 0; i < 2; i++) {
        int64_t bytes = (int64_t)dtype_bytes((enum dtype)stored[i]->dtype);

        if (safetensors_read(source->set, stored[i], first * bytes, count * bytes, raw, error) < 0)
            return -1;
        dtype_convert(values[i], DTYPE_F32, raw, (enum dtype)stored[i]->dtype, (size_t)count);
    }
    *differs = -1;
    for (int64_t i = 0; i < count && *differs < 0; i++)
        if (left[i] != right[i])
            *differs = first + i;
    return 0;
}

/* A tied model's head, stored although it need not be, must be the embedding. */
static int check_redundant_head(const struct hf_source *source, struct error *error)
{
    const struct safetensors_tensor *head = safetensors_find(source->set, HF_HEAD), *embedding;
    struct hf_tensor tensor;
    int64_t differs = -1;
    uint32_t *buffer;
    int rc = 0;

    hf_tensor_get(&source->model, 0, &tensor);
    embedding = find_stored(source, tensor.name);
    if (!source->model.tied_embeddings || !head || head == embedding)
        return 0;
    if (check_stored(source, &tensor, head, error) < 0)
        return -1;
    buffer = malloc(3 * SLICE_ELEMENTS * sizeof(*buffer));
    if (!buffer)
        rc = out_of_memory(error);
    for (int64_t at = 0; rc == 0 && differs < 0 && at < head->elements; at += SLICE_ELEMENTS) {
        int64_t left = head->elements - at;

        rc = compare_slices(source, embedding, head, buffer, at,
                            left < SLICE_ELEMENTS ? left : SLICE_ELEMENTS, &differs, error);
    }
    free(buffer);
    if (rc == 0 && differs >= 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: " HF_HEAD " differs from %s at [%" PRId64 ", %" PRId64
                         "], but %s has tie_word_embeddings true; set it to false to keep both",
                         head->path, tensor.name, differs / head->shape[1],
                         differs % head->shape[1], source->config_path);
    return rc;
}

/* What is wrong with element `at` of the rectangle. */
static int refuse_value(const struct safetensors_tensor *stored, const int64_t start[2],
                        int64_t columns, const void *values, int64_t at, enum dtype dtype,
                        struct error *error)
{
    double value = tensor_element(values, (enum dtype)stored->dtype, at);
    char place[64];

    if (stored->dimensions == 1)
        snprintf(place, sizeof(place), "[%" PRId64 "]", start[0] + at);
    else
        snprintf(place, sizeof(place), "[%" PRId64 ", %" PRId64 "]", start[0] + at / columns,
                 start[1] + at % columns);
    if (isfinite(value))
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: tensor %s: element %s is %g, more than %s can hold; take another "
                         "--dtype",
                         stored->path, stored->name, place, value, dtype_name(dtype));
    return error_set(error, EXIT_STATUS_DATA,
                     "%s: tensor %s: element %s is %s; such a model cannot be trained "
                     "(hf-to-h5 --allow-nonfinite=yes converts it all the same)",
                     stored->path, stored->name, place, isnan(value) ? "NaN" : "infinite");
}

/* The bytes of a rectangle, as they are stored: at once if its rows follow each other. */
static int read_stored(const struct hf_source *source, const struct safetensors_tensor *stored,
                       const int64_t start[2], const int64_t extent[2], void *values,
                       struct error *error)
{
    int64_t columns = stored->dimensions == 1 ? 1 : stored->shape[1];
    int64_t bytes = (int64_t)dtype_bytes((enum dtype)stored->dtype);
    int64_t first = start[0] * columns + start[1];

    if (extent[1] == columns)
        return safetensors_read(source->set, stored, first * bytes, extent[0] * columns * bytes,
                                values, error);
    for (int64_t row = 0; row < extent[0]; row++)
        if (safetensors_read(source->set, stored, (first + row * columns) * bytes,
                             extent[1] * bytes, (char *)values + row * extent[1] * bytes,
                             error) < 0)
            return -1;
    return 0;
}

int hf_source_read(const struct hf_source *source, const char *name, const int64_t start[2],
                   const int64_t extent[2], enum dtype dtype, void *data, struct error *error)
{
    const struct safetensors_tensor *stored = find_stored(source, name);
    enum dtype from = (enum dtype)stored->dtype;
    struct tensor_slices slices;
    int64_t at[2], part[2], done = 0;
    void *raw = NULL;
    int rc = 0;

    tensor_slices_begin(&slices, extent, SLICE_ELEMENTS);
    while (rc == 0 && tensor_slices_next(&slices, at, part)) {
        char *to = (char *)data + done * (int64_t)dtype_bytes(dtype);
        const int64_t place[2] = {start[0] + at[0], start[1] + at[1]};
        int64_t count = part[0] * part[1], bad = -1;
        void *values = to;

        if (from != dtype && !raw)
            raw = malloc((size_t)count * dtype_bytes(from)); /* the first slice is the largest */
        if (from != dtype)
            values = raw;
        if (!values)
            return out_of_memory(error);
        rc = read_stored(source, stored, place, part, values, error);
        if (rc == 0 && !source->allow_nonfinite)
            bad = tensor_find_nonfinite(values, from, count);
        if (rc == 0 && bad < 0 && from != dtype) {
            dtype_convert(to, dtype, values, from, (size_t)count);
            bad = tensor_find_overflow(values, from, to, dtype, count);
        }
        if (bad >= 0)
            rc = refuse_value(stored, place, part[1], values, bad, dtype, error);
        done += count;
    }
    free(raw);
    return rc;
}

/* --- what is kept beside the weights --------------------------------------------------------- */

/* The model description knows one end token; generation_config.json remembers the others. */
static int keep_token_ids(struct hf_source *source, struct error *error)
{
    char *plain = hf_generation_config_write(&source->model), *text = NULL;
    const char *config = source->state.config;

    if (plain)
        text = hf_config_take_token_ids(plain, config, strlen(config), HF_TOKEN_IDS_ALL);
    free(plain);
    if (!text)
        return out_of_memory(error);
    return kept_files_put(&source->files, "generation_config.json", text, strlen(text), error);
}

static int keep_files(struct hf_source *source, struct error *error)
{
    if (kept_files_read_directory(&source->files, source->directory, error) < 0 ||
        (!kept_files_find(&source->files, "generation_config.json") &&
         keep_token_ids(source, error) < 0))
        return -1;
    source->state.files = source->files.list;
    source->state.file_count = source->files.count;
    return 0;
}

/* --------------------------------------------------------------------------------------------- */

int hf_source_open(struct hf_source **source, const char *directory, bool allow_nonfinite,
                   struct error *error)
{
    struct hf_source *new = calloc(1, sizeof(*new));

    *source = NULL;
    if (!new)
        return out_of_memory(error);
    new->allow_nonfinite = allow_nonfinite;
    new->directory = strdup(directory);
    if (!new->directory) {
        out_of_memory(error);
        goto fail;
    }
    if (read_config(new, error) < 0 || safetensors_open_model(&new->set, directory, error) < 0 ||
        check_tensors(new, error) < 0 || refuse_unexpected(new, error) < 0 ||
        check_redundant_head(new, error) < 0 || keep_files(new, error) < 0)
        goto fail;
    *source = new;
    return 0;
fail:
    hf_source_close(new);
    return -1;
}

void hf_source_close(struct hf_source *source)
{
    if (!source)
        return;
    kept_files_destroy(&source->files);
    free(source->state.config);
    safetensors_close(source->set);
    free(source->config_path);
    free(source->directory);
    free(source);
}

const char *hf_source_directory(const struct hf_source *source)
{
    return source->directory;
}

const struct model *hf_source_model(const struct hf_source *source)
{
    return &source->model;
}

const struct checkpoint_state *hf_source_state(const struct hf_source *source)
{
    return &source->state;
}

enum dtype hf_source_dtype(const struct hf_source *source, const char *name)
{
    return (enum dtype)find_stored(source, name)->dtype;
}
