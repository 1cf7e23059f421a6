/* Guards: a checkpoint whose files were cut, lost, swapped or altered in any bit is found out by
 * name, never read as if it were whole, and the one before it is taken instead. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/test_fixture.h"

enum { SHARDS = 2, OLD_SEED = 1, NEW_SEED = 2 };

struct damage {
    char root[FIXTURE_PATH];        /* step 1 is good, step 2 gets damaged */
    char step[FIXTURE_PATH + 32];   /* directory of step 2 */
    char path[FIXTURE_PATH + 64];   /* of the file that is damaged */
    const char *file;               /* its name */
    char first[2048], all[1 << 16]; /* what was complained about */
};

static const char *const names[] = {"manifest.json", "index.h5", "shard-00000.h5",
                                    "shard-00001.h5"};

static int set_up(void **state)
{
    struct damage *damage = calloc(1, sizeof(*damage));
    struct error error = {0};

    assert_non_null(damage);
    fixture_directory(damage->root);
    if (fixture_write(damage->root, 1, 1, OLD_SEED, &error) < 0 ||
        fixture_write(damage->root, 2, SHARDS, NEW_SEED, &error) < 0)
        fail_msg("%s", error.text);
    checkpoint_path(damage->root, 2, damage->step, sizeof(damage->step));
    *state = damage;
    return 0;
}

static int tear_down(void **state)
{
    struct damage *damage = *state;

    fixture_remove(damage->root);
    free(damage);
    return 0;
}

static void choose(struct damage *damage, const char *file)
{
    damage->file = file;
    snprintf(damage->path, sizeof(damage->path), "%s/%s", damage->step, file);
}

static off_t size_of(const char *path)
{
    struct stat status;

    assert_int_equal(stat(path, &status), 0);
    return status.st_size;
}

static void complain(void *user, const char *text)
{
    struct damage *damage = user;
    size_t used = strlen(damage->all);

    if (!*damage->first)
        snprintf(damage->first, sizeof(damage->first), "%s", text);
    snprintf(damage->all + used, sizeof(damage->all) - used, "%s\n", text);
}

/* Verification names the file. Returns how many things it found. */
static int verify(struct damage *damage)
{
    struct error error = {0};
    int faults;

    *damage->first = *damage->all = '\0';
    faults = checkpoint_verify(damage->step, complain, damage, &error);
    if (faults < 0)
        fail_msg("%s", error.text);
    if (faults > 0 && !strstr(damage->all, damage->path))
        fail_msg("%s is not named: %s", damage->path, damage->all);
    return faults;
}

/* Whatever can still be read is right. Returns whether anything was refused. */
static int refused(struct damage *damage)
{
    struct checkpoint *checkpoint;
    struct error error = {0};
    const char *difference;

    if (checkpoint_open(&checkpoint, damage->step, &error) < 0) {
        if (!strstr(error.text, damage->file) || error.status != EXIT_STATUS_DATA)
            fail_msg("status %d: %s", error.status, error.text);
        return 1;
    }
    difference = fixture_compare(checkpoint, NEW_SEED);
    checkpoint_close(checkpoint);
    if (difference && (strstr(difference, "other bits") || !strstr(difference, damage->file)))
        fail_msg("%s", difference);
    return difference != NULL;
}

static void assert_falls_back(struct damage *damage)
{
    char path[FIXTURE_PATH];
    struct checkpoint *checkpoint;
    struct error error = {0};
    const char *difference;

    *damage->first = *damage->all = '\0';
    assert_int_equal(
        checkpoint_find(damage->root, true, path, sizeof(path), complain, damage, &error), 1);
    assert_non_null(strstr(path, "step-00000001"));
    assert_non_null(strstr(damage->first, damage->file));
    assert_int_equal(checkpoint_open(&checkpoint, path, &error), 0);
    difference = fixture_compare(checkpoint, OLD_SEED);
    if (difference)
        fail_msg("%s", difference);
    checkpoint_close(checkpoint);
}

static void assert_sound(struct damage *damage)
{
    if (verify(damage) != 0)
        fail_msg("not restored: %s", damage->all);
}

static void test_lost(void **state)
{
    struct damage *damage = *state;

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        char aside[sizeof(damage->path) + 8];

        choose(damage, names[i]);
        snprintf(aside, sizeof(aside), "%s.aside", damage->path);
        assert_int_equal(rename(damage->path, aside), 0);
        assert_int_equal(verify(damage), 1);
        assert_true(refused(damage));
        assert_falls_back(damage);
        assert_int_equal(mkdir(damage->path, 0777), 0); /* no file, whatever its size */
        assert_true(verify(damage) > 0);
        assert_true(refused(damage));
        assert_int_equal(rmdir(damage->path), 0);
        assert_int_equal(rename(aside, damage->path), 0);
        assert_sound(damage);
    }
}

static void test_cut(void **state)
{
    struct damage *damage = *state;

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        char copy[sizeof(damage->path) + 8], command[3 * sizeof(copy)];
        off_t size;

        choose(damage, names[i]);
        size = size_of(damage->path);
        snprintf(copy, sizeof(copy), "%s.copy", damage->path);
        snprintf(command, sizeof(command), "cp %s %s", damage->path, copy);
        assert_int_equal(system(command), 0);
        for (int at = 0; at < 7; at++) {
            const off_t sizes[7] = {0, 1, 100, size / 2, size * 9 / 10, size - 1, size + 1};

            if (sizes[at] == 100 && size <= 100)
                continue;
            assert_int_equal(truncate(damage->path, sizes[at]), 0);
            assert_true(verify(damage) > 0);
            assert_true(refused(damage));
            if (at % 2 == 0)
                assert_falls_back(damage);
            snprintf(command, sizeof(command), "cp %s %s", copy, damage->path);
            assert_int_equal(system(command), 0);
        }
        assert_int_equal(unlink(copy), 0);
        assert_sound(damage);
    }
}

/* The index of another checkpoint, good in itself. */
static void test_swapped(void **state)
{
    struct damage *damage = *state;
    char one[FIXTURE_PATH + 64], other[FIXTURE_PATH + 80];

    snprintf(one, sizeof(one), "%s/step-00000001/index.h5", damage->root);
    choose(damage, "index.h5");
    snprintf(other, sizeof(other), "%s.aside", damage->path);
    assert_int_equal(rename(damage->path, other), 0);
    assert_int_equal(link(one, damage->path), 0);
    assert_true(verify(damage) > 0);
    assert_true(refused(damage));
    assert_int_equal(rename(other, damage->path), 0);
    assert_sound(damage);
}

static void flip(int fd, off_t offset, int bit)
{
    unsigned char byte;

    assert_int_equal(pread(fd, &byte, 1, offset), 1);
    byte ^= (unsigned char)(1 << bit);
    assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
}

/* Every bit of the manifest, one of every byte of the index. */
static void test_flipped_descriptions(void **state)
{
    struct damage *damage = *state;

    for (size_t i = 0; i < 2; i++) {
        off_t size;
        int fd;

        choose(damage, names[i]);
        size = size_of(damage->path);
        fd = open(damage->path, O_RDWR);
        assert_true(fd >= 0);
        for (off_t offset = 0; offset < size; offset++)
            for (int bit = 0; bit < (i == 0 ? 8 : 1); bit++) {
                int chosen = i == 0 ? bit : (int)(offset % 8);

                flip(fd, offset, chosen);
                if (!refused(damage))
                    fail_msg("%s: bit %d of byte %lld flipped unseen", damage->file, chosen,
                             (long long)offset);
                if (offset % 512 == 0 && bit == 0) {
                    assert_true(verify(damage) > 0);
                    assert_falls_back(damage);
                }
                flip(fd, offset, chosen);
            }
        close(fd);
        assert_sound(damage);
    }
}

/* A bit of the bulk: whose it is and where is said, and nothing of that block is used. */
static void test_flipped_bulk(void **state)
{
    struct damage *damage = *state;
    unsigned int random = 1;

    for (size_t i = 2; i < 4; i++) {
        off_t size;
        int fd;

        choose(damage, names[i]);
        size = size_of(damage->path);
        fd = open(damage->path, O_RDWR);
        assert_true(fd >= 0);
        for (int n = 0; n < 60; n++) {
            off_t offset = n == 0 ? 0 : n == 1 ? size - 1 : rand_r(&random) % size;
            off_t block = offset >> 20 << 20;
            off_t last = block + (1 << 20) < size ? block + (1 << 20) - 1 : size - 1;
            char expected[100];
            int bit = rand_r(&random) % 8;

            flip(fd, offset, bit);
            snprintf(expected, sizeof(expected), "%s: bytes %lld to %lld differ", damage->file,
                     (long long)block, (long long)last);
            assert_int_equal(verify(damage), 1);
            if (!strstr(damage->first, expected) ||
                (!strstr(damage->first, ".weight (") && !strstr(damage->first, "description")))
                fail_msg("expected \"%s\", got \"%s\"", expected, damage->first);
            assert_true(refused(damage));
            if (n % 20 == 0)
                assert_falls_back(damage);
            flip(fd, offset, bit);
        }
        close(fd);
        assert_sound(damage);
    }
}

/* Good blocks of a damaged shard can still be read, a bad one never, also after a good read of a
 * neighbour put it near the cache. */
static void test_only_the_bad_block_is_lost(void **state)
{
    struct damage *damage = *state;
    struct checkpoint *checkpoint;
    struct error error = {0};
    int good = 0, bad = 0, fd;

    choose(damage, "shard-00000.h5");
    assert_true(size_of(damage->path) > 1 << 20);
    fd = open(damage->path, O_RDWR);
    assert_true(fd >= 0);
    flip(fd, (1 << 20) + 5, 3);
    assert_int_equal(checkpoint_open(&checkpoint, damage->step, &error), 0);
    for (int pass = 0; pass < 2; pass++)
        for (int tensor = 0; tensor < FIXTURE_TENSORS; tensor++)
            for (int64_t row = 0; row < fixture_tensors[tensor].shape[0]; row += 5) {
                const char *name = fixture_tensors[tensor].name;
                enum checkpoint_kind kind = row % 2 ? CHECKPOINT_EXP_AVG : CHECKPOINT_EXP_AVG_SQ;
                int64_t start[2] = {row, 0}, extent[2] = {1, fixture_tensors[tensor].shape[1]};
                float found[512], *expected;

                expected = fixture_values(NEW_SEED, tensor, kind, start, extent, DTYPE_F32);
                if (checkpoint_read(checkpoint, name, kind, start, extent, DTYPE_F32, found,
                                    &error) < 0) {
                    bad++;
                    assert_non_null(strstr(error.text, "shard-00000.h5: bytes 1048576 to"));
                    assert_non_null(strstr(error.text, name));
                } else {
                    good++;
                    assert_memory_equal(found, expected, 4 * (size_t)extent[1]);
                }
                free(expected);
            }
    assert_true(good > 0 && bad > 0);
    checkpoint_close(checkpoint);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lost, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_cut, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_swapped, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_flipped_descriptions, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_flipped_bulk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_only_the_bad_block_is_lost, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
