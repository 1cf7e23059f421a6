#include "spank/job.h"

#include <errno.h>
#include <stdio.h>

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
