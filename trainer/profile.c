/* Recording spans, and the life of a profile. */
#include "trainer/profile.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/log.h"

enum { DEPTH = 16 };                                /* spans within one another */
enum { LONGEST_PROFILE = 1000000 };                 /* steps */
static const int64_t most_steps = 1000000000000000; /* of a run: steps in settings.def */

struct profile {
    struct profile_range range;
    char directory[PATH_MAX];
    struct stage *stage;
    struct team *team;
    const struct world *world;
    struct stream *streams[PROFILE_LANES];
    bool device;

    bool done;
    int64_t step; /* at hand */
    struct profile_span *spans;
    size_t count, room;
    int64_t lost; /* spans that there was no memory for */
    /* Those that have begun, as numbers; -1: lost. */
    int64_t open[DEPTH];
    int depth;
    /* What is 0 in the trace, by this rank's clock, and how wrong that can be. */
    int64_t origin_ns, clock_error_ns;
    struct mark *base; /* a point on the device, */
    int64_t base_ns;   /* and when that was */
};

int profile_range_parse(struct profile_range *range, const char *text, struct error *error)
{
    char *end;
    long long count = 1;

    errno = 0;
    range->first = *text >= '0' && *text <= '9' ? strtoll(text, &end, 10) : 0;
    if (range->first > 0 && *end == ':') {
        const char *second = end + 1;

        count = *second >= '0' && *second <= '9' ? strtoll(second, &end, 10) : 0;
    }
    if (range->first < 1 || range->first > most_steps || count < 1 || *end || errno != 0)
        return error_set(error, EXIT_STATUS_USAGE,
                         "profile=%s: not a step, such as 100, or a step and how many from there "
                         "on, such as 100:3",
                         text);
    if (count > LONGEST_PROFILE)
        return error_set(error, EXIT_STATUS_USAGE,
                         "profile=%s: %lld steps; a profile has %d at most, and a few show most",
                         text, count, LONGEST_PROFILE);
    range->last = range->first + count - 1;
    return 0;
}

int profile_open(struct profile **result, const struct profile_range *range, const char *directory,
                 struct stage *stage, struct team *team, const struct world *world,
                 struct error *error)
{
    struct profile *profile = calloc(1, sizeof(*profile));

    *result = profile;
    if (!profile)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    *profile = (struct profile){
        .range = *range,
        .stage = stage,
        .team = team,
        .world = world,
        .streams = {[PROFILE_COMPUTE] = stage->stream,
                    [PROFILE_REDUCTIONS] = stage->reductions,
                    [PROFILE_SUMS] = stage->sums,
                    [PROFILE_GATHERS] = stage->gathers},
        .device = stage->kernels->range_begin,
    };
    snprintf(profile->directory, sizeof(profile->directory), "%s", directory);
    return 0;
}

static void forget_spans(struct profile *profile)
{
    const struct kernels *k = profile->stage->kernels;

    for (size_t i = 0; profile->device && i < profile->count; i++) {
        k->mark_destroy(profile->spans[i].from);
        k->mark_destroy(profile->spans[i].to);
    }
    if (profile->base)
        k->mark_destroy(profile->base);
    profile->base = NULL;
    free(profile->spans);
    profile->spans = NULL;
    profile->count = profile->room = 0;
}

void profile_close(struct profile *profile)
{
    if (!profile)
        return;
    profile->stage->profile = NULL;
    forget_spans(profile);
    free(profile);
}

/* --- spans ------------------------------------------------------------------------------------ */

static struct profile_span *new_span(struct profile *profile)
{
    if (profile->count == profile->room) {
        size_t room = profile->room ? 2 * profile->room : 1024;
        struct profile_span *spans = realloc(profile->spans, room * sizeof(*spans));

        if (!spans) {
            profile->lost++;
            return NULL;
        }
        profile->spans = spans;
        profile->room = room;
    }
    return &profile->spans[profile->count++];
}

static bool is_on_device(const struct profile *profile, const struct profile_span *span)
{
    return profile->device && span->lane != PROFILE_HOST;
}

/* NULL: out of memory. */
static struct mark *mark_on(const struct kernels *k, struct stream *stream)
{
    struct mark *mark = k->mark_create();

    if (mark)
        k->mark_set(stream, mark);
    return mark;
}

void profile_span_begin(struct profile *profile, enum profile_lane lane, const char *name,
                        int64_t microbatch, int chunk)
{
    struct profile_span *span = new_span(profile);
    const struct kernels *k = profile->stage->kernels;

    assert(profile->depth < DEPTH);
    profile->open[profile->depth++] = span ? span - profile->spans : -1;
    if (k->range_begin)
        k->range_begin(name);
    if (!span)
        return;
    *span = (struct profile_span){
        .name = name,
        .step = profile->step,
        .microbatch = microbatch,
        .chunk = chunk,
        .lane = lane,
    };
    if (is_on_device(profile, span))
        span->from = mark_on(k, profile->streams[lane]);
    span->start_ns = profile_now_ns();
}

void profile_span_end(struct profile *profile)
{
    const struct kernels *k = profile->stage->kernels;
    struct profile_span *span;
    int64_t number;

    assert(profile->depth > 0);
    number = profile->open[--profile->depth];
    if (k->range_end)
        k->range_end();
    if (number < 0)
        return;
    span = &profile->spans[number];
    span->end_ns = profile_now_ns();
    if (is_on_device(profile, span))
        span->to = mark_on(k, profile->streams[span->lane]);
}

/* --- begin ------------------------------------------------------------------------------------ */

static int compare_clocks(struct profile *profile, struct error *error)
{
    int ranks = profile->world->size;
    struct profile_clock *clocks = calloc((size_t)ranks, sizeof(*clocks));
    struct profile_clock mine = {.node = profile->world->node};
    int result = clocks ? 0 : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");

    if (team_agree(profile->team, result, error) < 0)
        goto out;
    result = -1;
    for (int i = 0; i < PROFILE_CLOCK_ROUNDS; i++) {
        mine.entered_ns[i] = profile_now_ns();
        comm_barrier(profile->team->world);
        mine.left_ns[i] = profile_now_ns();
    }
    if (team_gather(profile->team, clocks, &mine, sizeof(mine), error) < 0)
        goto out;
    profile->origin_ns =
        clocks[0].entered_ns[0] +
        profile_clock_ahead(clocks, ranks, profile->world->rank, &profile->clock_error_ns);
    result = 0;
out:
    free(clocks);
    return result;
}

/* A point on the device whose time is known to within what it takes to launch and to wait. */
static int take_base(struct profile *profile, struct error *error)
{
    const struct kernels *k = profile->stage->kernels;
    struct stream *stream = profile->stage->stream;
    int64_t before_ns;

    if (!profile->device)
        return 0;
    if (k->stream_sync(stream, error) < 0)
        return -1;
    before_ns = profile_now_ns();
    profile->base = mark_on(k, stream);
    if (!profile->base)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory for a profile");
    if (k->stream_sync(stream, error) < 0)
        return -1;
    profile->base_ns = before_ns + (profile_now_ns() - before_ns) / 2;
    return 0;
}

static int begin(struct profile *profile, struct error *error)
{
    if (profile->world->rank == 0 && mkdir(profile->directory, 0777) < 0 && errno != EEXIST)
        log_warning("%s: %s", profile->directory, strerror(errno));
    if (compare_clocks(profile, error) < 0)
        return -1;
    if (team_agree(profile->team, take_base(profile, error), error) < 0)
        return -1;
    profile->stage->profile = profile;
    return 0;
}

/* --- end -------------------------------------------------------------------------------------- */

static int read_marks(struct profile *profile, struct error *error)
{
    const struct kernels *k = profile->stage->kernels;

    if (!profile->device)
        return 0;
    for (int lane = PROFILE_COMPUTE; lane < PROFILE_LANES; lane++)
        if (k->stream_sync(profile->streams[lane], error) < 0)
            return -1;
    for (size_t i = 0; i < profile->count; i++) {
        struct profile_span *span = &profile->spans[i];

        if (!span->from || !span->to) {
            k->mark_destroy(span->from);
            span->from = NULL;
            continue;
        }
        span->device_start_ns =
            profile->base_ns + (int64_t)(1e9 * k->mark_seconds(profile->base, span->from));
        span->device_end_ns =
            profile->base_ns + (int64_t)(1e9 * k->mark_seconds(profile->base, span->to));
    }
    return 0;
}

/* As in the name of a process of the trace. */
static void name_rank(const struct profile *profile, char *name, size_t size)
{
    const struct layout_place *place = &profile->stage->place;
    char host[128] = "?";

    (void)gethostname(host, sizeof(host) - 1);
    snprintf(name, size, "rank %d: pp %d, dp %d, cp %d, tp %d (%s)", profile->world->rank,
             place->pp, place->dp, place->cp, place->tp, host);
}

static void write_file(struct profile *profile)
{
    struct profile_part part = {
        .spans = profile->spans,
        .count = profile->count,
        .rank = profile->world->rank,
        .origin_ns = profile->origin_ns,
        .clock_error_ns = profile->clock_error_ns,
        .device = profile->device,
    };
    char prefix[PATH_MAX + 48], path[PATH_MAX + 64];
    struct error error = {0};

    name_rank(profile, part.name, sizeof(part.name));
    snprintf(prefix, sizeof(prefix), "%s/.step-%08lld.", profile->directory,
             (long long)profile->range.first);
    snprintf(path, sizeof(path), "%s%d", prefix, profile->world->rank);
    if (profile_write_part(&part, path, &error) < 0)
        log_warning_any_rank("profile: %s", error.text);
    comm_barrier(profile->team->world);
    if (profile->world->rank != 0)
        return;
    snprintf(path, sizeof(path), "%s/step-%08lld.json", profile->directory,
             (long long)profile->range.first);
    if (profile_join_parts(path, prefix, profile->world->size, &error) < 0)
        log_warning("no profile: %s", error.text);
    else
        log_info("profile of steps %lld to %lld: %s", (long long)profile->range.first,
                 (long long)profile->step, path);
}

static int end(struct profile *profile, struct error *error)
{
    profile->stage->profile = NULL;
    profile->done = true;
    if (team_agree(profile->team, read_marks(profile, error), error) < 0)
        return -1;
    if (profile->lost > 0)
        log_warning_any_rank("profile: no memory for %lld spans", (long long)profile->lost);
    write_file(profile);
    forget_spans(profile);
    return 0;
}

int profile_step(struct profile *profile, int64_t step, struct error *error)
{
    if (!profile || profile->done)
        return 0;
    if (step > profile->range.last) {
        if (profile->stage->profile)
            return end(profile, error);
        profile->done = true;
        return 0;
    }
    if (!profile->stage->profile && step >= profile->range.first) {
        profile->range.first = step;
        if (begin(profile, error) < 0)
            return -1;
    }
    profile->step = step;
    return 0;
}

int profile_finish(struct profile *profile, int64_t last, struct error *error)
{
    if (!profile || !profile->stage->profile)
        return 0;
    profile->step = last;
    if (last >= profile->range.first)
        return end(profile, error);
    profile->stage->profile = NULL;
    return 0;
}
