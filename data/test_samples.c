/* Guards: in packed rows every document comes once an epoch, whole, beside others that it does not
 * lead into; orders of samples that are kept are those that would be made, whatever happens to
 * their files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/log.h"
#include "data/dataset.h"
#include "data/random.h"
#include "data/test_rows.h"

/* --- packing -----------------------------------------------------------------------------------*/

enum { DOCUMENTS = 700 };

/* Of documents that are up to `longest` tokens long. */
static void draw_lengths(int32_t *lengths, uint32_t seed, int longest)
{
    struct random_state random;

    random_seed(&random, seed);
    for (int d = 0; d < DOCUMENTS; d++)
        lengths[d] = (int32_t)random_interval(&random, (uint64_t)longest);
}

/* Which targets an epoch has had. */
struct epoch {
    bool *seen; /* [DOCUMENTS][DOCUMENT_STRIDE] */
    int64_t count, wanted;
    int64_t done; /* epochs */
};

static void epoch_add(struct epoch *epoch, int32_t target)
{
    if (epoch->seen[target]) {
        assert_int_equal(epoch->count, epoch->wanted); /* nothing comes again before all came */
        memset(epoch->seen, 0, (size_t)DOCUMENTS * DOCUMENT_STRIDE);
        epoch->count = 0;
        epoch->done++;
    }
    epoch->seen[target] = true;
    epoch->count++;
}

/* One sequence of a row: tokens of one document, one after the other, or padding. */
static void check_sequence(const struct dataset_row *row, int32_t begin, int32_t end, bool roles,
                           struct epoch *epoch)
{
    int32_t first = row->tokens[begin];
    bool padding = row->targets[begin] < 0;

    for (int32_t t = begin; t < end; t++) {
        assert_int_equal(row->positions[t], t - begin);
        if (padding) {
            assert_int_equal(row->tokens[t], 0);
            assert_int_equal(row->targets[t], -1);
            assert_true(row->weights[t] == 0);
            continue;
        }
        assert_int_equal(row->tokens[t], first + t - begin);
        assert_int_equal(row->targets[t], row->tokens[t] + 1);
        assert_int_equal(row->targets[t] / DOCUMENT_STRIDE, first / DOCUMENT_STRIDE);
        if (roles) {
            int32_t d = first / DOCUMENT_STRIDE, k = row->targets[t] % DOCUMENT_STRIDE;

            assert_true(row->weights[t] == (TEST_ROLE(d, k) == ROLE_ASSISTANT ? 1 : 0.5F));
        } else {
            assert_true(row->weights[t] == 1);
        }
        epoch_add(epoch, row->targets[t]);
    }
    if (padding)
        assert_int_equal(row->start_count > 0 && row->starts[row->start_count - 1] == begin, 1);
}

/* The targets of all documents, those of conversations that are cut off excepted. */
static int64_t count_targets(const int32_t *lengths, bool roles, int32_t seq_length)
{
    int64_t count = 0;

    for (int d = 0; d < DOCUMENTS; d++) {
        int32_t places = lengths[d] > 0 ? lengths[d] - 1 : 0;

        count += roles && places > seq_length ? seq_length : places;
    }
    return count;
}

static void check_packing(const int32_t *lengths, bool roles, int32_t seq_length, double fill,
                          uint32_t seed)
{
    struct data_source source =
        corpus_open(roles ? "pack-chat" : "pack", lengths, DOCUMENTS, roles);
    struct epoch epoch = {
        .seen = calloc(DOCUMENTS, DOCUMENT_STRIDE),
        .wanted = count_targets(lengths, roles, seq_length),
    };
    struct dataset_options options = {
        .seq_length = seq_length,
        .vocab_size = TEST_VOCABULARY,
        .seed = seed,
        .samples = {4 * epoch.wanted / seq_length + 2}, /* more than one epoch */
        .packing = true,
        .loss_mask_weight = 0.5,
        .eod = -1,
    };
    struct dataset *dataset = dataset_of(&source, DATASET_TRAIN, &options);
    int64_t rows = dataset_samples(dataset);
    struct dataset_row row;

    assert_non_null(epoch.seen);
    assert_true(rows >= options.samples[DATASET_TRAIN]);
    row_create(&row, seq_length);
    for (int64_t i = 0; i < rows; i++) {
        row_read(&row, dataset, i);
        assert_in_range(row.start_count, 1, dataset_sequences_most(seq_length));
        assert_int_equal(row.starts[0], 0);
        for (int64_t s = 0; s < row.start_count; s++) {
            int32_t end = s + 1 < row.start_count ? row.starts[s + 1] : seq_length;

            assert_true(row.starts[s] < end);
            check_sequence(&row, row.starts[s], end, roles, &epoch);
        }
    }
    assert_int_equal(epoch.count, epoch.wanted); /* the last epoch is whole too */
    assert_true(epoch.done >= 1);
    assert_true(dataset_fill(dataset) ==
                (double)((epoch.done + 1) * epoch.wanted) / ((double)rows * seq_length));
    if (dataset_fill(dataset) < fill)
        fail_msg("rows of %d are filled to %.4f", seq_length, dataset_fill(dataset));
    row_destroy(&row);
    dataset_close(dataset);
    data_source_close(&source);
    free(epoch.seen);
}

static void test_packing(void **state)
{
    static const struct {
        int longest, seq_length;
        double fill;
    } cases[] = {
        {40, 128, .98}, {90, 128, .95}, {300, 128, .9},
        {900, 64, .97}, {3, 16, .95},   {30, 1024, .4}, /* as many documents as a row may have */
    };
    int32_t lengths[DOCUMENTS];
    (void)state;

    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++)
        for (uint32_t seed = 0; seed < 4; seed++) {
            draw_lengths(lengths, seed, cases[c].longest);
            check_packing(lengths, seed % 2, cases[c].seq_length, cases[c].fill, seed);
        }
}

/* Rows follow from seed and index: more of them wanted, another opening, make no difference. They
 * do not come in the order of lengths, in which they were filled. */
static void test_packing_order(void **state)
{
    enum { LENGTH = 64, ROWS = 400 };
    struct dataset_options options = {.seq_length = LENGTH,
                                      .vocab_size = TEST_VOCABULARY,
                                      .seed = 3,
                                      .samples = {ROWS},
                                      .packing = true,
                                      .eod = -1};
    int32_t lengths[DOCUMENTS];
    struct data_source source;
    struct dataset *few, *many, *again, *other;
    struct dataset_row row, same;
    int64_t count, falls = 0, before = 0;
    (void)state;

    draw_lengths(lengths, 9, 60);
    source = corpus_open("order", lengths, DOCUMENTS, false);
    few = dataset_of(&source, DATASET_TRAIN, &options);
    again = dataset_of(&source, DATASET_TRAIN, &options);
    options.samples[DATASET_TRAIN] = 5 * ROWS;
    many = dataset_of(&source, DATASET_TRAIN, &options);
    options.seed = 4;
    options.samples[DATASET_TRAIN] = ROWS;
    other = dataset_of(&source, DATASET_TRAIN, &options);
    assert_true(dataset_digest(few, LENGTH) == dataset_digest(again, LENGTH));
    assert_true(dataset_digest(few, LENGTH) != dataset_digest(other, LENGTH));
    count = dataset_samples(few);
    assert_true(dataset_samples(many) >= 5 * ROWS);
    row_create(&row, LENGTH);
    row_create(&same, LENGTH);
    for (int64_t i = count - 1; i >= 0; i--) { /* in any order */
        row_read(&row, few, i);
        row_read(&same, many, i);
        assert_memory_equal(row.tokens, same.tokens, LENGTH * sizeof(int32_t));
        assert_memory_equal(row.targets, same.targets, LENGTH * sizeof(int32_t));
        assert_int_equal(row.start_count, same.start_count);
        falls += lengths[row.tokens[0] / DOCUMENT_STRIDE] < before;
        before = lengths[row.tokens[0] / DOCUMENT_STRIDE];
    }
    assert_in_range(falls, count / 4, 3 * count / 4);
    row_destroy(&row);
    row_destroy(&same);
    dataset_close(few);
    dataset_close(again);
    dataset_close(many);
    dataset_close(other);
    data_source_close(&source);
}

/* Documents of a set are that set's alone. */
static void test_packing_splits(void **state)
{
    int32_t lengths[DOCUMENTS];
    (void)state;

    draw_lengths(lengths, 2, 50);
    for (int roles = 0; roles < 2; roles++) {
        struct data_source source =
            corpus_open(roles ? "sets-chat" : "sets", lengths, DOCUMENTS, roles);
        struct dataset_options options = {.seq_length = 64,
                                          .vocab_size = TEST_VOCABULARY,
                                          .split = "80,15,5",
                                          .packing = true,
                                          .eod = -1};
        int8_t owner[DOCUMENTS] = {0};
        struct dataset_row row;

        row_create(&row, 64);
        for (int which = DATASET_TRAIN; which <= DATASET_TEST; which++) {
            struct dataset *dataset = dataset_of(&source, (enum dataset_split)which, &options);

            for (int64_t i = 0; i < dataset_samples(dataset); i++) {
                row_read(&row, dataset, i);
                for (int64_t s = 0; s < row.start_count; s++) {
                    int32_t at = row.starts[s];
                    int8_t *mine = &owner[row.tokens[at] / DOCUMENT_STRIDE];

                    if (row.targets[at] < 0)
                        continue;
                    assert_true(*mine == 0 || *mine == which + 1);
                    *mine = (int8_t)(which + 1);
                }
            }
            dataset_close(dataset);
        }
        for (int d = 0; d < DOCUMENTS; d++) {
            assert_int_equal(owner[d] != 0, lengths[d] > 1);
            if (!roles && lengths[d] > 1) /* ranges: 560, 105 and 35 documents */
                assert_int_equal(owner[d], d < 560 ? 1 : d < 665 ? 2 : 3);
        }
        row_destroy(&row);
        data_source_close(&source);
    }
}

static void test_nothing_to_pack(void **state)
{
    static const int32_t lengths[] = {1, 0, 1};
    struct data_source source = corpus_open("short", lengths, 3, false);
    struct dataset_options options = {
        .seq_length = 8, .vocab_size = TEST_VOCABULARY, .packing = true, .eod = -1};
    struct dataset *dataset;
    struct error error = {0};
    (void)state;

    assert_int_equal(dataset_open(&dataset, &source, DATASET_TRAIN, &options, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, "short: none of 3 documents has two tokens"));
    assert_null(dataset);
    data_source_close(&source);
}

/* --- orders that are kept ----------------------------------------------------------------------*/

enum { KEPT_DOCUMENTS = 12, KEPT_LENGTH = 8 };

/* Running text, packed text, conversations, packed conversations. */
enum { KINDS = 4 };

static struct data_source kept_source(int kind)
{
    static const int32_t lengths[KEPT_DOCUMENTS] = {5, 3, 7, 2, 6, 30, 9, 8, 1, 0, 4, 11};

    return corpus_open(kind < 2 ? "kept" : "kept-chat", lengths, KEPT_DOCUMENTS, kind >= 2);
}

static struct dataset_options kept_options(int kind, const char *cache)
{
    return (struct dataset_options){
        .seq_length = KEPT_LENGTH,
        .vocab_size = TEST_VOCABULARY,
        .seed = 7,
        .split = "70,30",
        .samples = {12, 4, 0},
        .packing = kind % 2,
        .eod = -1,
        .cache = cache,
    };
}

static uint64_t digest_of(const struct data_source *source, enum dataset_split which,
                          const struct dataset_options *options)
{
    struct dataset *dataset = dataset_of(source, which, options);
    uint64_t digest = dataset_digest(dataset, options->seq_length);

    dataset_close(dataset);
    return digest;
}

/* How many entries of a directory contain `word`; `path` gets the last of them. */
static int find_entries(const char *name, const char *word, char path[600])
{
    DIR *directory = opendir(name);
    int count = 0;

    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (strstr(entry->d_name, word)) {
            snprintf(path, 600, "%s/%s", name, entry->d_name);
            count++;
        }
    if (directory)
        closedir(directory);
    return count;
}

static void clear_cache(const char *name)
{
    char path[600];

    while (find_entries(name, ".order", path) > 0)
        assert_int_equal(unlink(path), 0);
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

static void file_write(const char *path, const uint8_t *bytes, size_t size)
{
    FILE *stream = fopen(path, "wb");

    assert_non_null(stream);
    assert_int_equal(fwrite(bytes, 1, size, stream), size);
    assert_int_equal(fclose(stream), 0);
}

/* Cut or altered anywhere, a file is not believed but made anew. */
static void test_cache_damage(void **state)
{
    enum { ROOM = 4096 };
    static uint8_t whole[ROOM], bytes[ROOM + 64];
    (void)state;

    for (int kind = 0; kind < KINDS; kind++) {
        struct data_source source = kept_source(kind);
        struct dataset_options plain = kept_options(kind, NULL);
        struct dataset_options kept = kept_options(kind, "damaged");
        uint64_t expected = digest_of(&source, DATASET_TRAIN, &plain);
        struct stat made, used;
        char path[600];
        size_t size;

        clear_cache("damaged");
        assert_true(digest_of(&source, DATASET_TRAIN, &kept) == expected);
        assert_int_equal(find_entries("damaged", "", path), 3); /* ., .. and one file */
        assert_int_equal(find_entries("damaged", ".order", path), 1);
        assert_int_equal(stat(path, &made), 0);
        assert_true(digest_of(&source, DATASET_TRAIN, &kept) == expected);
        assert_int_equal(stat(path, &used), 0);
        assert_true(made.st_ino == used.st_ino && made.st_mtim.tv_nsec == used.st_mtim.tv_nsec);

        size = file_read(path, whole, ROOM);
        assert_in_range(size, 100, ROOM - 1);
        for (size_t at = 0; at < size; at += at < 80 ? 1 : 5)
            for (int cut = 0; cut < 2; cut++) {
                memcpy(bytes, whole, size);
                bytes[at] ^= (uint8_t)(1 << at % 8);
                file_write(path, bytes, cut ? at : size);
                assert_true(digest_of(&source, DATASET_TRAIN, &kept) == expected);
                assert_int_equal(file_read(path, bytes, ROOM), size);
                assert_memory_equal(bytes, whole, size);
            }
        memcpy(bytes, whole, size);
        memset(bytes + size, 0, 64);
        file_write(path, bytes, size + 64);
        assert_true(digest_of(&source, DATASET_TRAIN, &kept) == expected);
        assert_int_equal(file_read(path, bytes, ROOM), size);
        data_source_close(&source);
    }
}

/* Whatever decides the order decides the name: one directory serves all. */
static void test_cache_keys(void **state)
{
    static char long_split[1200] = "70.";
    static const char *const splits[] = {"70,30", "50,50", NULL, long_split};
    struct data_source sources[KINDS];
    char path[600];
    (void)state;

    memset(long_split + 3, '0', 1000);
    strcat(long_split, ",30");
    for (int kind = 0; kind < KINDS; kind++)
        sources[kind] = kept_source(kind);
    for (int round = 0; round < 2; round++)
        for (int c = 0; c < KINDS * 4 * 2 * 2 * 2 * 2; c++) {
            int kind = c % KINDS;
            enum dataset_split which = c / 16 % 2 ? DATASET_VALID : DATASET_TRAIN;
            struct dataset_options options = kept_options(kind, NULL);
            uint64_t expected;

            options.split = splits[c / 4 % 4];
            options.seed = c / 32 % 2;
            options.seq_length = c / 64 % 2 ? KEPT_LENGTH : KEPT_LENGTH - 1;
            options.samples[DATASET_TRAIN] = c / 128 % 2 ? 12 : 40;
            expected = digest_of(&sources[kind], which, &options);
            options.cache = "keys";
            assert_true(digest_of(&sources[kind], which, &options) == expected);
        }
    /* The same bounds are the same order, however the split is written. */
    assert_in_range(find_entries("keys", ".order", path), 100, 3 * KINDS * 2 * 2 * 2 * 2);
    for (int kind = 0; kind < KINDS; kind++)
        data_source_close(&sources[kind]);
}

/* Without a place to keep it in, the order is made in memory. */
static void test_cache_not_writable(void **state)
{
    struct data_source source = kept_source(0);
    struct dataset_options plain = kept_options(0, NULL);
    struct dataset_options kept = kept_options(0, "kept.idx/cache"); /* below a file */
    (void)state;

    assert_true(digest_of(&source, DATASET_TRAIN, &kept) ==
                digest_of(&source, DATASET_TRAIN, &plain));
    data_source_close(&source);
}

/* Several processes at once keep one file, and find the same samples. */
static void test_cache_shared(void **state)
{
    enum { PROCESSES = 6 };
    struct data_source source = kept_source(1);
    struct dataset_options plain = kept_options(1, NULL), kept = kept_options(1, "shared");
    uint64_t expected = digest_of(&source, DATASET_TRAIN, &plain);
    pid_t children[PROCESSES];
    char path[600];
    (void)state;

    for (int p = 0; p < PROCESSES; p++) {
        children[p] = fork();
        assert_true(children[p] >= 0);
        if (children[p] == 0) {
            struct dataset *dataset;
            struct error error = {0};

            if (dataset_open(&dataset, &source, DATASET_TRAIN, &kept, &error) < 0)
                _exit(1);
            _exit(dataset_digest(dataset, KEPT_LENGTH) == expected ? 0 : 2);
        }
    }
    for (int p = 0; p < PROCESSES; p++) {
        int status;

        assert_int_equal(waitpid(children[p], &status, 0), children[p]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
    assert_int_equal(find_entries("shared", ".order", path), 1);
    data_source_close(&source);
}

/* What is there after kill -9 is whole; what was being written is removed when it is old. */
static void test_cache_killed(void **state)
{
    enum { FILES = 20, ROUNDS = 5 };
    static const char stale[] = "killed/0.order.partial-aaaaaa",
                      fresh[] = "killed/0.order.partial-bbbbbb";
    const struct timespec long_ago[2] = {{time(NULL) - 48 * 3600, 0}, {time(NULL) - 48 * 3600, 0}};
    struct data_source source = kept_source(1);
    struct dataset_options kept = kept_options(1, "killed");
    char path[600];
    (void)state;

    for (int round = 1; round <= ROUNDS; round++) {
        pid_t child = fork();
        int status;

        assert_true(child >= 0);
        if (child == 0)
            for (;; kept.seed++)
                (void)digest_of(&source, DATASET_TRAIN, &kept);
        for (int wait = 0; find_entries("killed", ".order", path) < round * FILES; wait++) {
            assert_in_range(wait, 0, 60000);
            usleep(1000);
        }
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
    }
    for (kept.seed = 7; kept.seed < 7 + (ROUNDS - 1) * FILES; kept.seed++) {
        struct dataset_options plain = kept;
        int before = find_entries("killed", "", path);

        plain.cache = NULL;
        assert_true(digest_of(&source, DATASET_TRAIN, &kept) ==
                    digest_of(&source, DATASET_TRAIN, &plain));
        assert_int_equal(find_entries("killed", "", path), before); /* it was found there */
    }
    file_write(stale, (const uint8_t *)"", 0);
    file_write(fresh, (const uint8_t *)"", 0);
    assert_int_equal(utimensat(AT_FDCWD, stale, long_ago, 0), 0);
    kept.seed = 1000000;
    (void)digest_of(&source, DATASET_TRAIN, &kept);
    assert_int_equal(access(stale, F_OK), -1);
    assert_int_equal(access(fresh, F_OK), 0);
    data_source_close(&source);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packing),
        cmocka_unit_test(test_packing_order),
        cmocka_unit_test(test_packing_splits),
        cmocka_unit_test(test_nothing_to_pack),
        cmocka_unit_test(test_cache_damage),
        cmocka_unit_test(test_cache_keys),
        cmocka_unit_test(test_cache_not_writable),
        cmocka_unit_test(test_cache_shared),
        cmocka_unit_test(test_cache_killed),
    };

    log_set_enabled(false); /* warnings of damage that is meant */
    return cmocka_run_group_tests(tests, test_directory_enter, test_directory_leave);
}
