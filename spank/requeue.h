/* Putting a job that stopped unfinished back into the queue. */
#ifndef MTLLM_SPANK_REQUEUE_H
#define MTLLM_SPANK_REQUEUE_H

#include <stdint.h>

/* Requeue the job unless it was requeued `limit` times already, and tell the user what happened.
 * An array's task is requeued alone. Needs the rights of the job's user at least. */
void requeue_job(uint32_t job_id, int64_t limit);

#endif
