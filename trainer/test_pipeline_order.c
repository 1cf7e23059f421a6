/* Guards: whatever the number of stages, chunks and microbatches, every stage does everything once
 * and nothing too early; messages that are carried out one after the other in each direction, as
 * comm_nccl.c does, and by nobody before the other end is there too, never stop the pipeline, with
 * as many buffers as the stage allocates; stages wait as little as theory has it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "trainer/pipeline_order.h"

enum { STAGES = 8, CHUNKS = 4, MICROBATCHES = 20, ACTIONS = 3 * CHUNKS * MICROBATCHES };

/* --- a pipeline of ranks with messages that need both ends ------------------------------------ */

/* Up, down, and both again for what wraps round. */
enum { LANES = 4 };

struct message {
    int from, to;                  /* stages */
    struct pipeline_action action; /* the sender's */
    bool done;
};

struct lane {
    struct message messages[2 * ACTIONS];
    int count, next;
};

struct rank {
    struct pipeline_order order;
    struct lane lanes[LANES];
    int received[ACTIONS], sent[ACTIONS]; /* of an action: lane * 2 ACTIONS + message, or -1 */
    bool prepared[ACTIONS];               /* its receive has been begun */
    int64_t next;
};

static struct rank ranks[STAGES];

static void set_order(struct pipeline_order *order, const struct pipeline_shape *shape, int stage)
{
    assert_int_equal(pipeline_order_create(order, shape), 0);
    pipeline_order_set(order, shape, stage);
}

static int begin_message(struct rank *rank, int lane, int from, int to,
                         struct pipeline_action action)
{
    struct lane *it = &rank->lanes[lane];

    assert_true(it->count < 2 * ACTIONS);
    it->messages[it->count] = (struct message){from, to, action, false};
    return lane * 2 * ACTIONS + it->count++;
}

static bool is_done(const struct rank *rank, int message)
{
    return message < 0 ||
           rank->lanes[message / (2 * ACTIONS)].messages[message % (2 * ACTIONS)].done;
}

static int lane_of(int from, int to, bool wraps)
{
    return (wraps ? 2 : 0) + (to > from ? 0 : 1);
}

/* What the microbatch that had one of `count` buffers before sent, of forward's or backward's; -1:
 * nothing. */
static int sent_before(const struct rank *rank, const struct pipeline_action *action, int64_t count,
                       bool forward)
{
    for (int64_t i = 0; i < rank->order.count; i++) {
        const struct pipeline_action *other = &rank->order.actions[i];

        if (other->chunk == action->chunk && other->microbatch == action->microbatch - count &&
            other->work != PIPELINE_WEIGHT_GRADIENT && (other->work == PIPELINE_FORWARD) == forward)
            return rank->sent[i];
    }
    return -1;
}

static int64_t gradients(const struct pipeline_shape *shape, int stage,
                         const struct pipeline_action *action)
{
    return pipeline_order_in_flight(&ranks[stage].order, action->chunk) +
           pipeline_gradients_waiting(shape, stage);
}

/* As pipeline.c has it: begin action i's receive. Returns whether that has been done; *going when
 * it is done now. */
static bool prepare(const struct pipeline_shape *shape, int stage, int64_t i, bool *going)
{
    struct rank *rank = &ranks[stage];
    const struct pipeline_action *action;
    struct pipeline_end source;

    if (i >= rank->order.count || rank->prepared[i])
        return true;
    action = &rank->order.actions[i];
    source = pipeline_source(shape, stage, action);
    if (source.stage >= 0) {
        struct pipeline_action sender = *action;

        if (action->work != PIPELINE_FORWARD &&
            !is_done(rank, sent_before(rank, action, gradients(shape, stage, action), false)))
            return false;
        if (action->work == PIPELINE_FORWARD && stage == 0)
            sender.chunk--;
        if (action->work != PIPELINE_FORWARD && stage == shape->stages - 1)
            sender.chunk++;
        rank->received[i] = begin_message(rank, lane_of(source.stage, stage, source.wraps),
                                          source.stage, stage, sender);
    }
    rank->prepared[i] = *going = true;
    return true;
}

/* One action, if its turn has come. */
static void step_rank(const struct pipeline_shape *shape, int stage, bool early, bool *going)
{
    struct rank *rank = &ranks[stage];
    int64_t i = rank->next;
    const struct pipeline_action *action = &rank->order.actions[i];
    struct pipeline_end target;

    if (i >= rank->order.count || !prepare(shape, stage, i, going) ||
        (early && !prepare(shape, stage, i + 1, going)) || !is_done(rank, rank->received[i]))
        return;
    if (action->work == PIPELINE_FORWARD) {
        int64_t slots = pipeline_order_in_flight(&rank->order, action->chunk);

        if (!is_done(rank, sent_before(rank, action, slots, true)) ||
            !is_done(rank, sent_before(rank, action, gradients(shape, stage, action), false)))
            return;
    }
    target = pipeline_target(shape, stage, action);
    if (target.stage >= 0)
        rank->sent[i] = begin_message(rank, lane_of(stage, target.stage, target.wraps), stage,
                                      target.stage, *action);
    rank->next++;
    *going = true;
}

/* A message both of whose ends have come to it. */
static bool step_lane(int stage, int lane)
{
    struct lane *mine = &ranks[stage].lanes[lane];
    struct message *message = &mine->messages[mine->next], *other;
    struct lane *theirs;

    if (mine->next == mine->count || message->from != stage)
        return false;
    theirs = &ranks[message->to].lanes[lane];
    other = &theirs->messages[theirs->next];
    if (theirs->next == theirs->count || other->to != message->to || other->from != stage)
        return false;
    assert_int_equal(other->action.chunk, message->action.chunk);
    assert_int_equal(other->action.microbatch, message->action.microbatch);
    assert_true((other->action.work == PIPELINE_FORWARD) ==
                (message->action.work == PIPELINE_FORWARD));
    message->done = other->done = true;
    mine->next++;
    theirs->next++;
    return true;
}

static void run_ranks(const struct pipeline_shape *shape, bool early)
{
    bool going = true;

    for (int s = 0; s < shape->stages; s++) {
        memset(&ranks[s], 0, sizeof(ranks[s]));
        memset(ranks[s].received, -1, sizeof(ranks[s].received));
        memset(ranks[s].sent, -1, sizeof(ranks[s].sent));
        set_order(&ranks[s].order, shape, s);
    }
    while (going) {
        going = false;
        for (int s = 0; s < shape->stages; s++) {
            step_rank(shape, s, early, &going);
            for (int lane = 0; lane < LANES; lane++)
                going |= step_lane(s, lane);
        }
    }
    for (int s = 0; s < shape->stages; s++) {
        if (ranks[s].next < ranks[s].order.count)
            fail_msg("schedule %d, %d stages, %d chunks, %d microbatches: stage %d stops before "
                     "action %d of %d",
                     shape->schedule, shape->stages, shape->chunks, (int)shape->microbatches, s,
                     (int)ranks[s].next, (int)ranks[s].order.count);
        for (int lane = 0; lane < LANES; lane++)
            assert_int_equal(ranks[s].lanes[lane].next, ranks[s].lanes[lane].count);
        pipeline_order_destroy(&ranks[s].order);
    }
}

/* --- properties of one stage's list ----------------------------------------------------------- */

static void check_list(const struct pipeline_shape *shape, int stage)
{
    int64_t begun[CHUNKS][4] = {{0}};
    struct pipeline_order order;
    bool training = shape->schedule != PIPELINE_FORWARD_ONLY;

    set_order(&order, shape, stage);
    for (int64_t i = 0; i < order.count; i++) {
        const struct pipeline_action *action = &order.actions[i];
        int64_t *done = begun[action->chunk];
        enum pipeline_work work =
            action->work == PIPELINE_BACKWARD ? PIPELINE_INPUT_GRADIENT : action->work;

        assert_in_range(action->chunk, 0, shape->chunks - 1);
        /* Each microbatch once, in order, and no part before the one that it needs. */
        assert_int_equal(action->microbatch, done[work]++);
        if (action->work == PIPELINE_BACKWARD)
            assert_int_equal(action->microbatch, done[PIPELINE_WEIGHT_GRADIENT]++);
        assert_true(done[PIPELINE_FORWARD] >= done[PIPELINE_INPUT_GRADIENT]);
        assert_true(done[PIPELINE_INPUT_GRADIENT] >= done[PIPELINE_WEIGHT_GRADIENT]);
        /* Gradients become complete from the end of the stage to its beginning. */
        if (work == PIPELINE_WEIGHT_GRADIENT || action->work == PIPELINE_BACKWARD)
            for (int c = action->chunk + 1; c < shape->chunks; c++)
                assert_true(begun[c][PIPELINE_WEIGHT_GRADIENT] >= done[PIPELINE_WEIGHT_GRADIENT]);
    }
    for (int c = 0; c < shape->chunks; c++)
        for (int work = 0; work < 4; work++)
            if (work != PIPELINE_BACKWARD)
                assert_int_equal(begun[c][work],
                                 work == PIPELINE_FORWARD || training ? shape->microbatches : 0);
    if (training && shape->chunks == 1) {
        int64_t most = shape->schedule == PIPELINE_1F1B ? shape->stages - stage : shape->stages;

        assert_true(pipeline_order_in_flight(&order, 0) <=
                    (most < shape->microbatches ? most : shape->microbatches));
        assert_true(pipeline_order_deferred(&order) <= stage + 1);
    }
    pipeline_order_destroy(&order);
}

/* The share of the work by which a batch takes longer than the work of one stage. */
static double bubble(const struct pipeline_shape *shape, const struct pipeline_costs *costs)
{
    bool split = shape->schedule == PIPELINE_ZERO_BUBBLE;
    double work =
        (double)shape->microbatches *
        (costs->work[PIPELINE_FORWARD] +
         (split ? costs->work[PIPELINE_INPUT_GRADIENT] + costs->work[PIPELINE_WEIGHT_GRADIENT]
                : costs->work[PIPELINE_BACKWARD]));
    double duration = pipeline_duration(shape, costs);

    assert_true(duration > 0);
    return duration / work - 1;
}

static const struct pipeline_costs unit = {{[PIPELINE_FORWARD] = 1,
                                            [PIPELINE_BACKWARD] = 2,
                                            [PIPELINE_INPUT_GRADIENT] = 1,
                                            [PIPELINE_WEIGHT_GRADIENT] = 1}};

static void check_bubble(const struct pipeline_shape *shape)
{
    double p = shape->stages, c = shape->chunks, m = (double)shape->microbatches;
    /* The formula, or what even one microbatch after the other needs: through all stages and back,
     * with those behind it at best as close as the work allows. */
    double least = (p - 1) / (c * m), through = (p * c + m - 1) / (c * m) - 1;
    double limit = least > through ? least : through, found = bubble(shape, &unit);

    if (!(found <= 1.3 * limit + 1e-9))
        fail_msg("%d stages, %d chunks, %d microbatches: bubble %.4f, formula %.4f", shape->stages,
                 shape->chunks, (int)shape->microbatches, found, limit);
}

static void check_shape(struct pipeline_shape shape)
{
    for (int s = 0; s < shape.stages; s++)
        check_list(&shape, s);
    run_ranks(&shape, pipeline_receives_early(&shape));
}

static void test_every_shape(void **state)
{
    (void)state;
    for (int p = 1; p <= STAGES; p++)
        for (int c = 1; c <= CHUNKS; c++)
            for (int m = 1; m <= MICROBATCHES; m++) {
                check_shape((struct pipeline_shape){p, c, m, PIPELINE_FORWARD_ONLY});
                check_shape((struct pipeline_shape){p, c, m, PIPELINE_1F1B});
                check_bubble(&(struct pipeline_shape){p, c, m, PIPELINE_1F1B});
                if (c == 1)
                    check_shape((struct pipeline_shape){p, c, m, PIPELINE_ZERO_BUBBLE});
            }
}

/* ZB-H1: (p - 1) (forward + input gradient - weight gradient) instead of the sum of all three. */
static void test_zero_bubble(void **state)
{
    (void)state;
    for (int p = 2; p <= STAGES; p++)
        for (int m = 1; m <= MICROBATCHES; m++) {
            double zero = bubble(&(struct pipeline_shape){p, 1, m, PIPELINE_ZERO_BUBBLE}, &unit);
            double plain = bubble(&(struct pipeline_shape){p, 1, m, PIPELINE_1F1B}, &unit);

            assert_true(zero < plain);
            if (m >= p && !(zero <= 1.3 * (p - 1) / (3.0 * m) + 1e-9))
                fail_msg("%d stages, %d microbatches: bubble %.4f, formula %.4f", p, m, zero,
                         (p - 1) / (3.0 * m));
        }
}

/* 1F1B of three stages, written out; and the second of two stages with two chunks. */
static void test_known_orders(void **state)
{
    static const struct {
        struct pipeline_shape shape;
        int stage;
        const char *text;
    } known[] = {
        {{3, 1, 4, PIPELINE_1F1B}, 0, "F0 F1 F2 B0 F3 B1 B2 B3 "},
        {{3, 1, 4, PIPELINE_1F1B}, 2, "F0 B0 F1 B1 F2 B2 F3 B3 "},
        {{3, 1, 4, PIPELINE_ZERO_BUBBLE}, 2, "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3 "},
        {{2, 2, 2, PIPELINE_1F1B}, 1, "F0 F1 F0' B0' F1' B1' B0 B1 "},
    };
    (void)state;

    for (size_t k = 0; k < sizeof(known) / sizeof(*known); k++) {
        struct pipeline_order order;
        char text[256] = "";

        set_order(&order, &known[k].shape, known[k].stage);
        for (int64_t i = 0; i < order.count; i++) {
            const struct pipeline_action *action = &order.actions[i];

            snprintf(text + strlen(text), sizeof(text) - strlen(text), "%c%d%s ",
                     "FBIW"[action->work], (int)action -> microbatch,
                     action -> chunk > 0 ? "'" : "");
        }
        assert_string_equal(text, known[k].text);
        pipeline_order_destroy(&order);
    }
}

/* What a stage needs for steps of that many microbatches: slots of each chunk, gradients of each,
 * and gradients of weights that are put off. */
struct needs {
    int64_t slots[CHUNKS], gradients[CHUNKS], deferred;
};

static bool grow(int64_t *most, int64_t count)
{
    bool more = count > *most;

    *most = more ? count : *most;
    return more;
}

/* Whether one of them grew. */
static bool add_needs(struct needs *most, const struct pipeline_shape *shape, int stage)
{
    struct pipeline_order order;
    bool grew;

    set_order(&order, shape, stage);
    grew = grow(&most->deferred, pipeline_order_deferred(&order));
    for (int c = 0; c < shape->chunks; c++) {
        int64_t slots = pipeline_order_in_flight(&order, c);

        grew |= grow(&most->slots[c], slots);
        grew |= grow(&most->gradients[c], slots + pipeline_gradients_waiting(shape, stage));
    }
    pipeline_order_destroy(&order);
    return grew;
}

/* Numbers of microbatches that pipeline_next_count() passes over need no more than those that it
 * names. */
static void check_numbers(struct pipeline_shape shape, int stage, int64_t fewest, int64_t most)
{
    struct needs needs = {.deferred = 0};

    for (shape.microbatches = fewest; shape.microbatches < most;
         shape.microbatches = pipeline_next_count(&shape, fewest, most))
        (void)add_needs(&needs, &shape, stage);
    assert_int_equal(shape.microbatches, most);
    (void)add_needs(&needs, &shape, stage);
    for (shape.microbatches = fewest; shape.microbatches < most; shape.microbatches++)
        assert_false(add_needs(&needs, &shape, stage));
}

static void test_numbers_of_a_ramp(void **state)
{
    (void)state;
    for (int stages = 1; stages <= STAGES; stages++)
        for (int chunks = 1; chunks <= (stages > 1 ? CHUNKS : 1); chunks++)
            for (int stage = 0; stage < stages; stage++)
                for (int64_t fewest = 1; fewest <= 41; fewest += 4) {
                    struct pipeline_shape shape = {stages, chunks, 0, PIPELINE_1F1B};

                    check_numbers(shape, stage, fewest, fewest + 6 * stages + 7);
                    shape.schedule = PIPELINE_ZERO_BUBBLE;
                    if (chunks == 1)
                        check_numbers(shape, stage, fewest, fewest + 6 * stages + 7);
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_shape),
        cmocka_unit_test(test_zero_bubble),
        cmocka_unit_test(test_known_orders),
        cmocka_unit_test(test_numbers_of_a_ramp),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
