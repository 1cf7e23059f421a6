#include "ckpt/hf_import.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/added_tokens.h"
#include "ckpt/checkpoint.h"
#include "ckpt/disk.h"
#include "ckpt/hf_tensors.h"
#include "ckpt/progress.h"
#include "ckpt/tensor_check.h"
#include "ckpt/weights.h"

/* A shard is gathered in memory and written at once; two of them, together with the library's own
 * needs and the tokenizer, stay below 1 GiB. */
#define SHARD_BYTES    ((int64_t)256 << 20)
#define SLICE_ELEMENTS ((int64_t)8 << 20)
/* Where each piece begins in memory. */
#define PIECE_ALIGNMENT 64

/* One is gathered while the other is written. */
struct shard {
    const char *root;
    int number;
    char *bytes;
    int64_t room, used;
    struct checkpoint_piece *pieces;
    size_t piece_count, piece_room;
    pthread_t thread;
    bool writing; /* by the thread */
    struct error error;
};

struct import {
    const struct hf_import *options;
    struct weights *weights;
    struct hf_tensor *tensors;
    size_t count;
    char *root; /* RUN/ckpt */
    bool made_run, made_root, prepared;
    struct checkpoint_state state;
    struct kept_files files;        /* copies of the source's, changed where tokens are added */
    struct shard shards[2], *shard; /* the one being gathered */
    int begun;                      /* shards that were given to a thread */
    struct progress progress;
    struct error *error;
};

static int out_of_memory(struct import *import)
{
    return error_set(import->error, EXIT_STATUS_SYSTEM, "out of memory");
}

static enum dtype target_dtype(const struct import *import, const char *name)
{
    return import->options->dtype >= 0 ? (enum dtype)import->options->dtype
                                       : weights_dtype(import->weights, name);
}

/* --- what is kept beside the weights --------------------------------------------------------- */

static int add_tokens(struct import *import)
{
    struct added_tokens tokens;
    int rc;

    if (!import->options->add_tokens)
        return 0;
    if (added_tokens_parse(&tokens, import->options->add_tokens, import->error) < 0)
        return -1;
    rc = added_tokens_enter(&tokens, &import->files, weights_model(import->weights)->vocab_size,
                            import->error);
    if (rc == 0)
        weights_grow(import->weights, tokens.first, tokens.end - tokens.first);
    added_tokens_destroy(&tokens);
    return rc;
}

static int fill_state(struct import *import)
{
    const struct model *model = weights_model(import->weights);
    struct checkpoint_state *state = &import->state;

    if (kept_files_copy(&import->files, weights_state(import->weights), import->error) < 0 ||
        add_tokens(import) < 0)
        return -1;
    state->config =
        weights_config(import->weights, model, target_dtype(import, hf_embedding_name(model)));
    state->settings = strdup("");
    state->run_id = strdup("");
    state->loss_scale = 1;
    snprintf(state->layout, sizeof(state->layout), "tp1 pp1 dp1");
    state->files = import->files.list;
    state->file_count = import->files.count;
    return state->config && state->settings && state->run_id ? 0 : out_of_memory(import);
}

static void free_state(struct import *import)
{
    kept_files_destroy(&import->files);
    free(import->state.config);
    free(import->state.settings);
    free(import->state.run_id);
}

/* --- weights --------------------------------------------------------------------------------- */

static void *write_shard(void *argument)
{
    struct shard *shard = argument;

    (void)checkpoint_write_shard(shard->root, 0, shard->number, shard->pieces, shard->piece_count,
                                 &shard->error);
    return NULL;
}

/* Until the shard is on the disk. */
static int wait_for(struct import *import, struct shard *shard)
{
    if (!shard->writing)
        return 0;
    (void)pthread_join(shard->thread, NULL);
    shard->writing = false;
    shard->used = 0;
    shard->piece_count = 0;
    if (shard->error.status == 0)
        return 0;
    if (import->error->status == 0)
        *import->error = shard->error;
    return -1;
}

/* Have what was gathered written, after the shard before it: one at a time. */
static int flush_shard(struct import *import)
{
    struct shard *shard = import->shard;
    struct shard *other = &import->shards[shard == &import->shards[0]];
    int rc;

    if (shard->piece_count == 0)
        return 0;
    if (wait_for(import, other) < 0)
        return -1;
    shard->root = import->root;
    shard->number = import->begun++;
    rc = pthread_create(&shard->thread, NULL, write_shard, shard);
    if (rc != 0) {
        errno = rc;
        return error_set_errno(import->error, "cannot start a thread");
    }
    shard->writing = true;
    import->shard = other;
    return 0;
}

static struct checkpoint_piece *new_piece(struct import *import)
{
    struct shard *shard = import->shard;

    if (shard->piece_count == shard->piece_room) {
        size_t room = shard->piece_room ? 2 * shard->piece_room : 256;
        struct checkpoint_piece *pieces = realloc(shard->pieces, room * sizeof(*pieces));

        if (!pieces) {
            out_of_memory(import);
            return NULL;
        }
        shard->pieces = pieces;
        shard->piece_room = room;
    }
    return &shard->pieces[shard->piece_count++];
}

/* A rectangle of a tensor, which stands at the end of what is gathered. */
static int add_piece(struct import *import, const struct hf_tensor *tensor, enum dtype dtype,
                     const int64_t start[2], const int64_t extent[2])
{
    struct shard *shard = import->shard;
    struct checkpoint_piece *last =
        shard->piece_count ? &shard->pieces[shard->piece_count - 1] : NULL;
    const char *data = shard->bytes + shard->used;
    int64_t element = (int64_t)dtype_bytes(dtype);

    shard->used += extent[0] * extent[1] * element;
    /* Rows that go on where the last piece ended make it longer. */
    if (last && last->tensor == tensor->name && extent[1] == tensor->shape[1] &&
        last->extent[1] == tensor->shape[1] &&
        (const char *)last->data + last->extent[0] * last->extent[1] * element == data) {
        last->extent[0] += extent[0];
        return 0;
    }
    last = new_piece(import);
    if (!last)
        return -1;
    *last = (struct checkpoint_piece){
        .tensor = tensor->name,
        .kind = CHECKPOINT_WEIGHT,
        .dtype = dtype,
        .dimensions = tensor->dimensions,
        .shape = {tensor->shape[0], tensor->shape[1]},
        .start = {start[0], start[1]},
        .extent = {extent[0], extent[1]},
        .data = data,
    };
    return 0;
}

static int import_tensor(struct import *import, const struct hf_tensor *tensor)
{
    enum dtype dtype = target_dtype(import, tensor->name);
    struct tensor_slices slices;
    int64_t start[2], extent[2];

    tensor_slices_begin(&slices, tensor->shape, SLICE_ELEMENTS);
    while (tensor_slices_next(&slices, start, extent)) {
        int64_t bytes = extent[0] * extent[1] * (int64_t)dtype_bytes(dtype);

        if (bytes > import->shard->room - import->shard->used && flush_shard(import) < 0)
            return -1;
        if (weights_read(import->weights, tensor->name, start, extent, dtype,
                         import->shard->bytes + import->shard->used, import->error) < 0 ||
            add_piece(import, tensor, dtype, start, extent) < 0 ||
            progress_add(&import->progress, bytes, import->error) < 0)
            return -1;
    }
    import->shard->used =
        (import->shard->used + PIECE_ALIGNMENT - 1) / PIECE_ALIGNMENT * PIECE_ALIGNMENT;
    return 0;
}

static int import_tensors(struct import *import)
{
    int64_t bytes = 0;
    int rc = 0;

    for (size_t i = 0; i < import->count; i++)
        bytes += import->tensors[i].shape[0] * import->tensors[i].shape[1] *
                 (int64_t)dtype_bytes(target_dtype(import, import->tensors[i].name));
    progress_begin(&import->progress, bytes);
    for (size_t i = 0; rc == 0 && i < import->count; i++)
        rc = import_tensor(import, &import->tensors[i]);
    if (rc == 0)
        rc = flush_shard(import);
    for (int i = 0; i < 2; i++)
        if (wait_for(import, &import->shards[i]) < 0)
            rc = -1;
    return rc;
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

    if (import->root && import->prepared)
        checkpoint_clean(import->root, &ignored);
    if (import->root && import->made_root)
        rmdir(import->root);
    if (import->made_run)
        rmdir(import->options->run_directory);
}

static int list_tensors(struct import *import)
{
    const struct model *model = weights_model(import->weights);

    import->count = hf_tensor_count(model);
    import->tensors = calloc(import->count, sizeof(*import->tensors));
    if (!import->tensors)
        return out_of_memory(import);
    for (size_t i = 0; i < import->count; i++)
        hf_tensor_get(model, i, &import->tensors[i]);
    return 0;
}

static int take_buffers(struct import *import)
{
    int64_t bytes = 0;

    /* One slice fits in whole whatever its type, and small models take no more than they need. */
    for (size_t i = 0; i < import->count; i++)
        bytes +=
            import->tensors[i].shape[0] * import->tensors[i].shape[1] * (int64_t)sizeof(float) +
            PIECE_ALIGNMENT;
    assert(bytes > 0);
    import->shard = &import->shards[0];
    for (int i = 0; i < 2; i++) {
        import->shards[i].room = bytes < SHARD_BYTES ? bytes : SHARD_BYTES;
        import->shards[i].bytes = malloc((size_t)import->shards[i].room);
        if (!import->shards[i].bytes)
            return out_of_memory(import);
    }
    return 0;
}

int hf_import(const struct hf_import *options, struct error *error)
{
    struct import import = {.options = options, .error = error};
    int rc = -1;

    if (weights_open_hf(&import.weights, options->directory, options->allow_nonfinite, error) < 0 ||
        fill_state(&import) < 0 || list_tensors(&import) < 0 || take_buffers(&import) < 0 ||
        prepare_target(&import) < 0)
        goto out;
    rc = import_tensors(&import);
    if (rc == 0)
        rc = checkpoint_commit(import.root, import.begun, &import.state, error);
    progress_end(&import.progress);
out:
    if (rc < 0)
        abandon(&import);
    free_state(&import);
    for (int i = 0; i < 2; i++) {
        free(import.shards[i].bytes);
        free(import.shards[i].pieces);
    }
    free(import.tensors);
    weights_close(import.weights);
    free(import.root);
    return rc;
}
