#include "spank/fake_slurm.h"

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct slurm slurm;

FILE *__real_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode);
int __real_access(const char *path, int mode);
int __wrap_access(const char *path, int mode);

FILE *__wrap_fopen(const char *path, const char *mode)
{
    slurm.files++;
    return __real_fopen(path, mode);
}

int __wrap_access(const char *path, int mode)
{
    slurm.files++;
    return __real_access(path, mode);
}

spank_context_t spank_context(void)
{
    return slurm.context;
}

const char *spank_strerror(spank_err_t status)
{
    return status == ESPANK_SUCCESS ? "Success" : "Some error";
}

char *slurm_strerror(int status)
{
    static char text[32];

    snprintf(text, sizeof(text), "error %d", status);
    return text;
}

static void say(const char *format, va_list arguments)
{
    size_t used = strlen(slurm.messages);

    slurm.calls++;
    vsnprintf(slurm.messages + used, sizeof(slurm.messages) - used, format, arguments);
}

void slurm_error(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}

void slurm_spank_log(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}

spank_err_t spank_option_register(spank_t spank, struct spank_option *option)
{
    (void)spank;
    if (slurm.register_status != ESPANK_SUCCESS)
        return slurm.register_status;
    slurm.options[slurm.option_count] = *option;
    snprintf(slurm.names[slurm.option_count], sizeof(slurm.names[0]), "%s", option->name);
    slurm.option_count++;
    return ESPANK_SUCCESS;
}

spank_err_t spank_get_item(spank_t spank, spank_item_t item, ...)
{
    spank_err_t status = ESPANK_SUCCESS;
    va_list arguments;

    (void)spank;
    slurm.calls++;
    va_start(arguments, item);
    switch (item) {
    case S_JOB_ID:
        *va_arg(arguments, uint32_t *) = slurm.job_id;
        break;
    case S_JOB_STEPID:
        *va_arg(arguments, uint32_t *) = slurm.step_id;
        break;
    case S_JOB_NODEID:
        *va_arg(arguments, uint32_t *) = slurm.node;
        break;
    case S_JOB_TOTAL_TASK_COUNT:
        *va_arg(arguments, uint32_t *) = slurm.world;
        break;
    case S_TASK_EXIT_STATUS:
        *va_arg(arguments, int *) = slurm.exit_status;
        break;
    case S_JOB_ARGV:
        *va_arg(arguments, int *) = slurm.argc;
        *va_arg(arguments, char ***) = slurm.argv;
        break;
    default:
        status = ESPANK_NOT_AVAIL;
    }
    va_end(arguments);
    return status;
}

struct variable *variable_find(const char *name)
{
    for (int i = 0; i < slurm.variables; i++)
        if (strcmp(slurm.environment[i].name, name) == 0)
            return &slurm.environment[i];
    return NULL;
}

spank_err_t spank_getenv(spank_t spank, const char *name, char *value, int size)
{
    const struct variable *variable = variable_find(name);

    (void)spank;
    slurm.calls++;
    if (!variable)
        return ESPANK_ENV_NOEXIST;
    if ((int)strlen(variable->value) >= size)
        return ESPANK_NOSPACE;
    memcpy(value, variable->value, strlen(variable->value) + 1);
    return ESPANK_SUCCESS;
}

spank_err_t spank_setenv(spank_t spank, const char *name, const char *value, int overwrite)
{
    struct variable *variable = variable_find(name);

    (void)spank;
    slurm.calls++;
    if (slurm.setenv_status != ESPANK_SUCCESS)
        return slurm.setenv_status;
    if (variable && !overwrite)
        return ESPANK_ENV_EXISTS;
    if (!variable)
        variable = &slurm.environment[slurm.variables++];
    snprintf(variable->name, sizeof(variable->name), "%s", name);
    snprintf(variable->value, sizeof(variable->value), "%s", value);
    return ESPANK_SUCCESS;
}

int slurm_load_job(job_info_msg_t **message, uint32_t job_id, uint16_t flags)
{
    (void)job_id;
    (void)flags;
    slurm.calls++;
    if (slurm.load_errno) {
        errno = slurm.load_errno;
        return SLURM_ERROR;
    }
    *message = calloc(1, sizeof(**message));
    (*message)->record_count = slurm.job_count;
    (*message)->job_array = slurm.jobs;
    return SLURM_SUCCESS;
}

void slurm_free_job_info_msg(job_info_msg_t *message)
{
    free(message);
}

#if defined(KILL_STEP_HAS_STRUCT)
int slurm_kill_job_step(slurm_step_id_t id, uint16_t signal, uint16_t flags)
{
    uint32_t job_id = id.job_id, step_id = id.step_id;
    (void)flags;
#elif defined(KILL_STEP_HAS_FLAGS)
int slurm_kill_job_step(uint32_t job_id, uint32_t step_id, uint16_t signal, uint16_t flags)
{
    (void)flags;
#else
int slurm_kill_job_step(uint32_t job_id, uint32_t step_id, uint16_t signal)
{
#endif
    slurm.calls++;
    if (job_id == slurm.job_id && step_id == slurm.step_id && signal == SIGKILL)
        slurm.kills++;
    return SLURM_SUCCESS;
}

int slurm_requeue2(char *name, uint32_t flags, job_array_resp_msg_t **response)
{
    static uint32_t codes[2];
    static char *names[2] = {(char *)"", (char *)""};

    slurm.requeue_flags |= flags;
    slurm.calls++;
    slurm.requeues++;
    snprintf(slurm.requeued, sizeof(slurm.requeued), "%s", name);
    if (slurm.requeue_errno) {
        errno = slurm.requeue_errno;
        return SLURM_ERROR;
    }
    if (slurm.requeue_code) {
        codes[0] = slurm.requeue_code;
        *response = calloc(1, sizeof(**response));
        (*response)->job_array_count = 1;
        (*response)->job_array_id = names;
        (*response)->error_code = codes;
    }
    return SLURM_SUCCESS;
}

void slurm_free_job_array_resp(job_array_resp_msg_t *response)
{
    free(response);
}
