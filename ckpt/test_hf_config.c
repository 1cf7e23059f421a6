/* Guards: config.json of transformers 4 and 5 give the model they mean, with the class's defaults
 * for what is absent; what mtllm would compute wrongly is refused by name, never read over; what is
 * written is read back the same and in the types that strict readers ask for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "ckpt/hf_config.h"

static struct model read_text(const char *text)
{
    struct model model;
    struct error error = {0};

    if (hf_config_read(&model, text, strlen(text), "config.json", &error) < 0)
        fail_msg("%s", error.text);
    return model;
}

/* The text must be refused as bad data, in words that contain `words` and the file's name. */
static void assert_refused(const char *text, const char *words)
{
    struct model model;
    struct error error = {0};

    if (hf_config_read(&model, text, strlen(text), "dir/config.json", &error) == 0)
        fail_msg("accepted: %s", text);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    if (!strstr(error.text, words) || strncmp(error.text, "dir/config.json", 15) != 0)
        fail_msg("\"%s\" does not say \"%s\"", error.text, words);
}

static void test_defaults(void **state)
{
    struct model model = read_text("{\"model_type\": \"llama\"}");
    (void)state;

    assert_int_equal(model.vocab_size, 32000);
    assert_int_equal(model.hidden_size, 4096);
    assert_int_equal(model.ffn_size, 11008);
    assert_int_equal(model.layers, 32);
    assert_int_equal(model.heads, 32);
    assert_int_equal(model.kv_heads, 32);
    assert_int_equal(model.head_dim, 128);
    assert_int_equal(model.max_positions, 2048);
    assert_true(model.norm_eps == 1e-6);
    assert_true(model.rope_theta == 10000);
    assert_true(model.init_std == 0.02);
    assert_false(model.tied_embeddings);
    assert_int_equal(model.bos_token, 1);
    assert_int_equal(model.eos_token, 2);
}

/* Shapes of files on the hub: Llama 1, Code Llama, an instruct model with several end tokens. */
static void test_version_4(void **state)
{
    struct model model;
    (void)state;

    model = read_text("{\"architectures\": [\"LLaMAForCausalLM\"], \"max_sequence_length\": 1024,"
                      " \"hidden_size\": 64, \"num_attention_heads\": 4, \"pad_token_id\": -1}");
    assert_int_equal(model.max_positions, 1024);
    assert_int_equal(model.head_dim, 16);
    model = read_text("{\"model_type\": \"llama\", \"rope_theta\": 1000000, \"rope_scaling\": null,"
                      " \"head_dim\": null, \"num_key_value_heads\": null,"
                      " \"max_sequence_length\": 1, \"max_position_embeddings\": 16384,"
                      " \"rms_norm_eps\": 1e-05, \"bos_token_id\": null}");
    assert_true(model.rope_theta == 1e6);
    assert_true(model.norm_eps == 1e-5);
    assert_int_equal(model.max_positions, 16384);
    assert_int_equal(model.bos_token, -1);
    model = read_text("{\"model_type\": \"llama\", \"eos_token_id\": [128001, 128008, 128009],"
                      " \"rope_scaling\": {\"type\": \"default\"}, \"rope_theta\": 500000.0,"
                      " \"num_key_value_heads\": 8, \"tie_word_embeddings\": true}");
    assert_int_equal(model.eos_token, 128001);
    assert_int_equal(model.kv_heads, 8);
    assert_true(model.rope_theta == 5e5);
    assert_true(model.tied_embeddings);
}

static void test_version_5(void **state)
{
    struct model model;
    (void)state;

    model = read_text("{\"model_type\": \"llama\", \"dtype\": \"float32\","
                      " \"rope_parameters\": {\"rope_theta\": 1e6, \"rope_type\": \"default\"}}");
    assert_true(model.rope_theta == 1e6);
    /* The dictionary's own base beats the one at the top; without one the top's counts. */
    model = read_text("{\"model_type\": \"llama\", \"rope_theta\": 7,"
                      " \"rope_parameters\": {\"rope_theta\": 500000}}");
    assert_true(model.rope_theta == 5e5);
    model = read_text("{\"model_type\": \"llama\", \"rope_theta\": 77,"
                      " \"rope_parameters\": {\"rope_type\": \"default\"}}");
    assert_true(model.rope_theta == 77);
}

static void test_unsupported(void **state)
{
    (void)state;
    assert_refused("{\"model_type\": \"mixtral\"}", "mixtral");
    assert_refused("{\"architectures\": [\"BloomForCausalLM\"]}", "BloomForCausalLM");
    assert_refused("{\"model_type\": \"llama\","
                   " \"architectures\": [\"LlamaForSequenceClassification\"]}",
                   "LlamaForSequenceClassification");
    assert_refused("{\"hidden_size\": 64}", "model_type");
    assert_refused("{\"model_type\": \"falcon\", \"alibi\": true}", "alibi");
    assert_refused("{\"model_type\": \"falcon\", \"bias\": true}", "bias true");
    assert_refused("{\"model_type\": \"falcon\", \"parallel_attn\": false}", "parallel_attn");
    assert_refused("{\"model_type\": \"falcon\", \"multi_query\": false}", "multi_query");
    assert_refused("{\"model_type\": \"qwen2\", \"use_sliding_window\": true}",
                   "max_window_layers");
    assert_refused("{\"model_type\": \"mistral\", \"layer_types\": [\"sliding_attention\","
                   " \"full_attention\"]}",
                   "layer_types");
    assert_refused("{\"model_type\": \"llama\", \"hidden_act\": \"gelu\"}", "gelu");
    assert_refused("{\"model_type\": \"llama\", \"quantization_config\": {\"bits\": 4}}",
                   "quantization_config");
    assert_refused("{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"linear\"}}",
                   "no factor");
    assert_refused("{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"longrope\"}}",
                   "longrope");
    assert_refused("{\"model_type\": \"llama\", \"rope_scaling\": {\"factor\": 2.0}}",
                   "no rope_type");
    assert_refused("{\"model_type\": \"llama\", \"rope_parameters\": {\"rope_type\": \"llama3\","
                   " \"factor\": 8}}",
                   "low_freq_factor");
    /* rope_scaling wins over rope_parameters. */
    assert_refused("{\"model_type\": \"llama\", \"rope_scaling\": {\"rope_type\": \"su\"},"
                   " \"rope_parameters\": {\"rope_type\": \"default\"}}",
                   "su");
    assert_refused("{\"model_type\": \"llama\", \"rope_parameters\":"
                   " {\"full_attention\": {\"rope_type\": \"default\"}}}",
                   "by layer type");
    assert_refused("{\"model_type\": \"llama\", \"rope_parameters\":"
                   " {\"partial_rotary_factor\": 0.5}}",
                   "partial_rotary_factor");
    assert_refused("{\"model_type\": \"llama\", \"layer_types\": [\"sliding_attention\"]}",
                   "sliding_attention");
}

/* What every family's own file says comes back from the file that is written, in the spelling of
 * version 4. */
static void test_families(void **state)
{
    static const char *const names[] = {
        "codellama",     "falcon-40b",    "falcon-7b",    "llama-bias",
        "llama-dynamic", "llama-headdim", "llama-linear", "llama-llama3",
        "llama-yarn",    "mistral",       "qwen2",
    };
    (void)state;

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        const char *source = getenv("srcdir");
        char path[600], *written, text[8192] = "";
        struct model model, again;
        FILE *stream;

        snprintf(path, sizeof(path), "%s/tests/golden/models/%s/config.json", source ? source : ".",
                 names[i]);
        stream = fopen(path, "r");
        assert_non_null(stream);
        text[fread(text, 1, sizeof(text) - 1, stream)] = '\0';
        fclose(stream);
        model = read_text(text);
        written = hf_config_write(&model, DTYPE_F32);
        assert_non_null(written);
        again = read_text(written);
        if (model_difference(&model, &again))
            fail_msg("%s: %s differs", names[i], model_difference(&model, &again));
        assert_int_equal(again.bos_token, model.bos_token);
        assert_int_equal(again.eos_token, model.eos_token);
        assert_true(again.init_std == model.init_std);
        free(written);
    }
}

/* What files on the hub are known to say. */
static void test_falcon_spellings(void **state)
{
    struct model model = read_text("{\"model_type\": \"falcon\", \"num_kv_heads\": 71,"
                                   " \"multi_query\": true}");
    (void)state;

    assert_int_equal(model.heads, 71);
    assert_int_equal(model.kv_heads, 1);
    assert_int_equal(model.block, MODEL_BLOCK_PARALLEL);
    assert_int_equal(model.ffn_size, 18176);
    assert_true(model.tied_embeddings);
    model = read_text("{\"model_type\": \"RefinedWeb\", \"architectures\": [\"RWForCausalLM\"],"
                      " \"n_head\": 128, \"n_head_kv\": 8, \"n_layer\": 60,"
                      " \"hidden_size\": 8192}");
    assert_int_equal(model.family, MODEL_FAMILY_FALCON);
    assert_int_equal(model.layers, 60);
    assert_int_equal(model.kv_heads, 8);
    assert_int_equal(model.block, MODEL_BLOCK_PARALLEL_TWO_NORMS);
}

static void test_windows(void **state)
{
    (void)state;
    assert_int_equal(read_text("{\"model_type\": \"mistral\"}").sliding_window, 4096);
    assert_int_equal(
        read_text("{\"model_type\": \"mistral\", \"sliding_window\": null}").sliding_window, 0);
    assert_int_equal(
        read_text("{\"model_type\": \"qwen2\", \"sliding_window\": 99}").sliding_window, 0);
    assert_int_equal(read_text("{\"model_type\": \"qwen2\", \"use_sliding_window\": true,"
                               " \"sliding_window\": 99, \"max_window_layers\": 0}")
                         .sliding_window,
                     99);
}

static void test_malformed(void **state)
{
    char *deep = malloc(200001);
    (void)state;

    assert_refused("", ":1:");
    assert_refused("{\"model_type\": \"llama\"", ":1:");
    assert_refused("[1, 2]", "not a JSON object");
    assert_refused("{\"model_type\": \"llama\",\n \"model_type\": \"llama\"}",
                   "duplicate object key \"model_type\"");
    assert_refused("{\"model_type\": 3}", "model_type");
    assert_refused("{\"model_type\": \"llama\", \"hidden_size\": 4096.0}", "hidden_size");
    assert_refused("{\"model_type\": \"llama\", \"hidden_size\": true}", "hidden_size");
    assert_refused("{\"model_type\": \"llama\", \"hidden_size\": -64}", "hidden_size is -64");
    assert_refused("{\"model_type\": \"llama\", \"vocab_size\": 9000000000000000000}",
                   "vocab_size");
    assert_refused("{\"model_type\": \"llama\", \"vocab_size\": 99999999999999999999999}", ":1:");
    assert_refused("{\"model_type\": \"llama\", \"num_hidden_layers\": 0}", "num_hidden_layers");
    assert_refused("{\"model_type\": \"llama\", \"num_key_value_heads\": 5}", "does not divide");
    assert_refused("{\"model_type\": \"llama\", \"num_attention_heads\": 7}", "does not divide");
    assert_refused("{\"model_type\": \"llama\", \"head_dim\": 15}", "odd");
    assert_refused("{\"model_type\": \"llama\", \"rms_norm_eps\": \"1e-5\"}", "rms_norm_eps");
    assert_refused("{\"model_type\": \"llama\", \"rms_norm_eps\": -1}", "rms_norm_eps");
    assert_refused("{\"model_type\": \"llama\", \"rope_theta\": 0}", "rope_theta");
    assert_refused("{\"model_type\": \"llama\", \"rope_theta\": 1e999}", ":1:");
    assert_refused("{\"model_type\": \"llama\", \"rope_parameters\": 3}", "rope_parameters");
    assert_refused("{\"model_type\": \"llama\", \"tie_word_embeddings\": 1}",
                   "tie_word_embeddings");
    assert_refused("{\"model_type\": \"llama\", \"eos_token_id\": \"2\"}", "eos_token_id");
    assert_refused("{\"model_type\": \"llama\", \"eos_token_id\": [2, [3]]}", "eos_token_id");
    assert_refused("{\"model_type\": \"llama\", \"hidden_size\": 1048576,"
                   " \"num_attention_heads\": 65536, \"head_dim\": 65536}",
                   "2^50");
    assert_non_null(deep);
    memset(deep, '[', 200000);
    deep[200000] = '\0';
    assert_refused(deep, ":1:");
    free(deep);
}

static void test_write(void **state)
{
    const struct model model = {
        .layers = 3,
        .hidden_size = 96,
        .ffn_size = 176,
        .heads = 6,
        .kv_heads = 3,
        .head_dim = 32,
        .vocab_size = 307,
        .max_positions = 128,
        .norm_eps = 1e-5,
        .rope_theta = 1e6,
        .init_std = 0.02,
        .tied_embeddings = true,
        .bos_token = 1,
        .eos_token = -1,
    };
    char *text = hf_config_write(&model, DTYPE_BF16);
    struct model back;
    json_t *json;
    (void)state;

    assert_non_null(text);
    back = read_text(text);
    assert_null(model_difference(&model, &back));
    assert_true(back.init_std == model.init_std);
    assert_int_equal(back.bos_token, 1);
    assert_int_equal(back.eos_token, -1);
    json = json_loads(text, 0, NULL);
    assert_non_null(json);
    /* Strict readers take no integer for a float. */
    assert_true(json_is_real(json_object_get(json, "rope_theta")));
    assert_true(json_is_real(json_object_get(json, "rms_norm_eps")));
    assert_true(json_is_real(json_object_get(json, "initializer_range")));
    assert_true(json_is_integer(json_object_get(json, "hidden_size")));
    assert_true(json_is_null(json_object_get(json, "rope_scaling")));
    assert_string_equal(json_string_value(json_object_get(json, "torch_dtype")), "bfloat16");
    assert_string_equal(json_string_value(json_object_get(json, "transformers_version")), "4.51.0");
    assert_non_null(strstr(text, "\"rope_theta\": 1000000.0"));
    assert_non_null(strstr(text, "\"initializer_range\": 0.02,"));
    json_decref(json);
    free(text);

    text = hf_generation_config_write(&model);
    assert_non_null(text);
    assert_non_null(strstr(text, "\"bos_token_id\": 1"));
    assert_null(strstr(text, "eos_token_id"));
    free(text);
}

static char *take(const char *text, const char *from, enum hf_token_ids which)
{
    char *result = hf_config_take_token_ids(text, from, strlen(from), which);

    assert_non_null(result);
    return result;
}

static void test_token_ids(void **state)
{
    const char *text = "{\"eos_token_id\": 7, \"x\": 1e-05}";
    char *result;
    (void)state;

    result = take(text, "{\"eos_token_id\": [7, 8], \"pad_token_id\": 0}", HF_TOKEN_IDS_ALL);
    assert_string_equal(result, "{\n  \"eos_token_id\": [\n    7,\n    8\n  ],\n"
                                "  \"pad_token_id\": 0,\n  \"x\": 1e-5\n}\n");
    free(result);
    result = take(text, "{\"eos_token_id\": [7, 8], \"pad_token_id\": 0}", HF_TOKEN_IDS_EOS_LISTS);
    assert_non_null(strstr(result, "8"));
    assert_null(strstr(result, "pad"));
    free(result);
    result = take(text, "{\"eos_token_id\": [6, 8]}", HF_TOKEN_IDS_EOS_LISTS);
    assert_non_null(strstr(result, "\"eos_token_id\": 7"));
    free(result);
    result = take(text, "no JSON", HF_TOKEN_IDS_ALL);
    assert_string_equal(result, text);
    free(result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),         cmocka_unit_test(test_version_4),
        cmocka_unit_test(test_version_5),        cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_malformed),        cmocka_unit_test(test_write),
        cmocka_unit_test(test_token_ids),        cmocka_unit_test(test_families),
        cmocka_unit_test(test_falcon_spellings), cmocka_unit_test(test_windows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
