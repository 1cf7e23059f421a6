#include "data/chat.h"

#include <stdlib.h>
#include <string.h>

#include "data/chat_template.h"

struct chat {
    const struct tokenizer *tokenizer;
    struct chat_template *template;
    const char *question_key, *answer_key, *system_key;
    int32_t bos, eod; /* -1: none */
    bool text_messages;
};

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

int chat_open(struct chat **result, const struct chat_options *options,
              const struct tokenizer *tokenizer, struct error *error)
{
    struct chat *chat = calloc(1, sizeof(*chat));

    *result = NULL;
    if (!chat)
        return out_of_memory(error);
    chat->tokenizer = tokenizer;
    chat->question_key = options->question_key ? options->question_key : "input";
    chat->answer_key = options->answer_key ? options->answer_key : "output";
    chat->system_key = options->system_key;
    chat->text_messages = options->text_messages;
    chat->bos = options->bos ? tokenizer_bos(tokenizer) : -1;
    chat->eod = options->eod ? tokenizer_eos(tokenizer) : -1;
    if (chat_template_open(&chat->template, options->template_name, tokenizer, error) < 0) {
        chat_close(chat);
        return -1;
    }
    *result = chat;
    return 0;
}

void chat_close(struct chat *chat)
{
    if (!chat)
        return;
    chat_template_close(chat->template);
    free(chat);
}

const char *chat_template_file(const struct chat *chat)
{
    return chat_template_path(chat->template);
}

/* --- messages --------------------------------------------------------------------------------- */

/* How the members of a message are called. */
struct dialect {
    const char *list, *role, *content;
};

static const struct dialect openai = {"messages", "role", "content"};
static const struct dialect share_gpt = {"conversations", "from", "value"};

/* ShareGPT's name of a role, as others call it. */
static const char *common_role(const char *role)
{
    static const char *const names[][2] = {{"human", "user"}, {"gpt", "assistant"}};

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (strcmp(role, names[i][0]) == 0)
            return names[i][1];
    return role;
}

/* A "weight" of 0 is OpenAI's way to say that an answer is not to be learned. */
static bool is_untrained(const json_t *json)
{
    const json_t *weight = json_object_get(json, "weight");

    return json_is_number(weight) && json_number_value(weight) == 0;
}

static int read_message(const json_t *json, size_t number, const struct dialect *dialect,
                        struct chat_message *message, struct error *error)
{
    const json_t *role = json_object_get(json, dialect->role);
    const json_t *content = json_object_get(json, dialect->content);

    if (!json_is_object(json))
        return error_set(error, EXIT_STATUS_DATA, "message %zu: not a JSON object", number);
    if (!json_is_string(role) || !json_is_string(content))
        return error_set(error, EXIT_STATUS_DATA, "message %zu: no string \"%s\"", number,
                         json_is_string(role) ? dialect->content : dialect->role);
    *message = (struct chat_message){
        .role = json_string_value(role),
        .content = json_string_value(content),
        .bytes = json_string_length(content),
        .untrained = is_untrained(json),
    };
    if (dialect == &share_gpt)
        message->role = common_role(message->role);
    return 0;
}

static int read_messages(const json_t *list, const struct dialect *dialect,
                         struct chat_message **messages, size_t *count, struct error *error)
{
    *count = json_array_size(list);
    if (!json_is_array(list) || *count == 0)
        return error_set(error, EXIT_STATUS_DATA, "member \"%s\" is %s", dialect->list,
                         json_is_array(list) ? "empty" : "not a list");
    *messages = calloc(*count, sizeof(**messages));
    if (!*messages)
        return out_of_memory(error);
    for (size_t i = 0; i < *count; i++)
        if (read_message(json_array_get(list, i), i + 1, dialect, &(*messages)[i], error) < 0)
            return -1;
    return 0;
}

/* A member of the line as a message. */
static int read_member(const json_t *line, const char *key, const char *role,
                       struct chat_message *message, struct error *error)
{
    const json_t *text = json_object_get(line, key);

    if (!json_is_string(text))
        return error_set(error, EXIT_STATUS_DATA,
                         "neither \"messages\" nor \"conversations\", and no string \"%s\" "
                         "(--question-key, --answer-key and --system-key name others)",
                         key);
    *message = (struct chat_message){
        .role = role, .content = json_string_value(text), .bytes = json_string_length(text)};
    return 0;
}

/* Question and answer. A system message may be missing, or empty. */
static int read_pair(const struct chat *chat, const json_t *line, struct chat_message **messages,
                     size_t *count, struct error *error)
{
    const char *key = chat->system_key;
    struct chat_message *list = calloc(3, sizeof(*list));

    *messages = list;
    *count = 0;
    if (!list)
        return out_of_memory(error);
    if (key && json_object_get(line, key)) {
        if (read_member(line, key, "system", list, error) < 0)
            return -1;
        *count = list->bytes > 0;
    }
    if (read_member(line, chat->question_key, "user", &list[(*count)++], error) < 0)
        return -1;
    return read_member(line, chat->answer_key, "assistant", &list[(*count)++], error);
}

static int find_messages(const struct chat *chat, const json_t *line,
                         struct chat_message **messages, size_t *count, struct error *error)
{
    static const struct dialect *const dialects[] = {&openai, &share_gpt};

    if (!json_is_object(line))
        return error_set(error, EXIT_STATUS_DATA, "not a JSON object");
    for (int i = 0; i < 2; i++) {
        const json_t *list = json_object_get(line, dialects[i]->list);

        if (list)
            return read_messages(list, dialects[i], messages, count, error);
    }
    return read_pair(chat, line, messages, count, error);
}

/* --- tokens ----------------------------------------------------------------------------------- */

static uint8_t greatest_role(const struct chat_text *text, size_t begin, size_t end)
{
    uint8_t role = text->roles[begin];

    for (size_t i = begin + 1; i < end; i++)
        if (text->roles[i] > role)
            role = text->roles[i];
    return role;
}

static int append(struct token_list *list, int32_t number)
{
    if (token_list_reserve(list, 1) < 0)
        return -1;
    list->ids[list->count++] = number;
    return 0;
}

/* Text in which the tokenizer finds tokens by itself, or in which there are none. */
static int encode_stretch(const struct chat *chat, const struct chat_text *text, size_t begin,
                          size_t end, struct token_list *tokens, struct token_list *roles,
                          struct error *error)
{
    int64_t before = tokens->count;
    struct token_span *spans;
    int rc;

    if (end == begin)
        return 0;
    rc = tokenizer_encode_spans(chat->tokenizer, text->text + begin, end - begin,
                                chat->text_messages ? text->written + begin : NULL, tokens, &spans,
                                error);
    for (int64_t i = 0; rc == 0 && i < tokens->count - before; i++) {
        /* One without text counts for what follows; at the end there is nothing that could. */
        size_t first = begin + spans[i].begin, last = begin + spans[i].end;

        if (append(roles, greatest_role(text, first < end ? first : end - 1, last)) < 0)
            rc = out_of_memory(error);
    }
    free(spans);
    return rc;
}

/* Tokens of the template stand by themselves, and what lies between them is text. */
static int encode_around_tokens(const struct chat *chat, const struct chat_text *text,
                                struct token_list *tokens, struct token_list *roles,
                                struct error *error)
{
    size_t begin = 0;

    for (size_t i = 0; i < text->token_count; i++) {
        const struct chat_token *token = &text->tokens[i];

        if (encode_stretch(chat, text, begin, token->begin, tokens, roles, error) < 0)
            return -1;
        if (append(tokens, token->id) < 0 ||
            append(roles, greatest_role(text, token->begin, token->end)) < 0)
            return out_of_memory(error);
        begin = token->end;
    }
    return encode_stretch(chat, text, begin, text->bytes, tokens, roles, error);
}

static int encode_text(const struct chat *chat, const struct chat_text *text,
                       struct token_list *tokens, struct token_list *roles, struct error *error)
{
    int64_t first = roles->count, i = first;

    if ((tokenizer_sees_tokens(chat->tokenizer)
             ? encode_stretch(chat, text, 0, text->bytes, tokens, roles, error)
             : encode_around_tokens(chat, text, tokens, roles, error)) < 0)
        return -1;
    while (i < roles->count && roles->ids[i] != CHAT_ROLE_TRAINED)
        i++;
    return i < roles->count ? 0
                            : error_set(error, EXIT_STATUS_DATA,
                                        "nothing in it is to be learned: no message of the "
                                        "assistant, or only of weight 0");
}

/* A token around the conversation, unless it is none. */
static int append_end(int32_t id, struct token_list *tokens, struct token_list *roles,
                      struct error *error)
{
    if (id >= 0 && (append(tokens, id) < 0 || append(roles, CHAT_ROLE_MARKUP) < 0))
        return out_of_memory(error);
    return 0;
}

int chat_encode(const struct chat *chat, const json_t *line, struct token_list *tokens,
                struct token_list *roles, struct error *error)
{
    int64_t tokens_before = tokens->count, roles_before = roles->count;
    struct chat_message *messages = NULL;
    struct chat_text text = {0};
    size_t count = 0;
    int rc;

    rc = find_messages(chat, line, &messages, &count, error);
    if (rc == 0)
        rc = chat_template_render(chat->template, messages, count, &text, error);
    if (rc == 0)
        rc = append_end(chat->bos, tokens, roles, error);
    if (rc == 0)
        rc = encode_text(chat, &text, tokens, roles, error);
    if (rc == 0)
        rc = append_end(chat->eod, tokens, roles, error);
    if (rc < 0) {
        tokens->count = tokens_before;
        roles->count = roles_before;
    }
    chat_text_destroy(&text);
    free(messages);
    return rc;
}
