#include "trainer/timeline.h"

#include <stdlib.h>

struct timeline {
    const struct kernels *kernels;
    struct mark **marks;     /* [capacity] */
    enum time_part *parts;   /* [capacity] what begins with the mark */
    int64_t count, capacity; /* marks in use; that there are */
    enum time_part part;     /* at the moment */
    bool running, lost;      /* lost: there was no memory for a mark */
};

struct timeline *timeline_create(const struct kernels *kernels)
{
    struct timeline *timeline = calloc(1, sizeof(*timeline));

    if (timeline)
        timeline->kernels = kernels;
    return timeline;
}

void timeline_destroy(struct timeline *timeline)
{
    if (!timeline)
        return;
    for (int64_t i = 0; i < timeline->capacity; i++)
        timeline->kernels->mark_destroy(timeline->marks[i]);
    free(timeline->marks);
    free(timeline->parts);
    free(timeline);
}

/* Room for one more mark. Marks are kept for the next step. */
static bool grow(struct timeline *timeline)
{
    size_t count = (size_t)timeline->capacity + 1;
    struct mark **marks = realloc(timeline->marks, count * sizeof(*marks));
    enum time_part *parts = marks ? realloc(timeline->parts, count * sizeof(*parts)) : NULL;

    if (marks)
        timeline->marks = marks;
    if (parts)
        timeline->parts = parts;
    if (!parts || !(marks[count - 1] = timeline->kernels->mark_create()))
        return false;
    timeline->capacity++;
    return true;
}

static void leave_mark(struct timeline *timeline, enum time_part part)
{
    timeline->part = part;
    if (timeline->count == timeline->capacity && !grow(timeline)) {
        timeline->lost = true;
        return;
    }
    timeline->kernels->mark_set(NULL, timeline->marks[timeline->count]);
    timeline->parts[timeline->count++] = part;
}

void timeline_begin(struct timeline *timeline)
{
    if (!timeline)
        return;
    timeline->count = 0;
    timeline->lost = false;
    timeline->running = true;
    leave_mark(timeline, TIME_OTHER);
}

enum time_part timeline_enter(struct timeline *timeline, enum time_part part)
{
    enum time_part before;

    if (!timeline || !timeline->running)
        return TIME_OTHER;
    before = timeline->part;
    if (part != before)
        leave_mark(timeline, part);
    return before;
}

enum time_part timeline_part(const struct timeline *timeline)
{
    return timeline && timeline->running ? timeline->part : TIME_OTHER;
}

void timeline_end(struct timeline *timeline)
{
    if (!timeline)
        return;
    leave_mark(timeline, TIME_OTHER);
    timeline->running = false;
}

void timeline_read(const struct timeline *timeline, double seconds[TIME_PARTS])
{
    for (int part = 0; part < TIME_PARTS; part++)
        seconds[part] = 0;
    for (int64_t i = 1; timeline && !timeline->lost && i < timeline->count; i++)
        seconds[timeline->parts[i - 1]] +=
            timeline->kernels->mark_seconds(timeline->marks[i - 1], timeline->marks[i]);
}
