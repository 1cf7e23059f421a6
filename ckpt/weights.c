#include "ckpt/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/hf_config.h"
#include "ckpt/hf_source.h"
#include "ckpt/hf_tensors.h"

/* Elements that are averaged at a time. */
#define SLICE_ELEMENTS ((int64_t)4 << 20)

struct weights {
    struct hf_source *hf; /* or */
    struct checkpoint *checkpoint;
    struct model model;
    int64_t new_first, new_end; /* rows of embedding and head that the source has no values for */
    float *embedding_mean, *head_mean; /* [hidden_size], NULL until wanted */
};

static int create(struct weights **weights, struct error *error)
{
    *weights = calloc(1, sizeof(**weights));
    return *weights ? 0 : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

static int fail(struct weights **weights)
{
    weights_close(*weights);
    *weights = NULL;
    return -1;
}

int weights_open_hf(struct weights **weights, const char *directory, bool allow_nonfinite,
                    struct error *error)
{
    if (create(weights, error) < 0)
        return -1;
    if (hf_source_open(&(*weights)->hf, directory, allow_nonfinite, error) < 0)
        return fail(weights);
    (*weights)->model = *hf_source_model((*weights)->hf);
    return 0;
}

/* Does the checkpoint hold the model that its own config describes? */
static int check_tensors(const struct weights *weights, struct error *error)
{
    for (size_t i = 0; i < hf_tensor_count(&weights->model); i++) {
        const struct checkpoint_tensor *tensor;
        struct hf_tensor wanted;

        hf_tensor_get(&weights->model, i, &wanted);
        tensor = checkpoint_find_tensor(weights->checkpoint, wanted.name);
        if (!tensor || !tensor->present[CHECKPOINT_WEIGHT])
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: has no tensor %s, which the model in it needs",
                             weights_directory(weights), wanted.name);
        if (tensor->shape[0] != wanted.shape[0] || tensor->shape[1] != wanted.shape[1])
            return error_set(
                error, EXIT_STATUS_DATA,
                "%s: tensor %s is [%lld, %lld], but the model in it needs [%lld, %lld]",
                weights_directory(weights), wanted.name, (long long)tensor->shape[0],
                (long long)tensor->shape[1], (long long)wanted.shape[0],
                (long long)wanted.shape[1]);
    }
    return 0;
}

static int open_checkpoint(struct weights *weights, const char *path, struct error *error)
{
    const struct checkpoint_state *state;

    if (checkpoint_open(&weights->checkpoint, path, error) < 0)
        return -1;
    state = checkpoint_get_state(weights->checkpoint);
    if (hf_config_read(&weights->model, state->config, strlen(state->config),
                       weights_directory(weights), error) < 0)
        return -1;
    return check_tensors(weights, error);
}

int weights_open_checkpoint(struct weights **weights, const char *path, struct error *error)
{
    if (create(weights, error) < 0)
        return -1;
    return open_checkpoint(*weights, path, error) < 0 ? fail(weights) : 0;
}

int weights_open(struct weights **weights, const char *path, struct error *error)
{
    return hf_source_is_one(path) ? weights_open_hf(weights, path, false, error)
                                  : weights_open_checkpoint(weights, path, error);
}

void weights_close(struct weights *weights)
{
    if (!weights)
        return;
    hf_source_close(weights->hf);
    if (weights->checkpoint)
        checkpoint_close(weights->checkpoint);
    free(weights->embedding_mean);
    free(weights->head_mean);
    free(weights);
}

const char *weights_directory(const struct weights *weights)
{
    return weights->hf ? hf_source_directory(weights->hf)
                       : checkpoint_directory(weights->checkpoint);
}

struct checkpoint *weights_checkpoint(const struct weights *weights)
{
    return weights->checkpoint;
}

const struct model *weights_model(const struct weights *weights)
{
    return &weights->model;
}

const struct checkpoint_state *weights_state(const struct weights *weights)
{
    return weights->hf ? hf_source_state(weights->hf) : checkpoint_get_state(weights->checkpoint);
}

char *weights_config(const struct weights *weights, const struct model *model, enum dtype dtype)
{
    const char *from = weights_state(weights)->config;
    char *plain = hf_config_write(model, dtype), *text = NULL;

    if (plain)
        text = hf_config_take_token_ids(plain, from, strlen(from), HF_TOKEN_IDS_ALL);
    free(plain);
    return text;
}

void weights_grow(struct weights *weights, int64_t first, int64_t count)
{
    int64_t end = first + count;

    weights->new_first = first < weights->model.vocab_size ? first : weights->model.vocab_size;
    weights->new_end = end;
    if (end > weights->model.vocab_size)
        weights->model.vocab_size = end;
}

static enum checkpoint_kind finest(const struct checkpoint_tensor *tensor)
{
    return tensor->present[CHECKPOINT_MASTER] ? CHECKPOINT_MASTER : CHECKPOINT_WEIGHT;
}

enum dtype weights_dtype(const struct weights *weights, const char *name)
{
    const struct checkpoint_tensor *tensor;

    if (weights->hf)
        return hf_source_dtype(weights->hf, name);
    tensor = checkpoint_find_tensor(weights->checkpoint, name);
    return tensor->dtype[finest(tensor)];
}

/* A rectangle that the source has. */
static int read_stored(const struct weights *weights, const char *name, const int64_t start[2],
                       const int64_t extent[2], enum dtype dtype, void *data, struct error *error)
{
    const struct checkpoint_tensor *tensor;

    if (weights->hf)
        return hf_source_read(weights->hf, name, start, extent, dtype, data, error);
    tensor = checkpoint_find_tensor(weights->checkpoint, name);
    return checkpoint_read(weights->checkpoint, name,
                           dtype == DTYPE_F32 ? finest(tensor) : CHECKPOINT_WEIGHT, start, extent,
                           dtype, data, error);
}

/* --- new tokens ------------------------------------------------------------------------------ */

/* Of a tensor that grows, where its mean row is kept; NULL for the others. */
static float **mean_of(struct weights *weights, const char *name)
{
    if (weights->new_end <= weights->new_first)
        return NULL;
    if (strcmp(name, hf_embedding_name(&weights->model)) == 0)
        return &weights->embedding_mean;
    return strcmp(name, HF_HEAD) == 0 ? &weights->head_mean : NULL;
}

/* Add the rows up, slice by slice, into sum[columns]. */
static int add_rows(const struct weights *weights, const char *name, int64_t rows, double *sum,
                    float *slice, struct error *error)
{
    int64_t columns = weights->model.hidden_size;
    int64_t most = SLICE_ELEMENTS / columns > 0 ? SLICE_ELEMENTS / columns : 1;

    for (int64_t row = 0; row < rows; row += most) {
        const int64_t start[2] = {row, 0};
        const int64_t extent[2] = {rows - row < most ? rows - row : most, columns};

        if (read_stored(weights, name, start, extent, DTYPE_F32, slice, error) < 0)
            return -1;
        for (int64_t i = 0; i < extent[0]; i++)
            for (int64_t j = 0; j < columns; j++)
                sum[j] += (double)slice[i * columns + j];
    }
    return 0;
}

static int take_mean(const struct weights *weights, const char *name, float **mean,
                     struct error *error)
{
    int64_t columns = weights->model.hidden_size, rows = weights->new_first;
    int64_t most = SLICE_ELEMENTS > columns ? SLICE_ELEMENTS : columns;
    double *sum = calloc((size_t)columns, sizeof(*sum));
    float *slice = malloc((size_t)most * sizeof(*slice)), *result = NULL;
    int rc = -1;

    if (sum && slice)
        result = calloc((size_t)columns, sizeof(*result));
    if (!result)
        error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    else
        rc = add_rows(weights, name, rows, sum, slice, error);
    for (int64_t j = 0; rc == 0 && j < columns; j++)
        result[j] = (float)(sum[j] / (double)rows);
    free(sum);
    free(slice);
    if (rc == 0)
        *mean = result;
    else
        free(result);
    return rc;
}

/* Rows of new tokens. */
static int read_mean(const struct weights *weights, const char *name, float **mean,
                     const int64_t start[2], const int64_t extent[2], enum dtype dtype, char *data,
                     struct error *error)
{
    if (!*mean && take_mean(weights, name, mean, error) < 0)
        return -1;
    for (int64_t row = 0; row < extent[0]; row++)
        dtype_convert(data + row * extent[1] * (int64_t)dtype_bytes(dtype), dtype, *mean + start[1],
                      DTYPE_F32, (size_t)extent[1]);
    return 0;
}

int weights_read(struct weights *weights, const char *name, const int64_t start[2],
                 const int64_t extent[2], enum dtype dtype, void *data, struct error *error)
{
    /* Old rows, new ones, and old ones that no token has. */
    const int64_t ends[] = {weights->new_first, weights->new_end, INT64_MAX};
    float **mean = mean_of(weights, name);
    int64_t row = start[0], end = start[0] + extent[0];
    char *to = data;

    if (!mean)
        return read_stored(weights, name, start, extent, dtype, data, error);
    for (int i = 0; i < 3; i++) {
        int64_t stop = ends[i] < end ? ends[i] : end;
        const int64_t from[2] = {row, start[1]}, part[2] = {stop - row, extent[1]};

        if (part[0] <= 0)
            continue;
        if ((i == 1 ? read_mean(weights, name, mean, from, part, dtype, to, error)
                    : read_stored(weights, name, from, part, dtype, to, error)) < 0)
            return -1;
        to += part[0] * part[1] * (int64_t)dtype_bytes(dtype);
        row = stop;
    }
    return 0;
}
