/* A ring of batches. The owner fills the slot at `submitted`, workers take slots at `taken` as they
 * become free, the owner gives back the slot at `released`: whatever the number of workers, batches
 * come out as they went in, and no more than the ring's worth of text is in memory. */
#include "data/encoder.h"

#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

struct slot {
    struct corpus_batch batch;
    bool done;
    struct error error; /* status 0: none */
};

struct encoder {
    struct encoder_work work;
    pthread_mutex_t mutex;
    pthread_cond_t submission, done;
    struct slot *slots; /* [ring] */
    int ring;
    int64_t submitted, taken, released; /* batches, ever */
    bool stopping;
    pthread_t *threads;
    int thread_count;
};

static bool is_blank(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (text[i] != ' ' && (text[i] < '\t' || text[i] > '\r'))
            return false;
    return true;
}

/* Says why a line is no document; the text is owned by the part. */
static int set_problem(struct corpus_part *part, const char *format, const char *word,
                       struct error *error)
{
    if (asprintf(&part->problem, format, word) < 0) {
        part->problem = NULL;
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    }
    return 0;
}

/* The text of each stream. */
static int encode_members(const struct encoder_work *work, struct corpus_batch *batch,
                          struct corpus_part *part, json_t *line, struct error *error)
{
    for (int i = 0; i < work->streams; i++) {
        const char *key = work->keys[i];
        json_t *text = json_object_get(line, key);

        if (!text)
            return set_problem(part, "no member \"%s\" (--key names another)", key, error);
        if (!json_is_string(text))
            return set_problem(part, "member \"%s\" is not a string", key, error);
        if (!is_blank(json_string_value(text), json_string_length(text)) &&
            tokenizer_encode(work->tokenizer, json_string_value(text), json_string_length(text),
                             &batch->streams[i], error) < 0)
            return -1;
    }
    return 0;
}

/* The line of the first byte that is no UTF-8, and where it is in that line. */
static int set_bad_byte(struct corpus_part *part, const char *text, size_t at, struct error *error)
{
    size_t begin = 0;

    for (size_t i = 0; i < at; i++)
        if (text[i] == '\n') {
            part->line++;
            begin = i + 1;
        }
    if (asprintf(&part->problem, "byte 0x%02x at offset %zu of the line is not UTF-8",
                 (unsigned char)text[at], at - begin) < 0) {
        part->problem = NULL;
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    }
    return 0;
}

static int encode_conversation(const struct chat *chat, struct corpus_batch *batch,
                               struct corpus_part *part, const json_t *line, struct error *error)
{
    struct error why = {0};

    if (chat_encode(chat, line, &batch->streams[0], &batch->streams[1], &why) == 0)
        return 0;
    if (why.status == EXIT_STATUS_DATA)
        return set_problem(part, "%s", why.text, error);
    *error = why;
    return -1;
}

static int encode_json(const struct encoder_work *work, struct corpus_batch *batch,
                       struct corpus_part *part, struct error *error)
{
    json_error_t problem;
    /* Numbers are of no interest here: read as reals, none is too large an integer. */
    json_t *line = json_loadb(batch->text + part->offset, part->bytes,
                              JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &problem);
    int result = 0;

    if (!line)
        result = set_problem(part, "not a JSON object on one line (%s)", problem.text, error);
    else if (!json_is_object(line))
        result = set_problem(part, "not a JSON object%s", "", error);
    else if (work->chat)
        result = encode_conversation(work->chat, batch, part, line, error);
    else
        result = encode_members(work, batch, part, line, error);
    json_decref(line);
    return result;
}

static int encode_part(const struct encoder_work *work, struct corpus_batch *batch,
                       struct corpus_part *part, struct error *error)
{
    const char *text = batch->text + part->offset;
    size_t valid = utf8_length(text, part->bytes);

    if (part->problem) /* of the corpus already */
        return 0;
    if (valid < part->bytes)
        return set_bad_byte(part, text, valid, error);
    if (batch->json)
        return encode_json(work, batch, part, error);
    /* A part of several holds letters (see tokenizer_part()); a blank one is a blank document. */
    if (is_blank(text, part->bytes))
        return 0;
    if (part->first && part->last)
        return tokenizer_encode(work->tokenizer, text, part->bytes, &batch->streams[0], error);
    return tokenizer_encode_part(work->tokenizer, text, part->bytes, part->first,
                                 &batch->streams[0], error);
}

static void encode_batch(const struct encoder_work *work, struct slot *slot)
{
    struct corpus_batch *batch = &slot->batch;
    int64_t before[STREAMS_MOST];

    for (int64_t i = 0; i < batch->count; i++) {
        struct corpus_part *part = &batch->parts[i];

        for (int s = 0; s < work->streams; s++)
            before[s] = batch->streams[s].count;
        if (encode_part(work, batch, part, &slot->error) < 0) {
            error_prefix(&slot->error, "%s:%lld: ", batch->path, (long long)part->line);
            return;
        }
        for (int s = 0; s < work->streams; s++) {
            if (part->problem) /* nothing of such a line, of whatever stream */
                batch->streams[s].count = before[s];
            part->tokens[s] = batch->streams[s].count - before[s];
        }
    }
}

static void *encode_batches(void *argument)
{
    struct encoder *encoder = argument;

    pthread_mutex_lock(&encoder->mutex);
    for (;;) {
        struct slot *slot;

        while (!encoder->stopping && encoder->taken == encoder->submitted)
            pthread_cond_wait(&encoder->submission, &encoder->mutex);
        if (encoder->stopping)
            break;
        slot = &encoder->slots[encoder->taken++ % encoder->ring];
        pthread_mutex_unlock(&encoder->mutex);
        encode_batch(&encoder->work, slot);
        pthread_mutex_lock(&encoder->mutex);
        slot->done = true;
        pthread_cond_signal(&encoder->done);
    }
    pthread_mutex_unlock(&encoder->mutex);
    return NULL;
}

int encoder_start(struct encoder **result, const struct encoder_work *work, int threads,
                  struct error *error)
{
    struct encoder *encoder = calloc(1, sizeof(*encoder));
    sigset_t all, before;
    int status = 0;

    *result = NULL;
    if (!encoder)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    encoder->work = *work;
    encoder->ring = 2 * threads + 2;
    pthread_mutex_init(&encoder->mutex, NULL);
    pthread_cond_init(&encoder->submission, NULL);
    pthread_cond_init(&encoder->done, NULL);
    encoder->slots = calloc((size_t)encoder->ring, sizeof(*encoder->slots));
    encoder->threads = calloc((size_t)threads, sizeof(*encoder->threads));
    if (!encoder->slots || !encoder->threads) {
        encoder_stop(encoder);
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    }
    json_object_seed(0); /* before there are threads that would do it */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (encoder->thread_count < threads && status == 0) {
        status =
            pthread_create(&encoder->threads[encoder->thread_count], NULL, encode_batches, encoder);
        encoder->thread_count += status == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (encoder->thread_count == 0) {
        encoder_stop(encoder);
        return error_set(error, EXIT_STATUS_SYSTEM, "cannot start a thread: %s", strerror(status));
    }
    *result = encoder; /* fewer threads than asked for do the work too */
    return 0;
}

void encoder_stop(struct encoder *encoder)
{
    if (!encoder)
        return;
    pthread_mutex_lock(&encoder->mutex);
    encoder->stopping = true;
    pthread_cond_broadcast(&encoder->submission);
    pthread_mutex_unlock(&encoder->mutex);
    for (int i = 0; i < encoder->thread_count; i++)
        pthread_join(encoder->threads[i], NULL);
    for (int i = 0; encoder->slots && i < encoder->ring; i++)
        corpus_batch_clear(&encoder->slots[i].batch);
    pthread_cond_destroy(&encoder->submission);
    pthread_cond_destroy(&encoder->done);
    pthread_mutex_destroy(&encoder->mutex);
    free(encoder->slots);
    free(encoder->threads);
    free(encoder);
}

struct corpus_batch *encoder_vacant(struct encoder *encoder)
{
    if (encoder->submitted - encoder->released == encoder->ring)
        return NULL;
    return &encoder->slots[encoder->submitted % encoder->ring].batch;
}

void encoder_submit(struct encoder *encoder)
{
    pthread_mutex_lock(&encoder->mutex);
    encoder->slots[encoder->submitted++ % encoder->ring].done = false;
    pthread_cond_signal(&encoder->submission);
    pthread_mutex_unlock(&encoder->mutex);
}

int encoder_oldest(struct encoder *encoder, struct corpus_batch **batch, struct error *error)
{
    struct slot *slot = &encoder->slots[encoder->released % encoder->ring];

    if (encoder->released == encoder->submitted)
        return 0;
    pthread_mutex_lock(&encoder->mutex);
    while (!slot->done)
        pthread_cond_wait(&encoder->done, &encoder->mutex);
    pthread_mutex_unlock(&encoder->mutex);
    if (slot->error.status) {
        *error = slot->error;
        return -1;
    }
    *batch = &slot->batch;
    return 1;
}

void encoder_release(struct encoder *encoder)
{
    encoder->released++; /* the owner's alone */
}
