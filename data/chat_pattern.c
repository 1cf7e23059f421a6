#include "data/chat_pattern.h"

#include <stdlib.h>
#include <string.h>

enum step_type {
    STEP_TEXT,
    STEP_TOKEN, /* text that is a token */
    STEP_CONTENT,
    STEP_SYSTEM,
    STEP_TRAIN,
    STEP_TRAIN_END,
    STEP_TRIM,
    STEP_TRIM_END,
    STEP_BOS, /* only while a pattern is read: they become STEP_TOKEN */
    STEP_EOS,
    STEP_TYPES
};

static const char *const step_names[STEP_TYPES] = {
    [STEP_CONTENT] = "content",  [STEP_SYSTEM] = "system", [STEP_TRAIN] = "train",
    [STEP_TRAIN_END] = "/train", [STEP_TRIM] = "trim",     [STEP_TRIM_END] = "/trim",
    [STEP_BOS] = "bos",          [STEP_EOS] = "eos"};

struct chat_step {
    enum step_type type;
    char *text;
    size_t bytes;
    int32_t id;
};

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

/* --- tokens ----------------------------------------------------------------------------------- */

int chat_words_add(struct chat_words *words, const char *text, size_t bytes, int32_t id)
{
    struct chat_word *list = realloc(words->list, (words->count + 1) * sizeof(*list));
    char *copy = strndup(text, bytes);

    if (list)
        words->list = list;
    if (!list || !copy) {
        free(copy);
        return -1;
    }
    list[words->count++] = (struct chat_word){copy, bytes, id};
    return 0;
}

void chat_words_destroy(struct chat_words *words)
{
    for (size_t i = 0; i < words->count; i++)
        free(words->list[i].text);
    free(words->list);
    *words = (struct chat_words){0};
}

/* The longest that stands there; NULL when there is none. */
static const struct chat_word *word_at(const struct chat_words *words, const char *text,
                                       size_t bytes)
{
    const struct chat_word *found = NULL;

    for (size_t i = 0; i < words->count; i++) {
        const struct chat_word *word = &words->list[i];

        if (word->bytes > 0 && word->bytes <= bytes && memcmp(word->text, text, word->bytes) == 0 &&
            (!found || word->bytes > found->bytes))
            found = word;
    }
    return found;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* What a backslash and this character stand for; 0: nothing. */
static char escaped(char character)
{
    static const char names[] = "ntrs\\{};#\"", meanings[] = "\n\t\r \\{};#\"";
    const char *found = character ? strchr(names, character) : NULL;

    return (char)(found ? meanings[found - names] : 0);
}

static int refuse_escape(const char *at, struct error *error)
{
    return error_set(error, EXIT_STATUS_DATA,
                     "\"%.2s\" means nothing; there are \\n, \\t, \\r, \\s (a space), \\\\, \\{, "
                     "\\}, \\; and \\#",
                     at);
}

char *chat_unescape(const char *text, struct error *error)
{
    char *result = malloc(strlen(text) + 1), *to = result;

    if (!result)
        out_of_memory(error);
    for (const char *at = text; result && *at; at++) {
        *to = *at;
        if (*at == '\\' && !(*to = escaped(*++at))) {
            refuse_escape(at - 1, error);
            free(result);
            return NULL;
        }
        to++;
    }
    if (result)
        *to = '\0';
    return result;
}

static int add_step(struct chat_pattern *pattern, enum step_type type, const char *text,
                    size_t bytes, int32_t id)
{
    struct chat_step *list = realloc(pattern->list, (pattern->count + 1) * sizeof(*list));
    char *copy = strndup(text, bytes);

    if (list)
        pattern->list = list;
    if (!list || !copy) {
        free(copy);
        return -1;
    }
    list[pattern->count++] = (struct chat_step){type, copy, bytes, id};
    return 0;
}

/* Text without placeholders; the tokens in it are steps of their own. */
static int add_text(struct chat_pattern *pattern, const char *text, size_t bytes,
                    const struct chat_words *words)
{
    size_t begin = 0;

    for (size_t at = 0; at < bytes;) {
        const struct chat_word *word = word_at(words, text + at, bytes - at);

        if (!word) {
            at++;
            continue;
        }
        if ((at > begin && add_step(pattern, STEP_TEXT, text + begin, at - begin, -1) < 0) ||
            add_step(pattern, STEP_TOKEN, word->text, word->bytes, word->id) < 0)
            return -1;
        begin = at += word->bytes;
    }
    return bytes > begin ? add_step(pattern, STEP_TEXT, text + begin, bytes - begin, -1) : 0;
}

/* {bos} or {eos} */
static int add_end(struct chat_pattern *pattern, const char *name, const char *text,
                   const struct chat_words *words, struct error *error)
{
    if (!text)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "{%s}: the tokenizer names no such token (tokenizer_config.json beside a "
                         "tokenizer.json does)",
                         name);
    return add_text(pattern, text, strlen(text), words) < 0 ? out_of_memory(error) : 0;
}

/* What "{" begins; *at is moved behind it. */
static int add_placeholder(struct chat_pattern *pattern, const char **at,
                           const struct chat_words *words, struct error *error)
{
    const char *name = *at + 1;
    size_t length = strcspn(name, "}");

    for (int i = 0; i < STEP_TYPES; i++) {
        if (!step_names[i] || strlen(step_names[i]) != length ||
            strncmp(step_names[i], name, length) != 0 || name[length] != '}')
            continue;
        *at = name + length + 1;
        if (i == STEP_BOS || i == STEP_EOS)
            return add_end(pattern, step_names[i], i == STEP_BOS ? words->bos : words->eos, words,
                           error);
        return add_step(pattern, (enum step_type)i, "", 0, -1) < 0 ? out_of_memory(error) : 0;
    }
    return error_set(error, EXIT_STATUS_DATA,
                     "\"%.20s\" is no placeholder; there are {content}, {system}, {bos}, {eos}, "
                     "{train}...{/train} and {trim}...{/trim}; write \\{ for a brace",
                     *at);
}

/* {train} and {trim} end where they should, and do not stand in themselves. */
static int check_pairs(const struct chat_pattern *pattern, struct error *error)
{
    for (int begin = STEP_TRAIN; begin <= STEP_TRIM; begin += STEP_TRIM - STEP_TRAIN) {
        int depth = 0;

        for (size_t i = 0; i < pattern->count && depth >= 0 && depth <= 1; i++)
            depth +=
                ((int)pattern->list[i].type == begin) - ((int)pattern->list[i].type == begin + 1);
        if (depth != 0)
            return error_set(error, EXIT_STATUS_DATA, "{%s} and {%s} do not come in pairs",
                             step_names[begin], step_names[begin + 1]);
    }
    return 0;
}

static int read_pattern(struct chat_pattern *pattern, const char *text, char *run,
                        const struct chat_words *words, struct error *error)
{
    size_t bytes = 0;

    for (const char *at = text; *at;) {
        if (*at != '{') {
            run[bytes] = *at;
            if (*at == '\\' && !(run[bytes] = escaped(*++at)))
                return refuse_escape(at - 1, error);
            bytes++;
            at++;
            continue;
        }
        if (add_text(pattern, run, bytes, words) < 0)
            return out_of_memory(error);
        bytes = 0;
        if (add_placeholder(pattern, &at, words, error) < 0)
            return -1;
    }
    if (add_text(pattern, run, bytes, words) < 0)
        return out_of_memory(error);
    return check_pairs(pattern, error);
}

int chat_pattern_create(struct chat_pattern *pattern, const char *text,
                        const struct chat_words *words, struct error *error)
{
    char *run = malloc(strlen(text) + 1); /* text between two placeholders */
    int rc;

    *pattern = (struct chat_pattern){0};
    rc = run ? read_pattern(pattern, text, run, words, error) : out_of_memory(error);
    free(run);
    if (rc < 0)
        chat_pattern_destroy(pattern);
    return rc;
}

void chat_pattern_destroy(struct chat_pattern *pattern)
{
    for (size_t i = 0; i < pattern->count; i++)
        free(pattern->list[i].text);
    free(pattern->list);
    *pattern = (struct chat_pattern){0};
}

bool chat_pattern_is_trained(const struct chat_pattern *pattern)
{
    for (size_t i = 0; i < pattern->count; i++)
        if (pattern->list[i].type == STEP_TRAIN)
            return true;
    return false;
}

/* --- expanding -------------------------------------------------------------------------------- */

void chat_text_destroy(struct chat_text *text)
{
    free(text->text);
    free(text->roles);
    free(text->written);
    free(text->tokens);
    *text = (struct chat_text){0};
}

/* White space beyond ASCII, as Python's str.strip() has it. */
static const char *const wide_spaces[] = {
    "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81",
    "\xe2\x80\x82", "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86",
    "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a", "\xe2\x80\xa8",
    "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};

/* Bytes of the white space that text begins or ends with; 0: with none. */
static size_t space_bytes(const char *text, size_t bytes, bool at_end)
{
    unsigned char byte = 0;

    if (bytes > 0)
        byte = (unsigned char)text[at_end ? bytes - 1 : 0];
    if ((byte >= '\t' && byte <= '\r') || (byte >= 0x1c && byte <= ' '))
        return 1;
    for (size_t i = 0; i < sizeof(wide_spaces) / sizeof(*wide_spaces); i++) {
        size_t length = strlen(wide_spaces[i]);

        if (length <= bytes &&
            memcmp(text + (at_end ? bytes - length : 0), wide_spaces[i], length) == 0)
            return length;
    }
    return 0;
}

static int reserve(struct chat_text *text, size_t room)
{
    char *letters = realloc(text->text, room);
    uint8_t *roles = realloc(text->roles, room), *written = realloc(text->written, room);

    if (letters)
        text->text = letters;
    if (roles)
        text->roles = roles;
    if (written)
        text->written = written;
    if (!letters || !roles || !written)
        return -1;
    text->room = room;
    return 0;
}

/* Text that is somebody's. */
struct words {
    const char *text;
    size_t bytes;
    enum chat_role role;
    bool written; /* in a message */
};

static int append(struct chat_text *text, const struct words *words)
{
    size_t bytes = text->bytes + words->bytes;

    if (bytes > text->room && reserve(text, 2 * bytes + 256) < 0)
        return -1;
    if (words->bytes > 0) {
        memcpy(text->text + text->bytes, words->text, words->bytes);
        memset(text->roles + text->bytes, words->role, words->bytes);
        memset(text->written + text->bytes, words->written, words->bytes);
    }
    text->bytes = bytes;
    return 0;
}

static int append_token(struct chat_text *text, const struct chat_step *step)
{
    const struct words words = {step->text, step->bytes, CHAT_ROLE_MARKUP, false};

    if (text->token_count == text->token_room) {
        size_t room = 2 * text->token_room + 16;
        struct chat_token *tokens = realloc(text->tokens, room * sizeof(*tokens));

        if (!tokens)
            return -1;
        text->tokens = tokens;
        text->token_room = room;
    }
    text->tokens[text->token_count++] =
        (struct chat_token){text->bytes, text->bytes + step->bytes, step->id};
    return append(text, &words);
}

/* Text within {trim} up to here: what it begins with is left out while there is nothing yet. */
static int append_trimmed(struct chat_text *text, struct words words, size_t trim)
{
    size_t space;

    while (text->bytes == trim && (space = space_bytes(words.text, words.bytes, false)) > 0) {
        words.text += space;
        words.bytes -= space;
    }
    return append(text, &words);
}

int chat_pattern_expand(const struct chat_pattern *pattern, const struct chat_values *values,
                        struct chat_text *text)
{
    size_t trim = SIZE_MAX, train = 0, space; /* where they began; no text is as long as that */
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < pattern->count; i++) {
        const struct chat_step *step = &pattern->list[i];

        switch (step->type) {
        case STEP_TOKEN:
            rc = append_token(text, step);
            break;
        case STEP_TEXT:
            rc = append_trimmed(
                text, (struct words){step->text, step->bytes, CHAT_ROLE_MARKUP, false}, trim);
            break;
        case STEP_CONTENT:
            rc = append_trimmed(
                text, (struct words){values->content, values->content_bytes, values->role, true},
                trim);
            break;
        case STEP_SYSTEM:
            rc = append_trimmed(
                text, (struct words){values->system, values->system_bytes, CHAT_ROLE_MARKUP, true},
                trim);
            break;
        case STEP_TRAIN:
            train = text->bytes;
            break;
        case STEP_TRAIN_END:
            if (!values->untrained && text->bytes > train)
                memset(text->roles + train, CHAT_ROLE_TRAINED, text->bytes - train);
            break;
        case STEP_TRIM:
            trim = text->bytes;
            break;
        case STEP_TRIM_END:
            while (text->bytes > trim &&
                   (space = space_bytes(text->text + trim, text->bytes - trim, true)) > 0)
                text->bytes -= space;
            trim = SIZE_MAX;
            break;
        default:
            break;
        }
    }
    return rc;
}
