/* Guards: SentencePiece's ids and texts are what the model's authors get, and dividing a long
 * document changes none of its ids. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer.h"

static char golden_directory[1024];

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

static void test_golden(void **state)
{
    struct tokenizer *tokenizer = open_golden();
    char path[1100], *line = NULL;
    size_t room = 0;
    int lines = 0;
    FILE *stream;
    (void)state;

    assert_int_equal(tokenizer_vocab_size(tokenizer), 3000);
    assert_int_equal(tokenizer_unk(tokenizer), 0);
    assert_int_equal(tokenizer_bos(tokenizer), 1);
    assert_int_equal(tokenizer_eos(tokenizer), 2);
    snprintf(path, sizeof(path), "%s/golden.jsonl", golden_directory);
    stream = fopen(path, "r");
    assert_non_null(stream);
    while (getline(&line, &room, stream) > 0)
        check_line(tokenizer, line, ++lines);
    assert_in_range(lines, 100, 10000);
    free(line);
    fclose(stream);
    tokenizer_close(tokenizer);
}

/* Text of every kind in the golden file, its line ends kept, repeated until it has many parts. */
static char *long_text(size_t *bytes)
{
    enum { ROOM = 4 << 20 };
    char path[1100], *text = malloc(ROOM);
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
    char path[1100], *text;
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
    assert_non_null(strstr(error.text, "/tokenizer.model"));
    assert_null(none);
    tokenizer_close(NULL);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_errors),
    };
    const char *srcdir = getenv("srcdir");

    snprintf(golden_directory, sizeof(golden_directory), "%s/tests/golden/tokenizers/sentencepiece",
             srcdir ? srcdir : ".");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
