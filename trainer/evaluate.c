/* Validation, and --dump-logits: the tokens and logits of one batch, for comparison with other
 * programs. */
#include "trainer/training.h"

#include <stdlib.h>
#include <string.h>

#include <hdf5.h>

/* Collects the logits of one batch on rank 0 and writes them, one microbatch at a time. */
struct dump {
    struct training *training;
    const struct batch *batch; /* being evaluated */
    const char *path;
    hid_t file, tokens, logits; /* rank 0 */
    int64_t widest;             /* columns of the widest vocabulary shard */
    /* On the host; parts and padded on the last stage. */
    float *parts;  /* [tp, rows, widest] */
    float *padded; /* [rows, widest] */
    float *whole;  /* [rows, vocabulary] */
    float *piece;  /* [head_rows, vocab_count] */
    void *device;  /* device memory that any of these fits */
    bool failed;
};

static int rows_of(const struct training *t)
{
    return (int)t->stage.sizes.rows;
}

/* Samples [first, first + micro_batch) of the batch get their logits and tokens in the file. */
static void write_microbatch(struct dump *dump, int64_t first, const int32_t *tokens)
{
    const struct training *t = dump->training;
    hsize_t start[3] = {(hsize_t)first, 0, 0};
    hsize_t count[3] = {(hsize_t)t->micro_batch, (hsize_t)t->seq_length,
                        (hsize_t)t->model.vocab_size};
    hid_t memory = H5Screate_simple(3, count, NULL), space = H5Dget_space(dump->logits);

    H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL);
    if (H5Dwrite(dump->logits, H5T_NATIVE_FLOAT, memory, space, H5P_DEFAULT, dump->whole) < 0)
        dump->failed = true;
    H5Sclose(memory);
    H5Sclose(space);
    memory = H5Screate_simple(2, count, NULL);
    space = H5Dget_space(dump->tokens);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL);
    if (H5Dwrite(dump->tokens, H5T_NATIVE_INT32, memory, space, H5P_DEFAULT, tokens) < 0)
        dump->failed = true;
    H5Sclose(memory);
    H5Sclose(space);
}

/* The pieces of the vocabulary that tensor-parallel ranks sent, side by side. */
static void join_parts(struct dump *dump)
{
    const struct training *t = dump->training;

    for (int tp = 0; tp < t->layout.tp; tp++) {
        int64_t first, count;

        vocabulary_shard(&t->model, &t->layout, tp, &first, &count);
        for (int64_t row = 0; row < rows_of(t); row++)
            memcpy(dump->whole + row * t->model.vocab_size + first,
                   dump->parts + (tp * rows_of(t) + row) * dump->widest,
                   (size_t)count * sizeof(float));
    }
}

static int64_t parts_bytes(const struct dump *dump)
{
    const struct training *t = dump->training;

    return (int64_t)sizeof(float) * t->layout.tp * rows_of(t) * dump->widest;
}

/* Failures of the device are found by the next of the training's own. */
static void sync(const struct training *t)
{
    struct error error;

    (void)t->stage.kernels->stream_sync(t->stage.stream, &error);
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

    comm_receive(t->groups.world, dump->device, count, peer, &request, t->stage.stream);
    comm_wait(&request);
    t->stage.kernels->to_host(t->stage.stream, bytes, dump->device, (size_t)count);
    sync(t);
}

/* Every tensor-parallel rank's columns on each of them. */
static void gather_parts(const struct dump *dump)
{
    const struct training *t = dump->training;
    const struct kernels *k = t->stage.kernels;
    int64_t count = rows_of(t) * dump->widest;
    float *mine = (float *)dump->device + t->place.tp * count;

    k->to_device(t->stage.stream, mine, dump->padded, (size_t)count * sizeof(float));
    comm_all_gather(t->groups.tp, dump->device, mine, count, COMM_F32, t->stage.stream);
    k->to_host(t->stage.stream, dump->parts, dump->device, (size_t)parts_bytes(dump));
    sync(t);
}

/* On the last stage: this rank's columns of a piece of the microbatch. */
static void see_logits(void *user, int64_t microbatch, int64_t row, int64_t rows,
                       const void *logits)
{
    struct dump *dump = user;
    const struct training *t = dump->training;
    const struct kernels *k = t->stage.kernels;
    int64_t columns = t->stage.sizes.vocab_count;
    int64_t whole_bytes = (int64_t)sizeof(float) * rows_of(t) * t->model.vocab_size;

    k->convert(t->stage.stream, dump->device, DTYPE_F32, logits, k->dtype, rows * columns);
    k->to_host(t->stage.stream, dump->piece, dump->device,
               (size_t)(rows * columns) * sizeof(float));
    sync(t);
    for (int64_t i = 0; i < rows; i++)
        memcpy(dump->padded + (row + i) * dump->widest, dump->piece + i * columns,
               (size_t)columns * sizeof(float));
    if (row + rows < rows_of(t))
        return;
    gather_parts(dump);
    if (t->place.tp != 0)
        return;
    join_parts(dump);
    if (t->world->rank == 0) {
        write_microbatch(dump, microbatch * t->layout.dp * t->micro_batch,
                         dump->batch->tokens + microbatch * rows_of(t));
        return;
    }
    send_host(dump, dump->whole, whole_bytes, 0);
    send_host(dump, dump->batch->tokens + microbatch * rows_of(t),
              (int64_t)sizeof(int32_t) * rows_of(t), 0);
}

/* Rank 0 takes in what the other replicas and the last stage send, after its own part. */
static int receive_dump(struct dump *dump, struct error *error)
{
    const struct training *t = dump->training;
    int64_t whole_bytes = (int64_t)sizeof(float) * rows_of(t) * t->model.vocab_size;
    int32_t *tokens = malloc((size_t)rows_of(t) * sizeof(*tokens));

    if (!tokens)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    for (int64_t m = 0; m < t->microbatches; m++) {
        for (int dp = 0; dp < t->layout.dp; dp++) {
            struct layout_place place = {.tp = 0, .pp = t->layout.pp - 1, .dp = dp};
            int peer = layout_rank(&t->layout, place);

            if (peer == 0)
                continue;
            receive_host(dump, dump->whole, whole_bytes, peer);
            receive_host(dump, tokens, (int64_t)sizeof(*tokens) * rows_of(t), peer);
            write_microbatch(dump, (m * t->layout.dp + dp) * t->micro_batch, tokens);
        }
    }
    free(tokens);
    return 0;
}

static int open_dump_file(struct dump *dump, struct error *error)
{
    const struct training *t = dump->training;
    hsize_t shape[3] = {(hsize_t)t->global_batch, (hsize_t)t->seq_length,
                        (hsize_t)t->model.vocab_size};
    hid_t space;

    H5Eset_auto(H5E_DEFAULT, NULL, NULL);
    dump->file = H5Fcreate(dump->path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    if (dump->file < 0)
        return error_set(error, EXIT_STATUS_IO, "dump-logits=%s: cannot create this file",
                         dump->path);
    space = H5Screate_simple(2, shape, NULL);
    dump->tokens = H5Dcreate(dump->file, "tokens", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT,
                             H5P_DEFAULT);
    H5Sclose(space);
    space = H5Screate_simple(3, shape, NULL);
    dump->logits = H5Dcreate(dump->file, "logits", H5T_IEEE_F32LE, space, H5P_DEFAULT, H5P_DEFAULT,
                             H5P_DEFAULT);
    H5Sclose(space);
    return dump->tokens < 0 || dump->logits < 0
               ? error_set(error, EXIT_STATUS_IO, "dump-logits=%s: cannot write", dump->path)
               : 0;
}

static int dump_open(struct dump *dump, struct training *t, const char *path, struct error *error)
{
    int64_t first;
    int result = 0;

    *dump = (struct dump){.training = t, .path = path, .file = -1, .tokens = -1, .logits = -1};
    vocabulary_shard(&t->model, &t->layout, 0, &first, &dump->widest);
    dump->parts = calloc((size_t)parts_bytes(dump), 1);
    dump->padded = calloc((size_t)(rows_of(t) * dump->widest), sizeof(float));
    dump->whole = calloc((size_t)(rows_of(t) * t->model.vocab_size), sizeof(float));
    dump->piece = calloc((size_t)(t->stage.sizes.head_rows * dump->widest), sizeof(float));
    /* The whole vocabulary is never wider than the shards that hold it. */
    dump->device = t->stage.kernels->allocate((size_t)parts_bytes(dump));
    if (!dump->parts || !dump->padded || !dump->whole || !dump->piece || !dump->device)
        result = error_set(error, EXIT_STATUS_SYSTEM, "out of memory for the logits");
    else if (t->world->rank == 0)
        result = open_dump_file(dump, error);
    return team_agree(&t->team, result, error);
}

static int dump_close(struct dump *dump, struct error *error)
{
    free(dump->parts);
    free(dump->padded);
    free(dump->whole);
    free(dump->piece);
    if (dump->device)
        dump->training->stage.kernels->release(dump->device);
    if (dump->tokens >= 0 && H5Dclose(dump->tokens) < 0)
        dump->failed = true;
    if (dump->logits >= 0 && H5Dclose(dump->logits) < 0)
        dump->failed = true;
    if (dump->file >= 0 && H5Fclose(dump->file) < 0)
        dump->failed = true;
    return dump->failed
               ? error_set(error, EXIT_STATUS_IO,
                           "dump-logits=%s: writing failed (is the disk full?)", dump->path)
               : 0;
}

/* One batch: adds this rank's weighted loss and weights to sums[0] and sums[1]. */
static int evaluate_batch(struct training *t, struct dump *dump, double sums[2],
                          struct error *error)
{
    const struct kernels *k = t->team.kernels;
    struct stage *stage = &t->stage;
    struct batch *batch;
    double loss = 0, waited_s;
    int result = feed_next(t->eval_feed, &batch, &waited_s, error);

    if (team_agree(&t->team, result, error) < 0)
        return -1;
    k->zero(stage->stream, stage->loss_sum, sizeof(double));
    if (dump)
        dump->batch = batch;
    pipeline_evaluate(stage, batch, dump ? see_logits : NULL, dump);
    k->to_host(stage->stream, &loss, stage->loss_sum, sizeof(loss));
    if (k->stream_sync(stage->stream, error) < 0)
        return -1;
    if (stage->last && t->place.tp == 0) {
        sums[0] += loss;
        if (t->place.cp == 0)
            sums[1] += batch->weight_sum;
    }
    if (dump && t->world->rank == 0)
        return receive_dump(dump, error);
    return 0;
}

/* The first sample of this step's evaluation: validations follow each other through the data. */
static int64_t first_sample(const struct training *t, enum dataset_split set)
{
    int64_t interval = setting_integer(t->settings, SETTING_EVAL_INTERVAL);
    int64_t number = interval > 0 ? t->progress.step / interval : 0;

    if (set != DATASET_VALID || setting_boolean(t->settings, SETTING_EVAL_ONLY) || number == 0)
        return 0;
    return (number - 1) * setting_integer(t->settings, SETTING_EVAL_STEPS) * t->global_batch;
}

int evaluate(struct training *t, enum dataset_split set, const char *dump_path,
             struct evaluation *evaluation, struct error *error)
{
    int64_t batches = setting_integer(t->settings, SETTING_EVAL_STEPS);
    struct dump dump;
    double totals[2] = {0, 0};

    *evaluation = (struct evaluation){0};
    feed_begin(t->eval_feed, t->sets[set], first_sample(t, set), batches);
    for (int64_t i = 0; i < batches; i++) {
        bool dumping = i == 0 && dump_path && *dump_path;
        double sums[3] = {0, 0, stop_requested(t->stop) != STOP_NONE};
        struct error trouble = {0};
        int result;

        if (dumping && dump_open(&dump, t, dump_path, error) < 0) {
            (void)dump_close(&dump, &trouble);
            return -1;
        }
        result = evaluate_batch(t, dumping ? &dump : NULL, sums, error);
        if (dumping && dump_close(&dump, result == 0 ? error : &trouble) < 0)
            result = -1;
        if (team_agree(&t->team, result, error) < 0 || team_sum(&t->team, sums, 3, error) < 0)
            return -1;
        totals[0] += sums[0];
        totals[1] += sums[1];
        if (sums[2] > 0) {
            evaluation->stopped = true;
            return 0;
        }
    }
    evaluation->tokens = (int64_t)totals[1];
    evaluation->loss = totals[1] > 0 ? totals[0] / totals[1] : 0;
    return 0;
}
