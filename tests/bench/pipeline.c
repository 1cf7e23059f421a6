/* What stages of a pipeline wait for each other, by schedule: the trainer's own stages, order and
 * messages, between processes, with products that take the time of their FLOPs asleep instead of
 * computing. So ranks overlap as they would with a processor each, on however few there are.
 *
 * usage: mpirun -n STAGES pipeline MICROBATCHES CHUNKS 1f1b|zero-bubble
 * Prints the share of a step that a rank waited, for messages and in the end for the last rank,
 * mean over ranks and steps, and what the formula for stages that are alike has. The first step, in
 * which connections are made, does not count. Messages are so small that MPI delivers them without
 * the sender's help: what it takes to bring them over is not measured here.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/clock.h"
#include "trainer/batch.h"
#include "trainer/optimizer.h"
#include "trainer/pipeline.h"
#include "trainer/team.h"

enum { LAYERS_A_STAGE = 4, LENGTH = 4, STEPS = 4 };
static const double flops_a_second = 1.6e8;

/* What a sleep was too long or too short, the next one makes up for. */
static double owed_s;

static void take_time(int64_t rows, int64_t in, int64_t out)
{
    double start_s = clock_now_s(CLOCK_MONOTONIC);

    owed_s += 2.0 * (double)(rows * in * out) / flops_a_second;
    if (owed_s > 0) {
        struct timespec time = {(time_t)owed_s, (long)(fmod(owed_s, 1) * 1e9)};

        nanosleep(&time, NULL);
    }
    owed_s -= clock_now_s(CLOCK_MONOTONIC) - start_s;
}

static void forward(struct stream *stream, void *y, const void *x, const void *w, int64_t rows,
                    int64_t in, int64_t out, bool accumulate)
{
    (void)stream, (void)y, (void)x, (void)w, (void)accumulate;
    take_time(rows, in, out);
}

static void backward_weight(struct stream *stream, float *dw, const void *dy, const void *x,
                            int64_t rows, int64_t in, int64_t out)
{
    (void)stream, (void)dw, (void)dy, (void)x;
    take_time(rows, in, out);
}

static const struct model model = {
    .hidden_size = 128,
    .ffn_size = 256,
    .heads = 2,
    .kv_heads = 2,
    .head_dim = 64,
    .vocab_size = 8,
    .max_positions = LENGTH,
    .norm_eps = 1e-5,
    .rope_theta = 1e4,
    .init_std = 0.02,
};

static void check(const struct world *world, int result, const struct error *error)
{
    if (result < 0)
        world_abort(world, error_print(error));
}

/* Of a step of `chunks` and that schedule, as a share of it. */
static double formula(int stages, int64_t microbatches, int chunks, bool split)
{
    double bubble = (stages - 1) / ((double)microbatches * chunks * (split ? 3 : 1));

    return bubble / (1 + bubble);
}

static double measure(const struct world *world, struct stage *stage, struct team *team,
                      const struct batch *batch)
{
    double shares = 0;

    for (int step = -1; step < STEPS; step++) {
        struct error error = {0};
        double start_s, end_s, sums[1], parts[TIME_PARTS];

        comm_barrier(stage->groups->world);
        owed_s = 0;
        start_s = clock_now_s(CLOCK_MONOTONIC);
        timeline_begin(stage->timeline);
        pipeline_train(stage, batch);
        timeline_end(stage->timeline);
        end_s = clock_now_s(CLOCK_MONOTONIC);
        comm_barrier(stage->groups->world); /* a step is as long as its longest rank's */
        timeline_read(stage->timeline, parts);
        sums[0] = (parts[TIME_PIPELINE] + clock_now_s(CLOCK_MONOTONIC) - end_s) /
                  (clock_now_s(CLOCK_MONOTONIC) - start_s);
        check(world, team_sum(team, sums, 1, &error), &error);
        if (step >= 0)
            shares += sums[0] / world->size / STEPS;
    }
    return shares;
}

int main(int argc, char **argv)
{
    struct world world;
    struct error error = {0};
    struct kernels kernels = *kernels_cpu(1);
    struct model it = model;
    struct layout layout = {.tp = 1, .dp = 1, .cp = 1};
    struct stage_work work = {.micro_batch = 1,
                              .seq_length = LENGTH,
                              .sequences = 1,
                              .state = STAGE_TRAINS,
                              .split = STAGE_SPLIT_NEVER};
    struct comm_groups groups;
    struct stage stage;
    struct batch batch;
    struct team team;
    double share, expected;

    if (argc != 4)
        return fprintf(stderr, "usage: mpirun -n STAGES pipeline MICROBATCHES CHUNKS "
                               "1f1b|zero-bubble\n"),
               1;
    work.microbatches = atoi(argv[1]);
    layout.chunks = atoi(argv[2]);
    if (strcmp(argv[3], "zero-bubble") == 0)
        work.split = STAGE_SPLIT_ALWAYS;
    kernels.linear_forward = kernels.linear_backward_input = forward;
    kernels.linear_backward_weight = backward_weight;
    if (world_open(&world, &error) < 0)
        return error_print(&error);
    layout.pp = world.size;
    it.layers = LAYERS_A_STAGE * world.size;
    check(&world, comm_open(&groups, &world, &layout, &kernels, &error), &error);
    check(&world, team_create(&team, groups.world, &kernels, &error), &error);
    check(&world,
          stage_create(&stage, &kernels, &it, &layout, layout_place(&layout, world.rank), &groups,
                       &work, &error),
          &error);
    check(&world, batch_create(&batch, &kernels, work.microbatches, 1, LENGTH, &error), &error);
    share = measure(&world, &stage, &team, &batch);
    expected = formula(world.size, work.microbatches, layout_chunks(&layout),
                       work.split == STAGE_SPLIT_ALWAYS);
    if (world.rank == 0)
        printf("%.4f %.4f\n", share, expected);
    batch_destroy(&batch);
    team_destroy(&team);
    comm_close(&groups);
    stage_destroy(&stage);
    world_close(&world);
    return 0;
}
