/* Guards: the learning rate is Megatron's at every golden point of all four styles, weight decay
 * goes from its start to its end and the batch grows as Megatron's do, a run's steps are those that
 * taking them one by one counts, and settings that make no schedule or no ramp are refused with
 * their status and the option's name.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "core/batch_ramp.h"
#include "trainer/schedule.h"

/* Peak 3e-4, floor 1e-6, 50 of 500 steps of 1000 samples warm-up; update k uses n = 1000 k. */
static void test_golden(void **state)
{
    static const struct {
        enum lr_style style;
        int64_t update;
        double lr, tolerance;
    } golden[] = {
        {LR_COSINE, 0, 0, 0},
        {LR_COSINE, 1, 6e-6, 1e-20},
        {LR_COSINE, 25, 1.5e-4, 1e-19},
        {LR_COSINE, 50, 3e-4, 0},
        {LR_COSINE, 51, 2.9999635679e-4, 1e-14},
        {LR_COSINE, 275, 1.505e-4, 1e-15},
        {LR_COSINE, 499, 1.00364320954e-6, 1e-17},
        {LR_COSINE, 500, 1e-6, 0},
        {LR_COSINE, 501, 1e-6, 0},
        {LR_COSINE, 1000000, 1e-6, 0},
        {LR_LINEAR, 0, 0, 0},
        {LR_LINEAR, 25, 1.5e-4, 1e-19},
        {LR_LINEAR, 275, 1.505e-4, 1e-15},
        {LR_LINEAR, 500, 1e-6, 0},
        {LR_INVERSE_SQUARE_ROOT, 25, 1.5e-4, 1e-19},
        {LR_INVERSE_SQUARE_ROOT, 275, 1.27920429813e-4, 1e-15},
        {LR_INVERSE_SQUARE_ROOT, 500, 9.48683298e-5, 1e-13},
        {LR_INVERSE_SQUARE_ROOT, 501, 1e-6, 0},
        {LR_CONSTANT, 0, 0, 0},
        {LR_CONSTANT, 25, 1.5e-4, 1e-19},
        {LR_CONSTANT, 51, 3e-4, 0},
        {LR_CONSTANT, 1000, 3e-4, 0},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(golden) / sizeof(*golden); i++) {
        struct lr_schedule schedule = {golden[i].style, 3e-4, 1e-6, 50000, 500000};
        double lr = lr_at(&schedule, golden[i].update * 1000);

        if (!(fabs(lr - golden[i].lr) <= golden[i].tolerance))
            fail_msg("style %d, update %lld: %.17g, not %.17g", (int)golden[i].style,
                     (long long)golden[i].update, lr, golden[i].lr);
    }
}

/* Without warm-up the first update already has the peak; the inverse root begins at n = 1. */
static void test_no_warmup(void **state)
{
    (void)state;
    for (int style = LR_CONSTANT; style <= LR_INVERSE_SQUARE_ROOT; style++) {
        struct lr_schedule schedule = {(enum lr_style)style, 1, 0.25, 0, 100};

        assert_true(lr_at(&schedule, 0) == 1);
    }
    assert_true(lr_at(&(struct lr_schedule){LR_INVERSE_SQUARE_ROOT, 1, 0.25, 0, 100}, 4) == 0.5);
    assert_true(lr_at(&(struct lr_schedule){LR_INVERSE_SQUARE_ROOT, 1, 0.25, 0, 100}, 64) == 0.25);
    assert_true(lr_at(&(struct lr_schedule){LR_COSINE, 1, 0.25, 0, 0}, 0) == 0.25);
}

/* start + c (end - start), c = r or (cos(pi (1 - r)) + 1) / 2. */
static void test_weight_decay(void **state)
{
    struct weight_decay_schedule linear = {LR_LINEAR, 0.01, 0.1, 1000},
                                 cosine = {LR_COSINE, 0.01, 0.1, 1000},
                                 constant = {LR_CONSTANT, 0.1, 0.1, 0};
    (void)state;

    assert_true(fabs(weight_decay_at(&linear, 0) - 0.01) < 1e-17);
    assert_true(fabs(weight_decay_at(&linear, 250) - 0.0325) < 1e-15);
    assert_true(fabs(weight_decay_at(&cosine, 0) - 0.01) < 1e-17);
    assert_true(fabs(weight_decay_at(&cosine, 250) - 0.02318019484660535) < 1e-15);
    assert_true(fabs(weight_decay_at(&cosine, 500) - 0.055) < 1e-15);
    for (int64_t samples = 1000; samples < 4000; samples += 1000) {
        assert_true(weight_decay_at(&linear, samples) == 0.1);
        assert_true(weight_decay_at(&cosine, samples) == 0.1);
        assert_true(weight_decay_at(&constant, samples) == 0.1);
    }
}

static int schedule_of(struct lr_schedule *schedule, char *const *options, struct error *error)
{
    struct settings *settings = settings_create();
    struct weight_decay_schedule decay;
    char *argv[8] = {"mtllm-train"};
    int argc = 1, result;

    for (; options[argc - 1]; argc++)
        argv[argc] = options[argc - 1];
    assert_non_null(settings);
    if (settings_read_command_line(settings, argc, argv, error) < 0)
        fail_msg("%s", error->text);
    result = lr_schedule_from_settings(schedule, settings, 8, "--", error);
    if (result == 0)
        result = weight_decay_schedule_from_settings(&decay, settings, 8, "--", error);
    settings_destroy(settings);
    return result;
}

static void test_settings(void **state)
{
    char *short_decay[] = {"--steps=100", "--lr-warmup-steps=5", "--lr-decay-steps=50",
                           "--lr-schedule=linear", NULL};
    char *plain[] = {"--steps=100", NULL};
    char *constant[] = {"--lr-schedule=constant", "--lr-warmup-steps=5", "--min-lr=1", NULL};
    char *idle[] = {"--steps=0", NULL};
    char *samples[] = {"--train-samples=1000", "--lr-warmup-samples=30", NULL};
    char *apart[] = {"--train-samples=1000", "--lr-decay-samples=500", "--lr-warmup-fraction=0.125",
                     NULL};
    char *share[] = {"--steps=100", "--lr-warmup-fraction=0.01", NULL};
    char *none[] = {"--train-samples=0", NULL};
    struct lr_schedule schedule;
    struct error error = {0};
    (void)state;

    assert_int_equal(schedule_of(&schedule, short_decay, &error), 0);
    assert_int_equal(schedule.style, LR_LINEAR);
    assert_int_equal(schedule.warmup_samples, 40);
    assert_int_equal(schedule.decay_samples, 400);
    assert_int_equal(schedule_of(&schedule, plain, &error), 0);
    assert_int_equal(schedule.style, LR_COSINE);
    assert_int_equal(schedule.decay_samples, 800);
    assert_true(schedule.max_lr == 3e-4);
    assert_int_equal(schedule_of(&schedule, constant, &error), 0);
    assert_int_equal(schedule_of(&schedule, idle, &error), 0);
    assert_int_equal(schedule_of(&schedule, samples, &error), 0);
    assert_true(schedule.warmup_samples == 30 && schedule.decay_samples == 1000);
    assert_int_equal(schedule_of(&schedule, apart, &error), 0);
    assert_true(schedule.warmup_samples == 62.5 && schedule.decay_samples == 500);
    assert_true(lr_at(&schedule, 25) == schedule.max_lr * 25 / 62.5);
    assert_int_equal(schedule_of(&schedule, share, &error), 0);
    assert_true(schedule.warmup_samples == 8 && schedule.decay_samples == 800);
    assert_int_equal(schedule_of(&schedule, none, &error), 0);
}

static void test_refusals(void **state)
{
    struct {
        char *options[5];
        const char *message;
    } cases[] = {
        {{"--steps=10", "--lr-warmup-steps=10"}, "--lr-warmup-steps=10: the warm-up must end"},
        {{"--steps=10", "--lr-warmup-steps=5", "--lr-decay-steps=5"}, "(--lr-decay-steps)"},
        {{"--steps=10", "--lr=1e-4", "--min-lr=2e-4"}, "--min-lr=2e-4: above the peak, --lr=1e-4"},
        {{"--lr=1"}, "set --steps or --lr-decay-steps"},
        {{"--steps=9", "--weight-decay-schedule=linear", "--start-weight-decay=0"},
         "--weight-decay-schedule=linear: set --end-weight-decay too"},
        {{"--lr-schedule=constant", "--weight-decay-schedule=cosine", "--start-weight-decay=0",
          "--end-weight-decay=1"},
         "--weight-decay-schedule=cosine: set --steps too"},
        {{"--steps=9", "--start-weight-decay=0.1"}, "--start-weight-decay=0.1: weight decay is"},
        {{"--steps=9", "--end-weight-decay=0.1"}, "set --weight-decay-schedule to linear or cos"},
        {{"--steps=9", "--weight-decay-schedule=linear", "--start-weight-decay=0.1",
          "--end-weight-decay=0"},
         "--end-weight-decay=0: below --start-weight-decay=0.1"},
        {{"--train-samples=9", "--lr-warmup-steps=2"}, "counted in samples; use --lr-warmup-samp"},
        {{"--train-samples=9", "--lr-decay-steps=2"}, "--lr-decay-steps=2: the run's length is "},
        {{"--steps=9", "--lr-warmup-samples=2"}, "counted in steps; use --lr-warmup-steps, or tr"},
        {{"--steps=9", "--lr-decay-samples=2"}, "--lr-decay-samples=2: the run's length is "},
        {{"--steps=9", "--lr-warmup-fraction=0.1", "--lr-warmup-steps=1"},
         "--lr-warmup-fraction=0.1: --lr-warmup-steps=1 says"},
        {{"--train-samples=9", "--lr-warmup-fraction=0.1", "--lr-warmup-samples=1"},
         "--lr-warmup-fraction=0.1: --lr-warmup-samples=1 says"},
        {{"--train-samples=9", "--lr-warmup-fraction=1"}, "--lr-warmup-fraction=1: the warm-up mu"},
        {{"--lr-schedule=constant", "--lr-warmup-fraction=0.1"}, "a share of what?"},
        {{"--train-samples=9", "--lr-warmup-samples=9"}, "which is at sample 9 (--train-samples)"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct lr_schedule schedule;
        struct error error = {0};

        assert_int_equal(schedule_of(&schedule, cases[i].options, &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_CONFIGURATION);
        if (!strstr(error.text, cases[i].message))
            fail_msg("%s", error.text);
    }
}

/* --rampup_batch_size 16 8 300000 to 1024. */
static void test_ramp(void **state)
{
    static const int64_t golden[][2] = {{0, 16},        {2380, 16},     {2381, 24},
                                        {4761, 24},     {4762, 32},     {299999, 1016},
                                        {300000, 1024}, {300001, 1024}, {1000000000, 1024}};
    const struct batch_ramp ramp = {1024, 16, 8, 300000}, none = {.full = 1024};
    (void)state;

    for (size_t i = 0; i < sizeof(golden) / sizeof(*golden); i++) {
        assert_int_equal(batch_ramp_size(&ramp, golden[i][0]), golden[i][1]);
        assert_int_equal(batch_ramp_size(&none, golden[i][0]), 1024);
    }
}

/* As Megatron counts the iterations of a run. */
static int64_t steps_one_by_one(const struct batch_ramp *ramp, int64_t consumed, int64_t end)
{
    int64_t steps = 0;

    for (; consumed + batch_ramp_size(ramp, consumed) <= end; steps++)
        consumed += batch_ramp_size(ramp, consumed);
    return steps;
}

static void test_ramp_steps(void **state)
{
    static const struct batch_ramp ramps[] = {{1024, 16, 8, 300000}, {16, 4, 4, 40},
                                              {8, 2, 3, 1},          {7, 1, 1, 1000},
                                              {1024, 512, 512, 100}, {.full = 12}};
    static const int64_t ends[] = {0, 1, 7, 15, 40, 41, 1000, 1001, 299990, 300000, 1234567};
    (void)state;

    for (size_t i = 0; i < sizeof(ramps) / sizeof(*ramps); i++)
        for (size_t j = 0; j < sizeof(ends) / sizeof(*ends); j++)
            for (int64_t consumed = 0; consumed < 2000; consumed += 37)
                assert_int_equal(batch_ramp_steps(&ramps[i], consumed, ends[j]),
                                 steps_one_by_one(&ramps[i], consumed, ends[j]));
    /* Not one by one. */
    assert_int_equal(
        batch_ramp_steps(&(struct batch_ramp){2, 1, 1, 1000000000000000}, 0, 1000000000000000),
        1000000000000000);
}

static void test_ramp_settings(void **state)
{
    static const struct {
        char *options[6];
        int status;
        const char *message;
    } cases[] = {
        {{"--batch-size-ramp=8 8 100", "--train-samples=200"}, 0, ""},
        {{"--batch-size-ramp=16 24 100"}, 0, ""},
        {{"--train-samples=200", "--steps=20"}, 78, "--train-samples=200: --steps=20 says how"},
        {{"--batch-size-ramp=16 8 100", "--steps=20"}, 78, "set --train-samples instead"},
        {{"--batch-size-ramp=16 8"}, 64, "--batch-size-ramp=16 8: not three whole numbers"},
        {{"--batch-size-ramp=16 8 100 1"}, 64, "not three whole numbers"},
        {{"--batch-size-ramp=16 0 100"}, 64, "not three whole numbers"},
        {{"--batch-size-ramp=16,8,100"}, 64, "not three whole numbers"},
        {{"--batch-size-ramp=16 8 1e5"}, 64, "not three whole numbers"},
        {{"--batch-size-ramp=16 8 99999999999999999999"}, 64, "not three whole numbers"},
        {{"--batch-size-ramp=64 8 100"}, 78, "begins with 64, and --global-batch-size is 64"},
        {{"--batch-size-ramp=16 32 100"}, 78, "use an increment that divides 48"},
        {{"--batch-size-ramp=4 4 100"}, 78, "on it is a batch of 4, not a multiple of"},
        {{"--batch-size-ramp=16 4 100"}, 78, "on it is a batch of 20, not a multiple of"},
    };
    const struct layout layout = {.tp = 1, .pp = 1, .dp = 4, .cp = 1};
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct settings *settings = settings_create();
        char *argv[8] = {"mtllm-train", "--global-batch-size=64", "--micro-batch-size=2"};
        int argc = 3;
        struct batch_ramp ramp;
        struct error error = {0};

        for (; cases[i].options[argc - 3]; argc++)
            argv[argc] = cases[i].options[argc - 3];
        assert_int_equal(settings_read_command_line(settings, argc, argv, &error), 0);
        assert_int_equal(batch_ramp_from_settings(&ramp, settings, &layout, "--", &error),
                         cases[i].status ? -1 : 0);
        assert_int_equal(error.status, cases[i].status);
        if (!strstr(error.text, cases[i].message))
            fail_msg("%s", error.text);
        settings_destroy(settings);
    }
}

/* 1e15 steps of 1e9 sequences do not fit 64 bits. */
static void test_overflow(void **state)
{
    char *argv[] = {"mtllm-train", "--steps=1000000000000000"};
    struct settings *settings = settings_create();
    struct lr_schedule schedule;
    struct error error = {0};
    (void)state;

    assert_int_equal(settings_read_command_line(settings, 2, argv, &error), 0);
    assert_int_equal(lr_schedule_from_settings(&schedule, settings, 1000000000, "--", &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_CONFIGURATION);
    settings_destroy(settings);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_no_warmup),
        cmocka_unit_test(test_settings),      cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_overflow),      cmocka_unit_test(test_weight_decay),
        cmocka_unit_test(test_ramp),          cmocka_unit_test(test_ramp_steps),
        cmocka_unit_test(test_ramp_settings),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
