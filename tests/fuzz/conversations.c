#include <string.h>

#include "data/chat.h"
#include "tests/fuzz/fuzz.h"

static const char tokenizer_json[] =
    "{\"added_tokens\": [{\"id\": 300, \"content\": \"<s>\"}, {\"id\": 301, \"content\": \"</s>\","
    " \"rstrip\": true}], \"normalizer\": {\"type\": \"NFC\"}, \"pre_tokenizer\": {\"type\":"
    " \"ByteLevel\", \"add_prefix_space\": true, \"use_regex\": true}, \"decoder\": {\"type\":"
    " \"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"unk_token\": \"?\", \"vocab\": {\"?\": 0, "
    "\"a\": 1,"
    " \"b\": 2, \"\\u0120\": 3, \"ab\": 4, \"\\u010a\": 5}, \"merges\": [\"a b\"]}}";
static const char tokenizer_config[] = "{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\"}";

static void write_beside(const char *directory, const char *name, const char *text)
{
    char path[300];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    write_file(path, text, strlen(text));
}

static struct tokenizer *open_tokenizer(const char *directory)
{
    static struct tokenizer *tokenizer;
    struct error error = {0};

    if (!tokenizer) {
        write_beside(directory, "tokenizer.json", tokenizer_json);
        write_beside(directory, "tokenizer_config.json", tokenizer_config);
        check(tokenizer_open(&tokenizer, directory, &error) == 0);
    }
    return tokenizer;
}

static void check_text(const struct error *error, int status)
{
    check(error->status == status);
    for (const char *at = error->text; *at; at++)
        check((unsigned char)*at >= ' ' && *at != 0x7f);
}

/* As many roles as tokens, of which some are learned. */
static bool encode(const struct chat *chat, const struct tokenizer *tokenizer, const json_t *line)
{
    struct token_list tokens = {0}, roles = {0};
    struct error error = {0};
    bool accepted = chat_encode(chat, line, &tokens, &roles, &error) == 0, learned = false;

    if (!accepted)
        check_text(&error, EXIT_STATUS_DATA);
    check(tokens.count == roles.count && (tokens.count > 0) == accepted);
    for (int64_t i = 0; i < tokens.count; i++) {
        check(tokens.ids[i] >= 0 && tokens.ids[i] < tokenizer_vocab_size(tokenizer));
        check(roles.ids[i] >= 0 && roles.ids[i] <= 2);
        learned = learned || roles.ids[i] == 2;
    }
    check(learned == accepted);
    free(tokens.ids);
    free(roles.ids);
    return accepted;
}

bool chat_accepts(const char *directory, const char *file, const uint8_t *data, size_t size)
{
    const struct chat_options options = {
        .template_name = file, .system_key = "system", .text_messages = size % 2 == 0};
    const struct tokenizer *tokenizer = open_tokenizer(directory);
    const uint8_t *end = memchr(data, '\0', size);
    size_t bytes = end ? (size_t)(end - data) : size;
    json_t *line = end ? json_loadb((const char *)end + 1, size - bytes - 1,
                                    JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL)
                       : NULL;
    struct error error = {0};
    struct chat *chat;
    bool accepted = false;

    write_file(file, data, bytes);
    if (chat_open(&chat, &options, tokenizer, &error) < 0) {
        check(strncmp(error.text, file, strlen(file)) == 0);
        check_text(&error, error.status == EXIT_STATUS_CONFIGURATION ? EXIT_STATUS_CONFIGURATION
                                                                     : EXIT_STATUS_DATA);
    } else if (line) {
        accepted = encode(chat, tokenizer, line);
    }
    chat_close(chat);
    json_decref(line);
    return accepted;
}
