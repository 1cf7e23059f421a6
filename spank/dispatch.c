/* What Slurm calls.
 *
 * One shared object serves three kinds of process: sbatch and salloc (ALLOCATOR), srun (LOCAL) and
 * slurmstepd (REMOTE). Each loads it anew and calls the functions below in this order:
 *
 *   sbatch, salloc  init, [option callbacks], init_post_opt, exit
 *   srun            init, [option callbacks], init_post_opt, local_user_init, exit
 *   slurmstepd      init, [option callbacks], init_post_opt, task_init in each task, task_exit
 *                   after each task, exit
 *
 * slurmd and the prolog's process load it too and have nothing to do with it. A job that uses no
 * --llm-* option gets as far as options_given() and no further.
 *
 * All return 0 or -1: from 24.05 on anything but 0 is a failure.
 */
#include "spank/arguments.h"
#include "spank/options.h"
#include "spank/slurm.h"
#include "spank/submit.h"
#include "spank/task.h"

SPANK_PLUGIN(mtllm, 1)

int slurm_spank_init(spank_t spank, int ac, char **av)
{
    (void)ac;
    (void)av;
    switch (spank_context()) {
    case S_CTX_LOCAL:
    case S_CTX_ALLOCATOR:
        return options_register(spank);
    case S_CTX_REMOTE:
        /* A failure here would drain the node; without its options the job goes on. */
        (void)options_register(spank);
        return 0;
    default:
        return 0;
    }
}

int slurm_spank_init_post_opt(spank_t spank, int ac, char **av)
{
    struct arguments arguments;
    struct error error = {0};
    int understood;

    (void)spank;
    if (!options_given())
        return 0;
    understood = arguments_parse(&arguments, ac, av, &error);
    switch (spank_context()) {
    case S_CTX_LOCAL:
    case S_CTX_ALLOCATOR:
        if (understood < 0) {
            slurm_error("mtllm: %s", error.text);
            return -1;
        }
        return spank_context() == S_CTX_LOCAL ? submit_srun_options(&arguments)
                                              : submit_allocator_options(&arguments);
    case S_CTX_REMOTE:
        task_options();
        return 0;
    default:
        return 0;
    }
}

int slurm_spank_local_user_init(spank_t spank, int ac, char **av)
{
    (void)ac;
    (void)av;
    return options_given() ? submit_srun_step(spank) : 0;
}

int slurm_spank_task_init(spank_t spank, int ac, char **av)
{
    struct arguments arguments;
    struct error error = {0};

    if (!options_given())
        return 0;
    /* A word that is not understood was an error in the command that submitted the job. */
    (void)arguments_parse(&arguments, ac, av, &error);
    return task_init(spank, &arguments);
}

int slurm_spank_task_exit(spank_t spank, int ac, char **av)
{
    (void)ac;
    (void)av;
    if (options_given())
        task_exit(spank);
    return 0;
}

int slurm_spank_exit(spank_t spank, int ac, char **av)
{
    (void)spank;
    (void)ac;
    (void)av;
    submit_finish();
    task_finish();
    options_clear();
    return 0;
}
