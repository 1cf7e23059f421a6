/* Validation, and --dump-logits: tokens, targets, masks and logits of one batch, for comparison
 * with other programs. */
#include "trainer/training.h"

#include <stdlib.h>
#include <string.h>

#include <hdf5.h>

/* What a dump has of each token besides the logits; all of four bytes. */
enum dump_column { DUMP_TOKENS, DUMP_TARGETS, DUMP_WEIGHTS, DUMP_ANSWERS, DUMP_COLUMNS };

static const char *const column_names[] = {
    [DUMP_TOKENS] = "tokens",
    [DUMP_TARGETS] = "targets",
    [DUMP_WEIGHTS] = "weights",
    [DUMP_ANSWERS] = "answers",
};

/* Collects the logits of one batch on rank 0 and writes them, one microbatch at a time. */
struct dump {
    struct training *training;
    const struct batch *batch; /* being evaluated */
    const char *path;
    hid_t file, logits, columns[DUMP_COLUMNS]; /* rank 0; -1: not open */
    int64_t widest;                            /* columns of the widest vocabulary shard */
    /* On the host; parts and padded on the last stage. */
    float *parts;  /* [tp, rows, widest] */
    float *padded; /* [rows, widest] */
    float *whole;  /* [microbatches, rows, vocabulary], with tp 0 */
    float *piece;  /* [head_rows, vocab_count] */
    int32_t *rest; /* [DUMP_COLUMNS, rows]; weights are floats */
    void *device;  /* device memory that any of these fits */
    bool failed;
};

static int rows_of(const struct training *t)
{
    return (int)t->stage.sizes.rows;
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

    write_part(dump, dump->logits, H5T_NATIVE_FLOAT, 3, start, count, whole);
    for (int c = 0; c < DUMP_COLUMNS; c++)
        write_part(dump, dump->columns[c], column_type(c), 2, start, count,
                   dump->rest + c * rows_of(t));
}

/* The rest of a microbatch of the batch at hand. */
static void take_rest(struct dump *dump, int64_t microbatch)
{
    const struct batch *batch = dump->batch;
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

static int64_t whole_floats(const struct training *t)
{
    return rows_of(t) * t->model.vocab_size;
}

/* The pieces of the vocabulary that tensor-parallel ranks sent, side by side. */
static void join_parts(struct dump *dump, int64_t microbatch)
{
    const struct training *t = dump->training;
    float *whole = dump->whole + microbatch * whole_floats(t);

    for (int tp = 0; tp < t->layout.tp; tp++) {
        int64_t first, count;

        vocabulary_shard(&t->model, &t->layout, tp, &first, &count);
        for (int64_t row = 0; row < rows_of(t); row++)
            memcpy(whole + row * t->model.vocab_size + first,
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
    if (t->place.tp == 0)
        join_parts(dump, microbatch);
}

/* Every replica's last stage hands rank 0 what it has, when the batch is through: meanwhile rank 0
 * may be another stage that the last one waits for. */
static void collect(struct dump *dump)
{
    const struct training *t = dump->training;
    int64_t whole_bytes = (int64_t)sizeof(float) * whole_floats(t);

    for (int64_t m = 0; m < t->microbatches; m++) {
        for (int dp = 0; dp < t->layout.dp; dp++) {
            struct layout_place place = {.tp = 0, .pp = t->layout.pp - 1, .dp = dp};
            int owner = layout_rank(&t->layout, place);
            float *whole = dump->whole + (t->world->rank == owner ? m : 0) * whole_floats(t);

            if (t->world->rank == owner)
                take_rest(dump, m);
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
    dump->logits = H5Dcreate(dump->file, "logits", H5T_IEEE_F32LE, space, H5P_DEFAULT, H5P_DEFAULT,
                             H5P_DEFAULT);
    H5Sclose(space);
    return created && dump->logits >= 0
               ? 0
               : error_set(error, EXIT_STATUS_IO, "dump-logits=%s: cannot write", dump->path);
}

static int dump_open(struct dump *dump, struct training *t, const char *path, struct error *error)
{
    bool sees = t->stage.last && t->place.tp == 0;
    int64_t first, wholes = sees ? t->microbatches : 1;
    int result = 0;

    *dump = (struct dump){.training = t, .path = path, .file = -1, .logits = -1};
    for (int c = 0; c < DUMP_COLUMNS; c++)
        dump->columns[c] = -1;
    vocabulary_shard(&t->model, &t->layout, 0, &first, &dump->widest);
    dump->parts = calloc((size_t)parts_bytes(dump), 1);
    dump->padded = calloc((size_t)(rows_of(t) * dump->widest), sizeof(float));
    dump->whole = calloc((size_t)(wholes * whole_floats(t)), sizeof(float));
    dump->rest = calloc(DUMP_COLUMNS, (size_t)rows_of(t) * sizeof(*dump->rest));
    dump->piece = calloc((size_t)(t->stage.sizes.head_rows * dump->widest), sizeof(float));
    /* The whole vocabulary is never wider than the shards that hold it. */
    dump->device = t->stage.kernels->allocate((size_t)parts_bytes(dump));
    if (!dump->parts || !dump->padded || !dump->whole || !dump->piece || !dump->rest ||
        !dump->device)
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
    free(dump->rest);
    if (dump->device)
        dump->training->stage.kernels->release(dump->device);
    for (int c = 0; c < DUMP_COLUMNS; c++)
        if (dump->columns[c] >= 0 && H5Dclose(dump->columns[c]) < 0)
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

/* This rank's sums over its rows of a batch on the last stage. */
enum evaluation_sum {
    EVALUATION_LOSS,
    EVALUATION_WEIGHT,
    EVALUATION_TOKENS,
    EVALUATION_RIGHT,
    EVALUATION_ANSWERS,
    EVALUATION_RIGHT_ANSWERS,
    EVALUATION_STOPPED, /* ranks that were told to stop */
    EVALUATION_SUMS
};

static void count_tokens(const struct training *t, const struct batch *batch, const int32_t *best,
                         double *sums)
{
    int64_t rows = t->stage.sizes.rows, all = t->stage.sizes.attention_rows;

    for (int64_t m = 0; m < batch->microbatches; m++) {
        for (int64_t i = 0; i < rows; i++) {
            int64_t at = m * all + t->place.cp * rows + i;
            bool right = best[m * rows + i] == batch->targets[at];

            if (batch->weights[at] == 0)
                continue;
            sums[EVALUATION_WEIGHT] += (double)batch->weights[at];
            sums[EVALUATION_TOKENS]++;
            sums[EVALUATION_RIGHT] += right;
            sums[EVALUATION_ANSWERS] += batch->answers[at];
            sums[EVALUATION_RIGHT_ANSWERS] += right && batch->answers[at];
        }
    }
}

/* One batch: adds this rank's part to the sums. */
static int evaluate_batch(struct training *t, struct dump *dump,
                          const struct token_results *results, double *sums, struct error *error)
{
    const struct kernels *k = t->team.kernels;
    struct pipeline_observer observer = {
        .results = *results, .see = dump ? see_logits : NULL, .user = dump};
    struct stage *stage = &t->stage;
    struct batch *batch;
    double loss = 0, waited_s;
    int result = feed_next(t->eval_feed, &batch, &waited_s, error);

    if (team_agree(&t->team, result, error) < 0)
        return -1;
    k->zero(stage->stream, stage->loss_sum, sizeof(double));
    if (dump)
        dump->batch = batch;
    pipeline_evaluate(stage, batch, &observer);
    k->to_host(stage->stream, &loss, stage->loss_sum, sizeof(loss));
    if (k->stream_sync(stage->stream, error) < 0)
        return -1;
    if (stage->last && t->place.tp == 0) {
        sums[EVALUATION_LOSS] += loss;
        count_tokens(t, batch, results->best, sums);
    }
    if (dump)
        collect(dump);
    return 0;
}

/* The first sample of this step's evaluation: validations follow each other through the data. */
static int64_t first_sample(const struct training *t, const struct evaluation_set *set)
{
    int64_t interval = setting_integer(t->settings, SETTING_EVAL_INTERVAL);
    int64_t number = interval > 0 ? t->progress.step / interval : 0;

    if (set->split != DATASET_VALID || setting_boolean(t->settings, SETTING_EVAL_ONLY) ||
        number == 0)
        return 0;
    return (number - 1) * setting_integer(t->settings, SETTING_EVAL_STEPS) * t->global_batch;
}

/* A batch, whose logits are dumped where `dump_path` is not NULL; sums of all ranks. */
static int evaluate_one(struct training *t, const char *dump_path,
                        const struct token_results *results, double *sums, struct error *error)
{
    struct error trouble = {0};
    struct dump dump;
    int result;

    if (dump_path && dump_open(&dump, t, dump_path, error) < 0) {
        (void)dump_close(&dump, &trouble);
        return -1;
    }
    result = evaluate_batch(t, dump_path ? &dump : NULL, results, sums, error);
    if (dump_path && dump_close(&dump, result == 0 ? error : &trouble) < 0)
        result = -1;
    if (team_agree(&t->team, result, error) < 0)
        return -1;
    return team_sum(&t->team, sums, EVALUATION_SUMS, error);
}

int evaluate(struct training *t, const struct evaluation_set *set, const char *dump_path,
             struct evaluation *evaluation, struct error *error)
{
    const struct kernels *k = t->team.kernels;
    int64_t batches = setting_integer(t->settings, SETTING_EVAL_STEPS);
    size_t tokens = (size_t)(t->microbatches * t->stage.sizes.rows);
    struct token_results results = {.best = k->host_allocate(tokens * sizeof(int32_t))};
    int result = results.best ? 0 : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");

    *evaluation = (struct evaluation){.sequences = batches * t->global_batch};
    if (team_agree(&t->team, result, error) < 0 || !results.best) {
        if (results.best)
            k->host_release(results.best);
        return -1;
    }
    feed_begin(t->eval_feed, set->dataset, first_sample(t, set), batches);
    for (int64_t i = 0; result == 0 && i < batches && !evaluation->stopped; i++) {
        double sums[EVALUATION_SUMS] = {
            [EVALUATION_STOPPED] = stop_requested(t->stop) != STOP_NONE,
        };

        result = evaluate_one(t, i == 0 && dump_path && *dump_path ? dump_path : NULL, &results,
                              sums, error);
        evaluation->loss += sums[EVALUATION_LOSS];
        evaluation->weight += sums[EVALUATION_WEIGHT];
        evaluation->tokens += sums[EVALUATION_TOKENS];
        evaluation->right += sums[EVALUATION_RIGHT];
        evaluation->answers += sums[EVALUATION_ANSWERS];
        evaluation->right_answers += sums[EVALUATION_RIGHT_ANSWERS];
        evaluation->stopped = sums[EVALUATION_STOPPED] > 0;
    }
    k->host_release(results.best);
    return result;
}
