/* The planner: memory is the trainer's, time is the arithmetic that plan.h describes, and choices
 * follow from both. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/attention_workspace.h"
#include "trainer/plan.h"
#include "trainer/training.h"

static struct settings *settings_of(int count, const char *const *words)
{
    struct settings *settings = settings_create();
    struct error error = {0};
    char *copies[32] = {0};

    assert_non_null(settings);
    for (int i = 0; i < count; i++)
        copies[i + 1] = strdup(words[i]);
    if (settings_read_command_line(settings, count + 1, copies, &error) < 0)
        fail_msg("%s", error.text);
    for (int i = 0; i < count; i++)
        free(copies[i + 1]);
    return settings;
}

/* Llama 2 7B in bf16 state, and what it is planned for. */
struct example {
    struct settings *settings;
    struct model model;
    struct plan_device device;
    struct plan_job job;
};

/* Nothing shared between ranks but what has to be, unless `more` says so. */
static void begin(struct example *example, int world, int64_t batch, const char *more)
{
    const char *words[] = {
        "--layers=32",
        "--hidden-size=4096",
        "--ffn-size=11008",
        "--heads=32",
        "--vocab-size=32000",
        "--max-positions=4096",
        "--optimizer-state=bf16",
        "--zero=0",
        "--sequence-parallel=no",
        more,
    };
    struct error error = {0};

    example->settings = settings_of(more ? 10 : 9, words);
    assert_int_equal(model_from_settings(&example->model, example->settings, &error), 0);
    assert_int_equal(plan_device_from_settings(&example->device, example->settings, &error), 0);
    example->job = (struct plan_job){.settings = example->settings,
                                     .model = &example->model,
                                     .world = world,
                                     .global_batch = batch};
}

static void end(struct example *example)
{
    settings_destroy(example->settings);
}

static struct plan plan_of(const struct example *example, int tp, int pp, int64_t micro,
                           enum recompute recompute)
{
    struct plan plan = {
        .layout = {.tp = tp, .pp = pp, .dp = example->job.world / (tp * pp), .cp = 1},
        .micro_batch = micro,
        .recompute = recompute,
        .recompute_layers = example->model.layers,
    };
    struct error error = {0};

    assert_int_equal(plan_evaluate(&plan, &example->job, &example->device, &error), 0);
    return plan;
}

/* --- memory ---------------------------------------------------------------------------------- */

static void memory_is_the_stages(void **state)
{
    struct example example;
    struct plan plan;

    (void)state;
    begin(&example, 4, 16, NULL);
    plan = plan_of(&example, 2, 2, 1, RECOMPUTE_SELECTIVE);
    for (int pp = 0; pp < 2; pp++) {
        struct layout_place place = {.pp = pp};
        struct stage_work work;
        struct stage stage;
        struct error error = {0};

        training_work(&work, example.settings, &example.model);
        work.microbatches = 16;
        work.recompute = RECOMPUTE_SELECTIVE;
        assert_int_equal(stage_measure(&stage, example.device.kernels, &example.model, &plan.layout,
                                       place, &work, &error),
                         0);
        assert_null(stage.memory);
        assert_true(stage.memory_bytes +
                        plan_outside_bytes(&example.device, &plan.layout, &stage) <=
                    plan.memory.total);
        if (pp == plan.memory.stage) {
            assert_int_equal(plan.memory.weights, stage.weight_bytes);
            assert_int_equal(plan.memory.gradients, stage.gradient_bytes);
            assert_int_equal(plan.memory.state, stage.state_bytes);
            assert_int_equal(plan.memory.weights + plan.memory.gradients + plan.memory.state +
                                 plan.memory.activations,
                             stage.memory_bytes);
        }
        stage_destroy(&stage);
    }
    end(&example);
}

/* 6,738,415,616 weights: 2 bytes of each, 4 of its gradient, 4 of its moments. */
static void memory_of_one_rank(void **state)
{
    struct example example;
    struct plan plan;

    (void)state;
    begin(&example, 1, 8, NULL);
    plan = plan_of(&example, 1, 1, 1, RECOMPUTE_FULL);
    assert_int_equal(plan.memory.weights / 1000000, 2 * INT64_C(6738415616) / 1000000);
    assert_int_equal(plan.memory.gradients, 2 * plan.memory.weights);
    assert_int_equal(plan.memory.state, 2 * plan.memory.weights);
    assert_int_equal(plan.refusal, PLAN_ACCEPTED);
    end(&example);
}

/* The moments of a quarter of the weights each; what ranks share of the stream they keep once. */
static void what_ranks_share_is_not_kept_twice(void **state)
{
    struct example whole, shared;
    struct plan one, other;

    (void)state;
    begin(&whole, 8, 8, NULL);
    begin(&shared, 8, 8, "--zero=1");
    one = plan_of(&whole, 2, 1, 1, RECOMPUTE_NONE);
    other = plan_of(&shared, 2, 1, 1, RECOMPUTE_NONE);
    assert_int_equal(one.memory.gradients / (1 << 20), other.memory.gradients / (1 << 20));
    assert_int_equal(one.memory.state / (4 << 20), other.memory.state / (1 << 20));
    assert_int_equal(one.memory.activations, other.memory.activations);
    end(&shared);
    begin(&shared, 8, 8, "--sequence-parallel=yes");
    other = plan_of(&shared, 2, 1, 1, RECOMPUTE_NONE);
    assert_int_equal(one.memory.state, other.memory.state);
    assert_true(other.memory.activations < one.memory.activations);
    end(&shared);
    end(&whole);
}

static void a_limit_is_to_the_byte(void **state)
{
    struct example example;
    size_t total;

    (void)state;
    begin(&example, 1, 8, NULL);
    total = plan_of(&example, 1, 1, 1, RECOMPUTE_NONE).memory.total;
    example.device.memory_bytes = (double)total;
    assert_int_equal(plan_of(&example, 1, 1, 1, RECOMPUTE_NONE).refusal, PLAN_ACCEPTED);
    example.device.memory_bytes = (double)total - 1;
    assert_int_equal(plan_of(&example, 1, 1, 1, RECOMPUTE_NONE).refusal, PLAN_MEMORY);
    end(&example);
}

/* The largest of the three implementations, of which two round up. */
static void attention_workspace(void **state)
{
    const struct attention_device device = {.multiprocessors = 132, .shared_bytes = 227 << 10};
    struct attention_shape shape = {
        .rows = 4096, .heads = 32, .kv_heads = 32, .head_dim = 128, .sequences = 1};

    (void)state;
    /* (4096 + 128) rows of 32 heads: dQ, two statistics, a counter of each 32. */
    assert_int_equal(attention_wgmma_bytes(&shape, 132),
                     (size_t)4 * (4224 * 32 * (128 + 2) + 4224 * 32 / 32 + 1));
    /* 64 + 1 blocks of 64 queries: dQ and two statistics, a turn of each of eight warps. */
    assert_int_equal(attention_mma_bytes(&shape, device.shared_bytes),
                     (size_t)4 * (32 * 65 * (64 * 130 + 8) + 1));
    assert_int_equal(attention_workspace_bytes(&shape, &device),
                     attention_wgmma_bytes(&shape, 132));
    /* One key/value head's tiles are too few for all multiprocessors: sixteen parts of 32 heads. */
    shape.kv_heads = 1;
    assert_int_equal(attention_wgmma_splits(&shape, 132), 16);
    shape.head_dim = 256;
    assert_true(attention_workspace_bytes(&shape, &device) >=
                attention_mma_bytes(&shape, device.shared_bytes));
}

/* --- time ------------------------------------------------------------------------------------ */

static void a_pipeline_takes_as_long_as_its_slowest_stage(void **state)
{
    const double even[] = {1, 1, 1, 1}, uneven[] = {1, 3};

    (void)state;
    assert_true(fabs(plan_pipeline_s(even, 1, 8, 1, 0.5) - 8) < 1e-12);
    /* p - 1 more than the microbatches, and a message to and from each stage. */
    assert_true(fabs(plan_pipeline_s(even, 4, 8, 1, 0) - 11) < 1e-12);
    assert_true(fabs(plan_pipeline_s(even, 4, 8, 1, 0.5) - 14) < 1e-12);
    assert_true(fabs(plan_pipeline_s(even, 4, 8, 0.5, 0) - 9.5) < 1e-12);
    assert_true(fabs(plan_pipeline_s(uneven, 2, 5, 1, 0) - (4 * 3 + 4)) < 1e-12);
}

/* What was measured on one and two H100s (kernels/cuda/NOTES.md), tokens a second. */
static void steps_that_were_measured(void **state)
{
    static const struct {
        int world, tp, pp;
        int64_t batch;
        double tokens_per_s;
    } runs[] = {
        {1, 1, 1, 8, 13446}, {2, 1, 1, 16, 26318}, {2, 1, 1, 8, 25196},
        {2, 2, 1, 8, 23256}, {2, 1, 2, 8, 23738},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(runs) / sizeof(*runs); i++) {
        struct example example;
        struct plan plan;

        begin(&example, runs[i].world, runs[i].batch, NULL);
        plan = plan_of(&example, runs[i].tp, runs[i].pp, 1, RECOMPUTE_SELECTIVE);
        if (fabs(plan.tokens_per_s / runs[i].tokens_per_s - 1) > 0.1)
            fail_msg("tp=%d pp=%d: %.0f tokens a second, not %.0f", runs[i].tp, runs[i].pp,
                     plan.tokens_per_s, runs[i].tokens_per_s);
        end(&example);
    }
}

/* Twice the rates, half the time. */
static void time_follows_the_rates(void **state)
{
    struct example example;
    struct plan slow, fast;

    (void)state;
    begin(&example, 1, 8, NULL);
    slow = plan_of(&example, 1, 1, 1, RECOMPUTE_NONE);
    example.device.product_rate *= 2;
    example.device.attention_rate *= 2;
    example.device.memory_bandwidth *= 2;
    fast = plan_of(&example, 1, 1, 1, RECOMPUTE_NONE);
    assert_true(fabs(slow.step_s / fast.step_s - 2) < 1e-9);
    assert_true(fabs(fast.mfu / slow.mfu - 2) < 1e-9);
    end(&example);
}

/* --- choices --------------------------------------------------------------------------------- */

static void lists_are_sorted_and_reasons_given(void **state)
{
    struct example example;
    struct plan_list plans;
    struct error error = {0};

    (void)state;
    begin(&example, 8, 16, NULL);
    assert_int_equal(plan_list_create(&plans, &example.job, &example.device, &error), 0);
    assert_true(plans.accepted > 0 && plans.accepted < plans.count);
    for (size_t i = 0; i < plans.count; i++) {
        const struct plan *plan = &plans.list[i];

        assert_int_equal(layout_world(&plan->layout), 8);
        assert_int_equal(i < plans.accepted, plan->refusal == PLAN_ACCEPTED);
        if (i > 0 && i < plans.accepted)
            assert_true(plan->tokens_per_s <= plan[-1].tokens_per_s);
        if (i >= plans.accepted)
            assert_true(*plan->reason);
        if (plan->refusal == PLAN_ACCEPTED)
            assert_true((double)plan->memory.total <= example.device.memory_bytes);
    }
    plan_list_destroy(&plans);
    end(&example);

    begin(&example, 8, 16, "--tp=2");
    assert_int_equal(plan_list_create(&plans, &example.job, &example.device, &error), 0);
    for (size_t i = 0; i < plans.count; i++)
        assert_int_equal(plans.list[i].layout.tp, 2);
    plan_list_destroy(&plans);
    end(&example);
}

static struct layout chosen(struct example *example, double gib)
{
    struct layout layout = {0};
    struct error error = {0};

    example->device.memory_bytes = gib * (1 << 30);
    if (plan_default_layout(&layout, &example->job, &example->device, &error) < 0)
        layout.dp = -1;
    return layout;
}

static void the_default_is_the_smallest_that_fits(void **state)
{
    struct example example;
    struct layout layout;

    (void)state;
    begin(&example, 8, 8, NULL);
    layout = chosen(&example, 139.8);
    assert_int_equal(layout.tp * layout.pp, 1);
    assert_int_equal(layout.dp, 8);
    layout = chosen(&example, 79.1);
    assert_int_equal(layout.tp * layout.pp, 2);
    layout = chosen(&example, 30);
    assert_int_equal(layout.tp * layout.pp, 4);
    assert_int_equal(layout_world(&layout), 8);
    assert_int_equal(chosen(&example, 1).dp, -1);
    /* Tensor parallel ranks stay on a node. */
    example.device.per_node = 1;
    layout = chosen(&example, 40);
    assert_int_equal(layout.tp, 1);
    assert_int_equal(layout.pp, 4);
    end(&example);
    begin(&example, 8, 8, "--cp=2");
    layout = chosen(&example, 139.8);
    assert_int_equal(layout.tp * layout.pp, 1);
    assert_int_equal(layout.dp, 4);
    assert_int_equal(layout.cp, 2);
    end(&example);
}

static void what_cannot_be_is_refused(void **state)
{
    struct example example;
    struct plan plan;

    (void)state;
    begin(&example, 16, 24, NULL);
    plan = plan_of(&example, 16, 1, 1, RECOMPUTE_NONE);
    assert_int_equal(plan.refusal, PLAN_LAYOUT);
    assert_string_equal(plan.reason, "tp=16: does not divide the 8 ranks of a node");
    plan = plan_of(&example, 1, 1, 1, RECOMPUTE_NONE);
    assert_int_equal(plan.refusal, PLAN_LAYOUT);
    assert_non_null(strstr(plan.reason, "global-batch-size=24: not a multiple"));
    end(&example);
    begin(&example, 66, 66, NULL);
    plan = plan_of(&example, 1, 33, 1, RECOMPUTE_NONE);
    assert_int_equal(plan.refusal, PLAN_LAYOUT);
    assert_non_null(strstr(plan.reason, "pp=33: the model has 32 layers"));
    end(&example);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_the_stages),
        cmocka_unit_test(memory_of_one_rank),
        cmocka_unit_test(what_ranks_share_is_not_kept_twice),
        cmocka_unit_test(a_limit_is_to_the_byte),
        cmocka_unit_test(attention_workspace),
        cmocka_unit_test(a_pipeline_takes_as_long_as_its_slowest_stage),
        cmocka_unit_test(steps_that_were_measured),
        cmocka_unit_test(time_follows_the_rates),
        cmocka_unit_test(lists_are_sorted_and_reasons_given),
        cmocka_unit_test(the_default_is_the_smallest_that_fits),
        cmocka_unit_test(what_cannot_be_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
