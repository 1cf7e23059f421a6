/* Whole files, and bytes, in tests of what is written. Behind cmocka.h. */
#ifndef MTLLM_TRAINER_TEST_BYTES_H
#define MTLLM_TRAINER_TEST_BYTES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct bytes {
    unsigned char *data;
    size_t length;
};

/* data: the caller's to free. */
static inline struct bytes read_bytes(const char *path)
{
    struct bytes bytes = {0};
    struct stat status;
    FILE *stream = fopen(path, "r");

    if (!stream)
        fail_msg("%s is missing", path);
    assert_int_equal(fstat(fileno(stream), &status), 0);
    bytes.length = (size_t)status.st_size;
    bytes.data = malloc(bytes.length + 1);
    assert_non_null(bytes.data);
    assert_int_equal(fread(bytes.data, 1, bytes.length, stream), bytes.length);
    fclose(stream);
    return bytes;
}

static inline void write_bytes(const char *path, const void *data, size_t length)
{
    FILE *stream = fopen(path, "w");

    assert_non_null(stream);
    assert_int_equal(fwrite(data, 1, length, stream), length);
    assert_int_equal(fclose(stream), 0);
}

static inline void check_hex(const void *bytes, size_t length, const char *expected)
{
    char text[512] = "";

    assert_true(length < sizeof(text) / 2);
    for (size_t i = 0; i < length; i++)
        snprintf(text + 2 * i, 3, "%02x", ((const unsigned char *)bytes)[i]);
    assert_string_equal(text, expected);
}

#endif
