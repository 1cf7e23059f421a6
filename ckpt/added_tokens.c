#include "ckpt/added_tokens.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "ckpt/hf_tokenizer.h"
#include "ckpt/json_text.h"
#include "core/token_names.h"

/* Beyond any vocabulary; vocab-size ends there. */
#define ID_MAX ((int64_t)1 << 24)

/* What is being entered, and where. */
struct entry {
    struct added_tokens *tokens;
    struct kept_files *files;
    struct error *error;
};

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

/* --- the option ------------------------------------------------------------------------------ */

int added_tokens_parse(struct added_tokens *tokens, const char *option, struct error *error)
{
    struct token_names names;

    *tokens = (struct added_tokens){0};
    if (token_names_parse(&names, option, error) < 0)
        return -1;
    tokens->list = calloc(names.count, sizeof(*tokens->list));
    for (; tokens->list && tokens->count < names.count; tokens->count++) {
        tokens->list[tokens->count] = (struct added_token){names.list[tokens->count], -1};
        names.list[tokens->count] = NULL; /* taken */
    }
    token_names_destroy(&names);
    return tokens->list ? 0 : out_of_memory(error);
}

void added_tokens_destroy(struct added_tokens *tokens)
{
    for (size_t i = 0; i < tokens->count; i++)
        free(tokens->list[i].text);
    free(tokens->list);
    *tokens = (struct added_tokens){0};
}

/* --- what the files know --------------------------------------------------------------------- */

/* What the files have told so far. */
struct seen {
    struct added_tokens *tokens;
    const char *file, *strange_file; /* the one being looked at; one with an id that is none */
    int64_t strange;
};

/* A token of some file; `text` may be NULL. */
static void see(struct seen *seen, const char *text, int64_t id)
{
    struct added_tokens *tokens = seen->tokens;

    if (id < 0 || id >= ID_MAX) {
        seen->strange_file = seen->file;
        seen->strange = id;
        return;
    }
    if (id >= tokens->first)
        tokens->first = id + 1;
    for (size_t i = 0; text && i < tokens->count; i++)
        if (strcmp(tokens->list[i].text, text) == 0)
            tokens->list[i].id = id;
}

static void see_piece(void *user, const struct hf_piece *piece)
{
    see(user, piece->text, piece->id);
}

/* {"token": id, ...} */
static void see_ids(struct seen *seen, json_t *map)
{
    const char *text;
    json_t *id;

    json_object_foreach(map, text, id)
    {
        if (json_is_integer(id))
            see(seen, text, json_integer_value(id));
    }
}

/* [["token", score], ...] of a Unigram model: the place is the id. */
static void see_scores(struct seen *seen, const json_t *list)
{
    const json_t *pair;
    size_t id;

    json_array_foreach(list, id, pair)
    {
        see(seen, json_string_value(json_array_get(pair, 0)), (int64_t)id);
    }
}

/* [{"id": ..., "content": ...}, ...] */
static void see_entries(struct seen *seen, const json_t *list)
{
    const json_t *token;
    size_t i;

    json_array_foreach(list, i, token)
    {
        const json_t *id = json_object_get(token, "id");

        if (json_is_integer(id))
            see(seen, json_string_value(json_object_get(token, "content")), json_integer_value(id));
    }
}

/* {"id": {"content": ...}, ...} */
static void see_decoder(struct seen *seen, json_t *decoder)
{
    const char *id;
    json_t *token;

    json_object_foreach(decoder, id, token)
    {
        see(seen, json_string_value(json_object_get(token, "content")), strtoll(id, NULL, 10));
    }
}

/* The JSON object in a file; *json stays NULL when there is no such file. */
static int parse(const struct entry *entry, const char *name, json_t **json)
{
    const struct checkpoint_file *file = kept_files_find(entry->files, name);
    json_error_t reason;

    *json = NULL;
    if (!file)
        return 0;
    *json = json_text_parse(file->bytes, file->size, JSON_TOKENIZER_VALUES, 0, &reason);
    if (!*json)
        return error_set(entry->error, EXIT_STATUS_DATA, "add-tokens: %s: %s", name, reason.text);
    if (!json_is_object(*json))
        return error_set(entry->error, EXIT_STATUS_DATA, "add-tokens: %s is no JSON object", name);
    return 0;
}

/* --- what they are told ---------------------------------------------------------------------- */

/* Into a list that is sorted by id, unless it is there. */
static int enter_into_list(json_t *list, const struct added_token *token)
{
    size_t at = 0;

    for (; at < json_array_size(list); at++) {
        const json_t *id = json_object_get(json_array_get(list, at), "id");

        if (json_integer_value(id) == token->id && json_is_integer(id))
            return 0;
        if (json_integer_value(id) > token->id)
            break;
    }
    return json_array_insert_new(list, at, hf_added_token(token->text, token->id));
}

static int enter_into_decoder(json_t *decoder, const struct added_token *token)
{
    char id[24];

    snprintf(id, sizeof(id), "%lld", (long long)token->id);
    return json_object_get(decoder, id)
               ? 0
               : json_object_set_new(decoder, id, hf_special_token(token->text));
}

static int enter_into_map(json_t *map, const struct added_token *token)
{
    return json_object_set_new(map, token->text, json_integer(token->id));
}

/* The list in tokenizer.json, made if need be. */
static json_t *list_of(json_t *tokenizer)
{
    json_t *list = json_object_get(tokenizer, "added_tokens");

    if (json_is_array(list))
        return list;
    list = json_array();
    return json_object_set_new(tokenizer, "added_tokens", list) == 0 ? list : NULL;
}

/* The file's new text; one that was not there joins the others. */
static int replace(const struct entry *entry, const char *name, const json_t *json)
{
    char *line = json_text_dump(json, JSON_REAL_PRECISION(17));

    if (!line)
        return out_of_memory(entry->error);
    return kept_files_put(entry->files, name, line, strlen(line), entry->error);
}

/* Every token into `target`, a part of `json`, the content of that file. */
static int enter_all(const struct entry *entry, const char *name, const json_t *json,
                     json_t *target, int (*enter)(json_t *, const struct added_token *))
{
    for (size_t i = 0; i < entry->tokens->count; i++)
        if (!target || enter(target, &entry->tokens->list[i]) < 0)
            return out_of_memory(entry->error);
    return replace(entry, name, json);
}

/* --------------------------------------------------------------------------------------------- */

static void number(struct added_tokens *tokens, int64_t first)
{
    tokens->first = tokens->end = first;
    for (size_t i = 0; i < tokens->count; i++)
        if (tokens->list[i].id < 0)
            tokens->list[i].id = tokens->end++;
}

int added_tokens_enter(struct added_tokens *tokens, struct kept_files *files, int64_t vocab_size,
                       struct error *error)
{
    const struct entry entry = {tokens, files, error};
    struct seen seen = {.tokens = tokens};
    const struct checkpoint_file *pieces = kept_files_sentencepiece(files);
    json_t *tokenizer = NULL, *config = NULL, *vocabulary = NULL, *added = NULL, *model, *decoder;
    int rc = -1;

    if (parse(&entry, "tokenizer.json", &tokenizer) < 0 ||
        parse(&entry, "tokenizer_config.json", &config) < 0 ||
        parse(&entry, "vocab.json", &vocabulary) < 0 ||
        parse(&entry, "added_tokens.json", &added) < 0)
        goto out;
    tokens->first = 0;
    seen.file = "tokenizer.json";
    model = json_object_get(json_object_get(tokenizer, "model"), "vocab");
    see_ids(&seen, model);
    see_scores(&seen, model);
    see_entries(&seen, json_object_get(tokenizer, "added_tokens"));
    seen.file = "tokenizer_config.json";
    see_decoder(&seen, json_object_get(config, "added_tokens_decoder"));
    seen.file = "vocab.json";
    see_ids(&seen, vocabulary);
    seen.file = "added_tokens.json";
    see_ids(&seen, added);
    if (pieces && hf_sentencepiece_pieces(pieces->bytes, pieces->size, see_piece, &seen) < 0) {
        error_set(error, EXIT_STATUS_DATA, "add-tokens: %s: not a SentencePiece model",
                  pieces->name);
        goto out;
    }
    if (seen.strange_file) {
        error_set(error, EXIT_STATUS_DATA, "add-tokens: %s: %lld is no id of a token",
                  seen.strange_file, (long long)seen.strange);
        goto out;
    }
    number(tokens, tokens->first > 0 ? tokens->first : vocab_size);
    if (!added && !tokenizer)
        added = json_object();
    /* A decoder that were made here, of the new ones alone, would hide the others. */
    decoder = json_object_get(config, "added_tokens_decoder");
    if ((tokenizer &&
         enter_all(&entry, "tokenizer.json", tokenizer, list_of(tokenizer), enter_into_list) < 0) ||
        (json_is_object(decoder) &&
         enter_all(&entry, "tokenizer_config.json", config, decoder, enter_into_decoder) < 0) ||
        (added && enter_all(&entry, "added_tokens.json", added, added, enter_into_map) < 0))
        goto out;
    rc = 0;
out:
    json_decref(tokenizer);
    json_decref(config);
    json_decref(vocabulary);
    json_decref(added);
    return rc;
}
