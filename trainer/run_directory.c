#include "trainer/run_directory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "core/clock.h"
#include "core/log.h"
#include "trainer/appended_file.h"
#include "trainer/replacement.h"

void run_directory_name(struct run_directory *run, const struct settings *settings,
                        const struct world *world)
{
    *run = (struct run_directory){.lock = -1};
    if (setting_is_set(settings, SETTING_RUN_DIR))
        snprintf(run->path, sizeof(run->path), "%s", setting_text(settings, SETTING_RUN_DIR));
    else if (world->job[0])
        snprintf(run->path, sizeof(run->path), "mtllm-%s", world->job);
    else
        snprintf(run->path, sizeof(run->path), "mtllm-run");
    snprintf(run->checkpoints, sizeof(run->checkpoints), "%s/ckpt", run->path);
    snprintf(run->metrics, sizeof(run->metrics), "%s/metrics.jsonl", run->path);
    snprintf(run->starts, sizeof(run->starts), "%s/starts.jsonl", run->path);
}

/* mkdir -p */
static int make_directories(const char *path, struct error *error)
{
    char partial[PATH_MAX];
    size_t length = strlen(path);

    for (size_t i = 1; i <= length && i < sizeof(partial); i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(partial, path, i);
        partial[i] = '\0';
        if (mkdir(partial, 0777) != 0 && errno != EEXIST)
            return error_set_errno(error, "run-dir=%s: cannot make %s", path, partial);
    }
    return 0;
}

/* Two jobs in one directory would ruin each other's checkpoints. Where the file system has no
 * locks, there is nothing to be done about it. */
static int take_lock(struct run_directory *run, struct error *error)
{
    char path[PATH_MAX + 8];

    snprintf(path, sizeof(path), "%s/lock", run->path);
    run->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (run->lock < 0)
        return error_set_errno(error, "run-dir=%s: cannot write there", run->path);
    if (flock(run->lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "run-dir=%s: another process is training in this directory; wait for it "
                         "or give another --run-dir",
                         run->path);
    return 0;
}

static int write_settings(const struct run_directory *run, const struct settings *settings,
                          struct error *error)
{
    char path[PATH_MAX + 16];
    struct replacement file;

    snprintf(path, sizeof(path), "%s/settings.ini", run->path);
    if (replacement_open(&file, path, NULL, error) < 0)
        return -1;
    (void)settings_write(settings, file.stream);
    return replacement_close(&file, 0, false, error);
}

int run_directory_open(struct run_directory *run, const struct settings *settings,
                       struct error *error)
{
    struct error trouble = {0};

    if (make_directories(run->checkpoints, error) < 0 || take_lock(run, error) < 0)
        return -1;
    /* On a full disk the run can still go on from its checkpoint and stop in good order. */
    if (write_settings(run, settings, &trouble) < 0)
        log_warning("%s", trouble.text);
    return 0;
}

void run_directory_close(struct run_directory *run)
{
    if (run->lock >= 0)
        close(run->lock);
    run->lock = -1;
}

int run_directory_set_aside(struct run_directory *run, struct error *error)
{
    static const char *const outputs[] = {"metrics.jsonl", "starts.jsonl", "profile",
                                          "tensorboard",   "wandb",        ".wandb"};
    char aside[PATH_MAX + 32], from[PATH_MAX + 64], to[PATH_MAX + 64];

    for (int i = 1; i < 10000; i++) {
        snprintf(aside, sizeof(aside), "%s.%d", run->checkpoints, i);
        if (access(aside, F_OK) == 0)
            continue;
        if (rename(run->checkpoints, aside) != 0)
            return error_set_errno(error, "cannot move %s to %s", run->checkpoints, aside);
        for (size_t j = 0; j < sizeof(outputs) / sizeof(*outputs); j++) {
            snprintf(from, sizeof(from), "%s/%s", run->path, outputs[j]);
            snprintf(to, sizeof(to), "%s/%s", aside, outputs[j]);
            if (rename(from, to) != 0 && errno != ENOENT)
                return error_set_errno(error, "cannot move %s to %s", from, to);
        }
        log_info("resume=never: what the earlier run left is now in %s", aside);
        return make_directories(run->checkpoints, error);
    }
    return error_set(error, EXIT_STATUS_IO, "%s.1 to %s.9999 exist; remove some", run->checkpoints,
                     run->checkpoints);
}

void run_directory_record_start(const struct run_directory *run, const struct world *world,
                                int64_t step, const char *layout)
{
    const char *restart = getenv("MTLLM_RESTART_COUNT");
    struct appended_file file = {0};
    struct error trouble = {0};
    char *json, *line = NULL;
    json_t *start;

    start = json_pack("{s:f, s:I, s:i, s:s, s:s}", "time", clock_now_s(CLOCK_REALTIME), "step",
                      (json_int_t)step, "ranks", world->size, "layout", layout, "version",
                      MTLLM_VERSION);
    if (*world->job)
        json_object_set_new(start, "job", json_string(world->job));
    if (restart)
        json_object_set_new(start, "restart", json_integer(atoll(restart)));
    json = json_dumps(start, JSON_COMPACT | JSON_REAL_PRECISION(13));
    if (!json || asprintf(&line, "%s%s\n", appended_file_ends_within_line(run->starts) ? "\n" : "",
                          json) < 0)
        log_warning("%s: no memory to record this start", run->starts);
    else if (appended_file_open(&file, run->starts, false, &trouble) < 0)
        log_warning("%s; this start is not recorded", trouble.text);
    else
        (void)appended_file_write(&file, line, strlen(line));
    appended_file_close(&file);
    free(line);
    free(json);
    json_decref(start);
}
