/* How long a training waits for its data: a corpus of random lengths is made (its tokens a hole in
 * the file), opened, put in order and read from, as the first process of a run does it.
 *
 *     start [--documents N] [--mean TOKENS] [--seq-length N] [--samples N] [--packing]
 *           [--directory DIR]
 *
 * Twice, each in a process of its own: without a kept order and with it.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/error.h"
#include "data/dataset.h"
#include "data/random.h"

struct bench {
    int64_t documents, mean, seq_length, samples;
    bool packing;
    const char *directory;
    char prefix[300], cache[300];
};

static int fail(const char *what)
{
    perror(what);
    return 1;
}

/* The format of mtllm-data(1), section FILES; sequences are documents. */
static int write_corpus(const struct bench *bench)
{
    const uint8_t magic[] = "MMIDIDX\0\0\1\0\0\0\0\0\0\0\10"; /* version 1, uint16 */
    int64_t counts[2] = {bench->documents, bench->documents + 1}, offset = 0;
    int32_t *lengths = malloc((size_t)bench->documents * sizeof(*lengths));
    struct random_state random;
    char path[400];
    FILE *index;
    int result;

    snprintf(path, sizeof(path), "%s.idx", bench->prefix);
    index = fopen(path, "wb");
    if (!lengths || !index) {
        free(lengths);
        return fail(path);
    }
    random_seed(&random, 1);
    for (int64_t i = 0; i < bench->documents; i++)
        lengths[i] = 1 + (int32_t)random_interval(&random, 2 * (uint64_t)bench->mean - 2);
    fwrite(magic, 1, 18, index);
    fwrite(counts, sizeof(counts), 1, index);
    fwrite(lengths, sizeof(*lengths), (size_t)bench->documents, index);
    for (int64_t i = 0; i < bench->documents; i++) {
        fwrite(&offset, sizeof(offset), 1, index);
        offset += 2 * (int64_t)lengths[i];
    }
    for (int64_t i = 0; i <= bench->documents; i++)
        fwrite(&i, sizeof(i), 1, index);
    free(lengths);
    result = ferror(index);
    result |= fclose(index);
    snprintf(path, sizeof(path), "%s.bin", bench->prefix);
    index = fopen(path, "wb");
    if (!index || result || ftruncate(fileno(index), offset) < 0 || fclose(index))
        return fail(path);
    printf("%" PRId64 " documents, %" PRId64 " tokens\n", bench->documents, offset / 2);
    return 0;
}

/* Memory of a process that is not that of files. */
static int64_t own_kib(pid_t process)
{
    char path[64], line[200];
    int64_t kib = 0;
    FILE *stream;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)process);
    stream = fopen(path, "r");
    while (stream && fgets(line, sizeof(line), stream))
        if (sscanf(line, "RssAnon: %" SCNd64, &kib) == 1)
            break;
    if (stream)
        fclose(stream);
    return kib;
}

static int read_first(const struct bench *bench, const struct dataset *dataset, struct error *error)
{
    size_t count = (size_t)bench->seq_length;
    struct dataset_row row = {
        .tokens = malloc(count * sizeof(int32_t)),
        .targets = malloc(count * sizeof(int32_t)),
        .weights = malloc(count * sizeof(float)),
        .positions = malloc(count * sizeof(int32_t)),
        .starts = malloc(count * sizeof(int32_t)),
    };
    int result = -1;

    if (row.tokens && row.targets && row.weights && row.positions && row.starts)
        result = dataset_read(dataset, 0, &row, error);
    free(row.tokens);
    free(row.targets);
    free(row.weights);
    free(row.positions);
    free(row.starts);
    return result;
}

static int start(const struct bench *bench, const char *name, bool fill)
{
    struct dataset_options options = {
        .seq_length = bench->seq_length,
        .vocab_size = 65536,
        .seed = 1234,
        .split = "969,30,1",
        .samples = {bench->samples},
        .packing = bench->packing,
        .eod = -1,
        .cache = bench->cache,
    };
    double begin = clock_now_s(CLOCK_MONOTONIC), opened, ordered, read;
    struct data_source source = {0};
    struct dataset *dataset = NULL;
    struct error error = {0};
    struct rusage usage;

    if (data_source_open(&source, bench->prefix, &error) < 0)
        return error_print(&error);
    opened = clock_now_s(CLOCK_MONOTONIC);
    if (dataset_open(&dataset, &source, DATASET_TRAIN, &options, &error) < 0)
        return error_print(&error);
    ordered = clock_now_s(CLOCK_MONOTONIC);
    if (read_first(bench, dataset, &error) < 0)
        return error_print(&error);
    read = clock_now_s(CLOCK_MONOTONIC);
    getrusage(RUSAGE_SELF, &usage);
    printf("%-12s %.2f s: files %.2f, order %.2f, first row %.4f; %" PRId64
           " samples; peak of all pages %ld MiB, ",
           name, read - begin, opened - begin, ordered - opened, read - ordered,
           dataset_samples(dataset), usage.ru_maxrss / 1024);
    if (fill)
        printf("rows filled to %.4f, ", dataset_fill(dataset));
    fflush(stdout);
    dataset_close(dataset);
    data_source_close(&source);
    return 0;
}

/* In a process of its own, whose memory is looked at every 2 ms. */
static int measure(const struct bench *bench, const char *name, bool fill)
{
    const struct timespec pause = {.tv_nsec = 2000000};
    int64_t most_kib = 0;
    pid_t child, ended;
    int status;

    fflush(stdout);
    child = fork();
    if (child < 0)
        return fail("fork");
    if (child == 0)
        _exit(start(bench, name, fill));
    while ((ended = waitpid(child, &status, WNOHANG)) == 0) {
        int64_t kib = own_kib(child);

        most_kib = kib > most_kib ? kib : most_kib;
        nanosleep(&pause, NULL);
    }
    printf("without those of files %" PRId64 " MiB\n", most_kib / 1024);
    return ended == child && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static int run(struct bench *bench)
{
    char command[700];
    int status;

    snprintf(bench->prefix, sizeof(bench->prefix), "%s/corpus", bench->directory);
    snprintf(bench->cache, sizeof(bench->cache), "%s/cache", bench->directory);
    status = write_corpus(bench) || measure(bench, "made anew", false) ||
             measure(bench, "kept", bench->packing);
    snprintf(command, sizeof(command), "rm -rf '%s'", bench->directory);
    return system(command) != 0 || status;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"documents", required_argument, NULL, 'd'},
        {"mean", required_argument, NULL, 'm'},
        {"seq-length", required_argument, NULL, 'l'},
        {"samples", required_argument, NULL, 's'},
        {"packing", no_argument, NULL, 'p'},
        {"directory", required_argument, NULL, 'D'},
        {0},
    };
    struct bench bench = {.documents = 10000000, .mean = 1000, .seq_length = 4096};
    char name[250] = "start.XXXXXX";

    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) >= 0;)
        switch (option) {
        case 'd':
            bench.documents = strtoll(optarg, NULL, 10);
            break;
        case 'm':
            bench.mean = strtoll(optarg, NULL, 10);
            break;
        case 'l':
            bench.seq_length = strtoll(optarg, NULL, 10);
            break;
        case 's':
            bench.samples = strtoll(optarg, NULL, 10);
            break;
        case 'p':
            bench.packing = true;
            break;
        case 'D':
            snprintf(name, sizeof(name), "%s/start.XXXXXX", optarg);
            break;
        default:
            return EXIT_STATUS_USAGE;
        }
    if (optind < argc || bench.documents < 1 || bench.mean < 1 || bench.seq_length < 1 ||
        bench.samples < 0) {
        fprintf(stderr, "start: unknown argument, or a number below 1\n");
        return EXIT_STATUS_USAGE;
    }
    bench.directory = mkdtemp(name);
    if (!bench.directory)
        return fail(name);
    return run(&bench);
}
