/* What the compute stream spends its time on within a step. Marks are left on the stream where one
 * thing ends and another begins, and read when the stream has been synchronized: on a GPU, where
 * the host runs ahead, nothing waits for that.
 */
#ifndef MTLLM_TRAINER_TIMELINE_H
#define MTLLM_TRAINER_TIMELINE_H

#include "kernels/kernels.h"

enum time_part {
    TIME_OTHER,
    TIME_FORWARD,
    TIME_BACKWARD,
    TIME_PIPELINE,      /* waiting for messages of other stages */
    TIME_COMMUNICATION, /* collectives that nothing is computed beside */
    TIME_PARTS
};

struct timeline;

/* NULL: out of memory. All functions take NULL for a timeline that measures nothing. */
struct timeline *timeline_create(const struct kernels *kernels);
void timeline_destroy(struct timeline *timeline);

/* Begin anew, with TIME_OTHER. Until timeline_end() calls of timeline_enter() count. */
void timeline_begin(struct timeline *timeline);
/* From here on the stream does `part`. Returns what it did before, to go back to. */
enum time_part timeline_enter(struct timeline *timeline, enum time_part part);
enum time_part timeline_part(const struct timeline *timeline); /* what it does at the moment */
void timeline_end(struct timeline *timeline);

/* Seconds of each part from begin to end, once the stream is synchronized; zeros where marks could
 * not be had. */
void timeline_read(const struct timeline *timeline, double seconds[TIME_PARTS]);

#endif
