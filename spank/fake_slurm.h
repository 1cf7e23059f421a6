/* A Slurm that test_spank links instead of the real one: what the plugin asks is answered from
 * `slurm`, and what it does is kept there. */
#ifndef MTLLM_SPANK_FAKE_SLURM_H
#define MTLLM_SPANK_FAKE_SLURM_H

#include "core/settings.h"
#include "spank/slurm.h"

struct variable {
    char name[64], value[8192];
};

struct slurm {
    spank_context_t context;
    int calls; /* of anything but spank_context() */
    int files; /* that anybody opened or asked for */
    char messages[8192];

    struct spank_option options[SETTING_COUNT];
    char names[SETTING_COUNT][64];
    int option_count;
    spank_err_t register_status;

    uint32_t job_id, step_id, node, world;
    int exit_status, argc;
    char **argv;
    struct variable environment[64];
    int variables;
    spank_err_t setenv_status;

    slurm_job_info_t jobs[3];
    uint32_t job_count;
    int load_errno;

    int kills; /* of the step, with SIGKILL */
    int requeues, requeue_errno;
    uint32_t requeue_flags;
    uint32_t requeue_code; /* of one job, in an answer that is otherwise fine */
    char requeued[64];
};

extern struct slurm slurm;

/* A variable of the task's environment, or NULL. */
struct variable *variable_find(const char *name);

#endif
