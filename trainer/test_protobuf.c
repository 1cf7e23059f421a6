/* Guards: protobuf's bytes and checksums are the known ones; W&B's file keeps every whole record,
 * wherever its blocks end and wherever it is cut off.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "trainer/protobuf.h"
#include "trainer/test_bytes.h"
#include "trainer/wandb_file.h"

static void test_protobuf(void **state)
{
    struct protobuf buffer = {0};
    struct protobuf_field field;
    const unsigned char *at;
    char long_text[301];
    size_t outer, inner;
    (void)state;

    protobuf_integer(&buffer, 1, 150);
    protobuf_integer(&buffer, 16, -1);
    protobuf_text(&buffer, 2, "testing");
    outer = protobuf_begin(&buffer, 3);
    inner = protobuf_begin(&buffer, 3);
    protobuf_float(&buffer, 2, 0.5F);
    protobuf_end(&buffer, inner);
    protobuf_end(&buffer, outer);
    protobuf_double(&buffer, 1, 2);
    protobuf_text(&buffer, 2, "a\xff\xc3\xa4");
    protobuf_text(&buffer, 2, "\xc3\xa4");
    check_hex(buffer.bytes, buffer.length,
              "089601"
              "8001ffffffffffffffffff01"
              "120774657374696e67"
              "1a071a05150000003f"
              "090000000000000040"
              "1204613f3f3f"
              "1202c3a4");

    /* A length of two bytes, found out behind the message. */
    memset(long_text, 'x', 300);
    long_text[300] = '\0';
    protobuf_clear(&buffer);
    outer = protobuf_begin(&buffer, 5);
    protobuf_text(&buffer, 6, long_text);
    protobuf_end(&buffer, outer);
    assert_true(protobuf_find(buffer.bytes, buffer.length, 5, &field));
    assert_int_equal(field.length, 303);
    assert_true(protobuf_find(field.bytes, field.length, 6, &field));
    assert_int_equal(field.length, 300);
    assert_memory_equal(field.bytes, long_text, 300);
    assert_false(protobuf_find(buffer.bytes, buffer.length, 4, &field));
    /* Part of a message is no field, wherever it is cut. */
    for (size_t length = 0; length < buffer.length; length++) {
        at = buffer.bytes;
        assert_false(protobuf_next(&at, buffer.bytes + length, &field));
    }
    protobuf_destroy(&buffer);
}

static void test_checksums(void **state)
{
    (void)state;
    assert_int_equal(crc32_castagnoli("123456789", 9), 0xe3069283);
    assert_int_equal(crc32_ieee(0, "123456789", 9), 0xcbf43926);
    assert_int_equal(crc32_ieee(crc32_ieee(0, "\x01", 1), "abc", 3), 0x539d20a9);
}

static bool keep_all(void *user, const unsigned char *record, size_t length)
{
    (void)record;
    *(size_t *)user += length;
    return true;
}

/* No record gets in front of the header that there was no room for. */
static void check_no_room_to_begin(void)
{
    struct wandb_file file;
    struct rlimit limit, old;
    struct error error;
    size_t seen = 0;

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = 0;
    (void)unlink("begun");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(wandb_file_open(&file, "begun", keep_all, &seen, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_IO);
    wandb_file_close(&file);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(wandb_file_open(&file, "begun", keep_all, &seen, &error), 0);
        wandb_file_close(&file);
    }
}

/* Records of many lengths, so that blocks end at every place in and between them; each is found
 * again, and of a file that is cut off all whole ones. */
static void test_wandb_file(void **state)
{
    struct wandb_file file;
    struct protobuf record = {0};
    struct error error = {0};
    struct bytes bytes;
    size_t seen = 0, written = 0;
    (void)state;

    assert_int_equal(wandb_file_open(&file, "framing", keep_all, &seen, &error), 0);
    protobuf_append(&record, "abc", 3);
    assert_true(wandb_file_append(&file, &record));
    wandb_file_close(&file);
    bytes = read_bytes("framing");
    check_hex(bytes.data, bytes.length, "3a572642e1be00a9209d53030001616263");
    free(bytes.data);

    for (int i = 0; i < 400; i++) {
        size_t before = 0, length = i < 20 ? (size_t)i * 7001 : (size_t)i * 37 % 4099;

        assert_int_equal(wandb_file_open(&file, "framing", keep_all, &before, &error), 0);
        assert_int_equal(before, 3 + written);
        protobuf_clear(&record);
        for (size_t j = 0; j < length; j++)
            protobuf_append(&record, &(unsigned char){(unsigned char)j}, 1);
        /* Up to a few bytes before the end of the block. */
        if (i >= 20 && i % 4 == 0) {
            int64_t left = 32768 - file.file.size % 32768 - 7 - i / 4 % 12;

            record.length = left > 0 && (size_t)left <= length ? (size_t)left : length;
        }
        assert_true(wandb_file_append(&file, &record));
        written += record.length;
        wandb_file_close(&file);
    }
    /* One byte short: the last record is gone, and what was before it stays. */
    bytes = read_bytes("framing");
    assert_int_equal(truncate("framing", (off_t)bytes.length - 1), 0);
    free(bytes.data);
    seen = 0;
    assert_int_equal(wandb_file_open(&file, "framing", keep_all, &seen, &error), 0);
    assert_true(record.length > 0);
    assert_int_equal(seen, 3 + written - record.length);
    wandb_file_close(&file);
    check_no_room_to_begin();
    write_bytes("other", "something else", 14);
    assert_int_equal(wandb_file_open(&file, "other", keep_all, &seen, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    protobuf_destroy(&record);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_protobuf),
        cmocka_unit_test(test_checksums),
        cmocka_unit_test(test_wandb_file),
    };
    char directory[] = "/tmp/mtllm-test-protobuf-XXXXXX", command[64];
    int failed;

    if (!mkdtemp(directory) || chdir(directory) != 0)
        return 99;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof(command), "rm -r %s", directory);
    return system(command) == 0 ? failed : 99;
}
