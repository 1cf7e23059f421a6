/* Guards: token files have Megatron's bytes; no damaged file is read outside its bounds or taken
 * for whole; a writer that does not finish leaves nothing that looks like a token file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "data/random.h"
#include "data/token_file.h"

/* --- token files -------------------------------------------------------------------------------*/

static void file_write(const char *path, const void *bytes, size_t size)
{
    FILE *stream = fopen(path, "wb");

    assert_non_null(stream);
    assert_int_equal(fwrite(bytes, 1, size, stream), size);
    assert_int_equal(fclose(stream), 0);
}

static size_t file_read(const char *path, uint8_t *bytes, size_t room)
{
    FILE *stream = fopen(path, "rb");
    size_t size;

    assert_non_null(stream);
    size = fread(bytes, 1, room, stream);
    fclose(stream);
    return size;
}

/* How many directory entries begin so. */
static int count_entries(const char *beginning)
{
    DIR *directory = opendir(".");
    int count = 0;

    assert_non_null(directory);
    for (struct dirent *entry; (entry = readdir(directory));)
        count += strncmp(entry->d_name, beginning, strlen(beginning)) == 0;
    closedir(directory);
    return count;
}

static const int32_t golden_a[] = {1, 2, 3}, golden_b[] = {10, 11},
                     golden_c[] = {300, 301, 302, 31999};

static void write_golden(const char *prefix)
{
    struct token_writer *writer;
    struct error error = {0};

    if (token_writer_open(&writer, prefix, 32000, &error) < 0 ||
        token_writer_add(writer, golden_a, 3, &error) < 0 ||
        token_writer_add(writer, golden_b, 2, &error) < 0 ||
        token_writer_append(writer, golden_c, 1, &error) < 0 ||
        token_writer_append(writer, golden_c + 1, 3, &error) < 0 ||
        token_writer_end_document(writer, &error) < 0 || token_writer_commit(writer, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(token_writer_documents(writer), 3);
    assert_int_equal(token_writer_tokens(writer), 9);
    token_writer_close(writer);
}

static const uint8_t golden_data[] = {1, 0,    2,    0,    3,    0,    10,   0,    11,
                                      0, 0x2c, 0x01, 0x2d, 0x01, 0x2e, 0x01, 0xff, 0x7c};
static const uint8_t golden_index[] =
    "MMIDIDX\0\0"
    "\1\0\0\0\0\0\0\0"
    "\10"
    "\3\0\0\0\0\0\0\0"
    "\4\0\0\0\0\0\0\0"
    "\3\0\0\0\2\0\0\0\4\0\0\0"
    "\0\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0\12\0\0\0\0\0\0\0"
    "\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0";
enum { GOLDEN_INDEX_BYTES = 102 };

static void test_bytes(void **state)
{
    struct token_file *file;
    struct error error = {0};
    uint8_t bytes[256];
    int32_t tokens[4];
    (void)state;

    assert_int_equal(sizeof(golden_index) - 1, GOLDEN_INDEX_BYTES);
    write_golden("golden");
    assert_int_equal(file_read("golden.bin", bytes, sizeof(bytes)), sizeof(golden_data));
    assert_memory_equal(bytes, golden_data, sizeof(golden_data));
    assert_int_equal(file_read("golden.idx", bytes, sizeof(bytes)), GOLDEN_INDEX_BYTES);
    assert_memory_equal(bytes, golden_index, GOLDEN_INDEX_BYTES);
    assert_int_equal(count_entries("golden"), 2); /* nothing else is left */

    if (token_file_open(&file, "golden", &error) < 0)
        fail_msg("%s", error.text);
    assert_string_equal(token_file_prefix(file), "golden");
    assert_string_equal(token_file_dtype_name(file), "uint16");
    assert_int_equal(token_file_bytes_per_token(file), 2);
    assert_int_equal(token_file_sequences(file), 3);
    assert_int_equal(token_file_documents(file), 3);
    assert_int_equal(token_file_tokens(file), 9);
    assert_int_equal(token_file_size_bytes(file), 120);
    assert_int_equal(token_file_length(file, 2), 4);
    assert_int_equal(token_file_document(file, 3), 3);
    token_file_read(file, 2, 1, 3, tokens);
    assert_memory_equal(tokens, golden_c + 1, 3 * sizeof(*tokens));
    token_file_close(file);
}

/* Every integer type that Megatron may have written, and values at its ends. */
static void test_dtypes(void **state)
{
    static const struct {
        int code, width;
        const char *name;
        uint8_t bytes[16];
        int32_t tokens[2];
    } cases[] = {
        {1, 1, "uint8", {255, 7}, {255, 7}},
        {2, 1, "int8", {255, 7}, {-1, 7}},
        {3, 2, "int16", {255, 255, 0, 125}, {-1, 32000}},
        {4, 4, "int32", {255, 255, 255, 127, 1, 0, 0, 128}, {INT32_MAX, -INT32_MAX}},
        {5, 8, "int64", {9, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1}, {9, INT32_MAX}},
        {8, 2, "uint16", {255, 255, 0, 125}, {65535, 32000}},
    };
    struct error error = {0};
    (void)state;

    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        uint8_t index[34 + 12 + 16] = "MMIDIDX\0\0\1";
        struct token_file *file;
        int32_t tokens[2];

        index[17] = (uint8_t)cases[c].code;
        index[18] = 1;
        index[26] = 2;
        index[34] = 2;
        index[34 + 12 + 8] = 1;
        file_write("typed.idx", index, sizeof(index));
        file_write("typed.bin", cases[c].bytes, (size_t)cases[c].width * 2);
        if (token_file_open(&file, "typed", &error) < 0)
            fail_msg("%s", error.text);
        assert_string_equal(token_file_dtype_name(file), cases[c].name);
        token_file_read(file, 0, 0, 2, tokens);
        assert_memory_equal(tokens, cases[c].tokens, sizeof(tokens));
        token_file_close(file);
    }
}

/* Megatron's rule: uint16 below 65500. */
static void test_width(void **state)
{
    (void)state;

    for (int64_t vocab = 65499; vocab <= 65500; vocab++) {
        int32_t token = (int32_t)vocab - 1, seen = -1;
        struct token_writer *writer;
        struct token_file *file;
        struct error error = {0};

        assert_int_equal(token_writer_open(&writer, "width", vocab, &error), 0);
        assert_int_equal(token_writer_add(writer, &token, 1, &error), 0);
        assert_int_equal(token_writer_add(writer, NULL, 0, &error), 0);
        token++;
        assert_int_equal(token_writer_append(writer, &token, 1, &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_DATA);
        assert_int_equal(token_writer_commit(writer, &error), 0);
        token_writer_close(writer);
        assert_int_equal(token_file_open(&file, "width", &error), 0);
        assert_int_equal(token_file_bytes_per_token(file), vocab < 65500 ? 2 : 4);
        assert_int_equal(token_file_length(file, 1), 0);
        token_file_read(file, 0, 0, 1, &seen);
        assert_int_equal(seen, vocab - 1);
        token_file_close(file);
    }
}

/* --- damage ------------------------------------------------------------------------------------*/

static void assert_refused(const char *prefix, int status, const char *word)
{
    struct token_file *file = NULL;
    struct error error = {0};

    assert_int_equal(token_file_open(&file, prefix, &error), -1);
    assert_null(file);
    assert_int_equal(error.status, status);
    if (!strstr(error.text, word))
        fail_msg("\"%s\" does not say \"%s\"", error.text, word);
}

static void test_damage(void **state)
{
    static const struct {
        size_t offset;
        uint8_t byte;
        const char *word; /* of the message */
    } changes[] = {
        {0, 'X', "magic"},
        {8, 1, "magic"},
        {9, 2, "version 2, expected 1"},
        {16, 255, "version"},
        {17, 6, "dtype code 6"},
        {17, 0, "dtype code 0"},
        {17, 4, "offset 6, expected 12"},
        {17, 1, "offset 6, expected 3"},
        {18, 4, "sequences"},
        {25, 255, "sequences"}, /* a count whose bytes overflow 64 bits */
        {26, 3, "entries"},
        {33, 128, "entries"},
        {34, 2, "offset 6, expected 4"},
        {37, 128, "length -"},
        {42, 5, "sequence 2 end at 20"},
        {46, 1, "offset 1, expected 0"},
        {53, 128, "at offset -"},
        {62, 11, "offset 11, expected 10"},
        {69, 127, "at offset"},
        {70, 1, "first document begins at sequence 1"},
        {78, 3, "document 2 begins at sequence 2, expected 3"},
        {86, 4, "document 2 begins at sequence 4"},
        {93, 255, "document 2 begins"},
        {94, 2, "ends at sequence 2, expected 3"},
    };
    uint8_t index[GOLDEN_INDEX_BYTES + 8] = {0};
    (void)state;

    file_write("damaged.bin", golden_data, sizeof(golden_data));
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        memcpy(index, golden_index, GOLDEN_INDEX_BYTES);
        index[changes[i].offset] = changes[i].byte;
        file_write("damaged.idx", index, GOLDEN_INDEX_BYTES);
        assert_refused("damaged", EXIT_STATUS_DATA, changes[i].word);
        assert_refused("damaged", EXIT_STATUS_DATA, "damaged.");
    }

    for (size_t size = 0; size < GOLDEN_INDEX_BYTES; size++) {
        file_write("damaged.idx", golden_index, size);
        assert_refused("damaged", EXIT_STATUS_DATA, "cut short");
    }
    memcpy(index, golden_index, GOLDEN_INDEX_BYTES);
    file_write("damaged.idx", index, GOLDEN_INDEX_BYTES + 8);
    assert_refused("damaged", EXIT_STATUS_DATA, "entries");
    file_write("damaged.idx", "TNTIDX\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 34);
    assert_refused("damaged", EXIT_STATUS_DATA, "TNTIDX");

    file_write("damaged.idx", golden_index, GOLDEN_INDEX_BYTES);
    for (size_t size = 0; size < sizeof(golden_data); size++) {
        file_write("damaged.bin", golden_data, size);
        assert_refused("damaged", EXIT_STATUS_DATA, "cut short");
    }
    file_write("damaged.bin", golden_index, sizeof(golden_data) + 1);
    assert_refused("damaged", EXIT_STATUS_DATA, "belong together");
    unlink("damaged.bin");
    assert_refused("damaged", EXIT_STATUS_IO, "damaged.bin");
    assert_refused("missing", EXIT_STATUS_IO, "no token file missing");
    assert_int_equal(mkdir("damaged.bin", 0777), 0);
    assert_refused("damaged", EXIT_STATUS_IO, "not a regular file");
    rmdir("damaged.bin");
}

/* Megatron-LLM's instruction files hold one document entry however many sequences they have. */
static void test_no_documents(void **state)
{
    uint8_t index[GOLDEN_INDEX_BYTES];
    struct token_file *file;
    struct error error = {0};
    (void)state;

    memcpy(index, golden_index, GOLDEN_INDEX_BYTES);
    index[26] = 1;
    file_write("single.idx", index, GOLDEN_INDEX_BYTES - 24);
    file_write("single.bin", golden_data, sizeof(golden_data));
    assert_int_equal(token_file_open(&file, "single", &error), 0);
    assert_int_equal(token_file_documents(file), 3);
    assert_int_equal(token_file_document(file, 2), 2);
    assert_int_equal(token_file_document(file, 3), 3);
    token_file_close(file);
}

/* Change bytes anywhere; what still opens must be readable to its last token. The data is a whole
 * number of pages, so that a read beyond it is a fault and not the rest of a page. */
static void test_random_damage(void **state)
{
    enum { ROUNDS = 5000, SEQUENCES = 16, TOKENS = 16384 };
    static uint8_t index[34 + 12 * SEQUENCES + 8 * (SEQUENCES + 1)], whole[sizeof(index)];
    static int32_t tokens[8 * TOKENS];
    struct random_state random;
    struct token_writer *writer;
    struct error error = {0};
    int opened = 0;
    (void)state;

    assert_int_equal(token_writer_open(&writer, "mutant", 1000, &error), 0);
    for (int i = 0; i < SEQUENCES; i++)
        assert_int_equal(token_writer_add(writer, tokens, TOKENS / SEQUENCES, &error), 0);
    assert_int_equal(token_writer_commit(writer, &error), 0);
    token_writer_close(writer);
    assert_int_equal(file_read("mutant.idx", whole, sizeof(whole)), sizeof(whole));
    random_seed(&random, 1);
    for (int round = 0; round < ROUNDS; round++) {
        int changes = 1 + (int)random_interval(&random, 3);
        struct token_file *file = NULL;

        memcpy(index, whole, sizeof(index));
        for (int i = 0; i < changes; i++)
            index[random_interval(&random, sizeof(index) - 1)] ^=
                (uint8_t)(1 << random_interval(&random, 7));
        file_write("mutant.idx", index, sizeof(index));
        if (token_file_open(&file, "mutant", &error) < 0) {
            assert_int_equal(error.status, EXIT_STATUS_DATA);
            continue;
        }
        opened++;
        for (int64_t i = 0; i < token_file_sequences(file); i++) {
            assert_in_range(token_file_length(file, i), 0, sizeof(tokens) / sizeof(*tokens));
            token_file_read(file, i, 0, token_file_length(file, i), tokens);
        }
        for (int64_t i = 0; i <= token_file_documents(file); i++)
            assert_in_range(token_file_document(file, i), 0, token_file_sequences(file));
        token_file_close(file);
    }
    assert_in_range(opened, 1, ROUNDS - 1); /* both ways were walked */
}

/* --- writers that do not finish ----------------------------------------------------------------*/

static void test_abandoned(void **state)
{
    struct token_writer *writer;
    struct error error = {0};
    (void)state;

    assert_int_equal(token_writer_open(&writer, "abandoned", 1000, &error), 0);
    assert_int_equal(token_writer_add(writer, golden_a, 3, &error), 0);
    assert_int_equal(count_entries("abandoned"), 2);
    token_writer_close(writer);
    assert_int_equal(count_entries("abandoned"), 0);
    assert_int_equal(token_writer_open(&writer, "no/such/directory", 1000, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_IO);
    assert_non_null(strstr(error.text, "no/such/directory."));
    token_writer_close(NULL);
    token_file_close(NULL);
}

static void test_killed(void **state)
{
    struct token_file *file;
    struct error error = {0};
    pid_t child;
    int status;
    (void)state;

    write_golden("killed");
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct token_writer *writer;

        if (token_writer_open(&writer, "killed", 1000, &error) < 0)
            _exit(1);
        for (int i = 0; i < 1000000; i++)
            if (token_writer_add(writer, golden_b, 2, &error) < 0)
                _exit(2);
        kill(getpid(), SIGKILL);
        _exit(3);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    if (token_file_open(&file, "killed", &error) < 0) /* the older one is whole */
        fail_msg("%s", error.text);
    assert_int_equal(token_file_tokens(file), 9);
    token_file_close(file);
}

/* A disk that is full, as a limit on the size of files shows it. */
static void test_full(void **state)
{
    pid_t child;
    int status;
    (void)state;

    write_golden("full");
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct rlimit limit = {100000, 100000};
        struct token_writer *writer;
        struct error error = {0};
        int failed = 0;

        signal(SIGXFSZ, SIG_IGN);
        if (setrlimit(RLIMIT_FSIZE, &limit) < 0 ||
            token_writer_open(&writer, "full", 1000, &error) < 0)
            _exit(1);
        for (int i = 0; i < 1000000 && !failed; i++)
            failed = token_writer_add(writer, golden_b, 2, &error) < 0;
        failed = failed || token_writer_commit(writer, &error) < 0;
        token_writer_close(writer);
        _exit(failed && error.status == EXIT_STATUS_IO && strstr(error.text, "full.") ? 0 : 2);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(count_entries("full"), 2);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),        cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_width),        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_no_documents), cmocka_unit_test(test_random_damage),
        cmocka_unit_test(test_abandoned),    cmocka_unit_test(test_killed),
        cmocka_unit_test(test_full),
    };
    char directory[] = "test_data.XXXXXX", command[64];
    int failed;

    if (!mkdtemp(directory) || chdir(directory) < 0) {
        perror(directory);
        return 1;
    }
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof(command), "rm -rf ../%s", directory);
    return system(command) != 0 || failed;
}
