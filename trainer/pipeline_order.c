#include "trainer/pipeline_order.h"

#include <assert.h>
#include <stdlib.h>

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Microbatches pass through a chunk in groups. The first of a group comes round to the first stage
 * again, for the next chunk, when as many as there are stages have gone before; a smaller group
 * would let stages wait, or with 1F1B for each other. So what the stages do not divide makes groups
 * larger, not one smaller; only of fewer microbatches than stages there is one small group. */
static int64_t group_count(const struct pipeline_shape *shape)
{
    int64_t groups = shape->microbatches / shape->stages;

    return groups > 0 ? groups : 1;
}

static int64_t largest_group(const struct pipeline_shape *shape)
{
    int64_t groups = group_count(shape);

    return (shape->microbatches + groups - 1) / groups;
}

/* The kth forward; with the chunks counted from the last one, the kth backward. */
static struct pipeline_action turn(const struct pipeline_shape *shape, int64_t k, bool backward)
{
    int64_t groups = group_count(shape), size = shape->microbatches / groups;
    int64_t larger = shape->microbatches % groups; /* groups, with one more, the first ones */
    int64_t in_larger = larger * (size + 1) * shape->chunks, first = 0;
    struct pipeline_action action;

    if (k < in_larger) {
        size++;
    } else {
        k -= in_larger;
        first = larger * (size + 1);
    }
    action = (struct pipeline_action){
        .work = backward ? PIPELINE_BACKWARD : PIPELINE_FORWARD,
        .chunk = (int)(k / size % shape->chunks),
        .microbatch = first + k / (size * shape->chunks) * size + k % size,
    };
    if (backward)
        action.chunk = shape->chunks - 1 - action.chunk;
    return action;
}

static void append(struct pipeline_order *order, struct pipeline_action action)
{
    order->actions[order->count++] = action;
}

/* Forwards that a stage runs before it alternates. With several chunks those of a group in all
 * chunks but the last, and twice as many for each stage behind it, because the gradient takes as
 * long to come back as the activations to get there (Megatron's rule). */
static int64_t forwards_ahead(const struct pipeline_shape *shape, int stage)
{
    int64_t all = shape->microbatches * shape->chunks, behind = shape->stages - 1 - stage;

    if (shape->chunks == 1)
        return smaller(behind, all);
    if (shape->microbatches < shape->stages)
        return all;
    return smaller((shape->chunks - 1) * largest_group(shape) + 2 * behind, all);
}

static void one_forward_one_backward(struct pipeline_order *order,
                                     const struct pipeline_shape *shape, int stage)
{
    int64_t all = shape->microbatches * shape->chunks, ahead = forwards_ahead(shape, stage);

    for (int64_t k = 0; k < ahead; k++)
        append(order, turn(shape, k, false));
    for (int64_t k = 0; k < all; k++) {
        if (k + ahead < all)
            append(order, turn(shape, k + ahead, false));
        append(order, turn(shape, k, true));
    }
}

/* As 1F1B, but that a stage puts off the weights' gradients of as many microbatches as there are
 * stages before it, which wait for its input gradients while the pipeline fills. They fill the
 * waits when it empties. So every stage holds as many microbatches as the first does in 1F1B. */
static void zero_bubble(struct pipeline_order *order, const struct pipeline_shape *shape, int stage)
{
    int64_t all = shape->microbatches, ahead = forwards_ahead(shape, stage), weights = 0;

    for (int64_t m = 0; m < ahead; m++)
        append(order, turn(shape, m, false));
    for (int64_t m = 0; m < all; m++) {
        struct pipeline_action backward = turn(shape, m, true);
        bool emptying = m + ahead >= all;

        if (!emptying)
            append(order, turn(shape, m + ahead, false));
        if (stage == 0) { /* nobody waits for its input gradients */
            append(order, backward);
            continue;
        }
        backward.work = PIPELINE_INPUT_GRADIENT;
        append(order, backward);
        if (emptying || m >= stage) {
            backward.work = PIPELINE_WEIGHT_GRADIENT;
            backward.microbatch = weights++;
            append(order, backward);
        }
    }
    while (stage > 0 && weights < all)
        append(order, (struct pipeline_action){PIPELINE_WEIGHT_GRADIENT, 0, weights++});
}

int pipeline_order_create(struct pipeline_order *order, const struct pipeline_shape *shape)
{
    *order = (struct pipeline_order){.most = 3 * shape->microbatches * shape->chunks};
    order->actions = calloc((size_t)order->most, sizeof(*order->actions));
    return order->actions ? 0 : -1;
}

void pipeline_order_set(struct pipeline_order *order, const struct pipeline_shape *shape, int stage)
{
    int64_t all = shape->microbatches * shape->chunks;

    assert(stage >= 0 && stage < shape->stages && shape->chunks > 0 && shape->microbatches > 0);
    order->count = 0;
    switch (shape->schedule) {
    case PIPELINE_FORWARD_ONLY:
        for (int64_t k = 0; k < all; k++)
            append(order, turn(shape, k, false));
        break;
    case PIPELINE_1F1B:
        one_forward_one_backward(order, shape, stage);
        break;
    case PIPELINE_ZERO_BUBBLE:
        assert(shape->chunks == 1);
        zero_bubble(order, shape, stage);
        break;
    }
    assert(order->count <= order->most);
}

void pipeline_order_destroy(struct pipeline_order *order)
{
    free(order->actions);
    *order = (struct pipeline_order){0};
}

int64_t pipeline_order_in_flight(const struct pipeline_order *order, int chunk)
{
    int64_t now = 0, most = 0;

    for (int64_t i = 0; i < order->count; i++) {
        const struct pipeline_action *action = &order->actions[i];

        if (action->chunk != chunk)
            continue;
        if (action->work == PIPELINE_FORWARD && ++now > most)
            most = now;
        if (action->work == PIPELINE_BACKWARD || action->work == PIPELINE_WEIGHT_GRADIENT)
            now--;
    }
    return most;
}

int64_t pipeline_order_deferred(const struct pipeline_order *order)
{
    int64_t now = 0, most = 0;

    for (int64_t i = 0; i < order->count; i++) {
        if (order->actions[i].work == PIPELINE_INPUT_GRADIENT && ++now > most)
            most = now;
        if (order->actions[i].work == PIPELINE_WEIGHT_GRADIENT)
            now--;
    }
    return most;
}

/* Groups are the larger the fewer there are of them, so those of the first few numbers need most;
 * as tried for all pipelines of up to 12 stages and 12 chunks. The last is for forward alone. */
int64_t pipeline_next_count(const struct pipeline_shape *shape, int64_t fewest, int64_t most)
{
    bool few = shape->microbatches < fewest + 4 * shape->stages;

    return shape->chunks > 1 && few ? shape->microbatches + 1 : most;
}

int64_t pipeline_gradients_waiting(const struct pipeline_shape *shape, int stage)
{
    int64_t more = largest_group(shape) - shape->stages;

    return shape->chunks > 1 && stage == 0 && more > 0 ? more : 0;
}

/* Of a message between virtual stages `from` and `to`, seen from `from`. */
static struct pipeline_end end_of(const struct pipeline_shape *shape, int from, int to)
{
    if (to < 0 || to >= shape->stages * shape->chunks || shape->stages == 1)
        return (struct pipeline_end){-1, false};
    return (struct pipeline_end){to % shape->stages, to / shape->stages != from / shape->stages};
}

struct pipeline_end pipeline_source(const struct pipeline_shape *shape, int stage,
                                    const struct pipeline_action *action)
{
    int at = action->chunk * shape->stages + stage;

    if (action->work == PIPELINE_WEIGHT_GRADIENT)
        return (struct pipeline_end){-1, false};
    return end_of(shape, at, action->work == PIPELINE_FORWARD ? at - 1 : at + 1);
}

struct pipeline_end pipeline_target(const struct pipeline_shape *shape, int stage,
                                    const struct pipeline_action *action)
{
    int at = action->chunk * shape->stages + stage;

    if (action->work == PIPELINE_WEIGHT_GRADIENT)
        return (struct pipeline_end){-1, false};
    return end_of(shape, at, action->work == PIPELINE_FORWARD ? at + 1 : at - 1);
}

bool pipeline_receives_early(const struct pipeline_shape *shape)
{
    return shape->chunks == 1 || shape->microbatches >= shape->stages;
}

/* --- durations ---------------------------------------------------------------------------------*/

/* One stage in a simulated batch. */
struct simulated {
    struct pipeline_order order;
    int64_t next; /* action */
    double clock;
};

struct simulation {
    const struct pipeline_shape *shape;
    const struct pipeline_costs *costs;
    struct simulated *stages;
    /* [virtual stages, microbatches] when a forward, and a gradient of the input, was done;
     * negative: it is not */
    double *forwards, *gradients;
};

/* When the input of an action is there; negative: not yet. */
static double ready_at(const struct simulation *simulation, int stage,
                       const struct pipeline_action *action)
{
    const struct pipeline_shape *shape = simulation->shape;
    int at = action->chunk * shape->stages + stage;
    bool backward = action->work != PIPELINE_FORWARD;
    int from = backward ? at + 1 : at - 1;

    if (action->work == PIPELINE_WEIGHT_GRADIENT || from < 0 ||
        from == shape->stages * shape->chunks)
        return 0;
    return (backward ? simulation->gradients
                     : simulation->forwards)[from * shape->microbatches + action->microbatch];
}

/* What the stage can do by now. Returns whether that was anything. */
static bool simulate_stage(struct simulation *simulation, int stage)
{
    const struct pipeline_shape *shape = simulation->shape;
    struct simulated *it = &simulation->stages[stage];
    int64_t before = it->next;

    for (; it->next < it->order.count; it->next++) {
        const struct pipeline_action *action = &it->order.actions[it->next];
        double ready = ready_at(simulation, stage, action);
        double *done =
            action->work == PIPELINE_FORWARD ? simulation->forwards : simulation->gradients;

        if (ready < 0)
            break;
        it->clock = (ready > it->clock ? ready : it->clock) +
                    simulation->costs->work[action->work] / shape->chunks;
        if (action->work != PIPELINE_WEIGHT_GRADIENT)
            done[(action->chunk * shape->stages + stage) * shape->microbatches +
                 action->microbatch] = it->clock;
    }
    return it->next > before;
}

double pipeline_duration(const struct pipeline_shape *shape, const struct pipeline_costs *costs)
{
    int64_t cells = (int64_t)shape->stages * shape->chunks * shape->microbatches;
    struct simulation simulation = {
        .shape = shape,
        .costs = costs,
        .stages = calloc((size_t)shape->stages, sizeof(struct simulated)),
        .forwards = calloc((size_t)cells, sizeof(double)),
        .gradients = calloc((size_t)cells, sizeof(double)),
    };
    double duration = -1;
    bool going = simulation.stages && simulation.forwards && simulation.gradients;

    for (int64_t i = 0; going && i < cells; i++)
        simulation.forwards[i] = simulation.gradients[i] = -1;
    for (int s = 0; going && s < shape->stages; s++)
        if (pipeline_order_create(&simulation.stages[s].order, shape) < 0)
            goto out;
        else
            pipeline_order_set(&simulation.stages[s].order, shape, s);
    while (going) {
        going = false;
        for (int s = 0; s < shape->stages; s++)
            going |= simulate_stage(&simulation, s);
    }
    for (int s = 0; simulation.stages && s < shape->stages; s++)
        if (simulation.stages[s].clock > duration)
            duration = simulation.stages[s].clock;
out:
    for (int s = 0; simulation.stages && s < shape->stages; s++)
        pipeline_order_destroy(&simulation.stages[s].order);
    free(simulation.stages);
    free(simulation.forwards);
    free(simulation.gradients);
    return duration;
}
