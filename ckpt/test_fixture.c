#include "ckpt/test_fixture.h"

#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct fixture_tensor fixture_tensors[FIXTURE_TENSORS] = {
    {"model.embed_tokens.weight", 2, {160, 512}, DTYPE_BF16},
    {"model.layers.2.mlp.down_proj.weight", 2, {7, 3}, DTYPE_BF16},
    {"model.layers.10.mlp.down_proj.weight", 2, {96, 130}, DTYPE_F16},
    {"model.layers.10.self_attn.q_proj.weight", 2, {192, 192}, DTYPE_BF16},
    {"model.norm.weight", 1, {512, 1}, DTYPE_F32},
    {"lm_head.weight", 2, {160, 512}, DTYPE_F32},
};

void fixture_directory(char path[FIXTURE_PATH])
{
    const char *parent = getenv("TMPDIR");

    snprintf(path, FIXTURE_PATH, "%s/mtllm-ckpt-XXXXXX", parent && *parent ? parent : "/tmp");
    if (!mkdtemp(path)) {
        perror(path);
        abort();
    }
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *where)
{
    (void)status;
    (void)type;
    (void)where;
    return remove(path);
}

void fixture_remove(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int fixture_exists(const char *directory, const char *name)
{
    char path[2 * FIXTURE_PATH];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    return access(path, F_OK) == 0;
}

/* Any function that mixes well. */
static float value_at(uint64_t seed, int tensor, int kind, int64_t row, int64_t column)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u ^ (uint64_t)(tensor * 8 + kind) << 50 ^
                 (uint64_t)row << 20 ^ (uint64_t)column;

    x ^= x >> 31;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    x ^= x >> 32;
    return (float)((double)(int32_t)(uint32_t)x * 0x1p-31);
}

void *fixture_values(uint64_t seed, int tensor, int kind, const int64_t start[2],
                     const int64_t extent[2], enum dtype dtype)
{
    size_t count = (size_t)(extent[0] * extent[1]);
    float *exact = calloc(count + 1, sizeof(*exact));
    void *stored = calloc(count + 1, sizeof(float)), *result = calloc(count + 1, sizeof(float));

    if (!exact || !stored || !result)
        abort();
    for (int64_t i = 0; i < extent[0]; i++)
        for (int64_t j = 0; j < extent[1]; j++)
            exact[i * extent[1] + j] = value_at(seed, tensor, kind, start[0] + i, start[1] + j);
    dtype_convert(stored, fixture_dtype(tensor, kind), exact, DTYPE_F32, count);
    dtype_convert(result, dtype, stored, fixture_dtype(tensor, kind), count);
    free(exact);
    free(stored);
    return result;
}

/* Shard `number`'s part of a tensor; false when it has none. */
static int part_of(int tensor, int kind, int number, int shards, int64_t start[2],
                   int64_t extent[2])
{
    const struct fixture_tensor *about = &fixture_tensors[tensor];
    int64_t end[2] = {about->shape[0], about->shape[1]};
    int cut = (tensor + kind) % 4;

    start[0] = start[1] = 0;
    if (cut == 1 && about->dimensions == 2) { /* columns */
        start[1] = about->shape[1] * number / shards;
        end[1] = about->shape[1] * (number + 1) / shards;
    } else if (cut == 2 && about->dimensions == 2 && shards % 2 == 0) { /* rows of either half */
        int half = shards / 2;

        start[0] = about->shape[0] * (number % half) / half;
        end[0] = about->shape[0] * (number % half + 1) / half;
        start[1] = number < half ? 0 : about->shape[1] / 3;
        end[1] = number < half ? about->shape[1] / 3 : about->shape[1];
    } else if (cut == 3) { /* one shard has all of it */
        if (number != tensor % shards)
            end[0] = 0;
    } else { /* rows */
        start[0] = about->shape[0] * number / shards;
        end[0] = about->shape[0] * (number + 1) / shards;
    }
    extent[0] = end[0] - start[0];
    extent[1] = end[1] - start[1];
    return extent[0] > 0 && extent[1] > 0;
}

int fixture_shard(const char *root, int64_t step, int number, int shards, uint64_t seed,
                  struct error *error)
{
    struct checkpoint_piece pieces[FIXTURE_TENSORS * CHECKPOINT_KINDS];
    size_t count = 0;
    int result;

    for (int kind = 0; kind < CHECKPOINT_KINDS; kind++)
        for (int tensor = 0; tensor < FIXTURE_TENSORS; tensor++) {
            const struct fixture_tensor *about = &fixture_tensors[tensor];
            struct checkpoint_piece *piece = &pieces[count];

            *piece = (struct checkpoint_piece){.tensor = about->name,
                                               .kind = (enum checkpoint_kind)kind,
                                               .dtype = fixture_dtype(tensor, kind),
                                               .dimensions = about->dimensions,
                                               .shape = {about->shape[0], about->shape[1]}};
            /* fp32 weights are their own master weights */
            if ((kind == CHECKPOINT_MASTER && about->weight == DTYPE_F32) ||
                !part_of(tensor, kind, number, shards, piece->start, piece->extent))
                continue;
            piece->data =
                fixture_values(seed, tensor, kind, piece->start, piece->extent, piece->dtype);
            count++;
        }
    result = checkpoint_write_shard(root, step, number, pieces, count, error);
    for (size_t i = 0; i < count; i++)
        free((void *)pieces[i].data);
    return result;
}

int fixture_commit(const char *root, int64_t step, int shards, uint64_t seed, struct error *error)
{
    struct checkpoint_file files[2] = {{"tokenizer.model", "\0\1\2three", 8}, {"empty", "", 0}};
    struct checkpoint_state state = {
        .step = step,
        .samples = step * 8,
        .tokens = step * 4096,
        .skipped = (int64_t)seed,
        .trained_samples = step * 8 - 5,
        .loss_scale = 0.1,
        .scale_clean_steps = 17,
        .scale_overflows_left = 2,
        .config = "{\"model_type\": \"llama\"}",
        .settings = "model = llama-tiny\n",
        .run_id = "a run \xc3\xa9",
        .files = files,
        .file_count = 2,
    };

    snprintf(state.layout, sizeof(state.layout), "tp%d pp1 dp1", shards);
    return checkpoint_commit(root, shards, &state, error);
}

int fixture_write(const char *root, int64_t step, int shards, uint64_t seed, struct error *error)
{
    for (int i = 0; i < shards; i++)
        if (fixture_shard(root, step, i, shards, seed, error) < 0)
            return -1;
    return fixture_commit(root, step, shards, seed, error);
}

uint64_t fixture_seed(const struct checkpoint *checkpoint)
{
    return (uint64_t)checkpoint_get_state(checkpoint)->skipped;
}

const char *fixture_compare(struct checkpoint *checkpoint, uint64_t seed)
{
    static char text[2200];

    for (int tensor = 0; tensor < FIXTURE_TENSORS; tensor++)
        for (int kind = 0; kind < CHECKPOINT_KINDS; kind++) {
            const struct fixture_tensor *about = &fixture_tensors[tensor];
            enum dtype dtype = fixture_dtype(tensor, kind);
            size_t bytes = (size_t)(about->shape[0] * about->shape[1]) * dtype_bytes(dtype);
            int64_t start[2] = {0, 0};
            struct error error = {0};
            void *expected, *found;
            int differ;

            if (kind == CHECKPOINT_MASTER && about->weight == DTYPE_F32)
                continue;
            expected = fixture_values(seed, tensor, kind, start, about->shape, dtype);
            found = malloc(bytes);
            if (!found)
                abort();
            differ = checkpoint_read(checkpoint, about->name, (enum checkpoint_kind)kind, start,
                                     about->shape, dtype, found, &error) < 0;
            if (differ)
                snprintf(text, sizeof(text), "%s", error.text);
            else if ((differ = memcmp(found, expected, bytes)) != 0)
                snprintf(text, sizeof(text), "%s (%s) was read with other bits", about->name,
                         checkpoint_kind_name((enum checkpoint_kind)kind));
            free(expected);
            free(found);
            if (differ)
                return text;
        }
    return NULL;
}
