/* A SentencePiece model is a protocol buffer; four of its settings are wanted here, and for them
 * the wire format is walked by hand. Field numbers: sentencepiece_model.proto, TrainerSpec and
 * NormalizerSpec. */
#include "ckpt/hf_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "ckpt/json_text.h"

struct bytes {
    const unsigned char *at, *end;
};

struct field {
    uint32_t number;
    int wire; /* 0: varint, 2: bytes; others are skipped */
    uint64_t value;
    struct bytes bytes;
};

static int read_varint(struct bytes *in, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64 && in->at < in->end; shift += 7) {
        unsigned char byte = *in->at++;

        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return 0;
    }
    return -1;
}

static int skip(struct bytes *in, uint64_t count)
{
    if (count > (uint64_t)(in->end - in->at))
        return -1;
    in->at += count;
    return 0;
}

/* 1 and the next field, 0 at the end, -1 when the bytes are no message. */
static int next_field(struct bytes *in, struct field *field)
{
    uint64_t tag;

    if (in->at == in->end)
        return 0;
    if (read_varint(in, &tag) < 0 || tag >> 3 == 0 || tag >> 3 > 536870911)
        return -1;
    field->number = (uint32_t)(tag >> 3);
    field->wire = (int)(tag & 7);
    switch (field->wire) {
    case 0:
        return read_varint(in, &field->value) < 0 ? -1 : 1;
    case 1:
        return skip(in, 8) < 0 ? -1 : 1;
    case 2:
        if (read_varint(in, &field->value) < 0)
            return -1;
        field->bytes.at = in->at;
        if (skip(in, field->value) < 0)
            return -1;
        field->bytes.end = in->at;
        return 1;
    case 5:
        return skip(in, 4) < 0 ? -1 : 1;
    default:
        return -1;
    }
}

/* Names that do not fit, or that JSON cannot hold, are not used. */
static void copy_text(char *to, size_t size, struct bytes bytes)
{
    size_t length = (size_t)(bytes.end - bytes.at);
    json_t *text = json_stringn((const char *)bytes.at, length); /* NULL when it is no UTF-8 */

    if (text && length < size && !memchr(bytes.at, '\0', length)) {
        memcpy(to, bytes.at, length);
        to[length] = '\0';
    }
    json_decref(text);
}

static int read_trainer(struct hf_sentencepiece *tokenizer, struct bytes in)
{
    struct field field;
    int rc;

    while ((rc = next_field(&in, &field)) > 0) {
        int64_t *const ids[] = {&tokenizer->unk_id, &tokenizer->bos_id, &tokenizer->eos_id,
                                &tokenizer->pad_id};
        char *const texts[] = {tokenizer->unk, tokenizer->bos, tokenizer->eos, tokenizer->pad};

        if (field.number == 3 && field.wire == 0)
            tokenizer->model_type = (int)field.value;
        else if (field.number >= 40 && field.number <= 43 && field.wire == 0)
            *ids[field.number - 40] = (int32_t)field.value; /* -1 is ten bytes of varint */
        else if (field.number >= 45 && field.number <= 48 && field.wire == 2)
            copy_text(texts[field.number - 45], sizeof(tokenizer->unk), field.bytes);
    }
    return rc;
}

static int read_normalizer(struct hf_sentencepiece *tokenizer, struct bytes in)
{
    bool collapses = true, maps = false; /* the message's defaults */
    struct field field;
    int rc;

    while ((rc = next_field(&in, &field)) > 0) {
        if (field.number == 2 && field.wire == 2)
            maps = field.bytes.at < field.bytes.end;
        else if (field.number == 4 && field.wire == 0)
            collapses = field.value != 0;
    }
    tokenizer->normalizes = collapses || maps;
    return rc;
}

int hf_sentencepiece_read(struct hf_sentencepiece *tokenizer, const void *bytes, size_t size)
{
    struct bytes in = {bytes, (const unsigned char *)bytes + size};
    struct field field;
    bool pieces = false, trainer = false;
    int rc;

    *tokenizer = (struct hf_sentencepiece){
        .model_type = 1,
        .normalizes = true,
        .unk_id = 0,
        .bos_id = 1,
        .eos_id = 2,
        .pad_id = -1,
        .unk = "<unk>",
        .bos = "<s>",
        .eos = "</s>",
        .pad = "<pad>",
    };
    while ((rc = next_field(&in, &field)) > 0) {
        if (field.wire != 2)
            continue;
        pieces |= field.number == 1;
        trainer |= field.number == 2;
        if ((field.number == 2 && read_trainer(tokenizer, field.bytes) < 0) ||
            (field.number == 3 && read_normalizer(tokenizer, field.bytes) < 0))
            return -1;
    }
    return rc == 0 && pieces && trainer ? 0 : -1;
}

/* SentencePiece's own limit is 512 bytes. */
enum { PIECE_SIZE = 4096 };

int hf_sentencepiece_pieces(const void *bytes, size_t size,
                            void (*see)(void *user, const char *text, int64_t id), void *user)
{
    struct bytes in = {bytes, (const unsigned char *)bytes + size};
    struct field field, part;
    int64_t id = 0;
    int rc;

    while ((rc = next_field(&in, &field)) > 0) {
        char text[PIECE_SIZE] = "";

        if (field.number != 1 || field.wire != 2)
            continue;
        while ((rc = next_field(&field.bytes, &part)) > 0)
            if (part.number == 1 && part.wire == 2)
                copy_text(text, sizeof(text), part.bytes);
        if (rc < 0)
            return -1;
        see(user, *text ? text : NULL, id++);
    }
    return rc == 0 && id > 0 ? 0 : -1;
}

static char *dump(json_t *json)
{
    char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL, *line = NULL;

    if (text && asprintf(&line, "%s\n", text) < 0)
        line = NULL;
    free(text);
    json_decref(json);
    return line;
}

json_t *hf_special_token(const char *text)
{
    return json_pack("{s:s, s:b, s:b, s:b, s:b, s:b}", "content", text, "single_word", 0, "lstrip",
                     0, "rstrip", 0, "normalized", 0, "special", 1);
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

/* legacy: every piece of text between special tokens begins a new word, as it does when
 * SentencePiece itself encodes the piece. */
char *hf_sentencepiece_config(const struct hf_sentencepiece *tokenizer, const char *added,
                              size_t size, int64_t max_positions)
{
    const struct {
        const char *key, *text;
        int64_t id;
    } tokens[] = {
        {"unk_token", tokenizer->unk, tokenizer->unk_id},
        {"bos_token", tokenizer->bos, tokenizer->bos_id},
        {"eos_token", tokenizer->eos, tokenizer->eos_id},
        {"pad_token", tokenizer->pad, tokenizer->pad_id},
    };
    json_t *json =
        json_pack("{s:s, s:b, s:b, s:b, s:b, s:I}", "tokenizer_class", "LlamaTokenizer",
                  "add_bos_token", tokenizer->bos_id >= 0, "add_eos_token", 0, "legacy", 1,
                  "clean_up_tokenization_spaces", 0, "model_max_length", (json_int_t)max_positions);

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

/* The text of an added token, NULL when tokenizer.json has none of this id. */
static const char *added_token(const json_t *tokenizer, int64_t id)
{
    const json_t *tokens = json_object_get(tokenizer, "added_tokens"), *token;
    size_t i;

    json_array_foreach(tokens, i, token)
    {
        const json_t *number = json_object_get(token, "id");

        if (json_is_integer(number) && json_integer_value(number) == id)
            return json_string_value(json_object_get(token, "content"));
    }
    return NULL;
}

/* This class takes tokenizer.json as it is; a model's own class would rebuild parts of it. */
char *hf_tokenizer_json_config(const char *text, size_t size, int64_t bos, int64_t eos,
                               int64_t max_positions)
{
    json_t *tokenizer = json_text_parse(text, size, JSON_TOKENIZER_VALUES, 0, NULL);
    const char *bos_text = added_token(tokenizer, bos), *eos_text = added_token(tokenizer, eos);
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
