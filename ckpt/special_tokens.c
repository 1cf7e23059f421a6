#include "ckpt/special_tokens.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "ckpt/hf_sentencepiece.h"
#include "ckpt/json_text.h"

struct marks {
    uint8_t *list;
    int64_t count;
};

static void mark(const struct marks *marks, const char *text, int64_t id)
{
    bool turn = text && (strcmp(text, "<|im_start|>") == 0 || strcmp(text, "<|im_end|>") == 0);

    if (id >= 0 && id < marks->count)
        marks->list[id] = turn ? 3 : 1;
}

/* A token's description in a file of JSON. */
static void mark_described(const struct marks *marks, const json_t *token, int64_t id)
{
    if (json_is_true(json_object_get(token, "special")))
        mark(marks, json_string_value(json_object_get(token, "content")), id);
}

static void mark_piece(void *user, const struct hf_piece *piece)
{
    if (piece->type == HF_PIECE_CONTROL || piece->type == HF_PIECE_UNKNOWN)
        mark(user, piece->text, piece->id);
}

/* -1, no token's: it is no number. */
static int64_t id_of(const json_t *id)
{
    return json_is_integer(id) ? json_integer_value(id) : -1;
}

/* NULL: there is none, or it is no JSON. */
static json_t *parse(const struct kept_files *files, const char *name)
{
    const struct checkpoint_file *file = kept_files_find(files, name);
    json_error_t reason;

    return file ? json_text_parse(file->bytes, file->size, JSON_TOKENIZER_VALUES, 0, &reason)
                : NULL;
}

void special_tokens_mark(uint8_t *template_tokens, int64_t vocab_size,
                         const struct kept_files *files)
{
    const struct marks marks = {template_tokens, vocab_size};
    const struct checkpoint_file *pieces = kept_files_sentencepiece(files);
    json_t *tokenizer = parse(files, "tokenizer.json");
    json_t *config = parse(files, "tokenizer_config.json");
    json_t *added = parse(files, "added_tokens.json");
    json_t *token, *decoder = json_object_get(config, "added_tokens_decoder");
    const char *text;
    size_t i;

    if (pieces)
        (void)hf_sentencepiece_pieces(pieces->bytes, pieces->size, mark_piece, (void *)&marks);
    json_array_foreach(json_object_get(tokenizer, "added_tokens"), i, token)
    {
        mark_described(&marks, token, id_of(json_object_get(token, "id")));
    }
    json_object_foreach(decoder, text, token)
    {
        char *end;
        long long id = strtoll(text, &end, 10);

        mark_described(&marks, token, end > text && !*end ? id : -1);
    }
    json_object_foreach(added, text, token)
    {
        mark(&marks, text, id_of(token));
    }
    json_decref(tokenizer);
    json_decref(config);
    json_decref(added);
}
