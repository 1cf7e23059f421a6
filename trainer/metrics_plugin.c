#include "trainer/metrics_plugin.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/log.h"

struct metrics_plugin {
    char *path;
    struct team *team;
    int64_t capacity, vocabulary, patience_s;
    struct metric_description description;
    bool off[MTLLM_METRIC_MOST]; /* rank 0: of a metric by itself */
    struct metrics_custom values[MTLLM_METRIC_MOST];
    metric_sums sums;   /* of this rank, of the validation */
    char trouble[512];  /* why the object is of no more use here; "": it is */
    pid_t host;         /* 0: this rank has none */
    int socket, memory; /* descriptors */
    char *area;         /* the memory; NULL: not mapped */
    size_t area_bytes;
};

static bool wants_logits(const struct metric_description *description)
{
    for (int i = 0; i < description->count; i++)
        if (description->metrics[i].wants_logits)
            return true;
    return false;
}

bool metrics_plugin_wants_logits(const struct metrics_plugin *plugin)
{
    return plugin && wants_logits(&plugin->description);
}

/* --- the process ------------------------------------------------------------------------------ */

static void note(struct metrics_plugin *plugin, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void note(struct metrics_plugin *plugin, const char *format, ...)
{
    va_list arguments;

    if (plugin->trouble[0])
        return;
    va_start(arguments, format);
    vsnprintf(plugin->trouble, sizeof(plugin->trouble), format, arguments);
    va_end(arguments);
}

/* The process is gone, or is to go. */
static void end_host(struct metrics_plugin *plugin)
{
    int status = 0;

    if (plugin->host == 0)
        return;
    close(plugin->socket);
    close(plugin->memory);
    while (waitpid(plugin->host, &status, 0) < 0 && errno == EINTR) {
    }
    plugin->host = 0;
    if (WIFSIGNALED(status))
        note(plugin, "its process was ended by signal %d (%s)", WTERMSIG(status),
             strsignal(WTERMSIG(status)));
    else
        note(plugin, "its process ended with status %d", WEXITSTATUS(status));
}

/* The same, not in the way of the numbers that the process has them under. */
static int move_up(int descriptor)
{
    int moved = fcntl(descriptor, F_DUPFD_CLOEXEC, METRIC_HOST_MEMORY + 1);

    close(descriptor);
    return moved;
}

static bool start_host(struct metrics_plugin *plugin)
{
    char *const words[] = {"mtllm-train", METRIC_HOST_OPTION, plugin->path, NULL};
    posix_spawn_file_actions_t actions;
    extern char **environ;
    int sockets[2], memory = memfd_create("mtllm-metric", MFD_CLOEXEC), status;

    if (memory < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) {
        note(plugin, "no process for it: %s", strerror(errno));
        if (memory >= 0)
            close(memory);
        return false;
    }
    sockets[1] = move_up(sockets[1]);
    memory = move_up(memory);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, sockets[1], METRIC_HOST_SOCKET);
    posix_spawn_file_actions_adddup2(&actions, memory, METRIC_HOST_MEMORY);
    status = posix_spawn(&plugin->host, "/proc/self/exe", &actions, NULL, words, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(sockets[1]);
    if (status != 0) {
        note(plugin, "no process for it: %s", strerror(status));
        close(sockets[0]);
        close(memory);
        plugin->host = 0;
        return false;
    }
    plugin->socket = sockets[0];
    plugin->memory = memory;
    return true;
}

/* A message of the process; without one it is ended. */
static bool receive(struct metrics_plugin *plugin, void *message, size_t bytes)
{
    struct pollfd waiting = {.fd = plugin->socket, .events = POLLIN};
    int ready;

    do
        ready = poll(&waiting, 1, (int)(plugin->patience_s * 1000));
    while (ready < 0 && errno == EINTR);
    if (ready > 0 && recv(plugin->socket, message, bytes, 0) == (ssize_t)bytes)
        return true;
    if (ready == 0) {
        note(plugin, "it has not answered for %lld s (metrics-plugin-timeout)",
             (long long)plugin->patience_s);
        kill(plugin->host, SIGKILL);
    }
    end_host(plugin);
    return false;
}

static bool ask(struct metrics_plugin *plugin, const struct metric_request *request,
                struct metric_answer *answer)
{
    if (plugin->host == 0 || plugin->trouble[0])
        return false;
    if (send(plugin->socket, request, sizeof(*request), MSG_NOSIGNAL) != (ssize_t)sizeof(*request))
        end_host(plugin);
    else if (receive(plugin, answer, sizeof(*answer)) && answer->trouble[0])
        note(plugin, "%s", answer->trouble);
    return !plugin->trouble[0];
}

static bool map_memory(struct metrics_plugin *plugin)
{
    struct metric_memory at =
        metric_memory(plugin->capacity, plugin->vocabulary, metrics_plugin_wants_logits(plugin));
    void *area;

    if (plugin->area)
        return true;
    area = ftruncate(plugin->memory, (off_t)at.end) < 0
               ? MAP_FAILED
               : mmap(NULL, at.end, PROT_READ | PROT_WRITE, MAP_SHARED, plugin->memory, 0);
    if (area == MAP_FAILED) {
        note(plugin, "%.2f GiB for its tokens: %s", (double)at.end / (1 << 30), strerror(errno));
        return false;
    }
    plugin->area = area;
    plugin->area_bytes = at.end;
    return true;
}

/* --- opening and closing ---------------------------------------------------------------------- */

void metrics_plugin_close(struct metrics_plugin *plugin)
{
    if (!plugin)
        return;
    end_host(plugin);
    if (plugin->area)
        munmap(plugin->area, plugin->area_bytes);
    free(plugin->path);
    free(plugin);
}

static void warn(const struct metrics_plugin *plugin)
{
    if (plugin->trouble[0])
        log_warning_any_rank("metrics-plugin=%s: %s; it is switched off", plugin->path,
                             plugin->trouble);
}

static struct metrics_plugin *create(const char *path, struct error *error)
{
    struct metrics_plugin *plugin;

    if (access(path, R_OK) < 0) {
        error_set(error, EXIT_STATUS_CONFIGURATION, "metrics-plugin=%s: cannot read: %s", path,
                  strerror(errno));
        return NULL;
    }
    plugin = calloc(1, sizeof(*plugin));
    if (plugin)
        plugin->path = realpath(path, NULL); /* dlopen() looks elsewhere for a mere name */
    if (plugin && plugin->path)
        return plugin;
    metrics_plugin_close(plugin);
    error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    return NULL;
}

int metrics_plugin_open(struct metrics_plugin **result, const char *path, struct team *team,
                        bool observes, int64_t capacity, int64_t vocabulary, int64_t patience_s,
                        struct error *error)
{
    struct metrics_plugin *plugin;
    struct metric_description description = {0};

    *result = NULL;
    if (!path)
        return 0;
    plugin = create(path, error);
    if (team_agree(team, plugin ? 0 : -1, error) < 0 || !plugin) {
        metrics_plugin_close(plugin);
        return -1;
    }
    plugin->team = team;
    plugin->capacity = capacity;
    plugin->vocabulary = vocabulary;
    plugin->patience_s = patience_s;
    if ((observes || comm_rank(team->world) == 0) && start_host(plugin) &&
        receive(plugin, &description, sizeof(description)) && description.trouble[0])
        note(plugin, "%s", description.trouble);
    if (plugin->trouble[0])
        description.count = 0;
    plugin->description = description;
    if (comm_rank(team->world) == 0)
        warn(plugin);
    /* What rank 0 knows of it; nothing: it is off. */
    if (team_share(team, &plugin->description, sizeof(plugin->description), error) < 0) {
        metrics_plugin_close(plugin);
        return -1;
    }
    if (plugin->description.count > 0)
        *result = plugin;
    else
        metrics_plugin_close(plugin);
    return 0;
}

/* --- a validation ----------------------------------------------------------------------------- */

void metrics_plugin_begin(struct metrics_plugin *plugin)
{
    memset(plugin->sums, 0, sizeof(plugin->sums));
}

void metrics_plugin_add(struct metrics_plugin *plugin, const struct mtllm_metric_tokens *tokens)
{
    bool logits = metrics_plugin_wants_logits(plugin);
    struct metric_memory at = metric_memory(plugin->capacity, plugin->vocabulary, logits);
    struct metric_request request = {
        .kind = METRIC_REQUEST_ADD,
        .count = tokens->count,
        .vocabulary = plugin->vocabulary,
        .capacity = plugin->capacity,
        .logits = logits,
    };
    size_t words = (size_t)tokens->count * 4;
    struct metric_answer answer = {0};

    if (plugin->trouble[0] || !map_memory(plugin))
        return;
    memcpy(plugin->area + at.tokens, tokens->tokens, words);
    memcpy(plugin->area + at.labels, tokens->labels, words);
    memcpy(plugin->area + at.mask, tokens->mask, words);
    memcpy(plugin->area + at.positions, tokens->positions, words);
    memcpy(plugin->area + at.loss, tokens->loss, words);
    memcpy(plugin->area + at.argmax, tokens->argmax, words);
    memcpy(plugin->area + at.answers, tokens->answers, (size_t)tokens->count);
    if (logits)
        memcpy(plugin->area + at.logits, tokens->logits, words * (size_t)plugin->vocabulary);
    if (!ask(plugin, &request, &answer))
        return;
    for (int i = 0; i < plugin->description.count; i++)
        for (int j = 0; j < plugin->description.metrics[i].sums; j++)
            plugin->sums[i][j] += answer.sums[i][j];
}

/* On rank 0. What is no number is left away from now on. */
static int take_values(struct metrics_plugin *plugin)
{
    struct metric_request request = {.kind = METRIC_REQUEST_VALUES};
    struct metric_answer answer = {0};
    int count = 0;

    memcpy(request.sums, plugin->sums, sizeof(request.sums));
    if (!ask(plugin, &request, &answer)) {
        warn(plugin);
        return 0;
    }
    for (int i = 0; i < plugin->description.count; i++) {
        const char *name = plugin->description.metrics[i].name;

        if (plugin->off[i])
            continue;
        if (isfinite(answer.sums[i][0])) {
            plugin->values[count++] = (struct metrics_custom){name, answer.sums[i][0]};
            continue;
        }
        plugin->off[i] = true;
        log_warning("metrics-plugin=%s: metric %s: its value is %f; it is switched off",
                    plugin->path, name, answer.sums[i][0]);
    }
    return count;
}

int metrics_plugin_end(struct metrics_plugin **at, const struct metrics_custom **values, int *count,
                       struct error *error)
{
    struct metrics_plugin *plugin = *at;
    double failed = plugin->trouble[0] != '\0';

    *count = 0;
    *values = plugin->values;
    warn(plugin);
    for (int i = 0; i < plugin->description.count; i++)
        if (team_sum(plugin->team, plugin->sums[i], plugin->description.metrics[i].sums, error) < 0)
            return -1;
    if (team_sum(plugin->team, &failed, 1, error) < 0)
        return -1;
    if (failed == 0 && comm_rank(plugin->team->world) == 0) {
        *count = take_values(plugin);
        failed = plugin->trouble[0] != '\0';
    }
    if (team_share(plugin->team, &failed, sizeof(failed), error) < 0)
        return -1;
    if (failed > 0) {
        metrics_plugin_close(plugin);
        *at = NULL;
    }
    return 0;
}
