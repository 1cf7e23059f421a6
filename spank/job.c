#include "spank/job.h"

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "spank/slurm.h"

static int load(job_info_msg_t **message, uint32_t job_id)
{
#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(26, 5, 0)
    slurm_step_id_t id = {.job_id = job_id, .step_id = NO_VAL, .step_het_comp = NO_VAL};

    return slurm_load_job(message, id, SHOW_ALL);
#else
    return slurm_load_job(message, job_id, SHOW_ALL);
#endif
}

int job_load(uint32_t job_id, struct job *job, struct error *error)
{
    job_info_msg_t *message = NULL;
    int result = -1;

    if (load(&message, job_id) != SLURM_SUCCESS)
        return error_set(error, EXIT_STATUS_SYSTEM, "slurmctld says nothing about job %u: %s",
                         job_id, slurm_strerror(errno));
    /* Asked for an array's first job, whose number is the array's too, slurmctld tells of all. */
    for (uint32_t i = 0; i < message->record_count; i++) {
        const slurm_job_info_t *info = &message->job_array[i];

        if (info->job_id != job_id)
            continue;
        job->end_time = info->end_time;
        job->restarts = info->restart_cnt;
        job->cancelled = (info->job_state & JOB_STATE_BASE) == JOB_CANCELLED;
        if (info->array_job_id && info->array_task_id != NO_VAL)
            snprintf(job->name, sizeof(job->name), "%u_%u", info->array_job_id,
                     info->array_task_id);
        else
            snprintf(job->name, sizeof(job->name), "%u", job_id);
        result = 0;
        break;
    }
    if (result < 0)
        error_set(error, EXIT_STATUS_SYSTEM, "slurmctld knows no job %u", job_id);
    slurm_free_job_info_msg(message);
    return result;
}

bool step_is_trainer(int argc, char *const *argv)
{
    const char *slash;

    if (argc < 1 || !argv || !argv[0])
        return false;
    slash = strrchr(argv[0], '/');
    return strcmp(slash ? slash + 1 : argv[0], "mtllm-train") == 0;
}

static int kill_step(uint32_t job_id, uint32_t step_id)
{
#if defined(KILL_STEP_HAS_STRUCT)
    slurm_step_id_t id = {.job_id = job_id, .step_id = step_id, .step_het_comp = NO_VAL};

    return slurm_kill_job_step(id, SIGKILL, 0);
#elif defined(KILL_STEP_HAS_FLAGS)
    return slurm_kill_job_step(job_id, step_id, SIGKILL, 0);
#else
    return slurm_kill_job_step(job_id, step_id, SIGKILL);
#endif
}

void step_kill(uint32_t job_id, uint32_t step_id)
{
    if (kill_step(job_id, step_id) == SLURM_SUCCESS)
        return;
    /* Somebody was faster: another node's task, or Slurm itself. */
    if (errno != ESLURM_ALREADY_DONE && errno != ESLURM_INVALID_JOB_ID)
        slurm_error("mtllm: cannot end step %u.%u, of which a rank has died: %s", job_id, step_id,
                    slurm_strerror(errno));
}
