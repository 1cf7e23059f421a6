#include "trainer/metric_host.h"

#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/error.h"
#include "trainer/metrics.h"

struct metric_memory metric_memory(int64_t capacity, int64_t vocabulary, int logits)
{
    size_t words = (size_t)capacity * 4;

    return (struct metric_memory){
        .tokens = 0,
        .labels = words,
        .mask = 2 * words,
        .positions = 3 * words,
        .loss = 4 * words,
        .argmax = 5 * words,
        .logits = 6 * words,
        .answers = 6 * words + (logits ? words * (size_t)vocabulary : 0),
        .end = 6 * words + (logits ? words * (size_t)vocabulary : 0) + (size_t)capacity,
    };
}

/* --- what the object says of itself ----------------------------------------------------------- */

static bool is_name(const char *name)
{
    if (!name || !*name || strlen(name) >= MTLLM_METRIC_NAME_BYTES)
        return false;
    for (const char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c) && *c != '_')
            return false;
    return true;
}

static bool is_taken(const char *name, const struct metric_description *description, int before)
{
    for (int id = 0; id < METRIC_COUNT; id++)
        if (strcmp(metric_table[id].name, name) == 0)
            return true;
    for (int i = 0; i < before; i++)
        if (strcmp(description->metrics[i].name, name) == 0)
            return true;
    return strcmp(name, "eval") == 0;
}

static void describe_metric(struct metric_description *description, int i,
                            const struct mtllm_metric *metric)
{
    char *trouble = description->trouble;
    size_t size = sizeof(description->trouble);

    if (!is_name(metric->name))
        snprintf(trouble, size,
                 "metric %d has no name of letters, digits and _ of at most %d bytes", i + 1,
                 MTLLM_METRIC_NAME_BYTES - 1);
    else if (is_taken(metric->name, description, i))
        snprintf(trouble, size, "metric %s: the name is taken", metric->name);
    else if (metric->sums < 1 || metric->sums > MTLLM_METRIC_MOST_SUMS)
        snprintf(trouble, size, "metric %s adds up %d numbers, which is not 1 to %d", metric->name,
                 metric->sums, MTLLM_METRIC_MOST_SUMS);
    else if (!metric->add || !metric->value)
        snprintf(trouble, size, "metric %s: add or value is missing", metric->name);
    else
        snprintf(description->metrics[i].name, MTLLM_METRIC_NAME_BYTES, "%s", metric->name);
    description->metrics[i].wants_logits = metric->wants_logits != 0;
    description->metrics[i].sums = metric->sums;
}

static const struct mtllm_metrics *load(const char *file, struct metric_description *description)
{
    char *trouble = description->trouble;
    size_t size = sizeof(description->trouble);
    void *object = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    const struct mtllm_metrics *metrics = object ? dlsym(object, "mtllm_metrics") : NULL;

    if (!object) {
        snprintf(trouble, size, "%s", dlerror());
    } else if (!metrics) {
        snprintf(trouble, size, "it exports no mtllm_metrics; see MTLLM_METRICS in mtllm-metric.h");
    } else if (metrics->version != MTLLM_METRIC_VERSION) {
        snprintf(trouble, size,
                 "it was built for version %d of mtllm-metric.h, and this is version %d; build it "
                 "again",
                 metrics->version, MTLLM_METRIC_VERSION);
    } else if (metrics->count < 1 || metrics->count > MTLLM_METRIC_MOST) {
        snprintf(trouble, size, "it has %d metrics, which is not 1 to %d", metrics->count,
                 MTLLM_METRIC_MOST);
    } else {
        description->count = metrics->count;
        for (int i = 0; i < metrics->count && !*trouble; i++)
            describe_metric(description, i, &metrics->list[i]);
    }
    return *trouble ? NULL : metrics;
}

/* --- requests --------------------------------------------------------------------------------- */

static void add(const struct mtllm_metrics *metrics, const struct metric_request *request,
                const char *memory, struct metric_answer *answer)
{
    struct metric_memory at =
        metric_memory(request->capacity, request->vocabulary, request->logits);
    struct mtllm_metric_tokens tokens = {
        .count = request->count,
        .vocabulary = request->vocabulary,
        .tokens = (const void *)(memory + at.tokens),
        .labels = (const void *)(memory + at.labels),
        .mask = (const void *)(memory + at.mask),
        .answers = (const void *)(memory + at.answers),
        .positions = (const void *)(memory + at.positions),
        .loss = (const void *)(memory + at.loss),
        .argmax = (const void *)(memory + at.argmax),
    };

    for (int i = 0; i < metrics->count; i++) {
        const struct mtllm_metric *metric = &metrics->list[i];
        int status;

        tokens.logits = metric->wants_logits ? (const void *)(memory + at.logits) : NULL;
        status = metric->add(&tokens, answer->sums[i]);
        if (status != 0) {
            snprintf(answer->trouble, sizeof(answer->trouble), "metric %s: add returned %d",
                     metric->name, status);
            return;
        }
    }
}

static void take_values(const struct mtllm_metrics *metrics, const struct metric_request *request,
                        struct metric_answer *answer)
{
    for (int i = 0; i < metrics->count; i++)
        answer->sums[i][0] = metrics->list[i].value(request->sums[i]);
}

/* The memory is mapped read-only: a metric that writes there ends itself. */
static const char *map_memory(const struct metric_request *request)
{
    struct metric_memory at =
        metric_memory(request->capacity, request->vocabulary, request->logits);
    void *memory = mmap(NULL, at.end, PROT_READ, MAP_SHARED, METRIC_HOST_MEMORY, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

static bool say(const void *message, size_t bytes)
{
    return send(METRIC_HOST_SOCKET, message, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

int metric_host(const char *file)
{
    struct metric_description description = {0};
    const struct mtllm_metrics *metrics;
    struct metric_request request;
    const char *memory = NULL;
    ssize_t got;

    /* A job's signals are for the training, which closes the socket when it ends. */
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGUSR1, SIG_IGN);
    signal(SIGUSR2, SIG_IGN);
    metrics = load(file, &description);
    if (!say(&description, sizeof(description)) || !metrics)
        return EXIT_STATUS_CONFIGURATION;
    while ((got = recv(METRIC_HOST_SOCKET, &request, sizeof(request), 0)) != 0) {
        struct metric_answer answer = {0};

        if (got < 0 && errno == EINTR)
            continue;
        if (got != sizeof(request))
            return EXIT_STATUS_IO;
        if (request.kind == METRIC_REQUEST_VALUES)
            take_values(metrics, &request, &answer);
        else if (memory || (memory = map_memory(&request)))
            add(metrics, &request, memory, &answer);
        else
            snprintf(answer.trouble, sizeof(answer.trouble), "its memory: %s", strerror(errno));
        if (!say(&answer, sizeof(answer)))
            break;
    }
    return EXIT_STATUS_OK;
}
