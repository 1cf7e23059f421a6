/* Guards: conversations are written as their template says, the tokens that are learned are the
 * assistant's, and what is no conversation or no template is refused with the reason. That all of
 * this is what transformers makes of it is seen to by tests/parity/test_chat.py. */
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

#include "data/chat.h"
#include "data/chat_template.h"

#define ADDED "<|im_start|>,<|im_end|>,<|start_header_id|>,<|end_header_id|>,<|eot_id|>"

static char site_template[] = "/tmp/mtllm-test-chat-XXXXXX.ini";

static struct tokenizer *open_tokenizer(void)
{
    const char *srcdir = getenv("srcdir");
    struct tokenizer *tokenizer;
    struct error error = {0};
    char path[1200];

    snprintf(path, sizeof(path), "%s/tests/golden/tokenizers/sentencepiece", srcdir ? srcdir : ".");
    if (tokenizer_open(&tokenizer, path, &error) < 0) {
        if (error.status == EXIT_STATUS_CONFIGURATION)
            skip(); /* built without SentencePiece */
        fail_msg("%s", error.text);
    }
    assert_int_equal(tokenizer_add_tokens(tokenizer, ADDED, &error), 0);
    return tokenizer;
}

static void write_template(const char *text)
{
    FILE *stream = fopen(site_template, "w");

    assert_non_null(stream);
    assert_true(fputs(text, stream) >= 0 && fclose(stream) == 0);
}

/* What is learned between brackets, what others than the system wrote between quotes. */
static char *reveal(const struct chat_text *text)
{
    static const char *const begins[] = {"", "\u2039", "\u27e6"}, *const ends[] = {"", "\u203a",
                                                                                   "\u27e7"};
    char *result = NULL;
    size_t size;
    FILE *stream = open_memstream(&result, &size);
    int role = CHAT_ROLE_MARKUP;

    assert_non_null(stream);
    for (size_t i = 0; i <= text->bytes; i++) {
        int next = i < text->bytes ? text->roles[i] : CHAT_ROLE_MARKUP;

        if (next != role)
            fprintf(stream, "%s%s", ends[role], begins[next]);
        role = next;
        if (i < text->bytes)
            fputc(text->text[i], stream);
    }
    fclose(stream);
    return result;
}

struct turn {
    const char *role, *content;
};

enum { TURNS_MOST = 6 };

static int render(const char *name, const struct turn *turns, struct chat_text *text,
                  struct error *error)
{
    struct tokenizer *tokenizer = open_tokenizer();
    struct chat_message messages[TURNS_MOST] = {{0}};
    struct chat_template *template;
    size_t count = 0;
    int rc;

    for (; count < TURNS_MOST && turns[count].role; count++)
        messages[count] = (struct chat_message){turns[count].role, turns[count].content,
                                                strlen(turns[count].content), false};
    rc = chat_template_open(&template, name, tokenizer, error);
    if (rc == 0)
        rc = chat_template_render(template, messages, count, text, error);
    chat_template_close(template);
    tokenizer_close(tokenizer);
    return rc;
}

static void expect(const char *name, const struct turn *turns, const char *expected)
{
    struct chat_text text = {0};
    struct error error = {0};
    char *found;

    if (render(name, turns, &text, &error) < 0)
        fail_msg("%s: %s", name, error.text);
    found = reveal(&text);
    assert_string_equal(found, expected);
    free(found);
    chat_text_destroy(&text);
}

static const struct turn talk[TURNS_MOST] = {
    {"system", " S "}, {"user", " U\n"}, {"assistant", " A "}, {"user", "V"}, {"assistant", ""}};

static void test_templates(void **state)
{
    (void)state;
    expect("chatml", talk,
           "<|im_start|>system\n S <|im_end|>\n<|im_start|>user\n‹ U\n›<|im_end|>\n"
           "<|im_start|>assistant\n⟦ A <|im_end|>⟧\n<|im_start|>user\n‹V›<|im_end|>\n"
           "<|im_start|>assistant\n⟦<|im_end|>⟧\n");
    expect("llama2", talk,
           "<s>[INST] <<SYS>>\n S \n<</SYS>>\n\n‹ U› [/INST]⟦ A </s>⟧<s>[INST] ‹V› [/INST]"
           "⟦  </s>⟧");
    expect("llama2", talk + 1, "<s>[INST] ‹U› [/INST]⟦ A </s>⟧<s>[INST] ‹V› [/INST]⟦  </s>⟧");
    expect("llama3", talk,
           "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
           "<|start_header_id|>user<|end_header_id|>\n\n‹U›<|eot_id|>"
           "<|start_header_id|>assistant<|end_header_id|>\n\n⟦A<|eot_id|>⟧"
           "<|start_header_id|>user<|end_header_id|>\n\n‹V›<|eot_id|>"
           "<|start_header_id|>assistant<|end_header_id|>\n\n⟦<|eot_id|>⟧");
    expect("mistral", talk, "<s>[INST]  S \n\n‹ U\n›[/INST]⟦ A</s>⟧[INST] ‹V›[/INST]⟦ </s>⟧");
    expect("plain", talk,
           " S \n\nUser: ‹ U\n›\nAssistant:⟦  A </s>⟧\nUser: ‹V›\nAssistant:⟦ </s>⟧\n");
}

static void test_site_template(void **state)
{
    static const struct turn turns[TURNS_MOST] = {
        {"user", "\u3000U\u00a0\n"}, {"tool", "{content}"}, {"assistant", "A"}};
    (void)state;

    write_template("# A site's own\n"
                   "[template]\n"
                   "begin = \\{\\s\n"
                   "end = \\tend\\; \\#\n"
                   "default-system = Be\n"
                   "    \\sbrief.\\n\n"
                   "[user]\n"
                   "text = ({trim}{content}{/trim})\n"
                   "with-system = {system}({trim} {content} {/trim})\n"
                   "[tool]\n"
                   "text = |{content}|\n"
                   "[assistant]\n"
                   "text = a:{train}{content}{/train}{eos}\n");
    expect(site_template, turns, "{ Be brief.\n(‹U›)|‹{content}›|a:⟦A⟧</s>\tend; #");
}

static void test_templates_refused(void **state)
{
    static const struct {
        const char *text, *words;
        int status;
    } templates[] = {
        {"[user]\ntext = {content}\n", "nothing is to be learned", EXIT_STATUS_DATA},
        {"[user]\ntext = {contents}\n", ":2: text: \"{contents}\" is no placeholder",
         EXIT_STATUS_DATA},
        {"[user]\ntext = {content\n", "is no placeholder", EXIT_STATUS_DATA},
        {"[user]\n\ntext = \\x41\n", ":3: text: \"\\x\" means nothing", EXIT_STATUS_DATA},
        {"[user]\ntext = a\\\n", "means nothing", EXIT_STATUS_DATA},
        {"[user]\ntext = {train}{content}\n", "{train} and {/train}", EXIT_STATUS_DATA},
        {"[user]\ntext = {/trim}{trim}\n", "{trim} and {/trim}", EXIT_STATUS_DATA},
        {"[user]\ntext = {trim}{trim}{/trim}{/trim}\n", "{trim} and {/trim}", EXIT_STATUS_DATA},
        {"[user]\ntxt = {content}\n", ":2: unknown key txt", EXIT_STATUS_DATA},
        {"[template]\ntext = {content}\n", ":2: unknown key text", EXIT_STATUS_DATA},
        {"text = {content}\n", "in no section", EXIT_STATUS_DATA},
        {"[user]\nwith-system = {content}\n", "[user] has no text", EXIT_STATUS_DATA},
        {"[template]\nalternate = maybe\n", "neither yes nor no", EXIT_STATUS_DATA},
        {"[user]\ntext = a\n[user]\ntext = b\n", ":4: text is there twice", EXIT_STATUS_DATA},
        {"[user]\n  text = a\n  with-system = b\n", ":3: with-system behind spaces",
         EXIT_STATUS_DATA},
        {"[user]\ntext = \xff\n", ":2: not text in UTF-8", EXIT_STATUS_DATA},
        {"[template]\nnonsense\n", ":2: not a section", EXIT_STATUS_DATA},
        {"[template]\ntokens = <|im_end|> <|missing|>\n", "no token <|missing|>",
         EXIT_STATUS_CONFIGURATION},
    };
    static const struct turn turns[TURNS_MOST] = {{"user", "U"}};
    struct chat_text text = {0};
    struct error error = {0};
    (void)state;

    for (size_t i = 0; i < sizeof(templates) / sizeof(*templates); i++) {
        write_template(templates[i].text);
        assert_int_equal(render(site_template, turns, &text, &error), -1);
        if (!strstr(error.text, templates[i].words) || !strstr(error.text, site_template))
            fail_msg("%s, expected %s", error.text, templates[i].words);
        assert_int_equal(error.status, templates[i].status);
    }
    assert_int_equal(render("absent", turns, &text, &error), -1);
    assert_int_equal(error.status, EXIT_STATUS_USAGE);
    assert_non_null(strstr(error.text, "chatml, llama2, llama3, mistral, plain"));
    chat_text_destroy(&text);
}

static int encode(const char *name, const char *line, struct token_list *tokens,
                  struct token_list *roles, struct error *error)
{
    const struct chat_options options = {
        .template_name = name, .answer_key = "reply", .system_key = "sys"};
    struct tokenizer *tokenizer = open_tokenizer();
    json_t *json = json_loads(line, JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
    struct chat *chat;
    int rc;

    assert_non_null(json);
    assert_int_equal(chat_open(&chat, &options, tokenizer, error), 0);
    rc = chat_encode(chat, json, tokens, roles, error);
    chat_close(chat);
    json_decref(json);
    tokenizer_close(tokenizer);
    return rc;
}

static void expect_tokens(const char *name, const char *line, int64_t count, const int32_t *ids,
                          const char *expected_roles)
{
    struct token_list tokens = {0}, roles = {0};
    struct error error = {0};

    if (encode(name, line, &tokens, &roles, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(roles.count, tokens.count);
    assert_int_equal(tokens.count, count);
    assert_memory_equal(tokens.ids, ids, (size_t)count * sizeof(*ids));
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(roles.ids[i], expected_roles[i] - '0');
    free(tokens.ids);
    free(roles.ids);
}

#define EXPECT_TOKENS(name, line, roles, ...)                                                      \
    expect_tokens(name, line, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t),                  \
                  (int32_t[]){__VA_ARGS__}, roles)

#define LLAMA2                                                                                     \
    1, 574, 882, 2878, 2870, 2881, 897, 2922, 2878, 2739, 390, 13, 2896, 2837, 13, 2922, 2922,     \
        2895, 2878, 2739, 390, 13, 13, 2902, 2839, 897, 2895, 2841, 2874, 574, 2895, 882, 2878,    \
        2870, 2881, 1871, 318, 2836, 2
#define LLAMA2_ROLES "000000000000000000000001111110000002222"

/* As spm_encode has them; </s> in a message is text, and the template's is the token 2. */
static void test_tokens(void **state)
{
    (void)state;
    EXPECT_TOKENS("llama2",
                  "{\"messages\": [{\"role\": \"system\", \"content\": \"Be\"},"
                  "{\"role\": \"user\", \"content\": \"Hi </s>\"},"
                  "{\"role\": \"assistant\", \"content\": \"Yes\", \"weight\": 1}]}",
                  LLAMA2_ROLES, LLAMA2);
    EXPECT_TOKENS("llama2",
                  "{\"conversations\": [{\"from\": \"system\", \"value\": \"Be\"},"
                  "{\"from\": \"human\", \"value\": \"Hi </s>\"},"
                  "{\"from\": \"gpt\", \"value\": \"Yes\"}]}",
                  LLAMA2_ROLES, LLAMA2);
    EXPECT_TOKENS("llama2", "{\"sys\": \"Be\", \"input\": \"Hi </s>\", \"reply\": \"Yes\"}",
                  LLAMA2_ROLES, LLAMA2);
    EXPECT_TOKENS("chatml", "{\"input\": \"Hi \u65e5\", \"reply\": \"\\u0000\u00e9\"}",
                  "00011111100000000022200", 3000, 805, 13, 2902, 2839, 2836, 233, 154, 168, 3001,
                  2836, 13, 3000, 306, 2841, 331, 563, 13, 3, 2932, 3001, 2836, 13);
    EXPECT_TOKENS("plain",
                  "{\"messages\": [{\"role\": \"assistant\", \"content\": \"A\", \"weight\": 0},"
                  "{\"role\": \"assistant\", \"content\": \"B\"}]}",
                  "000000000000002200", 451, 777, 331, 563, 2865, 451, 2, 2836, 13, 2890, 777, 331,
                  563, 2865, 543, 2, 2836, 13);
}

static void test_lines_refused(void **state)
{
    static const struct {
        const char *name, *line, *words;
    } lines[] = {
        {"chatml", "[]", "not a JSON object"},
        {"chatml", "{\"text\": \"a\"}", "no string \"input\""},
        {"chatml", "{\"input\": \"a\", \"reply\": 1}", "no string \"reply\""},
        {"chatml", "{\"input\": \"a\", \"reply\": \"b\", \"sys\": 1}", "no string \"sys\""},
        {"chatml", "{\"messages\": {}}", "not a list"},
        {"chatml", "{\"messages\": []}", "is empty"},
        {"chatml", "{\"messages\": [1]}", "message 1: not a JSON object"},
        {"chatml", "{\"messages\": [{\"role\": \"user\"}]}", "message 1: no string \"content\""},
        {"chatml", "{\"messages\": [{\"content\": \"user\"}]}", "message 1: no string \"role\""},
        {"chatml", "{\"messages\": [{\"role\": \"judge\", \"content\": \"\"}]}",
         "\"judge\" is not in the template, which has system, user, assistant, tool"},
        {"chatml", "{\"messages\": [{\"role\": \"a\\nb\", \"content\": \"\"}]}", "role \"a?b\""},
        {"chatml", "{\"messages\": [{\"role\": \"user\", \"content\": \"\"}]}", "nothing in it"},
        {"chatml", "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0}]}",
         "nothing in it"},
        {"llama2", "{\"messages\": [{\"role\": \"assistant\", \"content\": \"\"}]}",
         "message 1: assistant, where user comes next"},
        {"llama2",
         "{\"messages\": [{\"role\": \"user\", \"content\": \"\"},"
         "{\"role\": \"user\", \"content\": \"\"}]}",
         "message 2: user, where assistant comes next"},
        {"llama2",
         "{\"messages\": [{\"role\": \"user\", \"content\": \"\"},"
         "{\"role\": \"system\", \"content\": \"\"}]}",
         "message 2: with this template a system message comes first"},
        {"llama2", "{\"messages\": [{\"role\": \"system\", \"content\": \"\"}]}",
         "no message that could take in the system message"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++) {
        struct token_list tokens = {0}, roles = {0};
        struct error error = {0};

        assert_int_equal(encode(lines[i].name, lines[i].line, &tokens, &roles, &error), -1);
        if (error.status != EXIT_STATUS_DATA || !strstr(error.text, lines[i].words))
            fail_msg("%s: %s, expected %s", lines[i].line, error.text, lines[i].words);
        assert_int_equal(tokens.count, 0);
        assert_int_equal(roles.count, 0);
        free(tokens.ids);
        free(roles.ids);
    }
}

/* Bytes of a character that has no piece are tokens, of which the last has all of it. */
static void test_spans(void **state)
{
    struct tokenizer *tokenizer = open_tokenizer();
    static const char text[] = "a\u00e9\u65e5b";
    static const struct token_span expected[] = {{0, 1}, {1, 3}, {3, 3}, {3, 3}, {3, 6}, {6, 7}};
    struct token_list list = {0};
    struct token_span *spans;
    struct error error = {0};
    (void)state;

    assert_int_equal(
        tokenizer_encode_spans(tokenizer, text, sizeof(text) - 1, NULL, &list, &spans, &error), 0);
    assert_int_equal(list.count, sizeof(expected) / sizeof(*expected));
    assert_memory_equal(spans, expected, sizeof(expected));
    assert_int_equal(tokenizer_find(tokenizer, "<|eot_id|>"), 3004);
    assert_int_equal(tokenizer_find(tokenizer, "</s>"), 2);
    assert_int_equal(tokenizer_find(tokenizer, "<|none|>"), -1);
    assert_int_equal(tokenizer_vocab_size(tokenizer), 3005);
    free(list.ids);
    free(spans);
    tokenizer_close(tokenizer);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_templates),         cmocka_unit_test(test_site_template),
        cmocka_unit_test(test_templates_refused), cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_lines_refused),     cmocka_unit_test(test_spans),
    };
    const char *srcdir = getenv("srcdir");
    char directory[1100];
    int descriptor = mkstemps(site_template, 4), failed;

    if (descriptor < 0)
        return 1;
    close(descriptor);
    snprintf(directory, sizeof(directory), "%s/etc/templates", srcdir ? srcdir : ".");
    setenv("MTLLM_TEMPLATES", directory, 1);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(site_template);
    return failed;
}
