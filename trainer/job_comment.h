/* The run's progress as the comment of its Slurm job: `squeue -o "%i %k"`, `scontrol show job`, and
 * with accounting `sacct -o comment` show where a training is.
 *
 * A thread of rank 0 runs `scontrol update`, at most once a minute; the training loop leaves a text
 * and goes on. Commands, because libslurm's structures are others in every release of Slurm and its
 * library need not be where mtllm runs; they are spawned without a copy of this process, which MPI
 * and CUDA would not survive.
 */
#ifndef MTLLM_TRAINER_JOB_COMMENT_H
#define MTLLM_TRAINER_JOB_COMMENT_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "trainer/metrics.h"

enum { JOB_COMMENT_BYTES = 1024 }; /* the longest that Slurm takes, with its end */

/* "step 1200/5000 loss 2.31 41% MFU ETA 3h12m", of a training step's row; MFU and ETA where the row
 * has them. `state` stands in front: "", or "done" or "stopped", and then there is no ETA. */
void job_comment_format(const struct metrics_row *row, int64_t steps, const char *state, char *text,
                        size_t size);

/* What of a job's comment is its user's: all of it before a text of ours, which an earlier start of
 * the job left. size >= JOB_COMMENT_BYTES. */
void job_comment_own(const char *comment, char *own, size_t size);

struct job_comment;

struct job_comment_times {
    double interval_s; /* between two updates; after failures up to 64 times that */
    double command_s;  /* that a command may take */
    double last_s;     /* that job_comment_close() may take in all */
};
extern const struct job_comment_times job_comment_times; /* a minute, 30 s, 10 s */

/* Of job `job`, as users write it ("123", "120_4"), in a run of that many steps. `times` must
 * outlive it. Error: EXIT_STATUS_SYSTEM. */
int job_comment_open(struct job_comment **comment, const char *job, int64_t steps,
                     const struct job_comment_times *times, struct error *error);
/* After a step. Never waits. NULL is nothing, here and below. */
void job_comment_step(struct job_comment *comment, const struct metrics_row *row);
/* The last text: of the last step, in its final state. */
void job_comment_end(struct job_comment *comment, const char *state);
/* Writes what is not yet written, and waits for that. */
void job_comment_close(struct job_comment *comment);

#endif
