/* When to stop: SIGTERM or SIGUSR2 (what Slurm sends before it takes the nodes away), Ctrl-C, or
 * the job's end time less a margin.
 *
 * A thread waits for the signals and sets a flag; nothing else happens until the training loop
 * asks. Signals that come again change nothing, except a second Ctrl-C, which ends the process at
 * once, as people expect.
 *
 * Order in main(): stop_open() first, before other threads exist (world_open() starts PMIx's,
 * OpenMP has its own), because a signal goes to any thread that does not block it. Those that a
 * library started before main() learn to block it when they get it.
 */
#ifndef MTLLM_TRAINER_STOP_H
#define MTLLM_TRAINER_STOP_H

#include <stdint.h>

#include "core/error.h"
#include "core/settings.h"

/* The stronger reason is the greater number: ranks agree on one by COMM_MAX. */
enum stop_reason {
    STOP_NONE,
    STOP_TIME_LIMIT,
    STOP_SIGINT,
    STOP_SIGUSR2,
    STOP_SIGTERM,
};

struct stop;

/* Block SIGTERM, SIGUSR2 and SIGINT in this thread and those it will start, and start the thread
 * that waits for them. They stay blocked after stop_close(), so that a late one does not change the
 * exit status. No time limit yet. Error: EXIT_STATUS_SYSTEM. */
int stop_open(struct stop **stop, struct error *error);
void stop_close(struct stop *stop); /* NULL is nothing */

/* Stop when the clock says `end_time` - `margin` (seconds since 1970; end_time 0: no limit). Before
 * anyone asks stop_requested(). */
void stop_set_time_limit(struct stop *stop, int64_t end_time, int64_t margin);

/* The first signal that came, or STOP_TIME_LIMIT, or STOP_NONE. Any thread. */
enum stop_reason stop_requested(const struct stop *stop);

/* "SIGTERM", "the job's time limit". */
const char *stop_reason_text(enum stop_reason reason);

/* The job's end as seconds since 1970: the setting (from the plugin), else SLURM_JOB_END_TIME
 * (Slurm since 23.02), else 0. */
int64_t stop_job_end_time(const struct settings *settings);

#endif
