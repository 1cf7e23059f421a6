/* Batches in the order of their samples, each read by a thread while the one before is computed
 * with. What a batch holds does not depend on when it was read. */
#ifndef MTLLM_TRAINER_FEED_H
#define MTLLM_TRAINER_FEED_H

#include "core/batch_ramp.h"
#include "trainer/batch.h"

struct feed;

/* The parts of replica `dp`, of batches as large as the ramp has them. layout must outlive the
 * feed. Error: EXIT_STATUS_SYSTEM. */
int feed_create(struct feed **feed, const struct kernels *kernels, const struct layout *layout,
                int dp, const struct batch_ramp *ramp, int64_t micro_batch, int64_t seq_length,
                struct error *error);
void feed_destroy(struct feed *feed); /* NULL is nothing */

/* From now on feed_next() gives `count` global batches, of consecutive samples from `first` on. */
void feed_begin(struct feed *feed, const struct dataset *dataset, int64_t first, int64_t count);

/* The next batch, the caller's until the next call for this feed: all copies to the device must be
 * complete by then. `waited_s`: what it took until it was there, 0 when it already was. Error: that
 * of reading it; the feed gives nothing more. */
int feed_next(struct feed *feed, struct batch **batch, double *waited_s, struct error *error);

#endif
