/* Tokens behind the vocabulary of a tokenizer's model: those that files beside it name, and those
 * that the user adds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "core/token_names.h"
#include "data/tokenizer_kind.h"

/* The id that the token has from now on; -1: an error. */
static int32_t add(struct tokenizer *tokenizer, const char *text, int64_t id, struct error *error)
{
    int32_t has;

    if (id < 0 || id >= TOKENIZER_IDS_MOST)
        return error_set(error, EXIT_STATUS_DATA, "token %s: no id from 0 to %d", text,
                         TOKENIZER_IDS_MOST - 1);
    has = tokenizer->kind->add(tokenizer, text, (int32_t)id);
    if (has < 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (has >= tokenizer->vocab_size)
        tokenizer->vocab_size = has + 1;
    return has;
}

/* The JSON object in a file of the tokenizer's directory; NULL when there is none. */
static json_t *load(const struct tokenizer *tokenizer, const char *name)
{
    json_t *json = NULL;
    char *path;

    if (asprintf(&path, "%s%s", tokenizer->directory, name) < 0)
        return NULL;
    json = json_load_file(path, JSON_DECODE_INT_AS_REAL, NULL); /* integers may be of any size */
    free(path);
    if (!json_is_object(json)) {
        json_decref(json);
        json = NULL;
    }
    return json;
}

int new_tokens_read(struct tokenizer *tokenizer, struct error *error)
{
    json_t *json = load(tokenizer, "added_tokens.json"), *id;
    const char *text;
    int32_t rc = 0;

    json_object_foreach(json, text, id)
    {
        if (rc >= 0 && tokenizer->kind->find(tokenizer, text) < 0)
            rc = add(tokenizer, text, json_is_real(id) ? (int64_t)json_real_value(id) : -1, error);
    }
    json_decref(json);
    return rc < 0 ? error_prefix(error, "%sadded_tokens.json: ", tokenizer->directory) : 0;
}

/* --- the user's ------------------------------------------------------------------------------- */

static void see(int64_t *next, double id)
{
    if (id >= (double)*next && id < TOKENIZER_IDS_MOST)
        *next = (int64_t)id + 1;
}

/* {"token": id, ...} */
static void see_ids(int64_t *next, json_t *map)
{
    const char *text;
    json_t *id;

    json_object_foreach(map, text, id)
    {
        see(next, json_number_value(id));
    }
    json_decref(map);
}

/* Beyond all that the tokenizer and the files beside it know, as hf-to-h5 --add-tokens counts. */
static int64_t next_id(const struct tokenizer *tokenizer)
{
    json_t *config = load(tokenizer, "tokenizer_config.json"), *token;
    int64_t next = tokenizer->vocab_size;
    struct tokenizer *pieces;
    struct error ignored;
    const char *id;
    char *path;

    json_object_foreach(json_object_get(config, "added_tokens_decoder"), id, token)
    {
        see(&next, strtod(id, NULL));
    }
    json_decref(config);
    see_ids(&next, load(tokenizer, "vocab.json"));
    see_ids(&next, load(tokenizer, "added_tokens.json"));
    if (asprintf(&path, "%stokenizer.model", tokenizer->directory) < 0)
        return next;
    if (access(path, F_OK) == 0 && sentencepiece_open(&pieces, path, &ignored) == 0) {
        see(&next, (double)(pieces->vocab_size - 1));
        pieces->kind->close(pieces);
    }
    free(path);
    return next;
}

int tokenizer_add_tokens(struct tokenizer *tokenizer, const char *option, struct error *error)
{
    struct token_names names;
    int64_t next;
    int32_t rc = 0;

    if (token_names_parse(&names, option, error) < 0)
        return -1;
    next = next_id(tokenizer);
    for (size_t i = 0; rc >= 0 && i < names.count; i++)
        if (tokenizer->kind->find(tokenizer, names.list[i]) < 0) {
            rc = add(tokenizer, names.list[i], next, error);
            next += rc == next;
        }
    token_names_destroy(&names);
    return rc < 0 ? -1 : 0;
}
