/* --profile=STEP[:N]: what every rank does in N steps, as one file of Chrome's trace format, which
 * chrome://tracing and https://ui.perfetto.dev show: RUN/profile/step-NNNNNNNN.json.
 *
 * A process of the trace is a rank. Its lane "host" has the spans of the calling thread, one within
 * the other. On a GPU, where calls only leave work behind, the same spans stand in a lane of their
 * stream too, from when the device came to them to when it was through; and profilers such as
 * Nsight Systems see them as NVTX ranges. Times are rank 0's: clocks of other nodes are compared by
 * barriers when the profile begins, and how exactly that went is a label of each rank.
 */
#ifndef MTLLM_TRAINER_PROFILE_H
#define MTLLM_TRAINER_PROFILE_H

#include <stdint.h>

#include "core/error.h"
#include "trainer/stage.h"
#include "trainer/team.h"
#include "trainer/world.h"

/* --- recording: to stage->profile, which is NULL while nothing is recorded ---------------------
 */

/* Where a span's work is: with the caller alone, or on one of the stage's streams. */
enum profile_lane {
    PROFILE_HOST,
    PROFILE_COMPUTE,
    PROFILE_REDUCTIONS, /* stage->reductions */
    PROFILE_SUMS,       /* stage->sums */
    PROFILE_GATHERS,    /* stage->gathers */
    PROFILE_LANES
};

/* Spans end in the order opposite to that in which they began, in the thread that trains. `name` is
 * a literal; microbatch and chunk are those of a pipeline's action, or -1. */
void profile_span_begin(struct profile *profile, enum profile_lane lane, const char *name,
                        int64_t microbatch, int chunk);
void profile_span_end(struct profile *profile);

static inline void profile_begin(struct profile *profile, enum profile_lane lane, const char *name)
{
    if (__builtin_expect(profile != NULL, 0))
        profile_span_begin(profile, lane, name, -1, -1);
}

static inline void profile_end(struct profile *profile)
{
    if (__builtin_expect(profile != NULL, 0))
        profile_span_end(profile);
}

/* --- a run's profile -------------------------------------------------------------------------- */

struct profile_range {
    int64_t first, last; /* steps, from 1 on */
};

/* "STEP" or "STEP:N". Error: EXIT_STATUS_USAGE. */
int profile_range_parse(struct profile_range *range, const char *text, struct error *error);

/* Records the steps of the range into a file in `directory`, which need not exist. stage, team and
 * world must outlive the profile. Error: EXIT_STATUS_SYSTEM. */
int profile_open(struct profile **profile, const struct profile_range *range, const char *directory,
                 struct stage *stage, struct team *team, const struct world *world,
                 struct error *error);
void profile_close(struct profile *profile); /* NULL is nothing, here and below */

/* Before step `step` begins: recording begins with the first step of the range, or the first behind
 * it that is made, and ends, with the file, before the first after the range. Collective. A file
 * that cannot be written is a warning. Error: the device's. */
int profile_step(struct profile *profile, int64_t step, struct error *error);
/* There are no steps after `last`: recording ends, if it has begun. Otherwise as profile_step(). */
int profile_finish(struct profile *profile, int64_t last, struct error *error);

/* --- clocks (profile_clock.c) ------------------------------------------------------------------
 */

enum { PROFILE_CLOCK_ROUNDS = 32 };

/* When a rank came to barriers, and when it was through. */
struct profile_clock {
    int64_t entered_ns[PROFILE_CLOCK_ROUNDS], left_ns[PROFILE_CLOCK_ROUNDS];
    int64_t node;
};

/* This rank's monotonic clock. */
int64_t profile_now_ns(void);

/* By how much rank `rank`'s clock is ahead of rank 0's, and how wrong that can be. Nobody leaves a
 * barrier before everybody has entered it, so every round bounds the difference from both sides;
 * ranks of a node have the same clock. */
int64_t profile_clock_ahead(const struct profile_clock *clocks, int ranks, int rank,
                            int64_t *error_ns);

/* --- the file (profile_file.c) -----------------------------------------------------------------
 */

struct profile_span {
    const char *name;
    int64_t step, microbatch; /* microbatch -1: none */
    int chunk;                /* -1: none */
    int lane;
    int64_t start_ns, end_ns;               /* host, by this rank's clock */
    struct mark *from, *to;                 /* device; NULL: none */
    int64_t device_start_ns, device_end_ns; /* once the marks were read */
};

/* A rank's part of a trace. */
struct profile_part {
    const struct profile_span *spans;
    size_t count;
    int rank;
    char name[256];    /* of the rank, for people */
    int64_t origin_ns; /* what is 0 in the trace, by this rank's clock */
    int64_t clock_error_ns;
    bool device; /* there are lanes of streams */
};

/* Error: EXIT_STATUS_IO. */
int profile_write_part(const struct profile_part *part, const char *path, struct error *error);
/* One file of all parts, PREFIX0, PREFIX1, ..., which are then removed. */
int profile_join_parts(const char *path, const char *prefix, int ranks, struct error *error);

#endif
