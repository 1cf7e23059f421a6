#include "spank/submit.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/batch_ramp.h"
#include "spank/job.h"
#include "spank/options.h"
#include "spank/task.h"

/* How many components the job or step has: Slurm reads the options of each by itself, and keeps no
 * other count that a plugin could see in sbatch. */
static int components;

static int refuse(const struct error *error)
{
    slurm_error("mtllm: %s", error->text);
    return -1;
}

/* Where relative paths of options begin: the directory that the job was submitted from, which
 * for an srun inside a job is not the one that srun stands in. */
static int submit_directory(char *directory, size_t size, struct error *error)
{
    const char *job = getenv("SLURM_JOB_ID"), *submitted = getenv("SLURM_SUBMIT_DIR");

    if (spank_context() == S_CTX_LOCAL && job && submitted && *submitted == '/') {
        snprintf(directory, size, "%s", submitted);
        return 0;
    }
    if (!getcwd(directory, size))
        return error_set_errno(error, "cannot find out the current directory");
    return 0;
}

static int components_error(struct error *error)
{
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "a run cannot be spread over the components of a heterogeneous job (\":\" on "
                     "the command line, or #SBATCH hetjob); ask for all nodes in one");
}

/* Every value by itself. */
static int check_values(struct error *error)
{
    for (int i = 0; i < SETTING_COUNT; i++) {
        enum setting_id id = (enum setting_id)i;
        char name[64];

        option_name(id, name, sizeof(name));
        if (option_text(id) && setting_check(id, option_text(id), name, error) < 0)
            return -1;
    }
    return 0;
}

/* The values that the trainer will see, `argv` being its command line or NULL. */
static int resolve(struct settings *settings, int argc, char *const *argv, struct error *error)
{
    char directory[PATH_MAX], value[2 * PATH_MAX], name[64];

    if (submit_directory(directory, sizeof(directory), error) < 0 ||
        settings_read_environment(settings, error) < 0)
        return -1;
    for (int i = 0; i < SETTING_COUNT; i++) {
        enum setting_id id = (enum setting_id)i;

        if (!option_text(id))
            continue;
        option_name(id, name, sizeof(name));
        if (option_value(id, directory, value, sizeof(value)) < 0)
            return error_set(error, EXIT_STATUS_USAGE, "%s: the value is too long", name);
        if (settings_set(settings, id, value, SETTING_SOURCE_ENVIRONMENT, name, name, error) < 0)
            return -1;
    }
    if (argv && settings_read_command_line(settings, argc, argv, error) < 0)
        return -1;
    /* Looked for here first for the sake of the message, which then begins with the option. */
    if (option_text(SETTING_MODEL) &&
        setting_source(settings, SETTING_MODEL) == SETTING_SOURCE_ENVIRONMENT &&
        settings_preset_path(setting_text(settings, SETTING_MODEL), value, sizeof(value), error) <
            0)
        return error_prefix(error, "--llm-");
    return settings_read_layers(settings, error);
}

/* Model and layout together; `world` is the number of ranks, 0 when nobody knows yet. */
static int check_layout(const struct settings *settings, int world, struct error *error)
{
    /* The user may have written the sizes as options of the job or of the trainer. */
    const char *prefix = "--llm-";
    struct model model;
    struct layout layout;
    struct batch_ramp ramp;
    bool known =
        setting_is_set(settings, SETTING_MODEL) || setting_is_set(settings, SETTING_LAYERS);

    for (int id = SETTING_TP; id <= SETTING_DP; id++)
        if (setting_source(settings, (enum setting_id)id) == SETTING_SOURCE_COMMAND_LINE)
            prefix = "--";
    if (known && model_from_settings(&model, settings, error) < 0)
        return -1;
    /* The trainer, which sees the devices, chooses what is not named. */
    if (!setting_is_set(settings, SETTING_TP) && !setting_is_set(settings, SETTING_PP) &&
        (!setting_is_set(settings, SETTING_DP) ||
         world % setting_integer(settings, SETTING_DP) == 0))
        world = 0;
    if (layout_from_settings(&layout, settings, known ? &model : NULL, world, prefix, error) < 0)
        return -1;
    return batch_ramp_from_settings(&ramp, settings, &layout, prefix, error);
}

/* What can be judged without an allocation. */
static int check_job(struct error *error)
{
    struct settings *settings = settings_create();
    int result = -1;

    if (!settings)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (resolve(settings, 0, NULL, error) == 0 && check_layout(settings, 0, error) == 0)
        result = 0;
    settings_destroy(settings);
    return result;
}

/* The options for who is run next in this process's place. */
static int export_options(struct error *error)
{
    char directory[PATH_MAX], value[2 * PATH_MAX], name[64];

    if (submit_directory(directory, sizeof(directory), error) < 0)
        return -1;
    for (int i = 0; i < SETTING_COUNT; i++) {
        enum setting_id id = (enum setting_id)i;

        if (!option_text(id))
            continue;
        setting_environment_name(id, name, sizeof(name));
        if (option_value(id, directory, value, sizeof(value)) < 0 || setenv(name, value, 1) < 0)
            return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    }
    return 0;
}

/* --llm-dry-run: become mtllm-plan. The command then ends with its status, and nothing was
 * submitted; returns only when there is none. */
static int become_planner(struct error *error)
{
    static char path[] = MTLLM_BIN_DIR "/mtllm-plan";
    const char *wanted = option_dry_run();
    char count[128], *words[] = {path, count, NULL};
    sigset_t none;

    if (export_options(error) < 0)
        return -1;
    snprintf(count, sizeof(count), "--%s=%s", strchr(wanted, ':') ? "simulate" : "gpus", wanted);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL); /* Slurm's commands block some */
    (void)execv(path, words);
    (void)execvp("mtllm-plan", words);
    error_set_errno(error, "--llm-dry-run: cannot run mtllm-plan, neither %s nor one in PATH",
                    path);
    return -1;
}

/* Tell core/, here and in the job, where the site keeps its files. A user's own value stays. */
static int export_arguments(const struct arguments *arguments, struct error *error)
{
    if ((arguments->conf && setenv("MTLLM_CONF", arguments->conf, 0) < 0) ||
        (arguments->models && setenv("MTLLM_MODELS", arguments->models, 0) < 0))
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    return 0;
}

int submit_allocator_options(const struct arguments *arguments)
{
    struct error error = {0};

    if ((++components > 1 && components_error(&error) < 0) ||
        export_arguments(arguments, &error) < 0 || check_values(&error) < 0 ||
        check_job(&error) < 0 || (option_dry_run() && become_planner(&error) < 0))
        return refuse(&error);
    /* The ranks find each other through PMIx; not every site makes that the default. */
    if (setenv("SLURM_MPI_TYPE", "pmix", 0) < 0) {
        error_set(&error, EXIT_STATUS_SYSTEM, "out of memory");
        return refuse(&error);
    }
    return 0;
}

int submit_srun_options(const struct arguments *arguments)
{
    struct error error = {0};

    components++;
    if (export_arguments(arguments, &error) < 0 || check_values(&error) < 0)
        return refuse(&error);
    /* Inside a job, what the job brought along was judged when it was submitted, and this may
     * be an srun of something else altogether. */
    if ((!getenv("SLURM_JOB_ID") && check_job(&error) < 0) ||
        (option_dry_run() && become_planner(&error) < 0))
        return refuse(&error);
    return 0;
}

/* Tell task_exit() how often the job may be requeued, whichever file or option says so: it may
 * open no file itself. */
static int export_requeue_limit(const struct settings *settings)
{
    char text[32];
    int64_t limit = setting_boolean(settings, SETTING_REQUEUE)
                        ? setting_integer(settings, SETTING_MAX_REQUEUE)
                        : 0;

    snprintf(text, sizeof(text), "%lld", (long long)limit);
    return setenv(TASK_REQUEUE_LIMIT, text, 1);
}

/* The world size is known now: does the layout fit it? */
static int check_step(int argc, char *const *argv, int world, struct error *error)
{
    struct settings *settings = settings_create();
    struct error trainer_error = {0};
    int result = 0;

    if (!settings)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    /* Whatever is wrong with its own command line, or --help, the trainer says better. */
    if (resolve(settings, argc, argv, &trainer_error) == 0) {
        result = check_layout(settings, world, error);
        if (result == 0 && export_requeue_limit(settings) < 0)
            result = error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    }
    settings_destroy(settings);
    return result;
}

/* When the job must be over, and how often it was started before: SLURM_JOB_END_TIME and a
 * dependable SLURM_RESTART_COUNT come with later versions of Slurm only. */
static void export_job(uint32_t job_id)
{
    struct error error = {0};
    struct job job;
    char text[32];

    if (job_load(job_id, &job, &error) < 0) {
        slurm_spank_log("mtllm: %s; the run will not stop by itself before its time limit",
                        error.text);
        return;
    }
    snprintf(text, sizeof(text), "%lld", (long long)job.end_time);
    if (job.end_time > 0)
        setenv(TASK_JOB_END_TIME, text, 1);
    snprintf(text, sizeof(text), "%u", job.restarts);
    setenv(TASK_RESTART_COUNT, text, 1);
}

int submit_srun_step(spank_t spank)
{
    const char *het_size = getenv("SLURM_HET_SIZE");
    struct error error = {0};
    uint32_t job_id = 0, world = 0;
    char **argv = NULL;
    int argc = 0;

    if (spank_get_item(spank, S_JOB_ID, &job_id) != ESPANK_SUCCESS ||
        spank_get_item(spank, S_JOB_TOTAL_TASK_COUNT, &world) != ESPANK_SUCCESS ||
        spank_get_item(spank, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS) {
        error_set(&error, EXIT_STATUS_BUG, "srun does not say which job and command this is");
        return refuse(&error);
    }
    if (step_is_trainer(argc, argv)) {
        bool heterogeneous = components > 1 || (het_size && strtol(het_size, NULL, 10) > 1);

        if ((heterogeneous && components_error(&error) < 0) ||
            check_step(argc, argv, (int)world, &error) < 0) {
            char status[16];

            slurm_error("mtllm: %s", error.text);
            snprintf(status, sizeof(status), "%d", error.status);
            return setenv(TASK_REFUSED, status, 1);
        }
    }
    export_job(job_id);
    return 0;
}

void submit_finish(void)
{
    components = 0;
}
