/* What slurmctld knows about a job. */
#ifndef MTLLM_SPANK_JOB_H
#define MTLLM_SPANK_JOB_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "core/error.h"

struct job {
    time_t end_time;   /* when its time limit ends it; 0 if it has none */
    uint32_t restarts; /* how often it was requeued */
    bool cancelled;    /* by its user or an administrator */
    char name[32];     /* as scontrol takes it: "12", or "12_3" for one task of an array */
};

/* Ask slurmctld. Error: EXIT_STATUS_SYSTEM. */
int job_load(uint32_t job_id, struct job *job, struct error *error);

#endif
