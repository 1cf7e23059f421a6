/* Guards: an export takes 16-bit weights as they are and fp32 ones from the master copy; a
 * checkpoint's odd file names are refused; SentencePiece models are understood and
 * damaged ones survived; slices cover a tensor exactly; no value that a type cannot hold is missed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "ckpt/checkpoint.h"
#include "ckpt/disk.h"
#include "ckpt/hf_config.h"
#include "ckpt/hf_export.h"
#include "ckpt/hf_options.h"
#include "ckpt/hf_tensors.h"
#include "ckpt/hf_tokenizer.h"
#include "ckpt/safetensors.h"
#include "ckpt/tensor_check.h"
#include "ckpt/test_sentencepiece.h"

#define DIRECTORY "test_hf_convert.dir"

static const struct model model = {
    .layers = 1,
    .hidden_size = 4,
    .ffn_size = 6,
    .heads = 2,
    .kv_heads = 1,
    .head_dim = 2,
    .vocab_size = 5,
    .max_positions = 16,
    .norm_eps = 1e-5,
    .rope_theta = 10000,
    .init_std = 0.02,
    .bos_token = -1,
    .eos_token = -1,
};

static int set_up(void **state)
{
    struct error error = {0};
    (void)state;

    return disk_remove_tree(DIRECTORY, &error) == 0 &&
                   disk_make_directory(DIRECTORY "/run/ckpt", &error) == 0
               ? 0
               : -1;
}

static int tear_down(void **state)
{
    struct error error = {0};
    (void)state;

    return disk_remove_tree(DIRECTORY, &error);
}

/* Element `i` of the master copy of tensor `tensor`; bf16 has not the digits for it. */
static float master_value(size_t tensor, int64_t i)
{
    return 1 + (float)tensor / 16 + (float)i * 0x1p-12f;
}

/* A checkpoint as mixed-precision training leaves it, with the given files. */
static void write_checkpoint(struct checkpoint_file *files, size_t file_count)
{
    size_t count = hf_tensor_count(&model), used = 0;
    struct checkpoint_piece *pieces = calloc(3 * count, sizeof(*pieces));
    struct hf_tensor *tensors = calloc(count, sizeof(*tensors));
    struct checkpoint_state state = {
        .step = 7, .run_id = "run", .settings = "", .files = files, .file_count = file_count};
    struct error error = {0};

    assert_non_null(pieces);
    assert_non_null(tensors);
    state.config = hf_config_write(&model, DTYPE_BF16);
    for (size_t i = 0; i < count; i++) {
        struct checkpoint_piece piece = {.tensor = tensors[i].name, .dimensions = 2};
        int64_t elements;
        float *master;
        uint16_t *weight;

        hf_tensor_get(&model, i, &tensors[i]);
        piece.dimensions = tensors[i].dimensions;
        memcpy(piece.shape, tensors[i].shape, sizeof(piece.shape));
        memcpy(piece.extent, tensors[i].shape, sizeof(piece.extent));
        elements = piece.shape[0] * piece.shape[1];
        master = calloc((size_t)elements, sizeof(*master));
        weight = calloc((size_t)elements, sizeof(*weight));
        assert_non_null(master);
        assert_non_null(weight);
        for (int64_t j = 0; j < elements; j++)
            master[j] = master_value(i, j);
        dtype_convert(weight, DTYPE_BF16, master, DTYPE_F32, (size_t)elements);
        for (enum checkpoint_kind kind = CHECKPOINT_WEIGHT; kind <= CHECKPOINT_EXP_AVG; kind++) {
            piece.kind = kind;
            piece.dtype = kind == CHECKPOINT_WEIGHT ? DTYPE_BF16 : DTYPE_F32;
            piece.data = kind == CHECKPOINT_WEIGHT ? (void *)weight : (void *)master;
            pieces[used++] = piece;
        }
    }
    if (checkpoint_write_shard(DIRECTORY "/run/ckpt", 7, 0, pieces, used, &error) < 0 ||
        checkpoint_commit(DIRECTORY "/run/ckpt", 1, &state, &error) < 0)
        fail_msg("%s", error.text);
    for (size_t i = 0; i < used; i += 3) {
        free((void *)pieces[i].data);
        free((void *)pieces[i + 1].data);
    }
    free(state.config);
    free(pieces);
    free(tensors);
}

static int export_to(const char *directory, int dtype, struct error *error)
{
    const struct hf_export options = {.checkpoint = DIRECTORY "/run",
                                      .directory = directory,
                                      .dtype = dtype,
                                      .shard_bytes = 5000000000};

    return hf_export(&options, error);
}

/* Every element of the export is the master's value, once rounded to `dtype`. */
static void check_export(const char *directory, enum dtype dtype)
{
    struct safetensors *set;
    struct error error = {0};

    if (safetensors_open_model(&set, directory, &error) < 0)
        fail_msg("%s", error.text);
    for (size_t i = 0; i < hf_tensor_count(&model); i++) {
        const struct safetensors_tensor *found;
        struct hf_tensor tensor;
        char data[256];

        hf_tensor_get(&model, i, &tensor);
        found = safetensors_find(set, tensor.name);
        assert_non_null(found);
        assert_int_equal(found->dtype, dtype);
        assert_true(found->bytes <= (int64_t)sizeof(data));
        assert_int_equal(safetensors_read(set, found, 0, found->bytes, data, &error), 0);
        for (int64_t j = 0; j < found->elements; j++) {
            float expected = master_value(i, j);
            char rounded[4];

            dtype_convert(rounded, dtype, &expected, DTYPE_F32, 1);
            assert_memory_equal(data + j * (int64_t)dtype_bytes(dtype), rounded,
                                dtype_bytes(dtype));
        }
    }
    safetensors_close(set);
}

static void test_master(void **state)
{
    struct error error = {0};
    (void)state;

    write_checkpoint(NULL, 0);
    if (export_to(DIRECTORY "/as-stored", -1, &error) < 0 ||
        export_to(DIRECTORY "/bf16", DTYPE_BF16, &error) < 0 ||
        export_to(DIRECTORY "/fp32", DTYPE_F32, &error) < 0)
        fail_msg("%s", error.text);
    check_export(DIRECTORY "/as-stored", DTYPE_BF16);
    check_export(DIRECTORY "/bf16", DTYPE_BF16);
    check_export(DIRECTORY "/fp32", DTYPE_F32);
}

/* (The checkpoint library refuses names with a slash.) */
static void test_file_names(void **state)
{
    struct checkpoint_file file = {.name = ".hidden", .bytes = "x", .size = 1};
    struct error error = {0};
    (void)state;

    write_checkpoint(&file, 1);
    assert_int_equal(export_to(DIRECTORY "/out", -1, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, ".hidden"));
    assert_int_equal(access(DIRECTORY "/out", F_OK), -1);
    assert_int_equal(access(DIRECTORY "/.out.partial", F_OK), -1);
}

/* The tokenizer's special tokens reach a model that was trained without knowing them, and a
 * SentencePiece model is found under any name. */
static void test_tokenizer_of_a_run(void **state)
{
    unsigned char bytes[sizeof(spm)];
    struct checkpoint_file file = {.name = "mine.model", .bytes = bytes, .size = sizeof(bytes)};
    struct error error = {0};
    json_t *json;
    (void)state;

    memcpy(bytes, spm, sizeof(spm));
    bytes[11] = 3; /* bos: within the vocabulary; eos 6 is not */
    write_checkpoint(&file, 1);
    if (export_to(DIRECTORY "/out", -1, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(access(DIRECTORY "/out/tokenizer.model", F_OK), 0);
    assert_int_equal(access(DIRECTORY "/out/tokenizer_config.json", F_OK), 0);
    assert_int_equal(access(DIRECTORY "/out/mine.model", F_OK), -1);
    json = json_load_file(DIRECTORY "/out/config.json", 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(json, "bos_token_id")), 3);
    assert_true(json_is_null(json_object_get(json, "eos_token_id")));
    json_decref(json);
}

static void test_slices(void **state)
{
    static const int64_t shapes[][2] = {{7, 5}, {1, 100}, {3, 11}, {100, 1}, {1, 1}};
    (void)state;

    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
        for (int64_t most = 1; most < 40; most++) {
            struct tensor_slices slices;
            int64_t start[2], extent[2], seen = 0;

            tensor_slices_begin(&slices, shapes[i], most);
            while (tensor_slices_next(&slices, start, extent)) {
                /* In order and without a gap, as a file is written. */
                assert_int_equal(start[0] * shapes[i][1] + start[1], seen);
                assert_true(extent[0] >= 1 && extent[1] >= 1);
                assert_true(extent[0] == 1 || extent[1] == shapes[i][1]);
                assert_true(extent[0] * extent[1] <= most);
                seen += extent[0] * extent[1];
            }
            assert_int_equal(seen, shapes[i][0] * shapes[i][1]);
        }
}

static void test_values(void **state)
{
    enum { COUNT = 10000 };
    float *values = calloc(COUNT, sizeof(*values));
    uint16_t *halves = calloc(COUNT, sizeof(*halves));
    (void)state;

    assert_non_null(values);
    assert_non_null(halves);
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_F16; dtype++) {
        void *data = dtype == DTYPE_F32 ? (void *)values : (void *)halves;
        float bad[] = {NAN, INFINITY, -INFINITY};

        for (int i = 0; i < COUNT; i++)
            values[i] = (float)(i % 100) - 50;
        if (dtype != DTYPE_F32)
            dtype_convert(data, dtype, values, DTYPE_F32, COUNT);
        for (int i = 0; i < 3; i++) {
            int64_t at = 4095 + i * 2000;
            float good = 1;

            assert_int_equal(tensor_find_nonfinite(data, dtype, COUNT), -1);
            dtype_convert((char *)data + (size_t)at * dtype_bytes(dtype), dtype, &bad[i], DTYPE_F32,
                          1);
            assert_int_equal(tensor_find_nonfinite(data, dtype, COUNT), at);
            assert_int_equal(tensor_find_nonfinite(data, dtype, at), -1);
            dtype_convert((char *)data + (size_t)at * dtype_bytes(dtype), dtype, &good, DTYPE_F32,
                          1);
        }
    }
    /* What was infinite before is no overflow; what became so is. */
    values[10] = INFINITY;
    values[5000] = 70000;
    values[6000] = 65504;
    dtype_convert(halves, DTYPE_F16, values, DTYPE_F32, COUNT);
    assert_int_equal(tensor_find_overflow(values, DTYPE_F32, halves, DTYPE_F16, COUNT), 5000);
    assert_int_equal(tensor_find_overflow(values, DTYPE_F32, halves, DTYPE_F16, 5000), -1);
    assert_true(tensor_element(halves, DTYPE_F16, 6000) == 65504);
    free(values);
    free(halves);
}

static void test_sizes(void **state)
{
    static const struct {
        const char *text;
        int64_t bytes;
    } sizes[] = {{"5GB", 5000000000},
                 {"1", 1},
                 {"10kb", 10000},
                 {"1.5MiB", 1572864},
                 {"2TB", 2000000000000}};
    static const char *const wrong[] = {"",    "GB",  "5X",     "-1GB", "0",
                                        "nan", "inf", "1e30TB", "5 GB"};
    struct error error = {0};
    int64_t bytes;
    (void)state;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        assert_int_equal(hf_option_size("--size", sizes[i].text, &bytes, &error), 0);
        assert_int_equal(bytes, sizes[i].bytes);
    }
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        assert_int_equal(hf_option_size("--size", wrong[i], &bytes, &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_USAGE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_master, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_file_names, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_tokenizer_of_a_run, set_up, tear_down),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_sizes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
