#include "trainer/saver.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/log.h"

enum phase { PHASE_IDLE, PHASE_WRITING, PHASE_COMMITTING };

struct saver {
    const struct stage *stage;
    char *root;
    int rank, ranks, keep;

    struct checkpoint_piece *pieces; /* of this rank, data in the staging memory */
    const struct piece **sources;
    size_t count;
    pthread_t memory_thread; /* takes the staging memory */
    bool memory_running;
    atomic_bool memory_taken; /* or found that there is none: then staging is NULL */
    char *staging;            /* the kernels' host memory */
    struct stream *copies;    /* beside the one that computes */
    size_t staging_bytes;

    enum phase phase; /* the main thread's */
    bool abandoned;   /* some shard failed: rank 0 clears away the attempt */
    int64_t saved_step;
    double started_s, held_s;

    /* The thread's: set before it starts, read after `done`. */
    pthread_t thread;
    bool running;
    struct checkpoint_state state;
    struct error error;
    int result;
    atomic_bool done;
    pthread_mutex_t mutex;
    pthread_cond_t copied_condition;
    bool copied; /* the state is in the staging memory; under the mutex */
};

static const enum checkpoint_kind kinds[] = {CHECKPOINT_WEIGHT, CHECKPOINT_MASTER,
                                             CHECKPOINT_EXP_AVG, CHECKPOINT_EXP_AVG_SQ};

/* The array of this rank that holds a kind, or NULL. */
static const void *array_of(const struct stage *stage, enum checkpoint_kind kind)
{
    switch (kind) {
    case CHECKPOINT_WEIGHT:
        return stage->weights;
    case CHECKPOINT_MASTER:
        return stage->master;
    case CHECKPOINT_EXP_AVG:
        return stage->exp_avg;
    case CHECKPOINT_EXP_AVG_SQ:
        return stage->exp_avg_sq;
    default:
        return NULL;
    }
}

static enum dtype dtype_of(const struct stage *stage, enum checkpoint_kind kind)
{
    if (kind == CHECKPOINT_WEIGHT)
        return stage->kernels->dtype;
    return kind == CHECKPOINT_MASTER ? DTYPE_F32 : stage->moments;
}

/* Replicas share the work: where each has all of the optimizer's state, it writes the parameters
 * whose middle falls into its part of the whole. Of the ranks that hold the same, the one that
 * counts writes. */
static bool writes(const struct stage *stage, const struct piece *piece)
{
    int64_t middle = piece->offset + piece->count / 2;
    int replicas = layout_replicas(stage->layout);
    int64_t share = (stage->parameters.elements + replicas - 1) / replicas;

    return piece->parameter->counts && (stage->shares > 1 || middle / share == stage->replica);
}

/* List this rank's pieces and add up the staging memory that they take. */
static void list_pieces(struct saver *saver)
{
    const struct stage *stage = saver->stage;

    for (size_t kind = 0; kind < sizeof(kinds) / sizeof(*kinds); kind++) {
        enum dtype dtype = dtype_of(stage, kinds[kind]);

        if (!array_of(stage, kinds[kind]))
            continue;
        for (size_t i = 0; i < stage->piece_count; i++) {
            const struct piece *piece = &stage->pieces[i];
            const struct parameter *parameter = piece->parameter;

            if (!writes(stage, piece))
                continue;
            saver->sources[saver->count] = piece;
            saver->pieces[saver->count++] = (struct checkpoint_piece){
                .tensor = parameter->name,
                .kind = kinds[kind],
                .dtype = dtype,
                .dimensions = parameter->dimensions,
                .shape = {parameter->shape[0], parameter->shape[1]},
                .start = {piece->tile.row, piece->tile.column},
                .extent = {piece->tile.rows, piece->tile.columns},
            };
            saver->staging_bytes += ((size_t)piece->count * dtype_bytes(dtype) + 63) / 64 * 64;
        }
    }
}

/* A thread's: the memory with all its pages, so that the first save does not pay for them. */
static void *take_staging(void *user)
{
    struct saver *saver = user;
    size_t used = 0;

    saver->staging = saver->stage->kernels->host_allocate(saver->staging_bytes);
    for (size_t i = 0; saver->staging && i < saver->count; i++) {
        struct checkpoint_piece *piece = &saver->pieces[i];
        size_t bytes = (size_t)(piece->extent[0] * piece->extent[1]) * dtype_bytes(piece->dtype);

        piece->data = saver->staging + used;
        used += (bytes + 63) / 64 * 64;
    }
    atomic_store(&saver->memory_taken, true);
    return NULL;
}

int saver_create(struct saver **result, const struct stage *stage, const struct team *team,
                 const char *root, int keep, struct error *error)
{
    struct saver *saver = calloc(1, sizeof(*saver));
    int code;

    *result = saver;
    if (!saver)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    saver->stage = stage;
    saver->rank = comm_rank(team->world);
    saver->ranks = comm_size(team->world);
    saver->keep = keep;
    saver->saved_step = -1;
    saver->root = strdup(root);
    pthread_mutex_init(&saver->mutex, NULL);
    pthread_cond_init(&saver->copied_condition, NULL);
    saver->pieces = calloc(stage->piece_count * CHECKPOINT_KINDS, sizeof(*saver->pieces));
    saver->sources = calloc(stage->piece_count * CHECKPOINT_KINDS, sizeof(*saver->sources));
    if (!saver->root || !saver->pieces || !saver->sources)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    list_pieces(saver);
    saver->copies = stage->kernels->stream_create();
    code = pthread_create(&saver->memory_thread, NULL, take_staging, saver);
    if (code != 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "cannot start the checkpoint thread: %s",
                         strerror(code));
    saver->memory_running = true;
    return 0;
}

/* Wait for the memory, if it is still being taken. */
static void join_memory(struct saver *saver)
{
    if (saver->memory_running)
        pthread_join(saver->memory_thread, NULL);
    saver->memory_running = false;
}

int saver_check_memory(struct saver *saver, struct error *error)
{
    if (!atomic_load(&saver->memory_taken) || saver->staging)
        return 0;
    return error_set(error, EXIT_STATUS_SYSTEM,
                     "out of memory: saving a checkpoint takes %.2f GiB of host memory",
                     (double)saver->staging_bytes / (1 << 30));
}

static void state_clear(struct checkpoint_state *state)
{
    free(state->config);
    free(state->settings);
    free(state->run_id);
    *state = (struct checkpoint_state){0};
}

/* Tokenizer files belong to the caller for as long as the saver lives; texts are copied. */
static int state_copy(struct checkpoint_state *to, const struct checkpoint_state *from)
{
    *to = *from;
    to->config = strdup(from->config);
    to->settings = strdup(from->settings);
    to->run_id = strdup(from->run_id);
    return to->config && to->settings && to->run_id ? 0 : -1;
}

static void join(struct saver *saver)
{
    if (saver->running)
        pthread_join(saver->thread, NULL);
    saver->running = false;
}

void saver_destroy(struct saver *saver)
{
    if (!saver)
        return;
    join(saver);
    join_memory(saver);
    state_clear(&saver->state);
    free(saver->root);
    free(saver->pieces);
    free((void *)saver->sources);
    if (saver->staging)
        saver->stage->kernels->host_release(saver->staging);
    saver->stage->kernels->stream_destroy(saver->copies);
    pthread_mutex_destroy(&saver->mutex);
    pthread_cond_destroy(&saver->copied_condition);
    free(saver);
}

bool saver_busy(const struct saver *saver)
{
    return saver->phase != PHASE_IDLE;
}

/* Copy this rank's state to the staging memory. */
static int copy_state(struct saver *saver)
{
    const struct stage *stage = saver->stage;

    for (size_t i = 0; i < saver->count; i++) {
        struct checkpoint_piece *piece = &saver->pieces[i];
        const struct piece *source = saver->sources[i];
        size_t bytes = dtype_bytes(piece->dtype);
        int64_t at = piece->kind == CHECKPOINT_WEIGHT ? source->offset : source->state;

        stage->kernels->to_host(saver->copies, (void *)piece->data,
                                (const char *)array_of(stage, piece->kind) + (size_t)at * bytes,
                                (size_t)source->count * bytes);
    }
    return stage->kernels->stream_sync(saver->copies, &saver->error);
}

static void *write_shard(void *user)
{
    struct saver *saver = user;

    saver->result = copy_state(saver);
    pthread_mutex_lock(&saver->mutex);
    saver->copied = true;
    pthread_cond_signal(&saver->copied_condition);
    pthread_mutex_unlock(&saver->mutex);
    if (saver->result == 0)
        saver->result = checkpoint_write_shard(saver->root, saver->state.step, saver->rank,
                                               saver->pieces, saver->count, &saver->error);
    atomic_store(&saver->done, true);
    return NULL;
}

void saver_release_state(struct saver *saver)
{
    double start_s = clock_now_s(CLOCK_MONOTONIC);

    if (saver->phase != PHASE_WRITING)
        return;
    pthread_mutex_lock(&saver->mutex);
    while (!saver->copied)
        pthread_cond_wait(&saver->copied_condition, &saver->mutex);
    pthread_mutex_unlock(&saver->mutex);
    saver->held_s += clock_now_s(CLOCK_MONOTONIC) - start_s;
}

static void *commit(void *user)
{
    struct saver *saver = user;

    if (saver->abandoned) {
        checkpoint_clean(saver->root, &saver->error);
        saver->result = 0;
    } else {
        saver->result = checkpoint_commit(saver->root, saver->ranks, &saver->state, &saver->error);
        if (saver->result == 0 && checkpoint_prune(saver->root, saver->keep, &saver->error) < 0)
            log_warning_any_rank("%s", saver->error.text); /* the checkpoint itself is there */
        else if (saver->result < 0)
            checkpoint_clean(saver->root, &(struct error){0});
    }
    atomic_store(&saver->done, true);
    return NULL;
}

static int start_thread(struct saver *saver, void *(*work)(void *), struct error *error)
{
    int code;

    saver->error = (struct error){0};
    saver->result = 0;
    atomic_store(&saver->done, false);
    code = pthread_create(&saver->thread, NULL, work, saver);
    if (code != 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "cannot start the checkpoint thread: %s",
                         strerror(code));
    saver->running = true;
    return 0;
}

int saver_start(struct saver *saver, const struct checkpoint_state *state, struct error *error)
{
    const struct stage *stage = saver->stage;

    assert(saver->phase == PHASE_IDLE);
    saver->started_s = clock_now_s(CLOCK_MONOTONIC);
    join_memory(saver);
    if (saver_check_memory(saver, error) < 0)
        return -1;
    if (stage->kernels->stream_sync(stage->stream, error) < 0)
        return -1;
    state_clear(&saver->state);
    if (state_copy(&saver->state, state) < 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    saver->phase = PHASE_WRITING;
    saver->abandoned = false;
    saver->copied = false;
    if (start_thread(saver, write_shard, error) < 0)
        return -1;
    saver->held_s = clock_now_s(CLOCK_MONOTONIC) - saver->started_s;
    return 0;
}

void saver_report(struct saver *saver, double numbers[2])
{
    bool done = !saver->running || atomic_load(&saver->done);

    numbers[0] = saver->phase != PHASE_IDLE && !done;
    numbers[1] = saver->phase != PHASE_IDLE && done && saver->result < 0;
}

/* Every shard is written or has failed: rank 0 completes the checkpoint, or clears it away. */
static void begin_commit(struct saver *saver, bool failed)
{
    struct error error = {0};

    join(saver);
    if (saver->result < 0)
        log_warning_any_rank("checkpoint of step %lld: %s; training goes on",
                             (long long)saver->state.step, saver->error.text);
    saver->phase = PHASE_COMMITTING;
    saver->abandoned = failed;
    saver->result = 0;
    if (saver->rank == 0 && start_thread(saver, commit, &error) < 0) {
        saver->error = error;
        saver->result = -1;
    }
}

static enum saver_event end_commit(struct saver *saver, bool failed)
{
    join(saver);
    saver->phase = PHASE_IDLE;
    if (saver->result < 0)
        log_warning_any_rank("checkpoint of step %lld: %s; training goes on",
                             (long long)saver->state.step, saver->error.text);
    if (failed || saver->abandoned)
        return SAVER_FAILED;
    saver->saved_step = saver->state.step;
    log_info("checkpoint of step %lld: saved in %.3f s, the step was held %.4f s",
             (long long)saver->state.step, clock_now_s(CLOCK_MONOTONIC) - saver->started_s,
             saver->held_s);
    return SAVER_SAVED;
}

enum saver_event saver_advance(struct saver *saver, const double sums[2])
{
    bool failed = sums[1] > 0;

    if (saver->phase == PHASE_IDLE || sums[0] > 0)
        return SAVER_NOTHING;
    if (saver->phase == PHASE_COMMITTING)
        return end_commit(saver, failed);
    begin_commit(saver, failed);
    return SAVER_NOTHING;
}

enum saver_event saver_finish(struct saver *saver, struct team *team, struct error *error)
{
    enum saver_event event = SAVER_NOTHING;

    while (saver_busy(saver)) {
        double numbers[2];

        join(saver);
        saver_report(saver, numbers);
        if (team_sum(team, numbers, 2, error) < 0)
            return SAVER_FAILED;
        event = saver_advance(saver, numbers);
    }
    return event;
}

int64_t saver_saved_step(const struct saver *saver)
{
    return saver->saved_step;
}
