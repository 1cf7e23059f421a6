/* Guards: the order of samples and the splits are Megatron's, number for number; token files have
 * Megatron's bytes; no damaged file is read outside its bounds or taken for whole; a writer that
 * does not finish leaves nothing that looks like a token file. */
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

#include "data/dataset.h"
#include "data/random.h"
#include "data/test_sha256.h"
#include "data/token_file.h"

/* --- sample order ------------------------------------------------------------------------------*/

static void assert_i64(const int64_t *values, const int64_t *expected, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (values[i] != expected[i])
            fail_msg("element %zu is %lld, expected %lld", i, (long long)values[i],
                     (long long)expected[i]);
}

struct order {
    int64_t samples, epochs;
    int64_t documents[16], document_count;
    int64_t rows[40], row_count; /* rows of two */
    int64_t shuffle[20];
};

/* Documents of 5, 3, 7, 2 and 6 tokens, samples of 4, seed 1234. */
static const struct order orders[] = {
    {4, 1, {4, 0, 1, 2, 3}, 5, {0, 0, 0, 4, 1, 2, 2, 1, 3, 2, 3, 6}, 6, {3, 2, 1, 0, 4}},
    {8,
     2,
     {4, 0, 1, 2, 3, 3, 2, 1, 0, 4},
     10,
     {0, 0, 0, 4, 1, 2, 2, 1, 3, 2, 3, 6, 5, 1, 6, 3, 7, 0, 8, 1, 9, 0, 9, 4},
     12,
     {2, 0, 4, 3, 1, 6, 10, 7, 5, 9, 8}},
    {12,
     3,
     {2, 2, 4, 1, 0, 3, 4, 0, 1, 3, 0, 4, 3, 2, 1},
     15,
     {0, 0, 0, 4, 1, 1, 1,  5, 2,  2, 3,  0, 4,  1, 5,  0, 6,  2,
      7, 0, 7, 4, 9, 0, 10, 2, 11, 1, 11, 5, 13, 1, 13, 5, 14, 2},
     18,
     {3, 9, 2, 1, 7, 5, 4, 0, 8, 6, 10, 16, 12, 15, 14, 11, 13}},
};

static void test_order_small(void **state)
{
    static const int32_t sizes[] = {5, 3, 7, 2, 6};
    (void)state;

    for (size_t c = 0; c < sizeof(orders) / sizeof(orders[0]); c++) {
        const struct order *order = &orders[c];
        struct sample_index index;
        struct error error = {0};

        if (sample_index_build(&index, sizes, 0, 5, order->samples, 4, 1234, &error) < 0)
            fail_msg("%s", error.text);
        assert_int_equal(index.epochs, order->epochs);
        assert_int_equal(index.document_count, order->document_count);
        assert_int_equal(index.sample_count + 1, order->row_count);
        for (int64_t i = 0; i < index.document_count; i++)
            assert_int_equal(index.documents[i], order->documents[i]);
        assert_i64(index.samples, order->rows, (size_t)(2 * order->row_count));
        assert_i64(index.shuffle, order->shuffle, (size_t)index.sample_count);
        sample_index_destroy(&index);
    }
}

/* Digests of Megatron's arrays, which hold 32-bit numbers. */
static void test_order_large(void **state)
{
    enum { DOCUMENTS = 2000, ROWS = 5349 };
    static int32_t sizes[DOCUMENTS], rows[2 * ROWS];
    static uint32_t shuffle[ROWS - 1];
    struct random_state random;
    struct sample_index index;
    struct error error = {0};
    char hex[17];
    (void)state;

    sha256_prefix("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea"); /* the standard's own example */
    random_seed(&random, 7);
    for (int i = 0; i < DOCUMENTS; i++) /* randint(1, 3000) */
        sizes[i] = 1 + (int32_t)random_interval(&random, 2998);
    if (sample_index_build(&index, sizes, 100, 1900, 5000, 1024, 1234, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(index.epochs, 2);
    assert_int_equal(index.document_count, 3600);
    assert_int_equal(index.sample_count, ROWS - 1);
    for (int i = 0; i < 2 * ROWS; i++)
        rows[i] = (int32_t)index.samples[i];
    for (int i = 0; i < ROWS - 1; i++)
        shuffle[i] = (uint32_t)index.shuffle[i];
    sha256_prefix(index.documents, 3600 * sizeof(int32_t), hex);
    assert_string_equal(hex, "f19c0d31721b9d1f");
    sha256_prefix(rows, sizeof(rows), hex);
    assert_string_equal(hex, "ae95a7ca159f6b12");
    sha256_prefix(shuffle, sizeof(shuffle), hex);
    assert_string_equal(hex, "d04d272c9da406cb");
    sample_index_destroy(&index);
}

/* RandomState(5489) begins as the authors' reference output does; above 32 bits two words are
 * drawn, the high one first. */
static void test_random(void **state)
{
    struct random_state random, words;
    (void)state;

    random_seed(&random, 5489);
    assert_int_equal(random_next(&random), 3499211612u);
    assert_int_equal(random_next(&random), 581869302u);
    random_seed(&random, 5489);
    random_seed(&words, 5489);
    for (int i = 0; i < 1000; i++) {
        uint64_t last = UINT64_C(0x2000000000) + (uint64_t)i, value;

        do {
            value = (uint64_t)random_next(&words) << 32;
            value = (value | random_next(&words)) & UINT64_C(0x3fffffffff);
        } while (value > last);
        assert_true(random_interval(&random, last) == value);
    }
}

static void test_order_refuses(void **state)
{
    static const int32_t sizes[] = {5, 3, 7, 2, 6};
    struct sample_index index;
    struct error error = {0};
    (void)state;

    assert_int_equal(sample_index_build(&index, sizes, 0, 5, 1, 23, 1, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_int_equal(sample_index_build(&index, sizes, 2, 2, 1, 4, 1, &error), -1);
    assert_int_equal(sample_index_build(&index, sizes, 0, 5, INT64_MAX / 2, 4, 1, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_CONFIGURATION);
    assert_int_equal(sample_index_build(&index, sizes, 0, 5, 0, 22, 1, &error), 0);
    assert_int_equal(index.sample_count, 1);
    sample_index_destroy(&index);
}

static void test_splits(void **state)
{
    static const struct {
        const char *split;
        int64_t documents, bounds[4];
    } cases[] = {
        {"969, 30, 1", 1000, {0, 969, 999, 1000}},
        {"90,5,5", 7, {0, 7, 7, 7}},
        {"969/30/1", 1000, {0, 969, 999, 1000}},
        {"1", 10, {0, 10, 10, 10}},
        {"0.5,0.5", 3, {0, 1, 3, 3}}, /* 1.5 rounds to 2, twice */
        {"0,1,1", 3, {0, 0, 1, 3}},   /* a boundary of -1 is 0 */
        {"98,2,0", 0, {0, 0, 0, 0}},
    };
    static const char *const refused[] = {"",    "a",  "1,,1", "1,2,3,4", "0,0,0", "1,-1",
                                          "nan", "1,", "1 2",  "inf,1",   "1,2,3x"};
    struct error error = {0};
    int64_t bounds[4];
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (dataset_split_bounds(cases[i].split, false, cases[i].documents, bounds, &error) < 0)
            fail_msg("%s", error.text);
        assert_i64(bounds, cases[i].bounds, 4);
    }
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        error.status = 0;
        assert_int_equal(dataset_split_bounds(refused[i], false, 10, bounds, &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_USAGE);
    }
}

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
    enum { ROUNDS = 20000, SEQUENCES = 16, TOKENS = 16384 };
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
    dataset_close(NULL);
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

/* --- datasets ----------------------------------------------------------------------------------*/

enum { FIVE_TOKENS = 23, FIVE_LENGTH = 4 };

static int open_five(struct dataset **dataset, const struct data_source *source, const char *split,
                     enum dataset_split which, int64_t seq_length, int64_t vocab_size,
                     struct error *error)
{
    struct dataset_options options = {
        .seq_length = seq_length,
        .vocab_size = vocab_size,
        .seed = 1234,
        .split = split,
        .samples = {4, 4, 4},
        .eod = -1,
    };

    return dataset_open(dataset, source, which, &options, error);
}

/* Sample i is what the index says, and the next sample begins with its last token. */
static void test_dataset(void **state)
{
    static const int32_t sizes[] = {5, 3, 7, 2, 6};
    int32_t document[8], stream[FIVE_TOKENS], tokens[FIVE_LENGTH], targets[FIVE_LENGTH],
        positions[FIVE_LENGTH], starts[FIVE_LENGTH];
    float weights[FIVE_LENGTH];
    struct dataset_row row = {tokens, targets, weights, positions, starts, 0};
    struct token_writer *writer;
    struct data_source source;
    struct dataset *dataset;
    struct sample_index index;
    struct error error = {0};
    int64_t used = 0;
    int refused = 0;
    (void)state;

    assert_int_equal(token_writer_open(&writer, "five", 1000, &error), 0);
    for (int d = 0; d < 5; d++) {
        for (int k = 0; k < sizes[d]; k++)
            document[k] = 10 * d + k;
        assert_int_equal(token_writer_add(writer, document, sizes[d], &error), 0);
    }
    assert_int_equal(token_writer_commit(writer, &error), 0);
    token_writer_close(writer);
    assert_int_equal(data_source_open(&source, "five", &error), 0);

    if (open_five(&dataset, &source, NULL, DATASET_TRAIN, FIVE_LENGTH, 47, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(dataset_samples(dataset), 5);
    assert_int_equal(sample_index_build(&index, sizes, 0, 5, 4, FIVE_LENGTH, 1234, &error), 0);
    for (int p = 0; p < 5; p++) /* the documents in the order of the golden vector */
        for (int k = 0; k < sizes[index.documents[p]]; k++)
            stream[used++] = 10 * index.documents[p] + k;
    for (int64_t i = 0; i < 5; i++) {
        if (dataset_read(dataset, i, &row, &error) < 0)
            fail_msg("%s", error.text);
        assert_memory_equal(tokens, stream + FIVE_LENGTH * index.shuffle[i], sizeof(tokens));
        assert_memory_equal(targets, stream + FIVE_LENGTH * index.shuffle[i] + 1, sizeof(targets));
        assert_int_equal(row.start_count, 1);
        for (int t = 0; t < FIVE_LENGTH; t++)
            assert_true(positions[t] == t && weights[t] == 1);
    }
    sample_index_destroy(&index);
    dataset_close(dataset);

    /* Token 46 is the highest; 45 of document 4 is then the first outside. */
    assert_int_equal(open_five(&dataset, &source, NULL, DATASET_TRAIN, FIVE_LENGTH, 45, &error), 0);
    for (int64_t i = 0; i < 5; i++) {
        error.status = 0;
        if (dataset_read(dataset, i, &row, &error) < 0) {
            refused++;
            assert_int_equal(error.status, EXIT_STATUS_DATA);
            assert_non_null(strstr(error.text, "five.bin: document 4 has token 45"));
            assert_non_null(strstr(error.text, "vocabulary is 45"));
        }
    }
    assert_in_range(refused, 1, 4);
    dataset_close(dataset);

    assert_int_equal(open_five(&dataset, &source, "1,0,0", DATASET_VALID, 4, 47, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, "five: split \"1,0,0\" gives validation 0 of 5 documents"));
    assert_int_equal(open_five(&dataset, &source, "4,1", DATASET_VALID, 6, 47, &error), -1);
    assert_non_null(strstr(error.text, "with 6 tokens, but one sample takes 7"));
    assert_int_equal(open_five(&dataset, &source, "4,1", DATASET_VALID, 5, 47, &error), 0);
    dataset_close(dataset);
    assert_int_equal(open_five(&dataset, &source, "four", DATASET_VALID, 5, 47, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_USAGE);
    data_source_close(&source);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),        cmocka_unit_test(test_order_small),
        cmocka_unit_test(test_order_large),   cmocka_unit_test(test_order_refuses),
        cmocka_unit_test(test_splits),        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_dtypes),        cmocka_unit_test(test_width),
        cmocka_unit_test(test_damage),        cmocka_unit_test(test_no_documents),
        cmocka_unit_test(test_random_damage), cmocka_unit_test(test_abandoned),
        cmocka_unit_test(test_killed),        cmocka_unit_test(test_full),
        cmocka_unit_test(test_dataset),
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
