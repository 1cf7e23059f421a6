#include "trainer/logits.h"

#include <stdlib.h>
#include <string.h>

static int64_t rows_of(const struct training *t)
{
    return t->stage.sizes.rows;
}

int64_t logits_count(const struct training *t)
{
    return rows_of(t) * t->model.vocab_size;
}

static int64_t parts_bytes(const struct logits *logits)
{
    const struct training *t = logits->training;

    return (int64_t)sizeof(float) * t->layout.tp * rows_of(t) * logits->widest;
}

int logits_open(struct logits *logits, const struct training *t, int64_t kept, struct error *error)
{
    int64_t first, wholes = t->stage.last && t->place.tp == 0 ? kept : 1;

    *logits = (struct logits){.training = t, .kept = kept};
    vocabulary_shard(&t->model, &t->layout, 0, &first, &logits->widest);
    logits->parts = calloc((size_t)parts_bytes(logits), 1);
    logits->padded = calloc((size_t)(rows_of(t) * logits->widest), sizeof(float));
    logits->piece = calloc((size_t)(t->stage.sizes.head_rows * logits->widest), sizeof(float));
    logits->whole = calloc((size_t)(wholes * logits_count(t)), sizeof(float));
    /* The whole vocabulary is never wider than the shards that hold it. */
    logits->device = t->stage.kernels->allocate((size_t)parts_bytes(logits));
    if (!logits->parts || !logits->padded || !logits->piece || !logits->whole || !logits->device)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for the logits");
    return 0;
}

void logits_close(struct logits *logits)
{
    free(logits->parts);
    free(logits->padded);
    free(logits->piece);
    free(logits->whole);
    if (logits->device)
        logits->training->stage.kernels->release(logits->device);
    *logits = (struct logits){0};
}

float *logits_of(const struct logits *logits, int64_t microbatch)
{
    return logits->whole + (logits->kept > 1 ? microbatch : 0) * logits_count(logits->training);
}

/* The pieces of the vocabulary that tensor-parallel ranks sent, side by side. */
static void join_parts(struct logits *logits, int64_t microbatch)
{
    const struct training *t = logits->training;
    float *whole = logits_of(logits, microbatch);

    for (int tp = 0; tp < t->layout.tp; tp++) {
        int64_t first, count;

        vocabulary_shard(&t->model, &t->layout, tp, &first, &count);
        for (int64_t row = 0; row < rows_of(t); row++)
            memcpy(whole + row * t->model.vocab_size + first,
                   logits->parts + (tp * rows_of(t) + row) * logits->widest,
                   (size_t)count * sizeof(float));
    }
}

/* Failures of the device are found by the next of the training's own. */
static void sync(const struct training *t)
{
    struct error error;

    (void)t->stage.kernels->stream_sync(t->stage.stream, &error);
}

/* Every tensor-parallel rank's columns on each of them. */
static void gather_parts(const struct logits *logits)
{
    const struct training *t = logits->training;
    const struct kernels *k = t->stage.kernels;
    int64_t count = rows_of(t) * logits->widest;
    float *mine = (float *)logits->device + t->place.tp * count;

    k->to_device(t->stage.stream, mine, logits->padded, (size_t)count * sizeof(float));
    comm_all_gather(t->groups.tp, logits->device, mine, count, COMM_F32, t->stage.stream);
    k->to_host(t->stage.stream, logits->parts, logits->device, (size_t)parts_bytes(logits));
    sync(t);
}

void logits_see(void *user, int64_t microbatch, int64_t row, int64_t rows, const void *values)
{
    struct logits *logits = user;
    const struct training *t = logits->training;
    const struct kernels *k = t->stage.kernels;
    int64_t columns = t->stage.sizes.vocab_count;

    k->convert(t->stage.stream, logits->device, DTYPE_F32, values, k->dtype, rows * columns);
    k->to_host(t->stage.stream, logits->piece, logits->device,
               (size_t)(rows * columns) * sizeof(float));
    sync(t);
    for (int64_t i = 0; i < rows; i++)
        memcpy(logits->padded + (row + i) * logits->widest, logits->piece + i * columns,
               (size_t)columns * sizeof(float));
    if (row + rows < rows_of(t))
        return;
    gather_parts(logits);
    if (t->place.tp == 0)
        join_parts(logits, microbatch);
}
