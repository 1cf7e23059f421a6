/* Guards: a SentencePiece model is read without a step past its end, and what is written beside it
 * for transformers joins the same pieces in the same order, or is not written; new tokens never
 * take the id of another one, and every file of a tokenizer learns of them. (That real tokenizers
 * split real texts alike is tests/parity's.) */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>

#include "ckpt/added_tokens.h"
#include "ckpt/hf_tokenizer.h"
#include "ckpt/test_sentencepiece.h"

static void test_sentencepiece(void **state)
{
    struct hf_sentencepiece tokenizer;
    unsigned char changed[sizeof(spm)];
    char *text;
    json_t *json;
    (void)state;

    assert_int_equal(hf_sentencepiece_read(&tokenizer, spm, sizeof(spm)), 0);
    assert_int_equal(tokenizer.model_type, 2);
    assert_int_equal(tokenizer.unk_id, 0);
    assert_int_equal(tokenizer.bos_id, 5);
    assert_int_equal(tokenizer.eos_id, 6);
    assert_int_equal(tokenizer.pad_id, -1);
    assert_string_equal(tokenizer.bos, "<bos>");
    assert_string_equal(tokenizer.eos, "</s>");
    assert_false(tokenizer.normalizes);
    text = hf_sentencepiece_config(&tokenizer, NULL, 0, false, 77);
    assert_non_null(text);
    json = json_loads(text, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(json, "bos_token")), "<bos>");
    assert_true(json_is_null(json_object_get(json, "pad_token")));
    assert_true(json_is_true(json_object_get(json, "add_bos_token")));
    assert_int_equal(json_integer_value(json_object_get(json, "model_max_length")), 77);
    json_decref(json);
    free(text);

    /* A name that is no UTF-8 is as good as none. */
    memcpy(changed, spm, sizeof(spm));
    memset(memmem(changed, sizeof(changed), "<bos>", 5), 0xff, 5);
    assert_int_equal(hf_sentencepiece_read(&tokenizer, changed, sizeof(changed)), 0);
    assert_string_equal(tokenizer.bos, "<s>");
    text = hf_sentencepiece_config(&tokenizer, NULL, 0, false, 77);
    assert_non_null(text);
    free(text);

    /* Cut anywhere, or no such file at all: refused or read, never past the end. */
    for (size_t size = 0; size < sizeof(spm); size++) {
        unsigned char *cut = malloc(size ? size : 1); /* exactly: the sanitizer guards it */

        assert_non_null(cut);
        memcpy(cut, spm, size);
        (void)hf_sentencepiece_read(&tokenizer, cut, size);
        free(cut);
    }
    assert_int_equal(hf_sentencepiece_read(&tokenizer, "", 0), -1);
    assert_int_equal(hf_sentencepiece_read(&tokenizer, "IQ== 0\nIg== 1\n", 14), -1);
}

/* --- tokenizer.json of a SentencePiece model -------------------------------------------------- */

struct message {
    unsigned char bytes[65536];
    size_t size;
};

static void add_piece(struct message *message, const char *text, float score, int type)
{
    unsigned char *to = message->bytes + message->size;
    size_t length = strlen(text);

    assert_true(length < 100 && message->size + length + 20 < sizeof(message->bytes));
    *to++ = 0x0a;
    *to++ = (unsigned char)(length + 9);
    *to++ = 0x0a;
    *to++ = (unsigned char)length;
    memcpy(to, text, length);
    to += length;
    *to++ = 0x15;
    memcpy(to, &score, sizeof(score));
    to += sizeof(score);
    *to++ = 0x18;
    *to++ = (unsigned char)type;
    message->size = (size_t)(to - message->bytes);
}

/* BPE, the usual ids, and nothing normalized. */
static void add_settings(struct message *message)
{
    static const unsigned char settings[] = {0x12, 2, 0x18, 2, 0x1a, 2, 0x20, 0};

    memcpy(message->bytes + message->size, settings, sizeof(settings));
    message->size += sizeof(settings);
}

/* The usual special pieces, and "abc" out of "bc" and "ab", the better one later. */
static void begin_message(struct message *message)
{
    static const char *const normal[] = {"bc", "ab", "abc", "a", "b", "c"};

    message->size = 0;
    add_piece(message, "<unk>", 0, HF_PIECE_UNKNOWN);
    add_piece(message, "<s>", 0, HF_PIECE_CONTROL);
    add_piece(message, "</s>", 0, HF_PIECE_CONTROL);
    for (int i = 0; i < 6; i++)
        add_piece(message, normal[i], (float)-i, HF_PIECE_NORMAL);
}

static json_t *make_json(const struct message *message, const char *added, const char **trouble)
{
    struct hf_sentencepiece about;
    json_t *json;
    char *text;

    assert_int_equal(hf_sentencepiece_read(&about, message->bytes, message->size), 0);
    text = hf_sentencepiece_json(message->bytes, message->size, &about, added,
                                 added ? strlen(added) : 0, trouble);
    json = text ? json_loads(text, 0, NULL) : NULL;
    assert_int_equal(text != NULL, json != NULL);
    free(text);
    return json;
}

static void test_json(void **state)
{
    static const char *const merges[] = {"b c", "a b", "a bc", "ab c"};
    struct message message;
    const char *trouble;
    json_t *json, *model, *list;
    (void)state;

    begin_message(&message);
    add_settings(&message);
    json = make_json(&message, "{\"<new>\": 9}", &trouble);
    assert_non_null(json);
    assert_null(trouble);
    model = json_object_get(json, "model");
    assert_int_equal(json_object_size(json_object_get(model, "vocab")), 9);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(model, "vocab"), "ab")), 4);
    assert_true(json_is_false(json_object_get(model, "byte_fallback")));
    list = json_object_get(model, "merges");
    assert_int_equal(json_array_size(list), 4);
    for (size_t i = 0; i < 4; i++)
        assert_string_equal(json_string_value(json_array_get(list, i)), merges[i]);
    list = json_object_get(json, "added_tokens");
    assert_int_equal(json_array_size(list), 4);
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 3), "content")),
                        "<new>");
    assert_int_equal(json_integer_value(json_object_get(json_array_get(list, 3), "id")), 9);
    json_decref(json);

    begin_message(&message);
    for (int i = 0; i < 256; i++) {
        char text[8];

        snprintf(text, sizeof(text), "<0x%02X>", i);
        add_piece(&message, text, 0, HF_PIECE_BYTE);
    }
    add_settings(&message);
    json = make_json(&message, NULL, &trouble);
    assert_true(json_is_true(json_object_get(json_object_get(json, "model"), "byte_fallback")));
    json_decref(json);
}

static void test_no_json(void **state)
{
    static const struct {
        const char *text;
        float score;
        int type;
        const char *trouble;
    } pieces[] = {
        {"ab", -9, HF_PIECE_NORMAL, "twice"},
        {"ca", -4, HF_PIECE_NORMAL, "same score"},
        {"ad", -9, HF_PIECE_NORMAL, "characters"},
        {"\xff", -9, HF_PIECE_NORMAL, "UTF-8"},
        {"", -9, HF_PIECE_NORMAL, "empty"},
        {"a b", -9, HF_PIECE_NORMAL, "two words"},
        {"<x>", -9, HF_PIECE_USER_DEFINED, "user-defined"},
        {"ca", -9, HF_PIECE_UNUSED, "unused"},
        {"ca", -9, HF_PIECE_BYTE + 1, "no known type"},
        {"<0x00>", 0, HF_PIECE_BYTE, "256 bytes"},
        {"d", NAN, HF_PIECE_NORMAL, "same score"},
    };
    struct message message;
    const char *trouble;
    (void)state;

    for (size_t i = 0; i < sizeof(pieces) / sizeof(*pieces); i++) {
        begin_message(&message);
        add_piece(&message, pieces[i].text, pieces[i].score, pieces[i].type);
        add_settings(&message);
        assert_null(make_json(&message, NULL, &trouble));
        assert_non_null(trouble);
        if (!strstr(trouble, pieces[i].trouble))
            fail_msg("%s, expected %s", trouble, pieces[i].trouble);
    }
    /* Settings: unigram, collapsed spaces, special tokens that are none. */
    begin_message(&message);
    add_settings(&message);
    message.bytes[message.size - 5] = 1;
    assert_null(make_json(&message, NULL, &trouble));
    assert_non_null(strstr(trouble, "BPE"));
    message.bytes[message.size - 5] = 2;
    message.bytes[message.size - 1] = 1;
    assert_null(make_json(&message, NULL, &trouble));
    assert_non_null(strstr(trouble, "normalizes"));
    message.size = 0;
    add_piece(&message, "<unk>", 0, HF_PIECE_UNKNOWN);
    add_piece(&message, "<s>", 0, HF_PIECE_CONTROL);
    add_piece(&message, "<end>", 0, HF_PIECE_CONTROL); /* </s> says the default */
    add_settings(&message);
    assert_null(make_json(&message, NULL, &trouble));
    assert_non_null(strstr(trouble, "special tokens"));
}

/* The library tokenizers gives new tokens the ids after the pieces, in the order of the list. */
static void test_json_added_tokens(void **state)
{
    static const char *const wrong[] = {
        "{\"<n>\": 10}",
        "{\"<n>\": 9, \"<m>\": 11}",
        "{\"<n>\": 9, \"<m>\": 9}",
        "{\"<n>\": 3}",
        "{\"<n>\": -1}",
        "{\"<n>\": \"9\"}",
        "{\"<s>\": 9}",
        "{\"\": 9, \"<n>\": 10}",
        "{\"<n>\": 9223372036854775807}",
        "{\"<n>\": 9, \"ab\": 10}",
        "[]",
        "{\"<n>\": 9",
    };
    struct message message;
    const char *trouble;
    json_t *json, *list;
    (void)state;

    begin_message(&message);
    add_settings(&message);
    json = make_json(&message, "{\"<m>\": 10, \"ab\": 4, \"<n>\": 9, \"<s>\": 1}", &trouble);
    assert_non_null(json);
    list = json_object_get(json, "added_tokens");
    for (size_t i = json_array_size(list) - 2; i < json_array_size(list); i++) {
        const json_t *token = json_array_get(list, i);
        json_int_t id = json_integer_value(json_object_get(token, "id"));

        assert_int_equal(id, 9 + i + 2 - json_array_size(list));
        assert_string_equal(json_string_value(json_object_get(token, "content")),
                            id == 9 ? "<n>" : "<m>");
    }
    json_decref(json);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        assert_null(make_json(&message, wrong[i], &trouble));
        if (!trouble || !strstr(trouble, "added"))
            fail_msg("%s: %s", wrong[i], trouble);
    }
}

static void test_json_config(void **state)
{
    static const char text[] = "{\"added_tokens\": [{\"id\": 7, \"content\": \"<end>\"}],"
                               " \"model\": {\"vocab\": {\"a\": 0, \"<begin>\": 3}}}";
    static const char unigram[] = "{\"model\": {\"vocab\": [[\"a\", -1.5], [\"<end>\", 0]]}}";
    char *config = hf_tokenizer_json_config(text, strlen(text), 3, 7, 10);
    json_t *json = json_loads(config, 0, NULL);
    (void)state;

    assert_string_equal(json_string_value(json_object_get(json, "bos_token")), "<begin>");
    assert_string_equal(json_string_value(json_object_get(json, "eos_token")), "<end>");
    json_decref(json);
    free(config);
    config = hf_tokenizer_json_config(unigram, strlen(unigram), -1, 1, 10);
    json = json_loads(config, 0, NULL);
    assert_null(json_object_get(json, "bos_token"));
    assert_string_equal(json_string_value(json_object_get(json, "eos_token")), "<end>");
    json_decref(json);
    free(config);
    assert_false(hf_tokenizer_json_is_qwen(text, strlen(text)));
    assert_false(hf_tokenizer_json_is_qwen("[", 1));
}

/* --- new tokens ------------------------------------------------------------------------------- */

static void put(struct kept_files *files, const char *name, const char *text)
{
    struct error error = {0};

    assert_int_equal(kept_files_put(files, name, strdup(text), strlen(text), &error), 0);
}

static json_t *kept(const struct kept_files *files, const char *name)
{
    const struct checkpoint_file *file = kept_files_find(files, name);

    assert_non_null(file);
    return json_loadb(file->bytes, file->size, 0, NULL);
}

static void enter(struct kept_files *files, const char *option, int64_t vocab_size, int64_t first,
                  int64_t end)
{
    struct added_tokens tokens;
    struct error error = {0};

    if (added_tokens_parse(&tokens, option, &error) < 0 ||
        added_tokens_enter(&tokens, files, vocab_size, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(tokens.first, first);
    assert_int_equal(tokens.end, end);
    added_tokens_destroy(&tokens);
}

static void test_added_tokens(void **state)
{
    struct kept_files files = {0};
    struct error error = {0};
    json_t *json, *list;
    void *pieces;
    (void)state;

    put(&files, "tokenizer.json",
        "{\"added_tokens\": [{\"id\": 5, \"content\": \"<old>\"}],"
        " \"model\": {\"vocab\": {\"a\": 0, \"b\": 4}}, \"x\": 0.1}");
    put(&files, "tokenizer_config.json",
        "{\"added_tokens_decoder\": {\"6\": {\"content\": \"<six>\"}}}");
    put(&files, "vocab.json", "{\"a\": 0}");
    enter(&files, "<n>,<old>,<m>,a", 100, 7, 9);
    json = kept(&files, "tokenizer.json");
    list = json_object_get(json, "added_tokens");
    assert_int_equal(json_array_size(list), 4); /* "a" matches as a special token from now on */
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 2), "content")),
                        "<n>");
    assert_int_equal(json_integer_value(json_object_get(json_array_get(list, 3), "id")), 8);
    assert_true(json_real_value(json_object_get(json, "x")) == 0.1);
    json_decref(json);
    json = kept(&files, "tokenizer_config.json");
    list = json_object_get(json, "added_tokens_decoder");
    assert_string_equal(json_string_value(json_object_get(json_object_get(list, "8"), "content")),
                        "<m>");
    json_decref(json);
    assert_null(kept_files_find(&files, "added_tokens.json"));

    /* Again: there they are. */
    enter(&files, "<m>,<n>", 100, 9, 9);
    enter(&files, "<p>", 100, 9, 10);
    kept_files_destroy(&files);

    /* No tokenizer.json: beside a SentencePiece model of any name, and beside nothing. */
    pieces = malloc(sizeof(spm));
    assert_non_null(pieces);
    memcpy(pieces, spm, sizeof(spm));
    assert_int_equal(kept_files_put(&files, "mine.model", pieces, sizeof(spm), &error), 0);
    enter(&files, "<n>", 100, 1, 2);
    enter(&files, "<n>,<m>", 100, 2, 3);
    json = kept(&files, "added_tokens.json");
    assert_int_equal(json_integer_value(json_object_get(json, "<m>")), 2);
    json_decref(json);
    kept_files_destroy(&files);
    enter(&files, "<n>", 100, 100, 101);
    enter(&files, "<n>", 101, 101, 101);
    kept_files_destroy(&files);
}

static void test_bad_tokens(void **state)
{
    static const struct {
        const char *option, *words;
        enum exit_status status;
    } options[] = {
        {"", "token 1 is empty", EXIT_STATUS_USAGE},
        {"a,,b", "token 2 is empty", EXIT_STATUS_USAGE},
        {"a,b,a", "\"a\" is there twice", EXIT_STATUS_USAGE},
        {"a,\xff", "token 2 is no UTF-8", EXIT_STATUS_USAGE},
        {"@/nowhere/list", "/nowhere/list", EXIT_STATUS_DATA},
    };
    static const char *const damaged[] = {
        "", "[]", "{\"model\": ", "{\"model\": {\"vocab\": {\"a\": 99999999}}}",
        "{\"added_tokens\": [{\"id\": -1}]}"};
    (void)state;

    for (size_t i = 0; i < sizeof(options) / sizeof(*options); i++) {
        struct added_tokens tokens;
        struct error error = {0};

        assert_int_equal(added_tokens_parse(&tokens, options[i].option, &error), -1);
        assert_int_equal(error.status, options[i].status);
        if (!strstr(error.text, options[i].words))
            fail_msg("%s, expected %s", error.text, options[i].words);
    }
    for (size_t i = 0; i < sizeof(damaged) / sizeof(*damaged); i++) {
        struct kept_files files = {0};
        struct added_tokens tokens;
        struct error error = {0};

        put(&files, "tokenizer.json", damaged[i]);
        assert_int_equal(added_tokens_parse(&tokens, "<n>", &error), 0);
        assert_int_equal(added_tokens_enter(&tokens, &files, 10, &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_DATA);
        assert_non_null(strstr(error.text, "tokenizer.json"));
        added_tokens_destroy(&tokens);
        kept_files_destroy(&files);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sentencepiece), cmocka_unit_test(test_json),
        cmocka_unit_test(test_no_json),       cmocka_unit_test(test_json_added_tokens),
        cmocka_unit_test(test_json_config),   cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_bad_tokens),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
