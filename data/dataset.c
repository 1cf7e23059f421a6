#include "data/dataset.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "data/blend.h"
#include "data/samples.h"

/* So that no number of bytes overflows. */
#define SAMPLES_MOST (INT64_MAX >> 16)

struct dataset {
    struct dataset_options options;
    struct samples *parts; /* [part_count] of those that have documents for the set */
    double *weights;       /* [part_count] */
    int part_count;
    int64_t count;
    /* Of several parts: which one a sample comes from, and its number there. */
    int32_t *chosen; /* [count] */
    int64_t *locals; /* [count] */
};

int64_t dataset_sequences_most(int64_t seq_length)
{
    int64_t most = seq_length / 32 > 32 ? seq_length / 32 : 32;

    return most < seq_length ? most : seq_length;
}

/* --- opening the parts -------------------------------------------------------------------------
 */

/* Parts are opened by several threads, each one that is free taking the next. */
struct opening {
    struct dataset *dataset;
    const struct data_part **sources; /* [part_count] */
    enum dataset_split which;
    atomic_int next;
    pthread_mutex_t mutex;
    struct error error; /* the first; under the mutex */
};

static void open_part(struct opening *opening, int i)
{
    struct dataset *dataset = opening->dataset;
    struct dataset_options options = dataset->options;
    struct error error = {0};

    for (int s = 0; s < 3 && dataset->part_count > 1; s++)
        options.samples[s] = blend_share(options.samples[s], dataset->weights[i]);
    if (samples_open(&dataset->parts[i], opening->sources[i], opening->which, &options, &error) ==
        0)
        return;
    pthread_mutex_lock(&opening->mutex);
    if (!opening->error.status)
        opening->error = error;
    pthread_mutex_unlock(&opening->mutex);
}

static void *open_parts(void *argument)
{
    struct opening *opening = argument;
    int i;

    while ((i = atomic_fetch_add(&opening->next, 1)) < opening->dataset->part_count)
        open_part(opening, i);
    return NULL;
}

/* The caller is one of the threads; that others cannot be had only takes longer. */
static void open_in_threads(struct opening *opening)
{
    enum { THREADS_MOST = 16 };
    pthread_t threads[THREADS_MOST];
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int count = 0;

    while (count < THREADS_MOST && count + 1 < processors &&
           count + 1 < opening->dataset->part_count &&
           pthread_create(&threads[count], NULL, open_parts, opening) == 0)
        count++;
    open_parts(opening);
    while (count > 0)
        pthread_join(threads[--count], NULL);
}

/* Those that have documents for the set, with the weight of all parts given to them. */
static int choose_parts(struct opening *opening, const struct data_source *source,
                        struct error *error)
{
    struct dataset *dataset = opening->dataset;
    double sum = 0;

    for (int i = 0; i < source->count; i++) {
        const struct data_part *part = &source->parts[i];
        int64_t documents = samples_documents(part, opening->which, &dataset->options, error);

        if (documents < 0)
            return -1;
        if (documents == 0 && source->count > 1) {
            log_warning("%s: none of its documents are for %s; it is left out there",
                        token_file_prefix(part->tokens), samples_set_names[opening->which]);
            continue;
        }
        opening->sources[dataset->part_count] = part;
        dataset->weights[dataset->part_count++] = part->weight;
        sum += part->weight;
    }
    for (int i = 0; i < dataset->part_count; i++)
        dataset->weights[i] /= sum;
    if (dataset->part_count > 0)
        return 0;
    return error_set(error, EXIT_STATUS_DATA,
                     "split \"%s\": no part of the mixture has documents for %s; give it a larger "
                     "share",
                     dataset->options.split ? dataset->options.split : "1",
                     samples_set_names[opening->which]);
}

static int blend(struct dataset *dataset, enum dataset_split which, struct error *error)
{
    int64_t wanted = dataset->options.samples[which];

    if (dataset->part_count == 1) {
        dataset->count = dataset->parts[0].count;
        return 0;
    }
    dataset->count = wanted > 0 ? wanted : 1;
    dataset->chosen = malloc((size_t)dataset->count * sizeof(*dataset->chosen));
    dataset->locals = malloc((size_t)dataset->count * sizeof(*dataset->locals));
    if (!dataset->chosen || !dataset->locals ||
        blend_build(dataset->weights, dataset->part_count, dataset->count, dataset->chosen,
                    dataset->locals) < 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for a mixture of %lld samples",
                         (long long)dataset->count);
    return 0;
}

int dataset_open(struct dataset **result, const struct data_source *source,
                 enum dataset_split which, const struct dataset_options *options,
                 struct error *error)
{
    struct dataset *dataset = calloc(1, sizeof(*dataset));
    struct opening opening = {.dataset = dataset, .which = which};
    int status = -1;

    *result = NULL;
    if (!dataset)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    pthread_mutex_init(&opening.mutex, NULL);
    if (options->samples[which] > SAMPLES_MOST) {
        error_set(error, EXIT_STATUS_CONFIGURATION, "%lld samples are more than can be counted",
                  (long long)options->samples[which]);
        goto out;
    }
    dataset->options = *options;
    dataset->parts = calloc((size_t)source->count, sizeof(*dataset->parts));
    dataset->weights = calloc((size_t)source->count, sizeof(*dataset->weights));
    opening.sources = calloc((size_t)source->count, sizeof(struct data_part *));
    if (!dataset->parts || !dataset->weights || !opening.sources) {
        error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        goto out;
    }
    if (choose_parts(&opening, source, error) < 0)
        goto out;
    open_in_threads(&opening);
    if (opening.error.status) {
        *error = opening.error;
        goto out;
    }
    if (blend(dataset, which, error) < 0)
        goto out;
    *result = dataset;
    dataset = NULL;
    status = 0;
out:
    free(opening.sources);
    pthread_mutex_destroy(&opening.mutex);
    dataset_close(dataset);
    return status;
}

void dataset_close(struct dataset *dataset)
{
    if (!dataset)
        return;
    for (int i = 0; dataset->parts && i < dataset->part_count; i++)
        samples_close(&dataset->parts[i]);
    free(dataset->parts);
    free(dataset->weights);
    free(dataset->chosen);
    free(dataset->locals);
    free(dataset);
}

int64_t dataset_samples(const struct dataset *dataset)
{
    return dataset->count;
}

/* The part that a sample comes from, and its number there. */
static const struct samples *find_sample(const struct dataset *dataset, int64_t i, int64_t *local)
{
    *local = dataset->chosen ? dataset->locals[i] : i;
    return &dataset->parts[dataset->chosen ? dataset->chosen[i] : 0];
}

double dataset_fill(const struct dataset *dataset)
{
    int64_t seq_length = dataset->options.seq_length, places = 0, local;

    for (int64_t i = 0; i < dataset->count; i++) {
        const struct samples *samples = find_sample(dataset, i, &local);

        places += samples_places(samples, local, seq_length);
    }
    return (double)places / ((double)dataset->count * (double)seq_length);
}

int dataset_parts(const struct dataset *dataset)
{
    return dataset->part_count;
}

const char *dataset_part_name(const struct dataset *dataset, int part)
{
    return token_file_prefix(dataset->parts[part].part->tokens);
}

void dataset_count(const struct dataset *dataset, int64_t first, int64_t count, double *tokens,
                   double *epochs)
{
    int64_t seq_length = dataset->options.seq_length, local;

    for (int64_t i = first; i < first + count; i++) {
        const struct samples *samples = find_sample(dataset, i, &local);
        int64_t part = samples - dataset->parts;

        tokens[part] += (double)samples_places(samples, local, seq_length);
        epochs[part] += samples_epochs(samples, local, seq_length);
    }
}

int dataset_read(const struct dataset *dataset, int64_t i, struct dataset_row *row,
                 struct error *error)
{
    int64_t local;
    const struct samples *samples = find_sample(dataset, i, &local);

    return samples_read(samples, local, &dataset->options, row, error);
}
