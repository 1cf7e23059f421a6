/* The part of the plugin that runs in the user's own commands: sbatch, salloc and srun.
 *
 * What cannot work is refused here, on the terminal, before it waits in the queue or takes the
 * nodes. All functions return 0, or -1 after saying why, on which the command exits with 1. They
 * are called only for jobs that use an --llm-* option. With --llm-dry-run the command becomes
 * mtllm-plan, and nothing is submitted.
 */
#ifndef MTLLM_SPANK_SUBMIT_H
#define MTLLM_SPANK_SUBMIT_H

#include "spank/arguments.h"
#include "spank/slurm.h"

/* sbatch and salloc, all options read, before the job's environment is taken. */
int submit_allocator_options(const struct arguments *arguments);

/* srun, all options read. */
int submit_srun_options(const struct arguments *arguments);

/* srun, with its allocation and the step created. A step that is refused here starts all the same
 * and its tasks exit at once, with the status that the trainer would have given: should srun fail
 * instead, slurmctld would keep the step, and the job's next srun would wait for ever for it. */
int submit_srun_step(spank_t spank);

/* At the command's end. */
void submit_finish(void);

#endif
