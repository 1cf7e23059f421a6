/* Guards: the loss scale moves as Megatron's does, and only in fp16. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "trainer/loss_scale.h"

static struct loss_scale from_words(bool fp16, int count, const char *const *words)
{
    char *argv[8] = {(char *)"test"};
    struct settings *settings = settings_create();
    struct loss_scale scale;
    struct error error = {0};

    for (int i = 0; i < count; i++)
        argv[i + 1] = (char *)words[i];
    assert_non_null(settings);
    assert_int_equal(settings_read_command_line(settings, count + 1, argv, &error), 0);
    loss_scale_from_settings(&scale, settings, fp16);
    settings_destroy(settings);
    return scale;
}

static void test_dynamic(void **state)
{
    static const char *const words[] = {"--initial-loss-scale=1024", "--loss-scale-window=3",
                                        "--loss-scale-hysteresis=2"};
    /* o: an overflow. The scale after each update. */
    static const char updates[] = "o-o--o---oo";
    static const double want[] = {1024, 1024, 512, 512, 512, 256, 256, 256, 512, 512, 256};
    struct loss_scale scale = from_words(true, 3, words);
    struct checkpoint_state progress = {0};
    (void)state;

    loss_scale_begin(&scale, &progress);
    assert_true(progress.loss_scale == 1024);
    for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
        loss_scale_update(&scale, &progress, updates[i] == 'o');
        if (progress.loss_scale != want[i])
            fail_msg("after update %zu of %s the scale is %g, expected %g", i, updates,
                     progress.loss_scale, want[i]);
    }
}

static void test_minimum(void **state)
{
    static const char *const words[] = {"--initial-loss-scale=4", "--loss-scale-hysteresis=1"};
    struct loss_scale scale = from_words(true, 2, words);
    struct checkpoint_state progress = {0};
    (void)state;

    loss_scale_begin(&scale, &progress);
    for (int i = 0; i < 10; i++)
        loss_scale_update(&scale, &progress, true);
    assert_true(progress.loss_scale == 1);
}

static void test_constant(void **state)
{
    static const char *const words[] = {"--loss-scale=128"};
    struct loss_scale scale = from_words(true, 1, words);
    struct checkpoint_state progress = {0};
    (void)state;

    loss_scale_begin(&scale, &progress);
    for (int i = 0; i < 5; i++)
        loss_scale_update(&scale, &progress, true);
    assert_true(progress.loss_scale == 128);
    scale = from_words(false, 1, words);
    loss_scale_begin(&scale, &progress);
    assert_true(progress.loss_scale == 1);
}

static void test_default(void **state)
{
    struct loss_scale scale = from_words(true, 0, NULL);
    (void)state;

    assert_true(scale.dynamic && scale.initial == 4294967296.0 && scale.window == 1000 &&
                scale.hysteresis == 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dynamic),
        cmocka_unit_test(test_minimum),
        cmocka_unit_test(test_constant),
        cmocka_unit_test(test_default),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
