/* What slurmctld knows about a job, and the steps of one. */
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

/* Whether a step's command is the trainer, as far as one can see. */
bool step_is_trainer(int argc, char *const *argv);

/* End every task of a step with SIGKILL. */
void step_kill(uint32_t job_id, uint32_t step_id);

#endif
