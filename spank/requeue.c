#include "spank/requeue.h"

#include <errno.h>

#include "spank/job.h"
#include "spank/slurm.h"

/* slurm_requeue2() answers with one code for the call, or with one for each job it touched. */
static int requeue(const char *name)
{
    job_array_resp_msg_t *response = NULL;
    int code = SLURM_SUCCESS;

    if (slurm_requeue2((char *)name, 0, &response) != SLURM_SUCCESS)
        code = errno;
    for (uint32_t i = 0; response && i < response->job_array_count; i++)
        if (response->error_code[i] != SLURM_SUCCESS)
            code = (int)response->error_code[i];
    if (response)
        slurm_free_job_array_resp(response);
    return code;
}

void requeue_job(uint32_t job_id, int64_t limit)
{
    struct error error = {0};
    struct job job;
    int code;

    if (job_load(job_id, &job, &error) < 0) {
        slurm_error("mtllm: job %u stopped unfinished and is not requeued: %s; "
                    "scontrol requeue %u does it by hand",
                    job_id, error.text, job_id);
        return;
    }
    /* scancel reaches the tasks as SIGTERM like a preemption does, but it means the end. */
    if (job.cancelled)
        return;
    if (job.restarts >= limit) {
        slurm_spank_log("mtllm: job %s stopped unfinished and is not requeued: it was %u times, "
                        "and --llm-max-requeue=%lld",
                        job.name, job.restarts, (long long)limit);
        return;
    }
    code = requeue(job.name);
    switch (code) {
    case SLURM_SUCCESS:
        slurm_spank_log("mtllm: job %s stopped unfinished and goes back to the queue (restart %u)",
                        job.name, job.restarts + 1);
        break;
    case ESLURM_JOB_PENDING:
        /* Somebody was faster: Slurm itself does it from 24.05 on when a job was preempted. */
        break;
    case ESLURM_DISABLED:
        slurm_spank_log("mtllm: job %s stopped unfinished and cannot be requeued: it was "
                        "submitted with --no-requeue, or JobRequeue=0 without --requeue",
                        job.name);
        break;
    case ESLURM_BATCH_ONLY:
        slurm_spank_log("mtllm: job %s stopped unfinished; only jobs of sbatch can be requeued, "
                        "so start the same command again to go on",
                        job.name);
        break;
    default:
        slurm_error("mtllm: job %s stopped unfinished and could not be requeued: %s; "
                    "scontrol requeue %s does it by hand",
                    job.name, slurm_strerror(code), job.name);
    }
}
