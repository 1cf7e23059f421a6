#include "trainer/dump.h"

#include <stdlib.h>
#include <string.h>

static const char *const column_names[] = {
    [DUMP_TOKENS] = "tokens",
    [DUMP_TARGETS] = "targets",
    [DUMP_WEIGHTS] = "weights",
    [DUMP_ANSWERS] = "answers",
};

static int64_t rows_of(const struct training *t)
{
    return t->stage.sizes.rows;
}

static hid_t column_type(int column)
{
    return column == DUMP_WEIGHTS ? H5T_NATIVE_FLOAT : H5T_NATIVE_INT32;
}

static void write_part(struct dump *dump, hid_t dataset, hid_t type, int rank, const hsize_t *start,
                       const hsize_t *count, const void *values)
{
    hid_t memory = H5Screate_simple(rank, count, NULL), space = H5Dget_space(dataset);

    H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL);
    if (H5Dwrite(dataset, type, memory, space, H5P_DEFAULT, values) < 0)
        dump->failed = true;
    H5Sclose(memory);
    H5Sclose(space);
}

/* Samples [first, first + micro_batch) of the batch get their place in the file. */
static void write_microbatch(struct dump *dump, int64_t first, const float *whole)
{
    const struct training *t = dump->training;
    hsize_t start[3] = {(hsize_t)first, 0, 0};
    hsize_t count[3] = {(hsize_t)t->micro_batch, (hsize_t)t->seq_length,
                        (hsize_t)t->model.vocab_size};

    write_part(dump, dump->values, H5T_NATIVE_FLOAT, 3, start, count, whole);
    for (int c = 0; c < DUMP_COLUMNS; c++)
        write_part(dump, dump->columns[c], column_type(c), 2, start, count,
                   dump->rest + c * rows_of(t));
}

/* The rest of a microbatch of the batch at hand. */
static void take_rest(struct dump *dump, const struct batch *batch, int64_t microbatch)
{
    int64_t rows = rows_of(dump->training), at = microbatch * rows;
    size_t bytes = (size_t)rows * sizeof(int32_t);

    memcpy(dump->rest + DUMP_TOKENS * rows, batch->tokens + at, bytes);
    memcpy(dump->rest + DUMP_TARGETS * rows, batch->targets + at, bytes);
    memcpy(dump->rest + DUMP_WEIGHTS * rows, batch->weights + at, bytes);
    for (int64_t i = 0; i < rows; i++)
        dump->rest[DUMP_ANSWERS * rows + i] = batch->answers[at + i];
}

static int64_t rest_bytes(const struct training *t)
{
    return (int64_t)sizeof(int32_t) * DUMP_COLUMNS * rows_of(t);
}

static void send_host(const struct dump *dump, const void *bytes, int64_t count, int peer)
{
    const struct training *t = dump->training;
    struct comm_request request = {0};

    t->stage.kernels->to_device(t->stage.stream, dump->device, bytes, (size_t)count);
    comm_send(t->groups.world, dump->device, count, peer, &request, t->stage.stream);
    comm_wait(&request);
}

static void receive_host(const struct dump *dump, void *bytes, int64_t count, int peer)
{
    const struct training *t = dump->training;
    struct comm_request request = {0};
    struct error error;

    comm_receive(t->groups.world, dump->device, count, peer, &request, t->stage.stream);
    comm_wait(&request);
    t->stage.kernels->to_host(t->stage.stream, bytes, dump->device, (size_t)count);
    /* Failures of the device are found by the next of the training's own. */
    (void)t->stage.kernels->stream_sync(t->stage.stream, &error);
}

/* Every replica's last stage hands rank 0 what it has, when the batch is through: meanwhile rank 0
 * may be another stage that the last one waits for. */
void dump_collect(struct dump *dump, const struct batch *batch)
{
    const struct training *t = dump->training;
    int64_t whole_bytes = (int64_t)sizeof(float) * logits_count(t);

    for (int64_t m = 0; m < t->microbatches; m++) {
        for (int dp = 0; dp < t->layout.dp; dp++) {
            struct layout_place place = {.tp = 0, .pp = t->layout.pp - 1, .dp = dp};
            int owner = layout_rank(&t->layout, place);
            float *whole = logits_of(dump->logits, t->world->rank == owner ? m : 0);

            if (t->world->rank == owner)
                take_rest(dump, batch, m);
            if (t->world->rank == owner && owner != 0) {
                send_host(dump, whole, whole_bytes, 0);
                send_host(dump, dump->rest, rest_bytes(t), 0);
            }
            if (t->world->rank != 0)
                continue;
            if (owner != 0) {
                receive_host(dump, whole, whole_bytes, owner);
                receive_host(dump, dump->rest, rest_bytes(t), owner);
            }
            write_microbatch(dump, (m * t->layout.dp + dp) * t->micro_batch, whole);
        }
    }
}

static int open_dump_file(struct dump *dump, struct error *error)
{
    const struct training *t = dump->training;
    hsize_t shape[3] = {(hsize_t)t->global_batch, (hsize_t)t->seq_length,
                        (hsize_t)t->model.vocab_size};
    bool created = true;
    hid_t space;

    H5Eset_auto(H5E_DEFAULT, NULL, NULL);
    dump->file = H5Fcreate(dump->path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    if (dump->file < 0)
        return error_set(error, EXIT_STATUS_IO, "dump-logits=%s: cannot create this file",
                         dump->path);
    space = H5Screate_simple(2, shape, NULL);
    for (int c = 0; c < DUMP_COLUMNS; c++) {
        dump->columns[c] = H5Dcreate(dump->file, column_names[c], column_type(c), space,
                                     H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        created = created && dump->columns[c] >= 0;
    }
    H5Sclose(space);
    space = H5Screate_simple(3, shape, NULL);
    dump->values = H5Dcreate(dump->file, "logits", H5T_IEEE_F32LE, space, H5P_DEFAULT, H5P_DEFAULT,
                             H5P_DEFAULT);
    H5Sclose(space);
    return created && dump->values >= 0
               ? 0
               : error_set(error, EXIT_STATUS_IO, "dump-logits=%s: cannot write", dump->path);
}

int dump_open(struct dump *dump, const struct training *t, const struct logits *logits,
              const char *path, struct error *error)
{
    *dump = (struct dump){.training = t, .logits = logits, .path = path, .file = -1, .values = -1};
    for (int c = 0; c < DUMP_COLUMNS; c++)
        dump->columns[c] = -1;
    dump->rest = calloc(DUMP_COLUMNS, (size_t)rows_of(t) * sizeof(*dump->rest));
    dump->device =
        t->stage.kernels->allocate((size_t)logits_count(t) * sizeof(float) + (size_t)rest_bytes(t));
    if (!dump->rest || !dump->device)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for the logits");
    return t->world->rank == 0 ? open_dump_file(dump, error) : 0;
}

int dump_close(struct dump *dump, struct error *error)
{
    free(dump->rest);
    if (dump->device)
        dump->training->stage.kernels->release(dump->device);
    for (int c = 0; c < DUMP_COLUMNS; c++)
        if (dump->columns[c] >= 0 && H5Dclose(dump->columns[c]) < 0)
            dump->failed = true;
    if (dump->values >= 0 && H5Dclose(dump->values) < 0)
        dump->failed = true;
    if (dump->file >= 0 && H5Fclose(dump->file) < 0)
        dump->failed = true;
    return dump->failed
               ? error_set(error, EXIT_STATUS_IO,
                           "dump-logits=%s: writing failed (is the disk full?)", dump->path)
               : 0;
}
