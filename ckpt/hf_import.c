#include "ckpt/hf_import.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/checkpoint.h"
#include "ckpt/disk.h"
#include "ckpt/hf_config.h"
#include "ckpt/hf_directory.h"
#include "ckpt/hf_tensors.h"
#include "ckpt/progress.h"
#include "ckpt/safetensors.h"
#include "ckpt/tensor_check.h"

#define CONFIG_MAX ((size_t)16 << 20)
#define FILE_MAX   ((size_t)256 << 20)

/* A shard is gathered in memory and written at once; together with the library's own needs and the
 * tokenizer this stays below 1 GiB. */
#define SHARD_BYTES ((int64_t)512 << 20)
#define SLICE_BYTES ((int64_t)64 << 20)
/* Where each piece begins in memory. */
#define PIECE_ALIGNMENT 64

struct import {
    const struct hf_import *options;
    char *config_path, *config; /* config.json as it came */
    struct model model;
    struct safetensors *set;
    struct hf_tensor *tensors;                 /* expected ones */
    const struct safetensors_tensor **sources; /* where each is */
    size_t count;
    char *root; /* RUN/ckpt */
    bool made_run, made_root, prepared;
    struct checkpoint_state state;
    struct checkpoint_piece *pieces; /* of the shard being gathered */
    size_t piece_count, piece_room;
    char *shard;
    int64_t shard_room, shard_used;
    void *slice; /* a source's elements before conversion */
    int shards;  /* written */
    struct progress progress;
    struct error *error;
};

static int out_of_memory(struct import *import)
{
    return error_set(import->error, EXIT_STATUS_SYSTEM, "out of memory");
}

static enum dtype target_dtype(const struct import *import, const struct safetensors_tensor *source)
{
    return import->options->dtype >= 0 ? (enum dtype)import->options->dtype
                                       : (enum dtype)source->dtype;
}

/* --- does the directory hold the model that its config describes? ---------------------------- */

static int read_config(struct import *import)
{
    void *text;
    size_t size;

    if (asprintf(&import->config_path, "%s/config.json", import->options->directory) < 0) {
        import->config_path = NULL;
        return out_of_memory(import);
    }
    if (access(import->config_path, F_OK) < 0 && errno == ENOENT)
        return error_set(import->error, EXIT_STATUS_DATA,
                         "%s: no config.json in it; is it a Hugging Face model?",
                         import->options->directory);
    if (disk_read_file(import->config_path, CONFIG_MAX, &text, &size, import->error) < 0)
        return -1;
    import->config = text;
    return hf_config_read(&import->model, import->config, size, import->config_path, import->error);
}

static int check_source(struct import *import, const struct hf_tensor *tensor,
                        const struct safetensors_tensor *source)
{
    struct safetensors_tensor expected = {.dimensions = tensor->dimensions};
    char found_text[128], expected_text[128];

    if (source->dtype < 0)
        return error_set(import->error, EXIT_STATUS_DATA,
                         "%s: tensor %s is of type %s; F32, BF16 and F16 are supported",
                         source->path, source->name, source->type);
    memcpy(expected.shape, tensor->shape, sizeof(tensor->shape));
    if (source->dimensions == tensor->dimensions && source->shape[0] == tensor->shape[0] &&
        (tensor->dimensions == 1 || source->shape[1] == tensor->shape[1]))
        return 0;
    return error_set(import->error, EXIT_STATUS_DATA, "%s: tensor %s is %s, %s asks for %s",
                     source->path, source->name,
                     safetensors_shape_text(source, found_text, sizeof(found_text)),
                     import->config_path,
                     safetensors_shape_text(&expected, expected_text, sizeof(expected_text)));
}

static int find_sources(struct import *import)
{
    import->count = hf_tensor_count(&import->model);
    import->tensors = calloc(import->count, sizeof(*import->tensors));
    import->sources = calloc(import->count, sizeof(const struct safetensors_tensor *));
    if (!import->tensors || !import->sources)
        return out_of_memory(import);
    for (size_t i = 0; i < import->count; i++) {
        struct hf_tensor *tensor = &import->tensors[i];
        const struct safetensors_tensor *source;

        hf_tensor_get(&import->model, i, tensor);
        source = safetensors_find(import->set, tensor->name);
        /* Tied weights may be stored under either name. */
        if (!source && import->model.tied_embeddings && i == 0)
            source = safetensors_find(import->set, HF_HEAD);
        if (!source)
            return error_set(import->error, EXIT_STATUS_DATA,
                             "%s: tensor %s is missing; %s asks for it", import->options->directory,
                             tensor->name, import->config_path);
        if (check_source(import, tensor, source) < 0)
            return -1;
        import->sources[i] = source;
    }
    return 0;
}

static int refuse_unexpected(struct import *import)
{
    for (size_t i = 0; i < safetensors_count(import->set); i++) {
        const struct safetensors_tensor *source = safetensors_get(import->set, i);

        if (hf_tensor_known(&import->model, source->name) || hf_tensor_is_buffer(source->name) ||
            (import->model.tied_embeddings && strcmp(source->name, HF_HEAD) == 0))
            continue;
        return error_set(import->error, EXIT_STATUS_DATA,
                         "%s: tensor %.200s is no part of the model that %s describes",
                         source->path, source->name, import->config_path);
    }
    return 0;
}

/* Where two tensors first differ when both are widened to fp32, bit by bit; -1: nowhere. */
static int compare_slices(struct import *import, const struct safetensors_tensor *a,
                          const struct safetensors_tensor *b, uint32_t *left, uint32_t *right,
                          int64_t first, int64_t count, int64_t *differs)
{
    const struct safetensors_tensor *sources[] = {a, b};
    uint32_t *values[] = {left, right};

    for (int i = 0; i < 2; i++) {
        int64_t bytes = (int64_t)dtype_bytes((enum dtype)sources[i]->dtype);

        if (safetensors_read(import->set, sources[i], first * bytes, count * bytes, import->slice,
                             import->error) < 0)
            return -1;
        dtype_convert(values[i], DTYPE_F32, import->slice, (enum dtype)sources[i]->dtype,
                      (size_t)count);
    }
    *differs = -1;
    for (int64_t i = 0; i < count && *differs < 0; i++)
        if (left[i] != right[i])
            *differs = first + i;
    return 0;
}

/* A tied model's head, stored although it need not be, must be the embedding. */
static int check_redundant_head(struct import *import)
{
    const struct safetensors_tensor *head = safetensors_find(import->set, HF_HEAD);
    const struct safetensors_tensor *embedding = import->sources[0];
    int64_t most = SLICE_BYTES / (int64_t)sizeof(uint32_t), differs = -1;
    uint32_t *left, *right;
    int rc = 0;

    if (!import->model.tied_embeddings || !head || head == embedding)
        return 0;
    if (check_source(import, &import->tensors[0], head) < 0)
        return -1;
    left = malloc((size_t)SLICE_BYTES);
    right = malloc((size_t)SLICE_BYTES);
    if (!left || !right)
        rc = out_of_memory(import);
    for (int64_t at = 0; rc == 0 && differs < 0 && at < head->elements; at += most)
        rc = compare_slices(import, embedding, head, left, right, at,
                            head->elements - at < most ? head->elements - at : most, &differs);
    free(left);
    free(right);
    if (rc == 0 && differs >= 0)
        return error_set(import->error, EXIT_STATUS_DATA,
                         "%s: " HF_HEAD " differs from %s at [%" PRId64 ", %" PRId64
                         "], but %s has tie_word_embeddings true; set it to false to keep both",
                         head->path, hf_embedding_name(&import->model), differs / head->shape[1],
                         differs % head->shape[1], import->config_path);
    return rc;
}

/* --- what is kept beside the weights --------------------------------------------------------- */

/* Takes `bytes`. */
static int keep_file(struct import *import, const char *name, void *bytes, size_t size)
{
    struct checkpoint_state *state = &import->state;
    struct checkpoint_file *files =
        realloc(state->files, (state->file_count + 1) * sizeof(*state->files));

    if (files) {
        state->files = files;
        files[state->file_count].name = strdup(name);
    }
    if (!files || !files[state->file_count].name) {
        free(bytes);
        return out_of_memory(import);
    }
    files[state->file_count].bytes = bytes;
    files[state->file_count].size = size;
    state->file_count++;
    return 0;
}

static int keep_if_there(struct import *import, const char *name, bool *there)
{
    char *path;
    void *bytes;
    size_t size;
    int rc;

    if (asprintf(&path, "%s/%s", import->options->directory, name) < 0)
        return out_of_memory(import);
    *there = access(path, F_OK) == 0 || errno != ENOENT;
    rc = *there ? disk_read_file(path, FILE_MAX, &bytes, &size, import->error) : 0;
    free(path);
    return rc == 0 && *there ? keep_file(import, name, bytes, size) : rc;
}

/* The model description knows one end token; generation_config.json remembers the others. */
static int keep_token_ids(struct import *import)
{
    char *plain = hf_generation_config_write(&import->model), *text = NULL;

    if (plain)
        text = hf_config_take_token_ids(plain, import->config, strlen(import->config),
                                        HF_TOKEN_IDS_ALL);
    free(plain);
    if (!text)
        return out_of_memory(import);
    return keep_file(import, "generation_config.json", text, strlen(text));
}

static int keep_files(struct import *import)
{
    bool there;

    for (const char *const *name = hf_tokenizer_files; *name; name++)
        if (keep_if_there(import, *name, &there) < 0)
            return -1;
    if (keep_if_there(import, "generation_config.json", &there) < 0)
        return -1;
    return there ? 0 : keep_token_ids(import);
}

static int fill_state(struct import *import)
{
    struct checkpoint_state *state = &import->state;
    char *plain = hf_config_write(&import->model, target_dtype(import, import->sources[0]));

    if (plain)
        state->config = hf_config_take_token_ids(plain, import->config, strlen(import->config),
                                                 HF_TOKEN_IDS_ALL);
    free(plain);
    state->settings = strdup("");
    state->run_id = strdup("");
    state->loss_scale = 1;
    snprintf(state->layout, sizeof(state->layout), "tp1 pp1 dp1");
    if (!state->config || !state->settings || !state->run_id)
        return out_of_memory(import);
    return keep_files(import);
}

static void free_state(struct checkpoint_state *state)
{
    for (size_t i = 0; i < state->file_count; i++) {
        free(state->files[i].name);
        free(state->files[i].bytes);
    }
    free(state->files);
    free(state->config);
    free(state->settings);
    free(state->run_id);
}

/* --- weights --------------------------------------------------------------------------------- */

static int flush_shard(struct import *import)
{
    if (import->piece_count == 0)
        return 0;
    if (checkpoint_write_shard(import->root, 0, import->shards, import->pieces, import->piece_count,
                               import->error) < 0)
        return -1;
    import->shards++;
    import->piece_count = 0;
    import->shard_used = 0;
    return 0;
}

static int check_values(struct import *import, const struct safetensors_tensor *source,
                        const int64_t start[2], int64_t columns, const void *values, int64_t at)
{
    double value = tensor_element(values, (enum dtype)source->dtype, at);
    char place[64];

    if (source->dimensions == 1)
        snprintf(place, sizeof(place), "[%" PRId64 "]", start[0] + at);
    else
        snprintf(place, sizeof(place), "[%" PRId64 ", %" PRId64 "]", start[0] + at / columns,
                 start[1] + at % columns);
    if (isfinite(value))
        return error_set(import->error, EXIT_STATUS_DATA,
                         "%s: tensor %s: element %s is %g, more than %s can hold; take another "
                         "--dtype",
                         source->path, source->name, place, value,
                         dtype_name((enum dtype)import->options->dtype));
    return error_set(import->error, EXIT_STATUS_DATA,
                     "%s: tensor %s: element %s is %s; such a model cannot be trained "
                     "(--allow-nonfinite=yes converts it all the same)",
                     source->path, source->name, place, isnan(value) ? "NaN" : "infinite");
}

/* Elements of a source that stand together, checked and converted to `to`. */
static int read_slice(struct import *import, const struct safetensors_tensor *source,
                      const int64_t start[2], const int64_t extent[2], int64_t columns, char *to)
{
    enum dtype from_type = (enum dtype)source->dtype, to_type = target_dtype(import, source);
    int64_t first = start[0] * columns + start[1], count = extent[0] * extent[1];
    int64_t bytes = (int64_t)dtype_bytes(from_type), at = -1;
    void *values = from_type == to_type ? (void *)to : import->slice;

    if (safetensors_read(import->set, source, first * bytes, count * bytes, values, import->error) <
        0)
        return -1;
    if (!import->options->allow_nonfinite)
        at = tensor_find_nonfinite(values, from_type, count);
    if (at < 0 && from_type != to_type) {
        dtype_convert(to, to_type, values, from_type, (size_t)count);
        at = tensor_find_overflow(values, from_type, to, to_type, count);
    }
    if (at >= 0)
        return check_values(import, source, start, extent[1], values, at);
    return progress_add(&import->progress, count * bytes, import->error);
}

static struct checkpoint_piece *new_piece(struct import *import)
{
    if (import->piece_count == import->piece_room) {
        size_t room = import->piece_room ? 2 * import->piece_room : 256;
        struct checkpoint_piece *pieces = realloc(import->pieces, room * sizeof(*pieces));

        if (!pieces) {
            out_of_memory(import);
            return NULL;
        }
        import->pieces = pieces;
        import->piece_room = room;
    }
    return &import->pieces[import->piece_count++];
}

static int import_tensor(struct import *import, size_t i)
{
    const struct hf_tensor *tensor = &import->tensors[i];
    const struct safetensors_tensor *source = import->sources[i];
    enum dtype dtype = target_dtype(import, source);
    struct tensor_slices slices;
    int64_t start[2], extent[2];

    tensor_slices_begin(&slices, tensor->shape, SLICE_BYTES / (int64_t)sizeof(float));
    while (tensor_slices_next(&slices, start, extent)) {
        int64_t bytes = extent[0] * extent[1] * (int64_t)dtype_bytes(dtype);
        struct checkpoint_piece *piece, *last;

        if (bytes > import->shard_room - import->shard_used && flush_shard(import) < 0)
            return -1;
        last = import->piece_count ? &import->pieces[import->piece_count - 1] : NULL;
        if (read_slice(import, source, start, extent, tensor->shape[1],
                       import->shard + import->shard_used) < 0)
            return -1;
        /* Rows that go on where the last piece ended make it longer. */
        if (last && strcmp(last->tensor, tensor->name) == 0 && extent[1] == tensor->shape[1] &&
            last->extent[1] == tensor->shape[1] &&
            (const char *)last->data +
                    last->extent[0] * last->extent[1] * (int64_t)dtype_bytes(dtype) ==
                import->shard + import->shard_used) {
            last->extent[0] += extent[0];
        } else {
            piece = new_piece(import);
            if (!piece)
                return -1;
            *piece = (struct checkpoint_piece){
                .tensor = tensor->name,
                .kind = CHECKPOINT_WEIGHT,
                .dtype = dtype,
                .dimensions = tensor->dimensions,
                .shape = {tensor->shape[0], tensor->shape[1]},
                .start = {start[0], start[1]},
                .extent = {extent[0], extent[1]},
                .data = import->shard + import->shard_used,
            };
        }
        import->shard_used += bytes;
    }
    import->shard_used =
        (import->shard_used + PIECE_ALIGNMENT - 1) / PIECE_ALIGNMENT * PIECE_ALIGNMENT;
    return 0;
}

static int import_tensors(struct import *import)
{
    int64_t bytes = 0;

    for (size_t i = 0; i < import->count; i++)
        bytes += import->sources[i]->bytes;
    progress_begin(&import->progress, bytes);
    for (size_t i = 0; i < import->count; i++)
        if (import_tensor(import, i) < 0)
            return -1;
    return flush_shard(import);
}

/* --- where it goes --------------------------------------------------------------------------- */

static int make_directory(struct import *import, const char *path, bool *made)
{
    if (mkdir(path, 0777) == 0) {
        *made = true;
        return 0;
    }
    return errno == EEXIST ? 0 : error_set_errno(import->error, "%s: creating", path);
}

static int prepare_target(struct import *import)
{
    const char *run = import->options->run_directory;
    int64_t *steps = NULL;
    size_t count = 0;
    int rc = 0;

    if (asprintf(&import->root, "%s/ckpt", run) < 0) {
        import->root = NULL;
        return out_of_memory(import);
    }
    if (checkpoint_list(import->root, &steps, &count, import->error) < 0)
        return -1;
    if (count > 0 && (steps[0] != 0 || !import->options->force))
        rc = error_set(
            import->error, EXIT_STATUS_USAGE,
            "%s: holds a checkpoint of step %" PRId64 " already; name another directory%s",
            import->root, steps[0], steps[0] == 0 ? ", or give --force to replace it" : "");
    free(steps);
    if (rc < 0 || make_directory(import, run, &import->made_run) < 0 ||
        make_directory(import, import->root, &import->made_root) < 0)
        return -1;
    import->prepared = true;
    return checkpoint_clean(import->root, import->error);
}

/* Leave things as they were. */
static void abandon(struct import *import)
{
    struct error ignored = {0};

    if (import->prepared)
        checkpoint_clean(import->root, &ignored);
    if (import->made_root)
        rmdir(import->root);
    if (import->made_run)
        rmdir(import->options->run_directory);
}

static int take_buffers(struct import *import)
{
    int64_t bytes = 0;

    /* One slice fits in whole whatever its type, and small models take no more than they need. */
    for (size_t i = 0; i < import->count; i++)
        bytes += import->sources[i]->elements * (int64_t)sizeof(float) + PIECE_ALIGNMENT;
    assert(bytes > 0);
    import->shard_room = bytes < SHARD_BYTES ? bytes : SHARD_BYTES;
    import->shard = malloc((size_t)import->shard_room);
    return import->shard ? 0 : out_of_memory(import);
}

int hf_import(const struct hf_import *options, struct error *error)
{
    struct import import = {.options = options, .error = error};
    int rc = -1;

    import.slice = malloc((size_t)SLICE_BYTES);
    if (!import.slice) {
        out_of_memory(&import);
        goto out;
    }
    if (read_config(&import) < 0 ||
        safetensors_open_model(&import.set, options->directory, error) < 0 ||
        find_sources(&import) < 0 || refuse_unexpected(&import) < 0 ||
        check_redundant_head(&import) < 0 || fill_state(&import) < 0 || take_buffers(&import) < 0 ||
        prepare_target(&import) < 0)
        goto out;
    rc = import_tensors(&import);
    if (rc == 0)
        rc = checkpoint_commit(import.root, import.shards, &import.state, error);
    progress_end(&import.progress);
out:
    if (rc < 0)
        abandon(&import);
    safetensors_close(import.set);
    free_state(&import.state);
    free(import.pieces);
    free(import.shard);
    free(import.slice);
    free(import.tensors);
    free(import.sources);
    free(import.root);
    free(import.config);
    free(import.config_path);
    return rc;
}
