#include "ckpt/hf_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "ckpt/json_text.h"

/* Takes `json`. */
static char *dump(json_t *json)
{
    char *line = json_text_dump(json, JSON_SORT_KEYS);

    json_decref(json);
    return line;
}

json_t *hf_special_token(const char *text)
{
    return json_pack("{s:s, s:b, s:b, s:b, s:b, s:b}", "content", text, "single_word", 0, "lstrip",
                     0, "rstrip", 0, "normalized", 0, "special", 1);
}

json_t *hf_added_token(const char *text, int64_t id)
{
    json_t *json = json_pack("{s:I}", "id", (json_int_t)id), *rest = hf_special_token(text);

    if (json && json_object_update(json, rest) < 0) {
        json_decref(json);
        json = NULL;
    }
    json_decref(rest);
    return json;
}

/* added_tokens_decoder from added_tokens.json. */
static void set_added_tokens(json_t *config, const char *added, size_t size)
{
    json_t *map = json_text_parse(added, size, JSON_TOKENIZER_VALUES, 0, NULL);
    json_t *decoder = json_object(), *id;
    const char *text;

    json_object_foreach(map, text, id)
    {
        char number[24];

        snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT, json_integer_value(id));
        if (json_is_integer(id))
            json_object_set_new(decoder, number, hf_special_token(text));
    }
    json_object_set_new(config, "added_tokens_decoder", decoder);
    json_decref(map);
}

/* Without a tokenizer.json, transformers makes one of tokenizer.model, for its class
 * LlamaTokenizer. legacy: every piece of text between special tokens begins a new word, as it does
 * when SentencePiece itself encodes the piece. */
char *hf_sentencepiece_config(const struct hf_sentencepiece *about, const char *added, size_t size,
                              bool with_json, int64_t max_positions)
{
    const struct {
        const char *key, *text;
        int64_t id;
    } tokens[] = {
        {"unk_token", about->unk, about->unk_id},
        {"bos_token", about->bos, about->bos_id},
        {"eos_token", about->eos, about->eos_id},
        {"pad_token", about->pad, about->pad_id},
    };
    json_t *json =
        json_pack("{s:s, s:b, s:I}", "tokenizer_class",
                  with_json ? "PreTrainedTokenizerFast" : "LlamaTokenizer",
                  "clean_up_tokenization_spaces", 0, "model_max_length", (json_int_t)max_positions);

    if (json && !with_json) {
        json_object_set_new(json, "add_bos_token", json_boolean(about->bos_id >= 0));
        json_object_set_new(json, "add_eos_token", json_false());
        json_object_set_new(json, "legacy", json_true());
    }
    for (size_t i = 0; json && i < sizeof(tokens) / sizeof(*tokens); i++)
        if (json_object_set_new(json, tokens[i].key,
                                tokens[i].id >= 0 ? json_string(tokens[i].text) : json_null()) <
            0) {
            json_decref(json);
            json = NULL;
        }
    if (json && added)
        set_added_tokens(json, added, size);
    return dump(json);
}

/* The text of a token, NULL when tokenizer.json has none of this id. */
static const char *token_text(const json_t *tokenizer, int64_t id)
{
    json_t *vocabulary = json_object_get(json_object_get(tokenizer, "model"), "vocab"), *value;
    const json_t *tokens = json_object_get(tokenizer, "added_tokens"), *token;
    const char *text;
    size_t i;

    json_array_foreach(tokens, i, token)
    {
        const json_t *number = json_object_get(token, "id");

        if (json_is_integer(number) && json_integer_value(number) == id)
            return json_string_value(json_object_get(token, "content"));
    }
    json_object_foreach(vocabulary, text, value)
    {
        if (json_is_integer(value) && json_integer_value(value) == id)
            return text;
    }
    if (id < 0)
        return NULL;
    /* [["token", score], ...] of a Unigram model */
    return json_string_value(json_array_get(json_array_get(vocabulary, (size_t)id), 0));
}

/* The class takes tokenizer.json as it is; models' own classes would rebuild parts of it. */
char *hf_tokenizer_json_config(const char *text, size_t size, int64_t bos, int64_t eos,
                               int64_t max_positions)
{
    json_t *tokenizer = json_text_parse(text, size, JSON_TOKENIZER_VALUES, 0, NULL);
    const char *bos_text = token_text(tokenizer, bos), *eos_text = token_text(tokenizer, eos);
    json_t *json =
        json_pack("{s:s, s:b, s:I}", "tokenizer_class", "PreTrainedTokenizerFast",
                  "clean_up_tokenization_spaces", 0, "model_max_length", (json_int_t)max_positions);

    if (json && bos_text)
        json_object_set_new(json, "bos_token", json_string(bos_text));
    if (json && eos_text)
        json_object_set_new(json, "eos_token", json_string(eos_text));
    json_decref(tokenizer);
    return dump(json);
}

bool hf_tokenizer_json_is_qwen(const char *text, size_t size)
{
    static const char words[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
                                " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    json_t *tokenizer = json_text_parse(text, size, JSON_TOKENIZER_VALUES, 0, NULL);
    const json_t *list =
        json_object_get(json_object_get(tokenizer, "pre_tokenizer"), "pretokenizers");
    const char *found = json_string_value(
        json_object_get(json_object_get(json_array_get(list, 0), "pattern"), "Regex"));
    bool is_qwen = found && strcmp(found, words) == 0;

    json_decref(tokenizer);
    return is_qwen;
}
