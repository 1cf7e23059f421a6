/* Guards: ids and texts are those of SentencePiece and of Hugging Face's tokenizers, whatever the
 * kind, and dividing a long document changes none of its ids; a damaged tokenizer.json is refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/tokenizer.h"

static char golden_root[1024], golden_directory[1100];

static struct tokenizer *open_golden(void)
{
    struct tokenizer *tokenizer;
    struct error error = {0};

    if (tokenizer_open(&tokenizer, golden_directory, &error) < 0) {
        if (error.status == EXIT_STATUS_CONFIGURATION)
            skip(); /* built without SentencePiece */
        fail_msg("%s", error.text);
    }
    return tokenizer;
}

static void check_line(const struct tokenizer *tokenizer, const char *line, int number)
{
    json_error_t problem;
    json_t *object = json_loads(line, JSON_ALLOW_NUL, &problem);
    json_t *text = json_object_get(object, "text"), *ids = json_object_get(object, "ids");
    json_t *decoded = json_object_get(object, "decoded");
    struct token_list list = {NULL, 0, 0};
    struct error error = {0};
    char *back;
    size_t bytes;

    assert_true(json_is_string(text) && json_is_array(ids) && json_is_string(decoded));
    if (tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text), &list,
                         &error) < 0)
        fail_msg("line %d: %s", number, error.text);
    if (list.count != (int64_t)json_array_size(ids))
        fail_msg("line %d: %lld ids, expected %zu", number, (long long)list.count,
                 json_array_size(ids));
    for (int64_t i = 0; i < list.count; i++)
        if (list.ids[i] != json_integer_value(json_array_get(ids, (size_t)i)))
            fail_msg("line %d: id %lld is %d", number, (long long)i, list.ids[i]);
    if (tokenizer_decode(tokenizer, list.ids, list.count, &back, &bytes, &error) < 0)
        fail_msg("line %d: %s", number, error.text);
    if (bytes != json_string_length(decoded) ||
        memcmp(back, json_string_value(decoded), bytes) != 0)
        fail_msg("line %d: decoded to \"%s\"", number, back);
    free(back);
    free(list.ids);
    json_decref(object);
}

static void check_lines(const struct tokenizer *tokenizer, const char *directory)
{
    char path[1200], *line = NULL;
    size_t room = 0;
    int lines = 0;
    FILE *stream;

    snprintf(path, sizeof(path), "%s/golden.jsonl", directory);
    stream = fopen(path, "r");
    assert_non_null(stream);
    while (getline(&line, &room, stream) > 0)
        check_line(tokenizer, line, ++lines);
    assert_in_range(lines, 100, 10000);
    free(line);
    fclose(stream);
}

static void test_golden(void **state)
{
    struct tokenizer *tokenizer = open_golden();
    (void)state;

    assert_int_equal(tokenizer_vocab_size(tokenizer), 3000);
    assert_int_equal(tokenizer_unk(tokenizer), 0);
    assert_int_equal(tokenizer_bos(tokenizer), 1);
    assert_int_equal(tokenizer_eos(tokenizer), 2);
    check_lines(tokenizer, golden_directory);
    tokenizer_close(tokenizer);
}

static void test_json(void **state)
{
    static const char *const kinds[] = {"gpt2", "falcon", "llama3", "qwen", "llama2"};
    (void)state;

    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        struct tokenizer *tokenizer;
        struct error error = {0};
        char directory[1100];

        snprintf(directory, sizeof(directory), "%s/%s", golden_root, kinds[i]);
        print_message("%s\n", kinds[i]);
        if (tokenizer_open(&tokenizer, directory, &error) < 0) {
            if (error.status == EXIT_STATUS_CONFIGURATION)
                skip(); /* built without */
            fail_msg("%s", error.text);
        }
        check_lines(tokenizer, directory);
        tokenizer_close(tokenizer);
    }
}

/* Text of every kind in the golden file, its line ends kept, repeated until it has many parts. */
static char *long_text(size_t *bytes)
{
    enum { ROOM = 4 << 20 };
    char path[1200], *text = malloc(ROOM);
    FILE *stream;

    assert_non_null(text);
    snprintf(path, sizeof(path), "%s/golden.jsonl", golden_directory);
    *bytes = 0;
    for (int copy = 0; copy < 40; copy++) {
        char *line = NULL;
        size_t room = 0;

        stream = fopen(path, "r");
        assert_non_null(stream);
        while (getline(&line, &room, stream) > 0) {
            json_t *object = json_loads(line, JSON_ALLOW_NUL, NULL);
            json_t *string = json_object_get(object, "text");
            size_t length = json_string_length(string);

            assert_true(*bytes + length + 1 < ROOM);
            memcpy(text + *bytes, json_string_value(string), length);
            *bytes += length;
            text[(*bytes)++] = '\n';
            json_decref(object);
        }
        free(line);
        fclose(stream);
    }
    return text;
}

static void test_parts(void **state)
{
    struct tokenizer *tokenizer = open_golden();
    struct token_list whole = {NULL, 0, 0}, parts = {NULL, 0, 0}, streamed = {NULL, 0, 0};
    struct error error = {0};
    size_t bytes, scanned = 0, given = 0, count = 0;
    char *text = long_text(&bytes);
    (void)state;

    if (tokenizer_encode_part(tokenizer, text, bytes, true, &whole, &error) < 0 ||
        tokenizer_encode(tokenizer, text, bytes, &parts, &error) < 0)
        fail_msg("%s", error.text);
    /* The same text coming in small pieces is divided at the same places. */
    for (size_t begun = 0; begun < bytes;) {
        size_t part =
            tokenizer_part(tokenizer, text + begun, given - begun, given == bytes, &scanned);

        if (part == 0) {
            assert_true(given < bytes);
            given = given + 777 < bytes ? given + 777 : bytes;
            continue;
        }
        if (tokenizer_encode_part(tokenizer, text + begun, part, begun == 0, &streamed, &error) < 0)
            fail_msg("%s", error.text);
        begun += part;
        scanned = 0;
        count++;
    }
    assert_in_range(count, 10, bytes / 8192 + 1); /* it was divided */
    assert_int_equal(parts.count, whole.count);
    assert_memory_equal(parts.ids, whole.ids, (size_t)whole.count * sizeof(*whole.ids));
    assert_int_equal(streamed.count, whole.count);
    assert_memory_equal(streamed.ids, whole.ids, (size_t)whole.count * sizeof(*whole.ids));
    free(whole.ids);
    free(parts.ids);
    free(streamed.ids);
    free(text);
    tokenizer_close(tokenizer);
}

static void test_errors(void **state)
{
    static const int32_t outside[] = {5, 3000}, negative[] = {-1};
    struct tokenizer *tokenizer = open_golden(), *none;
    struct error error = {0};
    char path[1200], *text;
    size_t bytes;
    (void)state;

    assert_int_equal(tokenizer_decode(tokenizer, outside, 2, &text, &bytes, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, "token 3000"));
    assert_null(text);
    assert_int_equal(tokenizer_decode(tokenizer, negative, 1, &text, &bytes, &error), -1);
    assert_int_equal(tokenizer_decode(tokenizer, NULL, 0, &text, &bytes, &error), 0);
    assert_int_equal(bytes, 0);
    free(text);
    tokenizer_close(tokenizer);

    snprintf(path, sizeof(path), "%s/golden.jsonl", golden_directory);
    assert_int_equal(tokenizer_open(&none, path, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_int_equal(tokenizer_open(&none, "no/such/model", &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_IO);
    assert_int_equal(tokenizer_open(&none, "/", &error), -1);
    assert_non_null(strstr(error.text, "neither tokenizer.json nor tokenizer.model"));
    assert_null(none);
    tokenizer_close(NULL);
}

/* A tokenizer.json of this text; NULL when it is refused. */
static struct tokenizer *open_text(const char *text, struct error *error)
{
    char path[] = "/tmp/mtllm-test-tokenizer-XXXXXX.json";
    int fd = mkstemps(path, 5);
    struct tokenizer *tokenizer;

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    *error = (struct error){0};
    if (tokenizer_open(&tokenizer, path, error) < 0)
        assert_null(tokenizer);
    unlink(path);
    if (error->status == EXIT_STATUS_CONFIGURATION)
        skip(); /* built without */
    return tokenizer;
}

static void check_ids(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                      const int32_t *ids, int64_t count)
{
    struct token_list list = {NULL, 0, 0};
    struct error error = {0};

    if (tokenizer_encode(tokenizer, text, bytes, &list, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(list.count, count);
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(list.ids[i], ids[i]);
    free(list.ids);
}

/* The best pair first and of equals the leftmost, for few symbols and for many, which are joined in
 * another way; again, when the piece is remembered. */
static void test_joining(void **state)
{
    static const char json[] =
        "{\"model\": {\"vocab\": {\"a\": 0, \"b\": 1, \"aa\": 2, \"ab\": 3, \"aab\": 4},"
        " \"merges\": [\"a a\", [\"a\", \"b\"], \"aa b\"]}, \"added_tokens\":"
        " [{\"id\": 7, \"content\": \"<x>\", \"lstrip\": true}, {\"id\": 9, \"content\": "
        "\"<x>>\"}]}";
    static const int32_t five[] = {2, 2, 0}, with_b[] = {4}, odd[] = {2, 3}, added[] = {0, 7, 9, 0};
    struct error error;
    struct tokenizer *tokenizer = open_text(json, &error);
    char many[2002];
    int32_t ids[1001];
    (void)state;

    assert_non_null(tokenizer);
    assert_int_equal(tokenizer_vocab_size(tokenizer), 10);
    assert_int_equal(tokenizer_eos(tokenizer), -1);
    for (int i = 0; i < 2; i++) {
        check_ids(tokenizer, "aaaaa", 5, five, 3);
        check_ids(tokenizer, "aab", 3, with_b, 1);
        check_ids(tokenizer, "aaab", 4, odd, 2);
        /* Characters that are unknown are left out where there is no token for them. */
        check_ids(tokenizer, "aa?b", 4, with_b, 1);
        check_ids(tokenizer, "a \t<x><x>>a", 11, added, 4);
    }
    memset(many, 'a', sizeof(many));
    many[2001] = 'b';
    for (int i = 0; i < 1000; i++)
        ids[i] = 2;
    ids[1000] = 3;
    check_ids(tokenizer, many, 2002, ids, 1001);
    ids[1000] = 0;
    check_ids(tokenizer, many, 2001, ids, 1001);
    tokenizer_close(tokenizer);
}

/* Steps that would fill the memory: each doubles the text. */
static void test_growth(void **state)
{
    char json[8192] = "{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}, \"normalizer\": "
                      "{\"type\": \"Sequence\", \"normalizers\": [";
    static const char step[] = "{\"type\": \"Replace\", \"pattern\": {\"String\": \"a\"}, "
                               "\"content\": \"aa\"}";
    struct token_list list = {NULL, 0, 0};
    struct tokenizer *tokenizer;
    struct error error;
    (void)state;

    for (int i = 0; i < 30; i++) {
        if (i > 0)
            strcat(json, ", ");
        strcat(json, step);
    }
    strcat(json, "]}}");
    tokenizer = open_text(json, &error);
    assert_non_null(tokenizer);
    assert_int_equal(tokenizer_encode(tokenizer, "aaaa", 4, &list, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_DATA);
    assert_non_null(strstr(error.text, "64 times"));
    free(list.ids);
    tokenizer_close(tokenizer);
}

static void test_damaged(void **state)
{
    static const char *const texts[][2] = {
        {"", ""},
        {"[]", "model: is missing"},
        {"{\"model\": {\"type\": \"Unigram\"}}", "Unigram"},
        {"{\"model\": {\"vocab\": {\"a\": 0}}}", "no merges"},
        {"{\"model\": {\"vocab\": {\"a\": -1}, \"merges\": []}}", "\"a\" has no id"},
        {"{\"model\": {\"vocab\": {\"a\": 99999999999}, \"merges\": []}}", "\"a\" has no id"},
        {"{\"model\": {\"vocab\": {\"a\": 0, \"a\": 1}, \"merges\": []}}", "duplicate"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [\"a a\"]}}", "merge 1"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [\"a\"]}}", "merge 1"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [], \"unk_token\": \"u\"}}", "unk_token"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}, \"normalizer\": {\"type\": \"X\"}}",
         "normalizer of type X"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}, \"pre_tokenizer\": {\"type\":"
         " \"Split\", \"pattern\": {\"Regex\": \"(\"}, \"behavior\": \"Isolated\"}}",
         "pattern ("},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}, \"decoder\": {\"type\": \"X\"}}",
         "decoder of type X"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}, \"added_tokens\": [{\"id\": 1}]}",
         "added_tokens"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        struct error error;

        assert_null(open_text(texts[i][0], &error));
        assert_int_equal(error.status, EXIT_STATUS_DATA);
        if (!strstr(error.text, texts[i][1]))
            fail_msg("%s, expected %s", error.text, texts[i][1]);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),  cmocka_unit_test(test_json),
        cmocka_unit_test(test_joining), cmocka_unit_test(test_growth),
        cmocka_unit_test(test_damaged), cmocka_unit_test(test_parts),
        cmocka_unit_test(test_errors),
    };
    const char *srcdir = getenv("srcdir");

    snprintf(golden_root, sizeof(golden_root), "%s/tests/golden/tokenizers", srcdir ? srcdir : ".");
    snprintf(golden_directory, sizeof(golden_directory), "%s/sentencepiece", golden_root);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
