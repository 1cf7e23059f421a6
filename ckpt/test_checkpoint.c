/* Guards: what is written is read back bit by bit whatever the sharding, whole, in slices, in
 * another dtype and by several threads; foreign HDF5 readers see whole tensors; a commit refuses
 * pieces that do not make whole tensors and leaves what was there; lists, searches and prunes never
 * lose the newest good checkpoint. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <hdf5.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/checksum.h"
#include "ckpt/disk.h"
#include "ckpt/h5.h"
#include "ckpt/manifest.h"
#include "ckpt/test_fixture.h"

/* cmocka's setup and teardown: a run directory of the test's own. */
static int set_up(void **state)
{
    char *run = malloc(FIXTURE_PATH);

    assert_non_null(run);
    fixture_directory(run);
    *state = run;
    return 0;
}

static int tear_down(void **state)
{
    fixture_remove(*state);
    free(*state);
    return 0;
}

static void root_of(const char *run, char root[FIXTURE_PATH])
{
    snprintf(root, FIXTURE_PATH, "%.400s/ckpt", run);
}

static void write_good(const char *root, int64_t step, int shards, uint64_t seed)
{
    struct error error = {0};

    if (fixture_write(root, step, shards, seed, &error) < 0)
        fail_msg("%s", error.text);
}

static struct checkpoint *open_good(const char *path)
{
    struct checkpoint *checkpoint;
    struct error error = {0};

    if (checkpoint_open(&checkpoint, path, &error) < 0)
        fail_msg("%s", error.text);
    return checkpoint;
}

static void assert_holds(const char *path, int64_t step, uint64_t seed)
{
    struct checkpoint *checkpoint = open_good(path);
    const char *difference = fixture_compare(checkpoint, seed);

    assert_int_equal(checkpoint_get_state(checkpoint)->step, step);
    if (difference)
        fail_msg("%s", difference);
    checkpoint_close(checkpoint);
}

static void test_round_trip(void **state)
{
    char root[FIXTURE_PATH];

    root_of(*state, root);
    for (int shards = 1; shards <= 6; shards++) {
        char layout[32];
        struct checkpoint *checkpoint;
        const struct checkpoint_state *read;

        write_good(root, shards, shards, 100 + (uint64_t)shards);
        assert_holds(*state, shards, 100 + (uint64_t)shards);
        checkpoint = open_good(root);
        read = checkpoint_get_state(checkpoint);
        snprintf(layout, sizeof(layout), "tp%d pp1 dp1", shards);
        assert_int_equal(read->samples, shards * 8);
        assert_int_equal(read->tokens, shards * 4096);
        assert_int_equal(read->skipped, 100 + shards);
        assert_int_equal(read->trained_samples, shards * 8 - 5);
        assert_true(read->loss_scale == 0.1);
        assert_int_equal(read->scale_clean_steps, 17);
        assert_int_equal(read->scale_overflows_left, 2);
        assert_string_equal(read->config, "{\"model_type\": \"llama\"}");
        assert_string_equal(read->settings, "model = llama-tiny\n");
        assert_string_equal(read->run_id, "a run \xc3\xa9");
        assert_string_equal(read->layout, layout);
        assert_int_equal(read->file_count, 2);
        assert_string_equal(read->files[0].name, "empty");
        assert_int_equal(read->files[0].size, 0);
        assert_string_equal(read->files[1].name, "tokenizer.model");
        assert_int_equal(read->files[1].size, 8);
        assert_memory_equal(read->files[1].bytes, "\0\1\2three", 8);
        checkpoint_close(checkpoint);
    }
}

/* As the version before wrote it, the manifest's checksum included. */
static void remove_trained_samples(const char *directory)
{
    char index[FIXTURE_PATH], path[FIXTURE_PATH];
    struct manifest manifest;
    struct error error = {0};
    void *bytes;
    size_t size;
    hid_t file;

    snprintf(index, sizeof(index), "%.400s/index.h5", directory);
    snprintf(path, sizeof(path), "%.400s/manifest.json", directory);
    file = H5Fopen(index, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(file >= 0);
    assert_true(H5Adelete_by_name(file, "state", "trained_samples", H5P_DEFAULT) >= 0);
    assert_true(H5Fclose(file) >= 0);
    assert_int_equal(manifest_read(&manifest, path, &error), 0);
    assert_int_equal(disk_read_file(index, 1 << 30, &bytes, &size, &error), 0);
    manifest.index = (struct manifest_part){size, checksum(bytes, size)};
    assert_int_equal(manifest_write(&manifest, path, &error), 0);
    manifest_free(&manifest);
    free(bytes);
}

/* Ten steps of eight samples, of which three made no update. */
static void test_steps_alike_before_ramps(void **state)
{
    char root[FIXTURE_PATH], directory[FIXTURE_PATH];
    struct checkpoint *checkpoint;

    root_of(*state, root);
    write_good(root, 10, 1, 3);
    snprintf(directory, sizeof(directory), "%.400s/step-00000010", root);
    remove_trained_samples(directory);
    checkpoint = open_good(directory);
    assert_int_equal(checkpoint_get_state(checkpoint)->trained_samples, 7 * 8);
    checkpoint_close(checkpoint);
}

static void test_tensors_are_listed(void **state)
{
    static const char *const names[FIXTURE_TENSORS] = {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.2.mlp.down_proj.weight",
        "model.layers.10.mlp.down_proj.weight",
        "model.layers.10.self_attn.q_proj.weight",
        "model.norm.weight",
    };
    char root[FIXTURE_PATH];
    struct checkpoint *checkpoint;
    const struct checkpoint_tensor *tensor;

    root_of(*state, root);
    write_good(root, 3, 2, 5);
    checkpoint = open_good(*state);
    assert_int_equal(checkpoint_tensor_count(checkpoint), FIXTURE_TENSORS);
    for (size_t i = 0; i < FIXTURE_TENSORS; i++)
        assert_string_equal(checkpoint_get_tensor(checkpoint, i)->name, names[i]);
    tensor = checkpoint_find_tensor(checkpoint, "model.norm.weight");
    assert_non_null(tensor);
    assert_int_equal(tensor->dimensions, 1);
    assert_int_equal(tensor->shape[0], 512);
    assert_true(tensor->present[CHECKPOINT_WEIGHT]);
    assert_false(tensor->present[CHECKPOINT_MASTER]);
    assert_int_equal(tensor->dtype[CHECKPOINT_WEIGHT], DTYPE_F32);
    assert_null(checkpoint_find_tensor(checkpoint, "model.norm"));
    checkpoint_close(checkpoint);
}

/* Read rectangles at random places; what each thread gets must be right. */
struct slicing {
    struct checkpoint *checkpoint;
    unsigned int seed;
    char fault[300];
};

static void *read_slices(void *user)
{
    struct slicing *slicing = user;

    for (int i = 0; i < 120 && !*slicing->fault; i++) {
        int tensor = rand_r(&slicing->seed) % FIXTURE_TENSORS;
        int kind = rand_r(&slicing->seed) % CHECKPOINT_KINDS;
        enum dtype dtype = (enum dtype)(rand_r(&slicing->seed) % 3);
        const struct fixture_tensor *about = &fixture_tensors[tensor];
        int64_t start[2], extent[2];
        struct error error = {0};
        void *expected, *found;
        size_t bytes;

        if (kind == CHECKPOINT_MASTER && about->weight == DTYPE_F32)
            continue;
        for (int d = 0; d < 2; d++) {
            start[d] = rand_r(&slicing->seed) % about->shape[d];
            extent[d] = 1 + rand_r(&slicing->seed) % (about->shape[d] - start[d]);
        }
        if (i % 3 == 0) { /* whole rows, as a rank of another layout reads them */
            start[1] = 0;
            extent[1] = about->shape[1];
        }
        bytes = (size_t)(extent[0] * extent[1]) * dtype_bytes(dtype);
        expected = fixture_values(9, tensor, kind, start, extent, dtype);
        found = malloc(bytes);
        if (!found)
            abort();
        if (checkpoint_read(slicing->checkpoint, about->name, (enum checkpoint_kind)kind, start,
                            extent, dtype, found, &error) < 0)
            snprintf(slicing->fault, sizeof(slicing->fault), "%.250s", error.text);
        else if (memcmp(expected, found, bytes) != 0)
            snprintf(slicing->fault, sizeof(slicing->fault), "%s: wrong bits", about->name);
        free(expected);
        free(found);
    }
    return NULL;
}

static void test_slices_by_several_threads(void **state)
{
    enum { THREADS = 3 };
    char root[FIXTURE_PATH];
    struct slicing slicing[THREADS];
    pthread_t threads[THREADS];
    struct checkpoint *checkpoint;

    root_of(*state, root);
    write_good(root, 1, 4, 9);
    checkpoint = open_good(root);
    for (int i = 0; i < THREADS; i++) {
        slicing[i] = (struct slicing){.checkpoint = checkpoint, .seed = (unsigned int)i + 1};
        assert_int_equal(pthread_create(&threads[i], NULL, read_slices, &slicing[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < THREADS; i++)
        if (*slicing[i].fault)
            fail_msg("%s", slicing[i].fault);
    checkpoint_close(checkpoint);
}

static void test_reads_outside_are_refused(void **state)
{
    char root[FIXTURE_PATH];
    struct checkpoint *checkpoint;
    struct error error = {0};
    float value;

    root_of(*state, root);
    write_good(root, 1, 1, 1);
    checkpoint = open_good(root);
    assert_int_equal(checkpoint_read(checkpoint, "nothing", CHECKPOINT_WEIGHT, (int64_t[]){0, 0},
                                     (int64_t[]){1, 1}, DTYPE_F32, &value, &error),
                     -1);
    assert_non_null(strstr(error.text, "nothing"));
    assert_int_equal(checkpoint_read(checkpoint, "lm_head.weight", CHECKPOINT_MASTER,
                                     (int64_t[]){0, 0}, (int64_t[]){1, 1}, DTYPE_F32, &value,
                                     &error),
                     -1);
    assert_non_null(strstr(error.text, "master"));
    assert_int_equal(checkpoint_read(checkpoint, "lm_head.weight", CHECKPOINT_WEIGHT,
                                     (int64_t[]){0, 512}, (int64_t[]){1, 1}, DTYPE_F32, &value,
                                     &error),
                     -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    checkpoint_close(checkpoint);
}

/* Through the index's virtual datasets, as h5py would, after the directory was moved. */
static void test_foreign_readers_see_whole_tensors(void **state)
{
    char root[FIXTURE_PATH], moved[FIXTURE_PATH], path[FIXTURE_PATH + 64];
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), file;

    root_of(*state, root);
    write_good(root, 1, 4, 77);
    snprintf(moved, sizeof(moved), "%.400s/elsewhere", (const char *)*state);
    assert_int_equal(rename(root, moved), 0);
    snprintf(path, sizeof(path), "%s/step-00000001/index.h5", moved);
    file = H5Fopen(path, H5F_ACC_RDONLY, access);
    assert_true(file >= 0);
    for (int tensor = 0; tensor < FIXTURE_TENSORS; tensor++)
        for (int kind = 0; kind < CHECKPOINT_KINDS; kind++) {
            const struct fixture_tensor *about = &fixture_tensors[tensor];
            enum dtype dtype = fixture_dtype(tensor, kind);
            size_t count = (size_t)(about->shape[0] * about->shape[1]);
            hid_t dataset, type = h5_type(dtype), space;
            hsize_t shape[2] = {0, 1};
            void *expected, *stored = malloc(4 * count);
            float *widened = malloc(4 * count), *exact = malloc(4 * count);

            if (kind == CHECKPOINT_MASTER && about->weight == DTYPE_F32) {
                free(stored);
                free(widened);
                free(exact);
                H5Tclose(type);
                continue;
            }
            snprintf(path, sizeof(path), kind ? "/optimizer/%s/%s" : "/%s/%s",
                     kind ? checkpoint_kind_name((enum checkpoint_kind)kind) : "model",
                     about->name);
            dataset = H5Dopen2(file, path, H5P_DEFAULT);
            assert_true(dataset >= 0 && type >= 0 && stored && widened && exact);
            space = H5Dget_space(dataset);
            assert_int_equal(H5Sget_simple_extent_dims(space, shape, NULL), about->dimensions);
            assert_int_equal(shape[0], about->shape[0]);
            assert_int_equal(shape[1], about->shape[1]);
            assert_true(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, stored) >= 0);
            expected = fixture_values(77, tensor, kind, (int64_t[]){0, 0}, about->shape, dtype);
            assert_memory_equal(stored, expected, count * dtype_bytes(dtype));
            /* libhdf5 knows what the bits of bf16 and fp16 mean */
            assert_true(
                H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, widened) >= 0);
            dtype_convert(exact, DTYPE_F32, expected, dtype, count);
            assert_memory_equal(widened, exact, 4 * count);
            free(expected);
            free(stored);
            free(widened);
            free(exact);
            H5Sclose(space);
            H5Tclose(type);
            H5Dclose(dataset);
        }
    H5Fclose(file);
    H5Pclose(access);
}

/* One piece a row: tensor, kind, dtype, dimensions, shape, start, extent; shard by shard. */
struct refusal {
    const char *what; /* in the message */
    struct checkpoint_piece pieces[3];
    int shard[3];
};

#define W CHECKPOINT_WEIGHT
#define M CHECKPOINT_MASTER
#define F DTYPE_F32
static const struct refusal refusals[] = {
    {"8 of its 16 elements are in no shard", {{"t", W, F, 2, {4, 4}, {0, 0}, {2, 4}, 0}}, {0}},
    {"shards 0 and 1 both hold row 1, column 0",
     {{"t", W, F, 2, {4, 4}, {0, 0}, {2, 4}, 0}, {"t", W, F, 2, {4, 4}, {1, 0}, {3, 4}, 0}},
     {0, 1}},
    {"shards 0 and 1 both hold row 0, column 0",
     {{"t", W, F, 1, {4, 1}, {0, 0}, {4, 1}, 0}, {"t", W, F, 1, {4, 1}, {0, 0}, {4, 1}, 0}},
     {0, 1}},
    {"shards 0 and 1 both hold row 0, column 3",
     {{"t", W, F, 2, {4, 4}, {0, 0}, {1, 4}, 0},
      {"t", W, F, 2, {4, 4}, {0, 3}, {4, 1}, 0},
      {"t", W, F, 2, {4, 4}, {1, 0}, {3, 3}, 0}},
     {0, 1, 1}},
    {"1 of its 9 elements are in no shard",
     {{"t", W, F, 2, {3, 3}, {0, 0}, {3, 2}, 0}, {"t", W, F, 2, {3, 3}, {0, 2}, {2, 1}, 0}},
     {0, 1}},
    {"2 dimensions of 4 x 4 for one piece, 2 of 4 x 5",
     {{"t", W, F, 2, {4, 4}, {0, 0}, {2, 4}, 0}, {"t", W, F, 2, {4, 5}, {2, 0}, {2, 5}, 0}},
     {0, 1}},
    {"fp32 in one piece, bf16 in shard 1",
     {{"t", W, F, 2, {4, 4}, {0, 0}, {2, 4}, 0},
      {"t", W, DTYPE_BF16, 2, {4, 4}, {2, 0}, {2, 4}, 0}},
     {0, 1}},
    {"its weights are in no shard", {{"t", M, F, 1, {4, 1}, {0, 0}, {4, 1}, 0}}, {0}},
    {"shard 0 has 3 from 2 on of its 4 rows", {{"t", W, F, 1, {4, 1}, {2, 0}, {3, 1}, 0}}, {0}},
    {"\"a/b\" cannot name a tensor", {{"a/b", W, F, 1, {4, 1}, {0, 0}, {4, 1}, 0}}, {0}},
    {"\".\" cannot name a tensor", {{".", W, F, 1, {4, 1}, {0, 0}, {4, 1}, 0}}, {0}},
    {"\"\" cannot name a tensor", {{"", W, F, 1, {4, 1}, {0, 0}, {4, 1}, 0}}, {0}},
    {"3 dimensions", {{"t", W, F, 3, {4, 1}, {0, 0}, {4, 1}, 0}}, {0}},
};

static void test_what_is_not_whole_is_refused(void **state)
{
    static const float zeros[64];
    char root[FIXTURE_PATH];

    root_of(*state, root);
    write_good(root, 5, 2, 3);
    for (size_t i = 0; i < sizeof(refusals) / sizeof(*refusals); i++) {
        const struct refusal *refusal = &refusals[i];
        struct checkpoint_state about = {.step = 6};
        struct error error = {0};
        int result = 0;

        for (int shard = 0; shard < 2 && result == 0; shard++) {
            struct checkpoint_piece pieces[3];
            size_t count = 0;

            for (int p = 0; p < 3; p++)
                if (refusal->pieces[p].tensor && refusal->shard[p] == shard) {
                    pieces[count] = refusal->pieces[p];
                    pieces[count++].data = zeros;
                }
            result = checkpoint_write_shard(root, 6, shard, pieces, count, &error);
        }
        if (result == 0)
            result = checkpoint_commit(root, 2, &about, &error);
        assert_int_equal(result, -1);
        if (!strstr(error.text, refusal->what))
            fail_msg("expected \"%s\", got \"%s\"", refusal->what, error.text);
        assert_false(fixture_exists(root, "step-00000006"));
        assert_holds(root, 5, 3);
        assert_int_equal(checkpoint_clean(root, &error), 0);
        assert_false(fixture_exists(root, ".step-00000006.tmp"));
    }
}

static void test_commit_needs_every_shard(void **state)
{
    char root[FIXTURE_PATH];
    struct error error = {0};

    root_of(*state, root);
    assert_int_equal(fixture_shard(root, 1, 0, 2, 1, &error), 0);
    assert_int_equal(fixture_commit(root, 1, 2, 1, &error), -1);
    assert_non_null(strstr(error.text, "shard-00001"));
    assert_false(fixture_exists(root, "step-00000001"));
    assert_false(fixture_exists(root, ".step-00000001.tmp"));
}

static void test_same_step_again(void **state)
{
    char root[FIXTURE_PATH], step[FIXTURE_PATH + 32];
    struct error error = {0};
    struct checkpoint *old;

    root_of(*state, root);
    write_good(root, 4, 2, 1);
    old = open_good(root);
    /* an attempt with more shards that came to nothing */
    assert_int_equal(fixture_shard(root, 4, 5, 6, 1, &error), 0);
    write_good(root, 4, 3, 2);
    assert_holds(root, 4, 2);
    checkpoint_path(root, 4, step, sizeof(step));
    assert_false(fixture_exists(step, "shard-00005.h5"));
    assert_false(fixture_exists(step, ".shard-00000.pieces"));
    assert_false(fixture_exists(root, ".step-00000004.tmp"));
    checkpoint_close(old);
}

struct told {
    int count;
    char text[2048];
};

static void tell(void *user, const char *text)
{
    struct told *told = user;

    told->count++;
    snprintf(told->text, sizeof(told->text), "%s", text);
}

static void remove_file(const char *root, int64_t step, const char *name)
{
    char path[FIXTURE_PATH], file[2 * FIXTURE_PATH];

    checkpoint_path(root, step, path, sizeof(path));
    snprintf(file, sizeof(file), "%s/%s", path, name);
    assert_int_equal(unlink(file), 0);
}

static void assert_steps(const char *root, const char *expected)
{
    struct error error = {0};
    char text[200] = "";
    int64_t *steps;
    size_t count;

    assert_int_equal(checkpoint_list(root, &steps, &count, &error), 0);
    for (size_t i = 0; i < count; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%lld ", (long long)steps[i]);
    free(steps);
    assert_string_equal(text, expected);
}

static void test_find(void **state)
{
    char root[FIXTURE_PATH], path[FIXTURE_PATH], link[FIXTURE_PATH + 16], target[64] = "";
    struct error error = {0};
    struct told told = {0};

    root_of(*state, root);
    assert_int_equal(checkpoint_find(root, false, path, sizeof(path), tell, &told, &error), 0);
    assert_steps(root, "");
    write_good(root, 8, 1, 1);
    write_good(root, 9, 2, 2);
    write_good(root, 10, 2, 3);
    assert_int_equal(mkdir(strcat(strcpy(path, root), "/step-12"), 0777), 0); /* not ours */
    assert_steps(root, "10 9 8 ");
    snprintf(link, sizeof(link), "%s/latest", root);
    assert_int_equal(readlink(link, target, sizeof(target) - 1), 13);
    assert_string_equal(target, "step-00000010");

    assert_int_equal(checkpoint_find(root, true, path, sizeof(path), tell, &told, &error), 1);
    assert_non_null(strstr(path, "step-00000010"));
    assert_int_equal(told.count, 0);

    remove_file(root, 10, "shard-00001.h5");
    assert_int_equal(checkpoint_find(root, false, path, sizeof(path), tell, &told, &error), 1);
    assert_non_null(strstr(path, "step-00000009"));
    assert_int_equal(told.count, 1);
    assert_non_null(strstr(told.text, "step-00000010/shard-00001.h5: is missing"));
    assert_holds(*state, 9, 2);

    remove_file(root, 9, "manifest.json");
    remove_file(root, 8, "index.h5");
    told.count = 0;
    assert_int_equal(checkpoint_find(root, false, path, sizeof(path), tell, &told, &error), 0);
    assert_int_equal(told.count, 3);
}

static void test_open_says_what_is_wrong(void **state)
{
    char root[FIXTURE_PATH], path[FIXTURE_PATH];
    struct checkpoint *checkpoint;
    struct error error = {0};

    root_of(*state, root);
    assert_int_equal(checkpoint_open(&checkpoint, root, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_int_equal(checkpoint_open(&checkpoint, *state, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    write_good(root, 1, 1, 1);
    remove_file(root, 1, "manifest.json");
    assert_int_equal(checkpoint_open(&checkpoint, root, &error), -1);
    assert_non_null(strstr(error.text, "manifest.json"));
    checkpoint_path(root, 1, path, sizeof(path));
    assert_int_equal(checkpoint_open(&checkpoint, path, &error), -1);
    assert_non_null(strstr(error.text, "manifest.json"));
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    /* another step's name on it */
    write_good(root, 2, 1, 1);
    snprintf(path, sizeof(path), "%.400s/step-00000002", root);
    assert_int_equal(rename(path, strcat(strcpy((char[FIXTURE_PATH]){0}, root), "/step-00000003")),
                     0);
    assert_int_equal(checkpoint_open(&checkpoint, root, &error), -1);
    assert_non_null(strstr(error.text, "is of step 2"));
}

static void test_prune(void **state)
{
    char root[FIXTURE_PATH];
    struct error error = {0};

    root_of(*state, root);
    for (int64_t step = 1; step <= 6; step++)
        write_good(root, step, 1, (uint64_t)step);
    assert_int_equal(checkpoint_prune(root, 4, &error), 0);
    assert_steps(root, "6 5 4 3 ");
    /* damaged ones do not count */
    remove_file(root, 6, "index.h5");
    remove_file(root, 5, "shard-00000.h5");
    assert_int_equal(checkpoint_prune(root, 1, &error), 0);
    assert_steps(root, "6 5 4 ");
    assert_holds(root, 4, 4);
    assert_int_equal(checkpoint_prune(root, 0, &error), 0);
    assert_steps(root, "6 5 4 ");
    assert_int_equal(checkpoint_prune("/nonexistent/ckpt", 1, &error), 0);
}

/* A run that fell back from step 6, damaged in a way that only its bytes tell, goes on from 4. */
static void test_prune_after_falling_back(void **state)
{
    char root[FIXTURE_PATH];
    struct error error = {0};

    root_of(*state, root);
    write_good(root, 4, 1, 4);
    write_good(root, 6, 1, 6);
    write_good(root, 5, 1, 5);
    assert_int_equal(checkpoint_prune(root, 1, &error), 0);
    assert_steps(root, "6 5 ");
}

static void test_clean(void **state)
{
    char root[FIXTURE_PATH], one[FIXTURE_PATH + 32], other[FIXTURE_PATH + 48];
    struct error error = {0};

    root_of(*state, root);
    write_good(root, 1, 1, 1);
    write_good(root, 2, 1, 2);
    assert_int_equal(fixture_shard(root, 3, 0, 1, 1, &error), 0);
    /* a crash between the renames of a replacement: step 2 is only there by its other name */
    snprintf(one, sizeof(one), "%s/step-00000002", root);
    snprintf(other, sizeof(other), "%s/.replaced-step-00000002", root);
    assert_int_equal(rename(one, other), 0);
    /* and one between the renames and the removal */
    snprintf(other, sizeof(other), "%s/.replaced-step-00000001", root);
    assert_int_equal(mkdir(other, 0777), 0);
    snprintf(other, sizeof(other), "%s/.trash-step-00000000", root);
    assert_int_equal(mkdir(other, 0777), 0);
    assert_int_equal(checkpoint_clean(root, &error), 0);
    assert_steps(root, "2 1 ");
    assert_holds(root, 2, 2);
    assert_false(fixture_exists(root, ".step-00000003.tmp"));
    assert_false(fixture_exists(root, ".replaced-step-00000001"));
    assert_false(fixture_exists(root, ".trash-step-00000000"));
    assert_int_equal(checkpoint_clean("/nonexistent/ckpt", &error), 0);
}

/* The same state gives the same bytes; nothing of a shard depends on when or where it was made. */
static void test_shards_are_reproducible(void **state)
{
    char root[FIXTURE_PATH], path[2 * FIXTURE_PATH], command[5 * FIXTURE_PATH];

    root_of(*state, root);
    write_good(root, 1, 2, 1);
    snprintf(path, sizeof(path), "%.400s/again", (const char *)*state);
    write_good(path, 1, 2, 1);
    snprintf(command, sizeof(command),
             "cmp %s/step-00000001/shard-00001.h5 %s/step-00000001/shard-00001.h5", root, path);
    assert_int_equal(system(command), 0);
}

static void test_unwritable_root_is_named(void **state)
{
    char root[FIXTURE_PATH];
    struct error error = {0};
    int fd;

    root_of(*state, root);
    fd = open(root, O_CREAT | O_WRONLY, 0666); /* a file where a directory should be */
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(fixture_shard(root, 1, 0, 1, 1, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_IO);
    assert_non_null(strstr(error.text, root));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_steps_alike_before_ramps, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_tensors_are_listed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_slices_by_several_threads, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_reads_outside_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_foreign_readers_see_whole_tensors, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_is_not_whole_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_commit_needs_every_shard, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_same_step_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_find, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_says_what_is_wrong, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_prune, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_prune_after_falling_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_clean, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_shards_are_reproducible, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unwritable_root_is_named, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
