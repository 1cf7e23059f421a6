#include "ckpt/hf_export.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "ckpt/checkpoint.h"
#include "ckpt/disk.h"
#include "ckpt/hf_config.h"
#include "ckpt/hf_directory.h"
#include "ckpt/hf_tensors.h"
#include "ckpt/hf_tokenizer.h"
#include "ckpt/json_text.h"
#include "ckpt/kept_files.h"
#include "ckpt/progress.h"
#include "ckpt/safetensors.h"
#include "ckpt/tensor_check.h"
#include "core/log.h"

/* Tensors pass through memory in slices of at most this size, two for each thread. */
#define SLICE_BYTES ((int64_t)32 << 20)

enum { THREADS_MAX = 8 };

struct exported_tensor {
    struct hf_tensor tensor;
    enum checkpoint_kind kind;
    enum dtype stored, dtype; /* in the checkpoint, in the file */
    size_t file;
};

struct export
{
    const struct hf_export *options;
    struct checkpoint *checkpoint;
    struct model model;
    struct exported_tensor *tensors; /* in the order in which they are written */
    size_t count, files;
    struct hf_directory directory;
    struct error *error;

    pthread_mutex_t lock; /* of what threads share: */
    struct progress progress;
    size_t next_file;
    bool failed;
};

/* A thread that writes file after file. */
struct copying {
    struct export *export;
    pthread_t thread;
    void *slice, *converted; /* SLICE_BYTES each */
    struct error error;
};

static int out_of_memory(struct export *export)
{
    return error_set(export->error, EXIT_STATUS_SYSTEM, "out of memory");
}

static int64_t tensor_bytes(const struct exported_tensor *exported)
{
    return exported->tensor.shape[0] * exported->tensor.shape[1] *
           (int64_t)dtype_bytes(exported->dtype);
}

/* --- what is to be written ------------------------------------------------------------------ */

static int plan_tensor(struct export *export, size_t i, struct exported_tensor *exported)
{
    const char *directory = checkpoint_directory(export->checkpoint);
    const struct checkpoint_tensor *stored;
    const struct hf_tensor *tensor = &exported->tensor;

    hf_tensor_get(&export->model, i, &exported->tensor);
    stored = checkpoint_find_tensor(export->checkpoint, tensor->name);
    if (!stored || !stored->present[CHECKPOINT_WEIGHT])
        return error_set(export->error, EXIT_STATUS_DATA,
                         "%s: has no tensor %s, which its model needs", directory, tensor->name);
    if (stored->dimensions != tensor->dimensions || stored->shape[0] != tensor->shape[0] ||
        (tensor->dimensions == 2 && stored->shape[1] != tensor->shape[1]))
        return error_set(export->error, EXIT_STATUS_DATA,
                         "%s: tensor %s is [%" PRId64 ", %" PRId64 "], its model needs [%" PRId64
                         ", %" PRId64 "]",
                         directory, tensor->name, stored->shape[0], stored->shape[1],
                         tensor->shape[0], tensor->shape[1]);
    exported->kind = CHECKPOINT_WEIGHT;
    exported->dtype = stored->dtype[CHECKPOINT_WEIGHT];
    if (export->options->dtype >= 0)
        exported->dtype = (enum dtype) export->options->dtype;
    /* The master copy has the bits that 16-bit weights lost. */
    if (exported->dtype == DTYPE_F32 && stored->present[CHECKPOINT_MASTER])
        exported->kind = CHECKPOINT_MASTER;
    exported->stored = stored->dtype[exported->kind];
    return 0;
}

/* Wide types first, so that every tensor begins at a multiple of its element's size. */
static int sort_by_width(struct export *export)
{
    struct exported_tensor *sorted = calloc(export->count, sizeof(*sorted));
    size_t used = 0;

    if (!sorted)
        return out_of_memory(export);
    for (size_t width = 4; width >= 2; width -= 2)
        for (size_t i = 0; i < export->count; i++)
            if (dtype_bytes(export->tensors[i].dtype) == width)
                sorted[used++] = export->tensors[i];
    free(export->tensors);
    export->tensors = sorted;
    return 0;
}

static int plan(struct export *export)
{
    int64_t bytes = 0;

    export->count = hf_tensor_count(&export->model);
    export->tensors = calloc(export->count, sizeof(*export->tensors));
    if (!export->tensors)
        return out_of_memory(export);
    for (size_t i = 0; i < export->count; i++)
        if (plan_tensor(export, i, &export->tensors[i]) < 0)
            return -1;
    for (size_t i = 0; i < checkpoint_tensor_count(export->checkpoint); i++) {
        const struct checkpoint_tensor *stored = checkpoint_get_tensor(export->checkpoint, i);

        if (!hf_tensor_known(&export->model, stored->name))
            return error_set(export->error, EXIT_STATUS_DATA,
                             "%s: holds tensor %.200s, which its model does not have",
                             checkpoint_directory(export->checkpoint), stored->name);
    }
    if (sort_by_width(export) < 0)
        return -1;
    for (size_t i = 0; i < export->count; i++) {
        int64_t more = tensor_bytes(&export->tensors[i]);

        if (bytes > 0 && more > export->options->shard_bytes - bytes) {
            export->files++;
            bytes = 0;
        }
        bytes += more;
        export->tensors[i].file = export->files;
    }
    export->files++;
    return 0;
}

/* --- weights -------------------------------------------------------------------------------- */

static void file_name(const struct export *export, size_t file, char *name, size_t size)
{
    if (export->files == 1)
        snprintf(name, size, "model.safetensors");
    else
        snprintf(name, size, "model-%05zu-of-%05zu.safetensors", file + 1, export->files);
}

/* Error: 128 + signal when the process was told to stop. */
static int count_bytes(struct export *export, int64_t bytes, struct error *error)
{
    int rc;

    pthread_mutex_lock(&export->lock);
    rc = progress_add(&export->progress, bytes, error);
    pthread_mutex_unlock(&export->lock);
    return rc;
}

/* One slice, whole rows or a part of one row: from the checkpoint, converted, into the file. */
static int copy_slice(struct copying *copying, const struct exported_tensor *exported,
                      const int64_t start[2], const int64_t extent[2],
                      struct safetensors_writer *writer)
{
    struct export *export = copying->export;
    const char *name = exported->tensor.name;
    int64_t count = extent[0] * extent[1], at;
    const void *data = copying->slice;

    if (checkpoint_read(export->checkpoint, name, exported->kind, start, extent, exported->stored,
                        copying->slice, &copying->error) < 0)
        return -1;
    if (exported->dtype != exported->stored) {
        data = copying->converted;
        dtype_convert(copying->converted, exported->dtype, copying->slice, exported->stored,
                      (size_t)count);
        at = tensor_find_overflow(copying->slice, exported->stored, copying->converted,
                                  exported->dtype, count);
        if (at >= 0)
            return error_set(&copying->error, EXIT_STATUS_DATA,
                             "%s: tensor %s: element [%" PRId64 ", %" PRId64
                             "] is %g, more than %s can hold; export as fp32 or bf16",
                             checkpoint_directory(export->checkpoint), name,
                             start[0] + at / extent[1], start[1] + at % extent[1],
                             tensor_element(copying->slice, exported->stored, at),
                             dtype_name(exported->dtype));
    }
    if (safetensors_writer_append(writer, data, (size_t)count * dtype_bytes(exported->dtype),
                                  &copying->error) < 0)
        return -1;
    return count_bytes(export, count * (int64_t)dtype_bytes(exported->dtype), &copying->error);
}

static int copy_tensor(struct copying *copying, const struct exported_tensor *exported,
                       struct safetensors_writer *writer)
{
    const int64_t *shape = exported->tensor.shape;
    struct tensor_slices slices;
    int64_t start[2], extent[2];

    tensor_slices_begin(&slices, shape, SLICE_BYTES / (int64_t)sizeof(float));
    while (tensor_slices_next(&slices, start, extent))
        if (copy_slice(copying, exported, start, extent, writer) < 0)
            return -1;
    return 0;
}

static int write_file(struct copying *copying, size_t file)
{
    const struct export *export = copying->export;
    struct safetensors_entry *entries = calloc(export->count, sizeof(*entries));
    struct safetensors_writer *writer = NULL;
    char name[64], *path = NULL;
    size_t first = 0, count = 0;
    int rc = -1;

    file_name(export, file, name, sizeof(name));
    if (!entries || asprintf(&path, "%s/%s", export->directory.partial, name) < 0) {
        path = NULL;
        error_set(&copying->error, EXIT_STATUS_SYSTEM, "out of memory");
        goto out;
    }
    while (export->tensors[first].file < file)
        first++;
    for (size_t i = first; i < export->count && export->tensors[i].file == file; i++) {
        const struct exported_tensor *exported = &export->tensors[i];

        entries[count++] = (struct safetensors_entry){
            .name = exported->tensor.name,
            .dtype = exported->dtype,
            .dimensions = exported->tensor.dimensions,
            .shape = {exported->tensor.shape[0], exported->tensor.shape[1]},
        };
    }
    if (safetensors_writer_open(&writer, path, entries, count, &copying->error) < 0)
        goto out;
    for (size_t i = 0; i < count; i++)
        if (copy_tensor(copying, &export->tensors[first + i], writer) < 0)
            goto out;
    rc = safetensors_writer_commit(writer, &copying->error);
out:
    safetensors_writer_close(writer);
    free(entries);
    free(path);
    return rc;
}

static void *write_files(void *argument)
{
    struct copying *copying = argument;
    struct export *export = copying->export;
    int rc = 0;

    while (rc == 0) {
        size_t file;

        pthread_mutex_lock(&export->lock);
        file = export->failed ? export->files : export->next_file++;
        pthread_mutex_unlock(&export->lock);
        if (file >= export->files)
            return NULL;
        rc = write_file(copying, file);
    }
    pthread_mutex_lock(&export->lock);
    /* What the others say afterwards may follow from this. */
    if (!export->failed)
        *export->error = copying->error;
    export->failed = true;
    pthread_mutex_unlock(&export->lock);
    return NULL;
}

/* As many as there are files and cores; this thread is one of them. */
static int write_weights(struct export *export)
{
    struct copying copyings[THREADS_MAX] = {0};
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    size_t most = cores < 1 ? 1 : cores > THREADS_MAX ? THREADS_MAX : (size_t)cores;
    size_t count = export->files < most ? export->files : most, running = 1;
    int rc = 0;

    assert(count > 0);
    for (size_t i = 0; i < count; i++) {
        copyings[i] = (struct copying){
            .export = export,
            .slice = malloc((size_t)SLICE_BYTES),
            .converted = malloc((size_t)SLICE_BYTES),
        };
        if (!copyings[i].slice || !copyings[i].converted)
            rc = out_of_memory(export);
    }
    /* Where no more threads can be had, fewer do it. */
    while (rc == 0 && running < count &&
           pthread_create(&copyings[running].thread, NULL, write_files, &copyings[running]) == 0)
        running++;
    if (rc == 0)
        write_files(&copyings[0]);
    for (size_t i = 1; i < running; i++)
        (void)pthread_join(copyings[i].thread, NULL);
    for (size_t i = 0; i < count; i++) {
        free(copyings[i].slice);
        free(copyings[i].converted);
    }
    return rc < 0 || export->failed ? -1 : 0;
}

/* --- the small files ------------------------------------------------------------------------ */

static int write_small(struct export *export, const char *name, const void *bytes, size_t size)
{
    char *path;
    int rc;

    if (asprintf(&path, "%s/%s", export->directory.partial, name) < 0)
        return out_of_memory(export);
    rc = disk_write_file(path, bytes, size, export->error);
    free(path);
    return rc;
}

/* Takes `text`. */
static int write_text(struct export *export, const char *name, char *text)
{
    int rc = text ? write_small(export, name, text, strlen(text)) : out_of_memory(export);

    free(text);
    return rc;
}

static int write_index(struct export *export)
{
    json_t *map = json_object();
    json_t *index;
    int64_t bytes = 0;
    char *text = NULL;

    for (size_t i = 0; i < export->count; i++) {
        char name[64];

        file_name(export, export->tensors[i].file, name, sizeof(name));
        json_object_set_new(map, export->tensors[i].tensor.name, json_string(name));
        bytes += tensor_bytes(&export->tensors[i]);
    }
    index =
        json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)bytes, "weight_map", map);
    if (index && json_object_size(map) == export->count)
        text = json_text_dump(index, JSON_SORT_KEYS);
    json_decref(index);
    json_decref(map);
    return write_text(export, "model.safetensors.index.json", text);
}

/* Files that were kept with the checkpoint, as they are; their names come from a checkpoint that
 * somebody else may have made. */
static int write_carried(struct export *export, const struct kept_files *kept)
{
    const struct checkpoint_file *sentencepiece = kept_files_sentencepiece(kept);

    for (size_t i = 0; i < kept->count; i++) {
        const struct checkpoint_file *file = &kept->list[i];
        const char *name = file == sentencepiece ? "tokenizer.model" : file->name;

        if (!*name || *name == '.' || strchr(name, '/'))
            return error_set(export->error, EXIT_STATUS_DATA,
                             "%s: keeps a file of the impossible name \"%.100s\"",
                             checkpoint_directory(export->checkpoint), name);
        if (hf_file_is_model(name) && strcmp(name, "generation_config.json") != 0)
            continue;
        if (write_small(export, name, file->bytes, file->size) < 0)
            return -1;
    }
    return 0;
}

/* Transformers 5 has one tokenizer for all of Qwen2, whatever lies beside the model. */
static void warn_of_qwen(const struct export *export, const char *text, size_t size)
{
    if (export->model.family == MODEL_FAMILY_QWEN2 && !hf_tokenizer_json_is_qwen(text, size))
        log_warning("this tokenizer is not Qwen's, and AutoTokenizer of transformers 5 takes no "
                    "other for family qwen2: load it with PreTrainedTokenizerFast.from_pretrained");
}

/* For a tokenizer.model that is alone. */
static int write_sentencepiece(struct export *export, const struct checkpoint_file *file,
                               const struct hf_sentencepiece *about,
                               const struct checkpoint_file *added)
{
    const char *list = added ? added->bytes : NULL, *trouble;
    size_t size = added ? added->size : 0;
    char *json = hf_sentencepiece_json(file->bytes, file->size, about, list, size, &trouble);
    bool is_made = json;

    if (json) {
        warn_of_qwen(export, json, strlen(json));
        if (write_text(export, "tokenizer.json", json) < 0)
            return -1;
    } else if (trouble) {
        log_warning("tokenizer.model %s, so there is no tokenizer.json that does the same: "
                    "transformers will split some texts otherwise than the training data was, and "
                    "for other families than llama all of them; Llama's own is trained as BPE with "
                    "--normalization_rule_name=identity --remove_extra_whitespaces=false",
                    trouble);
    } else {
        return out_of_memory(export);
    }
    return write_text(
        export, "tokenizer_config.json",
        hf_sentencepiece_config(about, list, size, is_made, export->model.max_positions));
}

/* What the checkpoint's tokenizer lacks. */
static int complete_tokenizer(struct export *export, const struct kept_files *kept,
                              const struct checkpoint_file *pieces,
                              const struct hf_sentencepiece *about)
{
    const struct checkpoint_file *json = kept_files_find(kept, "tokenizer.json");

    if (json)
        warn_of_qwen(export, json->bytes, json->size);
    if (kept_files_find(kept, "tokenizer_config.json"))
        return 0;
    if (json)
        return write_text(export, "tokenizer_config.json",
                          hf_tokenizer_json_config(json->bytes, json->size, export->model.bos_token,
                                                   export->model.eos_token,
                                                   export->model.max_positions));
    if (!about)
        return 0;
    return write_sentencepiece(export, pieces, about, kept_files_find(kept, "added_tokens.json"));
}

/* Takes `text`, may be NULL, and gives it the token ids of `from`. */
static char *take_ids(char *text, const char *from, size_t length, enum hf_token_ids which)
{
    char *result = text ? hf_config_take_token_ids(text, from, length, which) : NULL;

    free(text);
    return result;
}

static int write_small_files(struct export *export)
{
    const struct checkpoint_state *state = checkpoint_get_state(export->checkpoint);
    const struct kept_files kept = {state->files, state->file_count};
    const struct checkpoint_file *generation = kept_files_find(&kept, "generation_config.json");
    const struct checkpoint_file *file = kept_files_sentencepiece(&kept);
    struct hf_sentencepiece sentencepiece, *known = NULL;
    struct model model = export->model;
    char *config;

    if (file && hf_sentencepiece_read(&sentencepiece, file->bytes, file->size) == 0)
        known = &sentencepiece;
    /* A model that was trained from scratch learns its special tokens from its tokenizer. */
    if (known && model.bos_token < 0 && known->bos_id < model.vocab_size)
        model.bos_token = known->bos_id;
    if (known && model.eos_token < 0 && known->eos_id < model.vocab_size)
        model.eos_token = known->eos_id;
    if (model.hidden_size % model.heads != 0)
        log_warning("hidden-size %" PRId64 " is no multiple of heads=%" PRId64
                    ": transformers 5 refuses to load such a Llama",
                    model.hidden_size, model.heads);
    config = hf_config_write(&model, export->tensors[0].dtype);
    if (export->model.bos_token >= 0 || export->model.eos_token >= 0)
        config = take_ids(config, state->config, strlen(state->config), HF_TOKEN_IDS_ALL);
    if (generation)
        config = take_ids(config, generation->bytes, generation->size, HF_TOKEN_IDS_EOS_LISTS);
    if (write_text(export, "config.json", config) < 0 || write_carried(export, &kept) < 0 ||
        complete_tokenizer(export, &kept, file, known) < 0)
        return -1;
    if (generation)
        return 0;
    return write_text(export, "generation_config.json", hf_generation_config_write(&model));
}

/* -------------------------------------------------------------------------------------------- */

static int write_all(struct export *export)
{
    int64_t bytes = 0;

    for (size_t i = 0; i < export->count; i++)
        bytes += tensor_bytes(&export->tensors[i]);
    progress_begin(&export->progress, bytes);
    if (write_small_files(export) < 0 || write_weights(export) < 0)
        return -1;
    if (export->files > 1 && write_index(export) < 0)
        return -1;
    if (count_bytes(export, 0, export->error) < 0)
        return -1;
    return hf_directory_commit(&export->directory, export->error);
}

static int read_model(struct export *export)
{
    const struct checkpoint_state *state = checkpoint_get_state(export->checkpoint);
    char *name;
    int rc;

    if (asprintf(&name, "%s (its config)", checkpoint_directory(export->checkpoint)) < 0)
        return out_of_memory(export);
    rc = hf_config_read(&export->model, state->config, strlen(state->config), name, export->error);
    free(name);
    return rc;
}

int hf_export(const struct hf_export *options, struct error *error)
{
    struct export export = {.options = options,
                            .error = error,
                            .directory = {.lock = -1},
                            .lock = PTHREAD_MUTEX_INITIALIZER};
    int rc = -1;

    if (checkpoint_open(&export.checkpoint, options->checkpoint, error) < 0)
        goto out;
    if (read_model(&export) < 0 || plan(&export) < 0)
        goto out;
    if (hf_directory_begin(&export.directory, options->directory, options->force, error) < 0)
        goto out;
    rc = write_all(&export);
    progress_end(&export.progress);
out:
    hf_directory_close(&export.directory);
    free(export.tensors);
    if (export.checkpoint)
        checkpoint_close(export.checkpoint);
    return rc;
}
