#include "trainer/feed.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"

enum { BATCHES = 2 }; /* one computed with, one being read */

struct feed {
    const struct layout *layout;
    int dp;
    struct batch_ramp ramp;
    struct batch batches[BATCHES];
    pthread_t thread;
    bool running;

    /* All below under the mutex. Batches are counted from feed_begin(). */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    const struct dataset *dataset;
    int64_t count;
    int64_t read, given; /* batches read, and given to the caller */
    int64_t sample;      /* the first of batch number `read` */
    bool reading, stopping;
    struct error error; /* of batch number `read`; status 0: none */
};

/* The caller holds batch given - 1 and no other. */
static bool has_work(const struct feed *feed)
{
    return feed->read < feed->count && feed->read < feed->given + BATCHES - 1 &&
           !feed->error.status;
}

static void *read_batches(void *argument)
{
    struct feed *feed = argument;

    pthread_mutex_lock(&feed->mutex);
    while (!feed->stopping) {
        struct error error = {0};
        struct batch *batch;
        int64_t size;
        int result;

        if (!has_work(feed)) {
            pthread_cond_wait(&feed->changed, &feed->mutex);
            continue;
        }
        batch = &feed->batches[feed->read % BATCHES];
        size = batch_ramp_size(&feed->ramp, feed->sample);
        batch->microbatches = size / (batch->micro_batch * feed->layout->dp);
        feed->reading = true;
        pthread_mutex_unlock(&feed->mutex);
        result = batch_read(batch, feed->dataset, feed->sample, feed->layout, feed->dp, &error);
        pthread_mutex_lock(&feed->mutex);
        feed->reading = false;
        if (result < 0) {
            feed->error = error;
        } else {
            feed->read++;
            feed->sample += size;
        }
        pthread_cond_broadcast(&feed->changed);
    }
    pthread_mutex_unlock(&feed->mutex);
    return NULL;
}

/* Signals are the main thread's. */
static int start_thread(struct feed *feed, struct error *error)
{
    sigset_t all, before;
    int status;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    status = pthread_create(&feed->thread, NULL, read_batches, feed);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    feed->running = status == 0;
    return status == 0 ? 0
                       : error_set(error, EXIT_STATUS_SYSTEM,
                                   "cannot start the thread that reads data: %s", strerror(status));
}

int feed_create(struct feed **result, const struct kernels *kernels, const struct layout *layout,
                int dp, const struct batch_ramp *ramp, int64_t micro_batch, int64_t seq_length,
                struct error *error)
{
    struct feed *feed = calloc(1, sizeof(*feed));
    int64_t most = ramp->full / (micro_batch * layout->dp);

    *result = NULL;
    if (!feed)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    feed->layout = layout;
    feed->dp = dp;
    feed->ramp = *ramp;
    pthread_mutex_init(&feed->mutex, NULL);
    pthread_cond_init(&feed->changed, NULL);
    for (int i = 0; i < BATCHES; i++)
        if (batch_create(&feed->batches[i], kernels, most, micro_batch, seq_length, error) < 0)
            goto failed;
    if (start_thread(feed, error) < 0)
        goto failed;
    *result = feed;
    return 0;
failed:
    feed_destroy(feed);
    return -1;
}

void feed_destroy(struct feed *feed)
{
    if (!feed)
        return;
    pthread_mutex_lock(&feed->mutex);
    feed->stopping = true;
    pthread_cond_broadcast(&feed->changed);
    pthread_mutex_unlock(&feed->mutex);
    if (feed->running)
        pthread_join(feed->thread, NULL);
    for (int i = 0; i < BATCHES; i++)
        if (feed->batches[i].kernels)
            batch_destroy(&feed->batches[i]);
    pthread_cond_destroy(&feed->changed);
    pthread_mutex_destroy(&feed->mutex);
    free(feed);
}

void feed_begin(struct feed *feed, const struct dataset *dataset, int64_t first, int64_t count)
{
    pthread_mutex_lock(&feed->mutex);
    feed->count = 0;
    while (feed->reading)
        pthread_cond_wait(&feed->changed, &feed->mutex);
    feed->dataset = dataset;
    feed->sample = first;
    feed->count = count;
    feed->read = feed->given = 0;
    feed->error = (struct error){0};
    pthread_cond_broadcast(&feed->changed);
    pthread_mutex_unlock(&feed->mutex);
}

int feed_next(struct feed *feed, struct batch **batch, double *waited_s, struct error *error)
{
    double start_s = clock_now_s(CLOCK_MONOTONIC);
    bool waited = false;
    int result = 0;

    pthread_mutex_lock(&feed->mutex);
    assert(feed->given < feed->count);
    while (feed->read == feed->given && !feed->error.status) {
        waited = true;
        pthread_cond_wait(&feed->changed, &feed->mutex);
    }
    if (feed->read == feed->given) {
        *error = feed->error;
        result = -1;
    } else {
        *batch = &feed->batches[feed->given++ % BATCHES];
        pthread_cond_broadcast(&feed->changed);
    }
    pthread_mutex_unlock(&feed->mutex);
    *waited_s = waited ? clock_now_s(CLOCK_MONOTONIC) - start_s : 0;
    return result;
}
