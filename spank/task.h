/* The part of the plugin that runs in slurmstepd, on the nodes, as root.
 *
 * It opens no file that a user names. Before task_init() a failure would drain the node or be
 * lost, so nothing there can fail. They are called only for jobs that use an --llm-* option.
 */
#ifndef MTLLM_SPANK_TASK_H
#define MTLLM_SPANK_TASK_H

#include "spank/arguments.h"
#include "spank/slurm.h"

/* What srun knows and a step needs, as variables of the step. Slurm takes away all but its own
 * names under --export=NONE; task_init() gives the first two to the tasks without the "SLURM_". */
#define TASK_JOB_END_TIME  "SLURM_MTLLM_JOB_END_TIME"
#define TASK_RESTART_COUNT "SLURM_MTLLM_RESTART_COUNT"
#define TASK_REQUEUE_LIMIT "SLURM_MTLLM_REQUEUE_LIMIT" /* 0 for never */
#define TASK_REFUSED       "SLURM_MTLLM_REFUSED"       /* exit with this status at once */

/* All options read, in slurmstepd itself. */
void task_options(void);

/* In each task, as its user, just before its command: the environment. Returns 0, or -1 after
 * saying why, on which the task exits with 1. Does not return if srun refused the step. */
int task_init(spank_t spank, const struct arguments *arguments);

/* In slurmstepd, when a task has ended, before srun hears of it: the requeue. */
void task_exit(spank_t spank);

/* In slurmstepd, at its end. */
void task_finish(void);

#endif
