/* Guards: safetensors files that transformers wrote are read to the bit; what is written has the
 * layout other readers ask for; a file or an index that lies about itself in any of the ways listed
 * here is refused as bad data, by file and tensor, before a byte of it is used. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/hf_tensors.h"
#include "ckpt/safetensors.h"

#define DIRECTORY "test_safetensors.dir"

static void write_bytes(const char *path, const void *bytes, size_t size)
{
    FILE *stream = fopen(path, "wb");

    if (!stream) {
        fail_msg("%s: %s", path, strerror(errno));
        return;
    }
    assert_int_equal(fwrite(bytes, 1, size, stream), size);
    assert_int_equal(fclose(stream), 0);
}

/* A file of a given header and `data` bytes of data, all 7. */
static void write_tensors(const char *path, const char *header, size_t data)
{
    uint64_t length = strlen(header), little_endian = htole64(length);
    FILE *stream = fopen(path, "wb");

    if (!stream) {
        fail_msg("%s: %s", path, strerror(errno));
        return;
    }
    assert_int_equal(fwrite(&little_endian, 8, 1, stream), 1);
    assert_int_equal(fwrite(header, 1, length, stream), length);
    for (size_t i = 0; i < data; i++)
        assert_int_equal(fputc(7, stream), 7);
    assert_int_equal(fclose(stream), 0);
}

static void assert_open_refused(const char *words)
{
    struct safetensors *set;
    struct error error = {0};

    if (safetensors_open(&set, "bad.safetensors", &error) == 0)
        fail_msg("accepted; expected \"%s\"", words);
    assert_null(set);
    if (error.status != EXIT_STATUS_DATA || !strstr(error.text, words) ||
        strncmp(error.text, "bad.safetensors: ", 17) != 0)
        fail_msg("status %d, \"%s\" does not say \"%s\"", error.status, error.text, words);
}

static void assert_header_refused(const char *header, size_t data, const char *words)
{
    write_tensors("bad.safetensors", header, data);
    assert_open_refused(words);
    unlink("bad.safetensors");
}

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}"
#define B "\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]}"

static void test_read(void **state)
{
    struct safetensors *set;
    const struct safetensors_tensor *tensor;
    struct error error = {0};
    char text[64];
    unsigned char bytes[6];
    (void)state;

    write_tensors("good.safetensors",
                  "{" B
                  ",\"__metadata__\":{\"format\":\"pt\"},\"empty\":{\"dtype\":\"I64\",\"shape\":"
                  "[0,5],\"data_offsets\":[16,16]}," A
                  ",\"scalar\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[22,23]}}   ",
                  23);
    if (safetensors_open(&set, "good.safetensors", &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(safetensors_count(set), 4);
    assert_string_equal(safetensors_get(set, 0)->name, "a");
    assert_string_equal(safetensors_get(set, 3)->name, "scalar");
    tensor = safetensors_find(set, "b");
    assert_non_null(tensor);
    assert_int_equal(tensor->dtype, DTYPE_BF16);
    assert_int_equal(tensor->bytes, 6);
    assert_string_equal(safetensors_shape_text(tensor, text, sizeof(text)), "[3]");
    assert_int_equal(safetensors_read(set, tensor, 0, 6, bytes, &error), 0);
    assert_int_equal(bytes[0], 7);
    assert_int_equal(bytes[5], 7);
    assert_int_equal(safetensors_read(set, tensor, 4, 3, bytes, &error), -1);
    assert_int_equal(safetensors_find(set, "empty")->dtype, -1);
    assert_null(safetensors_find(set, "c"));
    safetensors_close(set);
    unlink("good.safetensors");
}

static void test_lengths(void **state)
{
    (void)state;
    write_bytes("bad.safetensors", "", 0);
    assert_open_refused("too short");
    write_bytes("bad.safetensors", "\2\0\0\0\0\0\0", 7);
    assert_open_refused("too short");
    write_bytes("bad.safetensors", "\3\0\0\0\0\0\0\0{}", 10);
    assert_open_refused("header of 3 bytes");
    write_bytes("bad.safetensors", "\377\377\377\377\377\377\377\377{}", 10);
    assert_open_refused("header of 18446744073709551615 bytes");
    write_bytes("bad.safetensors", "\0\0\0\0\0\0\0\0", 8);
    assert_open_refused("does not begin");
    unlink("bad.safetensors");
    assert_int_equal(mkdir("bad.safetensors", 0777), 0);
    assert_open_refused("not a regular file");
    rmdir("bad.safetensors");
    assert_int_equal(mkfifo("bad.safetensors", 0666), 0);
    assert_open_refused("not a regular file");
    unlink("bad.safetensors");
}

static void test_headers(void **state)
{
    char *deep = malloc(300000);
    (void)state;

    assert_header_refused("{" A, 16, "not a safetensors header");
    assert_header_refused(" {" A "}", 16, "does not begin");
    assert_header_refused("[]", 0, "does not begin");
    assert_header_refused("{" A "," A "}", 16, "duplicate object key \"a\"");
    assert_header_refused(
        "{\"a \\\"long\\\" tensor's name\":{},\"a \\\"long\\\" tensor's name\":{}}", 0,
        "duplicate object key \"a \\\"long\\\" tensor's name\"");
    assert_header_refused("{\"a\\n\\u001b[2J\\u009b\":{}}", 0, "tensor a??[2J?? has no dtype");
    assert_header_refused("{\"a\\u0000b\":{}}", 0, "not a safetensors header");
    assert_header_refused("{" A "}", 15, "tensor a: data_offsets 0 to 16 are not inside");
    assert_header_refused("{" A "}", 17, "1 bytes at the end");
    assert_header_refused("{" B "}", 22, "16 bytes before tensor b");
    assert_header_refused("{" A
                          ",\"c\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[14,18]}}",
                          18, "tensors a and c overlap");
    assert_header_refused("{" A ",\"c\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}",
                          16, "overlap");
    assert_header_refused("{\"a\":3}", 0, "tensor a");
    assert_header_refused("{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
                          "tensor a has no dtype");
    assert_header_refused("{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
                          "tensor a: unknown dtype F31");
    assert_header_refused("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1,
                          "tensor a has no shape");
    assert_header_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 1,
                          "tensor a: dimension 0");
    assert_header_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 1,
                          "tensor a: dimension 0");
    assert_header_refused(
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
        "tensor a: shape overflows");
    assert_header_refused(
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
        "tensor a: shape overflows");
    assert_header_refused("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2,
                          "whole number of bytes");
    assert_header_refused(
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
        "9 dimensions");
    assert_header_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "no data_offsets");
    assert_header_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1,
                          "no data_offsets");
    assert_header_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 1,
                          "not inside");
    assert_header_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}}", 1,
                          "not inside");
    assert_header_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,1]}}", 1,
                          "ask for 2 bytes");
    assert_non_null(deep);
    memset(deep, '[', 299999);
    memcpy(deep, "{\"a\":", 5);
    deep[299999] = '\0';
    assert_header_refused(deep, 0, "not a safetensors header");
    free(deep);
}

/* What is nothing but brackets takes a hundred times its size when it is parsed. */
static void test_wide(void **state)
{
    size_t count = 3 << 20;
    char *text = malloc(count * 3 + 100);
    char *end = stpcpy(text, "{\n\"a\":[");
    (void)state;

    for (size_t i = 0; i < count; i++)
        end = stpcpy(end, "{},");
    strcpy(end, "0]}");
    assert_header_refused(text, 0, "not a safetensors header: holds more than 2097152 values");
    free(text);
}

static void assert_model_refused(const char *words, const char *more)
{
    struct safetensors *set;
    struct error error = {0};

    if (safetensors_open_model(&set, DIRECTORY, &error) == 0)
        fail_msg("accepted; expected \"%s\"", words);
    assert_null(set);
    if (error.status != EXIT_STATUS_DATA || !strstr(error.text, words) ||
        !strstr(error.text, more) || strncmp(error.text, DIRECTORY, strlen(DIRECTORY)) != 0)
        fail_msg("status %d, \"%s\" does not say \"%s\" and \"%s\"", error.status, error.text,
                 words, more);
}

static void write_index(const char *text)
{
    write_bytes(DIRECTORY "/model.safetensors.index.json", text, strlen(text));
}

#define MAP(text) "{\"metadata\":{},\"weight_map\":{" text "}}"

static void test_index(void **state)
{
    char name[400];
    struct safetensors *set;
    struct error error = {0};
    (void)state;

    mkdir(DIRECTORY, 0777);
    assert_model_refused("neither model.safetensors nor", "");
    write_bytes(DIRECTORY "/pytorch_model.bin", "x", 1);
    assert_model_refused("pytorch_model.bin", "save_pretrained");
    write_tensors(DIRECTORY "/one", "{" A "}", 16);
    write_tensors(DIRECTORY "/two",
                  "{\"b\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[0,6]}}", 6);
    write_index(MAP("\"a\":\"one\",\"b\":\"two\""));
    if (safetensors_open_model(&set, DIRECTORY, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(safetensors_count(set), 2);
    assert_string_equal(safetensors_find(set, "b")->path, DIRECTORY "/two");
    safetensors_close(set);

    write_index("{");
    assert_model_refused("index.json:1:", "");
    write_index("{\"weight_map\":[]}");
    assert_model_refused("no weight_map", "");
    write_index(MAP(""));
    assert_model_refused("empty", "");
    write_index(MAP("\"a\":\"one\",\"b\":\"../two\""));
    assert_model_refused("tensor b", "\"../two\"");
    write_index(MAP("\"a\":\"one\",\"b\":\"/etc/passwd\""));
    assert_model_refused("tensor b", "\"/etc/passwd\"");
    write_index(MAP("\"a\":\"..\""));
    assert_model_refused("tensor a", "\"..\"");
    write_index(MAP("\"a\":\".\""));
    assert_model_refused("tensor a", "\".\"");
    write_index(MAP("\"a\":\"\""));
    assert_model_refused("tensor a", "\"\"");
    for (int length = 255; length <= 256; length++) { /* of a file's name in Linux: at most 255 */
        snprintf(name, sizeof(name), MAP("\"a\":\"%0*d\""), length, 0);
        write_index(name);
        assert_model_refused(length > 255 ? "tensor a into" : "000: missing", "index.json");
    }
    write_index(MAP("\"a\":3"));
    assert_model_refused("tensor a", "something");
    write_index(MAP("\"a\":\"one\",\"a\":\"two\""));
    assert_model_refused("duplicate object key \"a\"", "");
    write_index(MAP("\"a\":\"one\",\"b\":\"three\""));
    assert_model_refused(DIRECTORY "/three: missing", "index.json names it");
    write_index(MAP("\"a\":\"one\",\"b\":\"two\",\"c\":\"two\""));
    assert_model_refused("tensor c is not in two", "index.json");
    write_index(MAP("\"a\":\"one\",\"0\":\"one\",\"b\":\"two\""));
    assert_model_refused("tensor 0 is not in one", "index.json");
    write_index(MAP("\"a\":\"one\""));
    safetensors_open_model(&set, DIRECTORY, &error); /* two is not asked for */
    safetensors_close(set);
    write_tensors(DIRECTORY "/one", "{" A "," B "}", 22);
    assert_model_refused(DIRECTORY "/one: tensor b is not in the weight_map", "");
    write_index(MAP("\"a\":\"one\",\"b\":\"two\""));
    assert_model_refused("tensor b is in ", "too");
    write_index(MAP("\"a\":\"two\",\"b\":\"one\""));
    unlink(DIRECTORY "/two");
    write_tensors(DIRECTORY "/two", "{}", 0);
    assert_model_refused("tensor a is not in two but in one", "");

    /* A single file wins, as in transformers. */
    write_tensors(DIRECTORY "/model.safetensors", "{" A "}", 16);
    assert_int_equal(safetensors_open_model(&set, DIRECTORY, &error), 0);
    assert_int_equal(safetensors_count(set), 1);
    safetensors_close(set);
    unlink(DIRECTORY "/model.safetensors");
    unlink(DIRECTORY "/model.safetensors.index.json");
    unlink(DIRECTORY "/pytorch_model.bin");
    unlink(DIRECTORY "/one");
    unlink(DIRECTORY "/two");
    assert_int_equal(rmdir(DIRECTORY), 0);
}

static void test_write(void **state)
{
    const struct safetensors_entry entries[] = {
        {"z", DTYPE_F32, 2, {2, 3}}, {"y", DTYPE_BF16, 1, {5, 1}}, {"x", DTYPE_F16, 2, {1, 1}}};
    struct safetensors_writer *writer;
    struct safetensors *set;
    struct error error = {0};
    struct stat status;
    char data[36], back[36];
    (void)state;

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (char)(i + 1);
    assert_int_equal(safetensors_writer_open(&writer, "new.safetensors", entries, 3, &error), 0);
    assert_int_equal(safetensors_writer_append(writer, data, 10, &error), 0);
    /* Not all of it: refused, and nothing is left. */
    assert_int_equal(safetensors_writer_commit(writer, &error), -1);
    safetensors_writer_close(writer);
    assert_int_equal(access("new.safetensors", F_OK), -1);
    assert_int_equal(access("new.safetensors.tmp", F_OK), -1);

    assert_int_equal(safetensors_writer_open(&writer, "new.safetensors", entries, 3, &error), 0);
    assert_int_equal(safetensors_writer_append(writer, data, 10, &error), 0);
    assert_int_equal(safetensors_writer_append(writer, data + 10, 26, &error), 0);
    assert_int_equal(safetensors_writer_append(writer, data, 1, &error), -1);
    assert_int_equal(access("new.safetensors", F_OK), -1);
    assert_int_equal(safetensors_writer_commit(writer, &error), 0);
    safetensors_writer_close(writer);
    assert_int_equal(access("new.safetensors.tmp", F_OK), -1);
    assert_int_equal(stat("new.safetensors", &status), 0);
    assert_int_equal(status.st_size, 4096 + 36);

    if (safetensors_open(&set, "new.safetensors", &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(safetensors_count(set), 3);
    assert_int_equal(safetensors_find(set, "z")->offset, 4096);
    assert_int_equal(safetensors_read(set, safetensors_find(set, "z"), 0, 24, back, &error), 0);
    assert_memory_equal(back, data, 24);
    assert_int_equal(safetensors_read(set, safetensors_find(set, "y"), 0, 10, back, &error), 0);
    assert_memory_equal(back, data + 24, 10);
    assert_int_equal(safetensors_read(set, safetensors_find(set, "x"), 0, 2, back, &error), 0);
    assert_memory_equal(back, data + 34, 2);
    safetensors_close(set);
    unlink("new.safetensors");

    assert_int_equal(
        safetensors_writer_open(&writer, "missing/new.safetensors", entries, 3, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_IO);
    assert_non_null(strstr(error.text, "missing/new.safetensors"));
}

/* The golden model's tensors are exactly those that its description asks for. */
static void check_golden(const char *name, const struct model *model)
{
    const char *source = getenv("srcdir");
    struct safetensors *set;
    struct error error = {0};
    char directory[4096];
    size_t count = hf_tensor_count(model);

    snprintf(directory, sizeof(directory), "%s/tests/golden/models/%s", source ? source : ".",
             name);
    if (safetensors_open_model(&set, directory, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(safetensors_count(set), count);
    for (size_t i = 0; i < count; i++) {
        const struct safetensors_tensor *found;
        struct hf_tensor tensor;

        hf_tensor_get(model, i, &tensor);
        found = safetensors_find(set, tensor.name);
        if (!found) {
            fail_msg("no %s", tensor.name);
            return;
        }
        assert_true(hf_tensor_known(model, tensor.name));
        assert_int_equal(found->dimensions, tensor.dimensions);
        assert_int_equal(found->shape[0], tensor.shape[0]);
        if (tensor.dimensions == 2)
            assert_int_equal(found->shape[1], tensor.shape[1]);
    }
    safetensors_close(set);
}

static void test_golden(void **state)
{
    struct model model = {
        .layers = 3,
        .hidden_size = 64,
        .ffn_size = 160,
        .heads = 4,
        .kv_heads = 4,
        .head_dim = 16,
        .vocab_size = 256,
    };
    (void)state;

    check_golden("llama-mha", &model);
    assert_false(hf_tensor_known(&model, "model.layers.3.input_layernorm.weight"));
    assert_false(hf_tensor_known(&model, "model.layers.00.input_layernorm.weight"));
    assert_false(hf_tensor_known(&model, "model.layers.0.self_attn.q_proj.bias"));
    model.kv_heads = 2;
    model.ffn_size = 176;
    model.tied_embeddings = true;
    check_golden("llama-gqa-tied", &model);
    assert_false(hf_tensor_known(&model, "lm_head.weight"));
    assert_true(hf_tensor_is_buffer("model.layers.31.self_attn.rotary_emb.inv_freq"));
    assert_false(hf_tensor_is_buffer("model.layers.31.self_attn.inv_freq"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),    cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_headers), cmocka_unit_test(test_wide),
        cmocka_unit_test(test_index),   cmocka_unit_test(test_write),
        cmocka_unit_test(test_golden),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
