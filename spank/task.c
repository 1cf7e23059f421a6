#include "spank/task.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/settings.h"
#include "spank/job.h"
#include "spank/options.h"
#include "spank/requeue.h"

/* Set once a task of this node ended with "unfinished". Shared memory, because newer versions of
 * Slurm may call task_exit() in a clone of slurmstepd that then goes away. NULL without memory:
 * then a requeue is asked for more than once, which does no harm. */
static atomic_int *unfinished_seen;

void task_options(void)
{
    void *memory = mmap(NULL, sizeof(*unfinished_seen), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory != MAP_FAILED) {
        unfinished_seen = memory;
        atomic_init(unfinished_seen, 0);
    }
}

void task_finish(void)
{
    if (unfinished_seen)
        munmap(unfinished_seen, sizeof(*unfinished_seen));
    unfinished_seen = NULL;
}

/* Not a batch script, an interactive shell or the step of what runs beside. */
static bool is_ordinary_step(spank_t spank)
{
    uint32_t step_id = SLURM_BATCH_SCRIPT;

    return spank_get_item(spank, S_JOB_STEPID, &step_id) == ESPANK_SUCCESS &&
           step_id <= SLURM_MAX_NORMAL_STEP_ID;
}

static int set_variable(spank_t spank, const char *name, const char *value, int overwrite)
{
    spank_err_t status = spank_setenv(spank, name, value, overwrite);

    if (status == ESPANK_SUCCESS || (!overwrite && status == ESPANK_ENV_EXISTS))
        return 0;
    slurm_error("mtllm: cannot set %s: %s", name, spank_strerror(status));
    return -1;
}

/* Give the task what srun left under `from`, without its first word; nothing if it left nothing. */
static int pass_on(spank_t spank, const char *from)
{
    char value[64];

    if (spank_getenv(spank, from, value, sizeof(value)) != ESPANK_SUCCESS)
        return 0;
    return set_variable(spank, from + strlen("SLURM_"), value, 1);
}

/* The status with which srun wants all tasks to end, or 0. */
static int refused(spank_t spank)
{
    char text[16];
    long status;

    if (spank_getenv(spank, TASK_REFUSED, text, sizeof(text)) != ESPANK_SUCCESS)
        return 0;
    status = strtol(text, NULL, 10);
    return status > 0 && status < 126 ? (int)status : 0;
}

int task_init(spank_t spank, const struct arguments *arguments)
{
    char directory[PATH_MAX], value[2 * PATH_MAX], name[64];

    if (!is_ordinary_step(spank))
        return 0;
    if (refused(spank))
        _exit(refused(spank));
    if (spank_getenv(spank, "SLURM_SUBMIT_DIR", directory, sizeof(directory)) != ESPANK_SUCCESS)
        directory[0] = '\0';
    for (int i = 0; i < SETTING_COUNT; i++) {
        enum setting_id id = (enum setting_id)i;

        if (!option_text(id))
            continue;
        if (option_value(id, directory, value, sizeof(value)) < 0) {
            slurm_error("mtllm: --llm-%s: the value is too long", setting_table[id].name);
            return -1;
        }
        setting_environment_name(id, name, sizeof(name));
        if (set_variable(spank, name, value, 1) < 0)
            return -1;
    }
    if ((arguments->conf && set_variable(spank, "MTLLM_CONF", arguments->conf, 0) < 0) ||
        (arguments->models && set_variable(spank, "MTLLM_MODELS", arguments->models, 0) < 0))
        return -1;
    if (pass_on(spank, TASK_JOB_END_TIME) < 0 || pass_on(spank, TASK_RESTART_COUNT) < 0)
        return -1;
    return 0;
}

/* The job's limit as srun worked it out; without its word, as the options say. */
static int64_t requeue_limit(spank_t spank)
{
    static const enum setting_id ids[] = {SETTING_REQUEUE, SETTING_MAX_REQUEUE};
    struct settings *settings;
    struct error error = {0};
    char text[64];
    int64_t limit = 0;

    if (spank_getenv(spank, TASK_REQUEUE_LIMIT, text, sizeof(text)) == ESPANK_SUCCESS &&
        setting_check(SETTING_MAX_REQUEUE, text, TASK_REQUEUE_LIMIT, &error) == 0)
        return strtoll(text, NULL, 10);
    settings = settings_create();
    if (!settings)
        return 0;
    /* A malformed value was refused at submission; should one get here, the default stands. */
    for (size_t i = 0; i < sizeof(ids) / sizeof(*ids); i++)
        if (option_text(ids[i]))
            (void)settings_set(settings, ids[i], option_text(ids[i]), SETTING_SOURCE_ENVIRONMENT,
                               "", "", &error);
    if (setting_boolean(settings, SETTING_REQUEUE))
        limit = setting_integer(settings, SETTING_MAX_REQUEUE);
    settings_destroy(settings);
    return limit;
}

/* The others would wait for a rank that died for as long as the job lasts: Slurm leaves a step
 * alone that has lost a task, and so does MPI between nodes. */
static void end_step(spank_t spank, uint32_t job_id)
{
    uint32_t step_id;
    int argc;
    char **argv;

    if (spank_get_item(spank, S_JOB_ARGV, &argc, &argv) == ESPANK_SUCCESS &&
        step_is_trainer(argc, argv) &&
        spank_get_item(spank, S_JOB_STEPID, &step_id) == ESPANK_SUCCESS)
        step_kill(job_id, step_id);
}

void task_exit(spank_t spank)
{
    uint32_t job_id, node;
    int64_t limit;
    int status;

    if (!is_ordinary_step(spank) ||
        spank_get_item(spank, S_TASK_EXIT_STATUS, &status) != ESPANK_SUCCESS ||
        spank_get_item(spank, S_JOB_ID, &job_id) != ESPANK_SUCCESS)
        return;
    if (WIFSIGNALED(status)) {
        end_step(spank, job_id);
        return;
    }
    if (WEXITSTATUS(status) != EXIT_STATUS_UNFINISHED ||
        spank_get_item(spank, S_JOB_NODEID, &node) != ESPANK_SUCCESS || node != 0)
        return;
    if (unfinished_seen && atomic_exchange(unfinished_seen, 1))
        return;
    limit = requeue_limit(spank);
    if (limit > 0)
        requeue_job(job_id, limit);
}
