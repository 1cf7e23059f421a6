/* Guards: settings resolve in the documented order and refuse what is wrong by name; presets have
 * the published sizes; layouts refuse what does not divide; 16-bit floats convert exactly;
 * every line that is said is handed on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/dtype.h"
#include "core/layout.h"
#include "core/log.h"
#include "core/model.h"
#include "core/rope.h"
#include "core/settings.h"
#include "core/token_names.h"

static struct settings *settings_of(int argc, char **argv)
{
    struct settings *settings = settings_create();
    struct error error = {0};

    assert_non_null(settings);
    if (settings_read_command_line(settings, argc, argv, &error) < 0 ||
        settings_read_environment(settings, &error) < 0 ||
        settings_read_layers(settings, &error) < 0)
        fail_msg("%s", error.text);
    return settings;
}

static void write_file(const char *path, const char *text)
{
    FILE *stream = fopen(path, "w");

    assert_non_null(stream);
    fputs(text, stream);
    fclose(stream);
}

/* Each source beats the next weaker one, and every value says where it came from. */
static void test_precedence(void **state)
{
    char *argv[] = {"mtllm-train", "--lr=1", "--model", "./preset.ini", "--eval-only", "--tp=2"};
    struct settings *settings;
    (void)state;

    write_file("preset.ini", "[model]\nlayers = 7\nlr = 5\nadam-eps = 5\nclip-grad = 5\n");
    write_file("config.ini", "lr = 3\nmin-lr = 3\nweight-decay = 3\nadam-eps = 0.3\n");
    write_file("site.conf", "lr = 6\nclip-grad = 6\nadam-beta1 = 0.6\n");
    setenv("MTLLM_CONF", "site.conf", 1);
    setenv("MTLLM_CONFIG", "config.ini", 1);
    setenv("MTLLM_LR", "2", 1);
    setenv("MTLLM_MIN_LR", "2", 1);
    write_file("preset.ini", "[model]\nlayers = 7\nlr = 5\nadam-eps = 0.5\nclip-grad = 5\n");
    settings = settings_of(6, argv);
    assert_true(setting_real(settings, SETTING_LR) == 1);
    assert_true(setting_real(settings, SETTING_MIN_LR) == 2);
    assert_true(setting_real(settings, SETTING_WEIGHT_DECAY) == 3);
    assert_true(setting_real(settings, SETTING_ADAM_EPS) == 0.3);
    assert_true(setting_real(settings, SETTING_CLIP_GRAD) == 5);
    assert_true(setting_real(settings, SETTING_ADAM_BETA1) == 0.6);
    assert_true(setting_real(settings, SETTING_ADAM_BETA2) == 0.95);
    assert_int_equal(setting_integer(settings, SETTING_LAYERS), 7);
    assert_int_equal(setting_integer(settings, SETTING_TP), 2);
    assert_true(setting_boolean(settings, SETTING_EVAL_ONLY));
    assert_string_equal(setting_origin(settings, SETTING_MIN_LR), "MTLLM_MIN_LR");
    assert_string_equal(setting_origin(settings, SETTING_WEIGHT_DECAY), "config.ini:3");
    assert_int_equal(setting_source(settings, SETTING_ADAM_BETA1), SETTING_SOURCE_SITE);
    settings_destroy(settings);
    unsetenv("MTLLM_CONF");
    unsetenv("MTLLM_CONFIG");
    unsetenv("MTLLM_LR");
    unsetenv("MTLLM_MIN_LR");
}

/* Every refusal has status 64 and names what was written. */
static void test_refusals(void **state)
{
    static const struct {
        const char *argument, *message;
    } cases[] = {
        {"--tp=0", "--tp=0: out of range; use 1 to 4096"},
        {"--tp=two", "--tp=two: not a whole number"},
        {"--tp=1.5", "--tp=1.5: not a whole number"},
        {"--tp= 2", "not a whole number"},
        {"--lr=nan", "--lr=nan: not a number"},
        {"--lr=", "--lr=: not a number"},
        {"--margin=5d", "--margin=5d: not a time"},
        {"--requeue=maybe", "--requeue=maybe: use yes or no"},
        {"--lr-schedule=cosin", "use one of constant|linear|cosine|inverse-square-root"},
        {"--run-dir=", "--run-dir: the value is empty"},
        {"--micro-batch=3", "did you mean --micro-batch-size?"},
        {"--steps", "--steps: the value is missing"},
        {"train.sh", "train.sh: not an option"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct settings *settings = settings_create();
        char *argv[] = {"mtllm-train", (char *)cases[i].argument};
        struct error error = {0};

        assert_int_equal(settings_read_command_line(settings, 2, argv, &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_USAGE);
        if (!strstr(error.text, cases[i].message))
            fail_msg("%s: %s", cases[i].argument, error.text);
        settings_destroy(settings);
    }
}

static void test_ini_refusals(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"lr = 1\nnonsense\n", "bad.ini:2: not a section"},
        {"lr = 1\n\nlearning-rate = 2\n", "bad.ini:3: learning-rate: unknown setting"},
        {"tp = -3\n", "bad.ini:1: tp=-3: out of range"},
        {"[model\n", "bad.ini:1: not a section"},
    };
    struct error error = {0};
    struct settings *settings = settings_create();
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        write_file("bad.ini", cases[i].text);
        assert_int_equal(settings_read_file(settings, "bad.ini", SETTING_SOURCE_CONFIG, &error),
                         -1);
        assert_int_equal(error.status, EXIT_STATUS_USAGE);
        if (!strstr(error.text, cases[i].message))
            fail_msg("%s", error.text);
    }
    assert_int_equal(settings_read_file(settings, "absent.ini", SETTING_SOURCE_CONFIG, &error), -1);
    assert_non_null(strstr(error.text, "absent.ini: cannot read settings: No such file"));
    settings_destroy(settings);
}

/* What settings_write() prints reads back to the same values. */
static void test_write_reads_back(void **state)
{
    char *argv[] = {"mtllm-train", "--lr=0.00012345", "--margin=5m", "--data=/some/where",
                    "--requeue=no"};
    struct settings *settings = settings_of(5, argv), *again = settings_create();
    struct error error = {0};
    FILE *stream = fopen("written.ini", "w");
    (void)state;

    assert_int_equal(settings_write(settings, stream), 0);
    fclose(stream);
    if (settings_read_file(again, "written.ini", SETTING_SOURCE_CONFIG, &error) < 0)
        fail_msg("%s", error.text);
    for (int i = 0; i < SETTING_COUNT; i++)
        assert_string_equal(setting_text(settings, (enum setting_id)i),
                            setting_text(again, (enum setting_id)i));
    assert_int_equal(setting_integer(again, SETTING_MARGIN), 300);
    settings_destroy(settings);
    settings_destroy(again);
}

/* The table itself: defaults pass their own checks, environment names fit, no name twice. */
static void test_table(void **state)
{
    (void)state;
    for (int i = 0; i < SETTING_COUNT; i++) {
        const struct setting *setting = &setting_table[i];
        struct error error = {0};
        char name[64];

        assert_int_equal(setting_find(setting->name), i);
        if (*setting->default_value &&
            setting_check((enum setting_id)i, setting->default_value, setting->name, &error) < 0)
            fail_msg("%s", error.text);
        setting_environment_name((enum setting_id)i, name, sizeof(name));
        assert_true(strlen(name) < 60);
        assert_int_equal(setting_find(name + strlen("MTLLM_")), i);
    }
    assert_int_equal(setting_find("llm-tp"), SETTING_TP);
}

static void test_presets(void **state)
{
    static const struct {
        const char *name;
        int64_t parameters;
    } published[] = {
        {"tinyllama-1.1b", 1100048384},   {"llama-2-7b", 6738415616},
        {"llama-2-13b", 13015864320},     {"llama-2-70b", 68976648192},
        {"codellama-7b", 6738546688},     {"codellama-13b", 13016028160},
        {"codellama-34b", 33743970304},   {"llama-7b", 6738415616},
        {"llama-13b", 13015864320},       {"llama-30b", 32528943616},
        {"llama-65b", 65285660672},       {"codellama-70b", 68976910336},
        {"llama-3-8b", 8030261248},       {"llama-3-70b", 70553706496},
        {"llama-3.1-8b", 8030261248},     {"llama-3.1-70b", 70553706496},
        {"llama-3.1-405b", 405853388800}, {"llama-3.2-1b", 1235814400},
        {"llama-3.2-3b", 3212749824},     {"mistral-7b-v0.1", 7241732096},
        {"mistral-7b-v0.2", 7241732096},  {"mistral-7b-v0.3", 7248023552},
        {"qwen2.5-0.5b", 494032768},      {"qwen2.5-7b", 7615616512},
        {"falcon-7b", 6921720704},        {"falcon-40b", 41303293952},
        {"falcon-180b", 178557088768},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(published) / sizeof(*published); i++) {
        char *argv[] = {"mtllm-train", "--model", (char *)published[i].name};
        struct settings *settings = settings_of(3, argv);
        struct error error = {0};
        struct model model;

        if (model_from_settings(&model, settings, &error) < 0)
            fail_msg("%s", error.text);
        assert_int_equal(model_parameters(&model), published[i].parameters);
        settings_destroy(settings);
    }
}

/* A model whose config.json could not say what it is could not go on from its own checkpoint. */
static void test_families_refuse(void **state)
{
    static const struct {
        const char *family, *option, *word;
    } cases[] = {
        {"llama", "--sliding-window=8", "sliding-window: family llama"},
        {"falcon", "--sliding-window=8", "sliding-window: family falcon"},
        {"llama", "--qkv-bias=yes", "output-bias"},
        {"llama", "--output-bias=yes", "output-bias"},
        {"mistral", "--qkv-bias=yes", "qkv-bias: family mistral"},
        {"qwen2", "--output-bias=yes", "output-bias: family qwen2"},
        {"qwen2", "--mlp-bias=yes", "mlp-bias: family qwen2"},
        {"falcon", "--mlp-bias=yes", "mlp-bias: family falcon"},
        {"falcon", "--head-dim=32", "head-dim: family falcon"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char family[32];
        char *argv[] = {"mtllm-train", "--model=llama-tiny", "--family", family,
                        (char *)cases[i].option};
        struct settings *settings;
        struct error error = {0};
        struct model model;

        snprintf(family, sizeof(family), "%s", cases[i].family);
        settings = settings_of(5, argv);
        assert_int_equal(model_from_settings(&model, settings, &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_CONFIGURATION);
        if (!strstr(error.text, cases[i].word))
            fail_msg("\"%s\" does not say \"%s\"", error.text, cases[i].word);
        settings_destroy(settings);
    }
}

static void assert_frequency(const double *frequencies, int i, double expected)
{
    if (!(fabs(frequencies[i] / expected - 1) <= 1e-8))
        fail_msg("frequency %d is %.10g, not %.10g", i, frequencies[i], expected);
}

/* What transformers computes, in double precision. */
static void test_rope(void **state)
{
    struct model model = {.head_dim = 128,
                          .rope_theta = 5e5,
                          .max_positions = 131072,
                          .rope = {ROPE_LLAMA3, 8, 8192, 1, 4, 0, 0, 0, 0, 0, false}};
    double f[64], factor;
    (void)state;

    rope_frequencies(&model, 8192, f, &factor);
    assert_true(factor == 1 && f[0] == 1);
    assert_frequency(f, 1, 0.814617234);
    assert_frequency(f, 16, 0.0376060309);
    assert_frequency(f, 28, 0.00321144599);
    assert_frequency(f, 29, 0.00216657076);
    assert_frequency(f, 31, 0.000856751413);
    assert_frequency(f, 34, 0.000178507813);
    assert_frequency(f, 35, 9.55621235e-05);
    assert_frequency(f, 36, 7.78465527e-05);
    assert_frequency(f, 63, 3.06892599e-07);
    model.head_dim = 64;
    model.rope.factor = 32;
    rope_frequencies(&model, 8192, f, &factor);
    assert_frequency(f, 14, 0.00321144599);
    assert_frequency(f, 15, 0.00129054793);
    assert_frequency(f, 17, 9.7082878e-05);
    assert_frequency(f, 18, 1.94616382e-05);
    assert_frequency(f, 31, 9.41830673e-08);

    model = (struct model){.head_dim = 128,
                           .rope_theta = 1e4,
                           .rope = {ROPE_YARN, 16, 4096, 0, 0, 32, 1, 0, 0, 0, true}};
    rope_frequencies(&model, 65536, f, &factor);
    assert_true(fabs(factor - 1.27725887) < 1e-8);
    assert_frequency(f, 20, 0.0562341325);
    assert_frequency(f, 21, 0.04694086);
    assert_frequency(f, 30, 0.00852684377);
    assert_frequency(f, 45, 0.000151771605);
    assert_frequency(f, 46, 8.33450895e-05);

    model = (struct model){.head_dim = 128,
                           .rope_theta = 1e4,
                           .max_positions = 4096,
                           .rope = {.kind = ROPE_DYNAMIC, .factor = 2}};
    rope_frequencies(&model, 8192, f, &factor);
    assert_frequency(f, 1, pow(30527.7367, -2.0 / 128));
    rope_frequencies(&model, 4096, f, &factor);
    assert_frequency(f, 1, pow(1e4, -2.0 / 128));
    model.rope.kind = ROPE_LINEAR;
    rope_frequencies(&model, 4096, f, &factor);
    assert_frequency(f, 1, pow(1e4, -2.0 / 128) / 2);
}

static void test_unknown_preset(void **state)
{
    char *argv[] = {"mtllm-train", "--model=llama-9"};
    struct settings *settings = settings_create();
    struct error error = {0};
    (void)state;

    assert_int_equal(settings_read_command_line(settings, 2, argv, &error), 0);
    assert_int_equal(settings_read_layers(settings, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_USAGE);
    assert_non_null(strstr(error.text, "model=llama-9: unknown model"));
    assert_non_null(strstr(error.text, "llama-2-7b"));
    settings_destroy(settings);
}

/* Reference performance.md, section 1.1: Llama-2-7B at 4096 is 42.9 GF a token causal, 46.1 full.
 */
static void test_flops(void **state)
{
    char *argv[] = {"mtllm-train", "--model=llama-2-7b"};
    struct settings *settings = settings_of(2, argv);
    struct error error = {0};
    struct model model;
    (void)state;

    assert_int_equal(model_from_settings(&model, settings, &error), 0);
    assert_true(fabs(model_flops_per_token(&model, 4096, true) / 1e9 - 42.9) < 0.1);
    assert_true(fabs(model_flops_per_token(&model, 4096, false) / 1e9 - 46.1) < 0.1);
    /* A window of all tokens is none; one of a quarter leaves 7/16 of what they see. */
    model.sliding_window = 4096;
    assert_true(fabs(model_flops_per_token(&model, 4096, true) / 1e9 - 42.9) < 0.1);
    model.sliding_window = 1024;
    assert_true(fabs(model_flops_per_token(&model, 4096, true) / 1e9 - 41.05) < 0.1);
    settings_destroy(settings);
}

static int layout_of(int argc, char **argv, int world, struct layout *layout, struct error *error)
{
    struct settings *settings = settings_of(argc, argv);
    struct model model;
    int result;

    assert_int_equal(model_from_settings(&model, settings, error), 0);
    result = layout_from_settings(layout, settings, &model, world, "--llm-", error);
    settings_destroy(settings);
    return result;
}

static void test_layout(void **state)
{
    char *argv[] = {"mtllm-train", "--model=codellama-34b", "--tp=2", "--pp=2"};
    struct layout layout;
    struct error error = {0};
    (void)state;

    assert_int_equal(layout_of(4, argv, 8, &layout, &error), 0);
    assert_int_equal(layout.dp, 2);
    for (int rank = 0; rank < 8; rank++) {
        struct layout_place place = layout_place(&layout, rank);

        assert_int_equal(place.tp, rank % 2);
        assert_int_equal(place.dp, rank / 2 % 2);
        assert_int_equal(place.pp, rank / 4);
        assert_int_equal(layout_rank(&layout, place), rank);
    }
    assert_int_equal(layout_of(4, argv, 6, &layout, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_CONFIGURATION);
    assert_non_null(strstr(error.text, "2 x 2 = 4 ranks, which does not divide the 6"));
    argv[2] = "--tp=3";
    assert_int_equal(layout_of(4, argv, 0, &layout, &error), -1);
    assert_string_equal(error.text, "--llm-tp=3: codellama-34b has 8 key/value heads, which 3 does "
                                    "not divide; use 1, 2, 4, 8, 16, 32 or 64");
    argv[2] = "--tp=8";
    argv[3] = "--pp=49";
    assert_int_equal(layout_of(4, argv, 0, &layout, &error), -1);
    assert_non_null(strstr(error.text, "--llm-pp=49: codellama-34b has 48 layers"));
    argv[2] = "--tp=2";
    argv[3] = "--cp=3";
    assert_int_equal(layout_of(4, argv, 0, &layout, &error), -1);
    assert_string_equal(error.text,
                        "--llm-cp=3: codellama-34b has 32 query and 4 key/value heads a "
                        "rank with tp=2, which it does not divide; use 1, 2, 4, 8, 16 "
                        "or 32");
}

/* Before there is a model: every factor is named, and none is too large to be multiplied. */
static void test_layout_without_a_model(void **state)
{
    char *argv[] = {"mtllm-train", "--tp=1", "--pp=1", "--cp=4"};
    char *vast[] = {"mtllm-train", "--tp=4096", "--pp=4096", "--cp=256"};
    struct settings *settings = settings_of(4, argv);
    struct layout layout;
    struct error error = {0};
    (void)state;

    assert_int_equal(layout_from_settings(&layout, settings, NULL, 2, "--", &error), -1);
    assert_string_equal(error.text, "--tp=1 --pp=1 --cp=4: one replica takes 1 x 1 x 4 = 4 ranks, "
                                    "which does not divide the 2 that were started; start a "
                                    "multiple of 4 (srun -n)");
    settings_destroy(settings);
    settings = settings_of(4, vast);
    assert_int_equal(layout_from_settings(&layout, settings, NULL, 2, "--", &error), -1);
    assert_non_null(strstr(error.text, "4096 x 4096 x 256 = 4294967296 ranks"));
    settings_destroy(settings);
}

/* The most that a stage has to do, in layers, when the last one has `last` of them. */
static double most_work(int64_t layers, int stages, int64_t last, double head)
{
    int64_t others = stages - 1;

    int64_t largest = others ? (layers - last + others - 1) / others : 0;

    return fmax((double)largest, (double)last + head);
}

/* Every layer is on one stage, every stage has one, later ones no fewer than earlier ones but for
 * the last, and no division has a stage that does most with less to do. */
static void test_stages(void **state)
{
    struct model model = {.heads = 8, .kv_heads = 8, .head_dim = 8, .ffn_size = 128};
    static const int64_t vocabularies[] = {10, 512, 2000, 9999};
    (void)state;

    for (int i = 0; i < 4; i++)
        for (model.layers = 1; model.layers < 40; model.layers++)
            for (int pp = 1; pp <= model.layers; pp++) {
                struct layout layout = {.tp = 1, .pp = pp, .dp = 1, .cp = 1};
                double head, most = 0;

                model.vocab_size = vocabularies[i];
                head = (double)model.vocab_size / (32 * 8 + 3 * 128);
                assert_int_equal(layout_first_layer(&layout, &model, 0), 0);
                assert_int_equal(layout_first_layer(&layout, &model, pp), model.layers);
                for (int s = 0; s < pp; s++) {
                    int64_t begin = layout_first_layer(&layout, &model, s);
                    int64_t count = layout_first_layer(&layout, &model, s + 1) - begin;

                    assert_true(count > 0);
                    if (s > 0 && s < pp - 1)
                        assert_true(count >= begin - layout_first_layer(&layout, &model, s - 1));
                    most = fmax(most, (double)count + (s == pp - 1 ? head : 0));
                }
                for (int64_t last = pp == 1 ? model.layers : 1; last <= model.layers - pp + 1;
                     last++)
                    assert_true(most <= most_work(model.layers, pp, last, head) + 1e-9);
            }
}

/* Every 16-bit pattern survives widening and narrowing; ties round to even; NaN stays NaN. */
static void test_dtype(void **state)
{
    (void)state;
    for (int type = DTYPE_BF16; type <= DTYPE_F16; type++) {
        for (uint32_t bits = 0; bits < 65536; bits++) {
            uint16_t half = (uint16_t)bits, back;
            float wide;

            dtype_convert(&wide, DTYPE_F32, &half, (enum dtype)type, 1);
            dtype_convert(&back, (enum dtype)type, &wide, DTYPE_F32, 1);
            if (isnan(wide)) {
                float again;

                dtype_convert(&again, DTYPE_F32, &back, (enum dtype)type, 1);
                assert_true(isnan(again));
            } else {
                assert_int_equal(half, back);
            }
        }
    }
    {
        /* 1 + half an ulp is a tie; 1 + three half ulps rounds up to even. */
        static const float from[] = {1 + 0x1p-8f, 1 + 3 * 0x1p-8f, 65520.0f, 0x1p-25f, 0x1.8p-24f};
        static const uint16_t bf16[] = {0x3f80, 0x3f82};
        static const uint16_t f16[] = {0x7c00, 0x0000, 0x0002};
        uint16_t to[3];

        dtype_convert(to, DTYPE_BF16, from, DTYPE_F32, 2);
        assert_memory_equal(to, bf16, sizeof(bf16));
        dtype_convert(to, DTYPE_F16, from + 2, DTYPE_F32, 3);
        assert_memory_equal(to, f16, sizeof(f16));
    }
}

static void test_token_names(void **state)
{
    static const char *const refused[] = {"",
                                          ",",
                                          "a,",
                                          "a,b,a",
                                          "\xc0\x80",
                                          "\x80",
                                          "\xe2\x82",
                                          "\xed\xa0\x80",
                                          "\xe0\x9f\xbf",
                                          "\xff",
                                          "\xf4\x90\x80\x80",
                                          "@/nowhere/at/all"};
    struct token_names names;
    struct error error = {0};
    (void)state;

    for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
        assert_int_equal(token_names_parse(&names, refused[i], &error), -1);
        assert_int_equal(error.status, *refused[i] == '@' ? EXIT_STATUS_DATA : EXIT_STATUS_USAGE);
        assert_int_equal(strncmp(error.text, "add-tokens: ", 12), 0);
    }
    assert_int_equal(token_names_parse(&names, "<|a|>,\u20ac,\U0010ffff", &error), 0);
    assert_int_equal(names.count, 3);
    assert_string_equal(names.list[0], "<|a|>");
    assert_string_equal(names.list[1], "\u20ac");
    assert_string_equal(names.list[2], "\xf4\x8f\xbf\xbf");
    token_names_destroy(&names);
}

static void append_copy(void *user, const char *line, size_t length)
{
    strncat(user, line, length);
}

/* What is said and what is handed on, by the order; a message is cut, its newline is not. */
static void test_log_copy(void **state)
{
    char copies[4096] = "", expected[4096], path[2500];
    struct error error = {0};
    (void)state;

    memset(path, 'x', sizeof(path));
    path[sizeof(path) - 1] = '\0';
    log_set_copy(append_copy, copies);
    log_info("one");
    log_warning("two: %d", 2);
    log_copy_line(" three |\n");
    error_set(&error, EXIT_STATUS_IO, "four");
    assert_int_equal(error_print(&error), EXIT_STATUS_IO);
    log_set_enabled(false);
    log_info("unsaid");
    log_warning_any_rank("%s", path);
    log_set_enabled(true);
    log_set_copy(NULL, NULL);
    log_info("five");
    log_copy_line("six\n");
    snprintf(expected, sizeof(expected),
             "%1$s: one\n%1$s: warning: two: 2\n three |\n%1$s: four\n%1$s: warning: %2$.2047s\n",
             program_invocation_short_name, path);
    assert_string_equal(copies, expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),           cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_refusals),        cmocka_unit_test(test_ini_refusals),
        cmocka_unit_test(test_families_refuse), cmocka_unit_test(test_rope),
        cmocka_unit_test(test_presets),         cmocka_unit_test(test_write_reads_back),
        cmocka_unit_test(test_unknown_preset),  cmocka_unit_test(test_flops),
        cmocka_unit_test(test_layout),          cmocka_unit_test(test_layout_without_a_model),
        cmocka_unit_test(test_stages),          cmocka_unit_test(test_dtype),
        cmocka_unit_test(test_token_names),     cmocka_unit_test(test_log_copy),
    };
    char directory[] = "/tmp/mtllm-test-core-XXXXXX", models[4096];

    /* Presets come from the source tree, whatever the directory the test runs in. */
    if (!realpath(getenv("srcdir") ? getenv("srcdir") : ".", models) || !mkdtemp(directory) ||
        chdir(directory) != 0)
        return 99;
    strncat(models, "/etc/models", sizeof(models) - strlen(models) - 1);
    setenv("MTLLM_MODELS", models, 1);
    unsetenv("MTLLM_CONF");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
