/* Makes and compares Hugging Face models for the tests of the converters.
 *
 *     model_tool make SOURCE_DIR OUT_DIR DTYPE FILES [EDIT]...
 *     model_tool compare DIR DIR
 *     model_tool value DIR TENSOR ELEMENT
 *     model_tool random DIR FILES
 *
 * make: the weights of SOURCE_DIR as DTYPE (fp32, bf16, fp16, or mixed: in turns) in FILES files;
 * the other files are the caller's business. EDIT is one of
 *     drop=TENSOR  add=TENSOR  rename=OLD:NEW  copy=OLD:NEW  row=TENSOR (one row more)
 *     set=TENSOR:ELEMENT:VALUE (nan, inf, 1e5, ...)
 * random: bf16 weights for the config.json in DIR, in FILES files of about one size.
 * compare: exit 0 if both hold the same tensors to the bit, else say where they differ. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "ckpt/disk.h"
#include "ckpt/hf_config.h"
#include "ckpt/hf_tensors.h"
#include "ckpt/safetensors.h"

/* Elements made at a time. */
#define RANDOM_BLOCK ((int64_t)1 << 20)

static struct error error;

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void fail(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static void must(int rc)
{
    if (rc < 0)
        fail("%s", error.text);
}

static void *take(size_t bytes)
{
    void *memory = calloc(1, bytes + 1);

    if (!memory)
        fail("out of memory");
    return memory;
}

struct tensor {
    char name[128];
    struct safetensors_entry entry;
    char *data;
};

static struct tensor *tensors;
static size_t count;

static struct tensor *find(const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(tensors[i].name, name) == 0)
            return &tensors[i];
    fail("no tensor %s", name);
}

static void load(const char *directory, const char *dtype)
{
    struct safetensors *set;

    must(safetensors_open_model(&set, directory, &error));
    count = safetensors_count(set);
    tensors = take((count + 8) * sizeof(*tensors));
    for (size_t i = 0; i < count; i++) {
        const struct safetensors_tensor *source = safetensors_get(set, i);
        struct tensor *tensor = &tensors[i];
        char *data = take((size_t)source->bytes);
        int to = strcmp(dtype, "mixed") == 0 ? (int)(i % 3) : dtype_from_name(dtype);

        if (to < 0)
            fail("dtype %s", dtype);
        snprintf(tensor->name, sizeof(tensor->name), "%s", source->name);
        tensor->entry.dtype = (enum dtype)to;
        tensor->entry.dimensions = source->dimensions;
        memcpy(tensor->entry.shape, source->shape, sizeof(tensor->entry.shape));
        tensor->data = take((size_t)source->elements * 4);
        must(safetensors_read(set, source, 0, source->bytes, data, &error));
        dtype_convert(tensor->data, tensor->entry.dtype, data, (enum dtype)source->dtype,
                      (size_t)source->elements);
        free(data);
    }
    safetensors_close(set);
}

static struct tensor *add(const char *name, const struct tensor *like)
{
    struct tensor *tensor = &tensors[count++];
    size_t bytes = (size_t)safetensors_entry_bytes(&like->entry);

    *tensor = *like;
    tensor->data = take(bytes);
    memcpy(tensor->data, like->data, bytes);
    snprintf(tensor->name, sizeof(tensor->name), "%s", name);
    return tensor;
}

static void edit(char *text)
{
    char *name = strchr(text, '='), *second;
    struct tensor *tensor;

    if (!name)
        fail("edit %s", text);
    *name++ = '\0';
    second = strchr(name, ':');
    if (second)
        *second++ = '\0';
    if (strcmp(text, "add") == 0) {
        add(name, &tensors[0]);
        return;
    }
    tensor = find(name);
    if (strcmp(text, "drop") == 0) {
        char *dropped = tensor->data;

        *tensor = tensors[--count];
        free(dropped);
        tensors[count].data = NULL;
    } else if (strcmp(text, "rename") == 0 && second) {
        snprintf(tensor->name, sizeof(tensor->name), "%s", second);
    } else if (strcmp(text, "copy") == 0 && second) {
        add(second, tensor);
    } else if (strcmp(text, "row") == 0) {
        size_t bytes = (size_t)safetensors_entry_bytes(&tensor->entry);
        char *data;

        tensor->entry.shape[0]++;
        data = take((size_t)safetensors_entry_bytes(&tensor->entry));
        memcpy(data, tensor->data, bytes);
        free(tensor->data);
        tensor->data = data;
    } else if (strcmp(text, "set") == 0 && second && strchr(second, ':')) {
        float value = strtof(strchr(second, ':') + 1, NULL);
        size_t size = dtype_bytes(tensor->entry.dtype);

        dtype_convert(tensor->data + strtoul(second, NULL, 10) * size, tensor->entry.dtype, &value,
                      DTYPE_F32, 1);
    } else {
        fail("edit %s", text);
    }
}

static void save(const char *directory, size_t files)
{
    struct safetensors_entry *entries = take(count * sizeof(*entries));
    json_t *map = json_object();
    char path[4096], name[64];

    for (size_t file = 0; file < files; file++) {
        size_t first = count * file / files, last = count * (file + 1) / files;
        struct safetensors_writer *writer;

        snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", file + 1, files);
        snprintf(path, sizeof(path), "%s/%s", directory, files == 1 ? "model.safetensors" : name);
        for (size_t i = first; i < last; i++) {
            entries[i] = tensors[i].entry;
            entries[i].name = tensors[i].name;
            json_object_set_new(map, tensors[i].name, json_string(name));
        }
        must(safetensors_writer_open(&writer, path, entries + first, last - first, &error));
        for (size_t i = first; i < last; i++)
            must(safetensors_writer_append(writer, tensors[i].data,
                                           (size_t)safetensors_entry_bytes(&entries[i]), &error));
        must(safetensors_writer_commit(writer, &error));
        safetensors_writer_close(writer);
    }
    if (files > 1) {
        json_t *index = json_pack("{s:{}, s:O}", "metadata", "weight_map", map);

        snprintf(path, sizeof(path), "%s/model.safetensors.index.json", directory);
        if (json_dump_file(index, path, 0) < 0)
            fail("%s: cannot be written", path);
        json_decref(index);
    }
    json_decref(map);
    free(entries);
}

static void *contents(const struct safetensors *set, const struct safetensors_tensor *tensor)
{
    void *data = take((size_t)tensor->bytes);

    must(safetensors_read(set, tensor, 0, tensor->bytes, data, &error));
    return data;
}

static int compare(const char *left_directory, const char *right_directory)
{
    struct safetensors *left, *right;
    int differences = 0;

    must(safetensors_open_model(&left, left_directory, &error));
    must(safetensors_open_model(&right, right_directory, &error));
    for (size_t i = 0; i < safetensors_count(left); i++) {
        const struct safetensors_tensor *a = safetensors_get(left, i);
        const struct safetensors_tensor *b = safetensors_find(right, a->name);
        void *x, *y;

        if (!b || a->dtype != b->dtype || a->dimensions != b->dimensions ||
            memcmp(a->shape, b->shape, sizeof(a->shape)) != 0) {
            printf("%s: %s\n", a->name, b ? "another shape or dtype" : "missing");
            differences++;
            continue;
        }
        x = contents(left, a);
        y = contents(right, b);
        if (memcmp(x, y, (size_t)a->bytes) != 0) {
            printf("%s: other bits\n", a->name);
            differences++;
        }
        free(x);
        free(y);
    }
    if (safetensors_count(left) != safetensors_count(right)) {
        printf("%zu and %zu tensors\n", safetensors_count(left), safetensors_count(right));
        differences++;
    }
    safetensors_close(left);
    safetensors_close(right);
    return differences > 0;
}

static void print_value(const char *directory, const char *name, const char *element)
{
    float value;

    load(directory, "fp32");
    memcpy(&value, find(name)->data + strtoul(element, NULL, 10) * sizeof(value), sizeof(value));
    printf("%.9g\n", (double)value);
}

/* The tensors [first, last) of the model into one file. */
static void save_random(const struct model *model, size_t first, size_t last, const char *path)
{
    struct safetensors_entry *entries = take((last - first) * sizeof(*entries));
    struct hf_tensor *names = take((last - first) * sizeof(*names));
    uint16_t *block = take(RANDOM_BLOCK * sizeof(*block));
    struct safetensors_writer *writer;
    uint64_t state = first + 1;

    for (size_t i = 0; i < last - first; i++) {
        hf_tensor_get(model, first + i, &names[i]);
        entries[i] = (struct safetensors_entry){
            .name = names[i].name,
            .dtype = DTYPE_BF16,
            .dimensions = names[i].dimensions,
            .shape = {names[i].shape[0], names[i].shape[1]},
        };
    }
    must(safetensors_writer_open(&writer, path, entries, last - first, &error));
    for (size_t i = 0; i < last - first; i++)
        for (int64_t left = names[i].shape[0] * names[i].shape[1]; left > 0; left -= RANDOM_BLOCK) {
            int64_t elements = left < RANDOM_BLOCK ? left : RANDOM_BLOCK;

            for (int64_t j = 0; j < elements; j++) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                /* Any sign and fraction, exponents below 1. */
                block[j] = (uint16_t)((state >> 33 & 0x81ff) | 0x3c00);
            }
            must(safetensors_writer_append(writer, block, (size_t)elements * sizeof(*block),
                                           &error));
        }
    must(safetensors_writer_commit(writer, &error));
    safetensors_writer_close(writer);
    free(entries);
    free(names);
    free(block);
}

static void make_random(const char *directory, size_t files)
{
    json_t *map = json_object(), *index;
    struct model model;
    char path[4096], name[64];
    size_t size, all;
    void *text;

    snprintf(path, sizeof(path), "%s/config.json", directory);
    must(disk_read_file(path, (size_t)1 << 20, &text, &size, &error));
    must(hf_config_read(&model, text, size, path, &error));
    all = hf_tensor_count(&model);
    for (size_t file = 0; file < files; file++) {
        size_t first = all * file / files, last = all * (file + 1) / files;

        snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", file + 1, files);
        snprintf(path, sizeof(path), "%s/%s", directory, name);
        save_random(&model, first, last, path);
        for (size_t i = first; i < last; i++) {
            struct hf_tensor tensor;

            hf_tensor_get(&model, i, &tensor);
            json_object_set_new(map, tensor.name, json_string(name));
        }
    }
    index = json_pack("{s:{}, s:o}", "metadata", "weight_map", map);
    snprintf(path, sizeof(path), "%s/model.safetensors.index.json", directory);
    if (json_dump_file(index, path, 0) < 0)
        fail("%s: cannot be written", path);
    json_decref(index);
    free(text);
}

int main(int argc, char **argv)
{
    int rc = 0;

    if (argc >= 6 && strcmp(argv[1], "make") == 0) {
        load(argv[2], argv[4]);
        for (int i = 6; i < argc; i++)
            edit(argv[i]);
        save(argv[3], strtoul(argv[5], NULL, 10));
    } else if (argc == 4 && strcmp(argv[1], "compare") == 0) {
        rc = compare(argv[2], argv[3]);
    } else if (argc == 4 && strcmp(argv[1], "random") == 0) {
        make_random(argv[2], strtoul(argv[3], NULL, 10));
    } else if (argc == 5 && strcmp(argv[1], "value") == 0) {
        print_value(argv[2], argv[3], argv[4]);
    } else {
        fail("usage: see the top of model_tool.c");
    }
    for (size_t i = 0; i < count; i++)
        free(tensors[i].data);
    free(tensors);
    return rc;
}
