/* Guards: what any of a tokenizer's files calls special is no answer, nothing else is, and files
 * that are damaged or name ids beyond the vocabulary do no harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "ckpt/special_tokens.h"

enum { VOCABULARY = 12 };

static void put(struct kept_files *files, const char *name, const char *text)
{
    struct error error = {0};

    if (kept_files_put(files, name, strdup(text), strlen(text), &error) < 0)
        fail_msg("%s", error.text);
}

static void check(const struct kept_files *files, const char *expected)
{
    uint8_t marks[VOCABULARY + 1] = {0};

    special_tokens_mark(marks, VOCABULARY, files);
    for (int i = 0; i < VOCABULARY; i++)
        if (marks[i] != expected[i] - '0')
            fail_msg("token %d: %d, expected %c", i, marks[i], expected[i]);
    assert_int_equal(marks[VOCABULARY], 0);
}

static void test_files(void **state)
{
    struct kept_files files = {0};
    (void)state;

    check(&files, "000000000000");
    put(&files, "tokenizer.json",
        "{\"added_tokens\": [{\"id\": 1, \"content\": \"<s>\", \"special\": true},"
        " {\"id\": 2, \"content\": \"    \", \"special\": false},"
        " {\"id\": 3, \"content\": \"<|im_start|>\", \"special\": true},"
        " {\"content\": \"no id\", \"special\": true},"
        " {\"id\": \"2\", \"content\": \"no number\", \"special\": true},"
        " {\"id\": 12, \"content\": \"x\", \"special\": true},"
        " {\"id\": -1, \"content\": \"y\", \"special\": true}]}");
    check(&files, "010300000000");
    put(&files, "tokenizer_config.json",
        "{\"added_tokens_decoder\": {\"5\": {\"content\": \"</s>\", \"special\": true},"
        " \"7x\": {\"content\": \"no number\", \"special\": true},"
        " \"6\": {\"content\": \"word\", \"special\": false}}}");
    put(&files, "added_tokens.json",
        "{\"<|im_end|>\": 9, \"<pad>\": 11, \"<far>\": 4000000, \"no\": []}");
    check(&files, "010301000301");
    put(&files, "tokenizer.json", "{\"added_tokens\": [{\"id\": 1, \"spec");
    check(&files, "000001000301");
    put(&files, "tokenizer.model", "no model");
    check(&files, "000001000301");
    kept_files_destroy(&files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_files)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
