/* A SentencePiece model is a protocol buffer; its pieces and a few of its settings are wanted here,
 * and for them the wire format is walked by hand. Field numbers: sentencepiece_model.proto,
 * SentencePiece, TrainerSpec and NormalizerSpec. */
#include "ckpt/hf_sentencepiece.h"

#include <string.h>

#include <jansson.h>

struct bytes {
    const unsigned char *at, *end;
};

struct field {
    uint32_t number;
    int wire; /* 0: varint, 2: bytes, 5: 32 bits; others are skipped */
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
    field->value = 0;
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
        if (in->end - in->at < 4)
            return -1;
        for (int i = 0; i < 4; i++)
            field->value |= (uint64_t)*in->at++ << 8 * i;
        return 1;
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
        else if (field.number == 24 && field.wire == 0)
            tokenizer->space_ends_word = field.value != 0;
        else if (field.number >= 40 && field.number <= 43 && field.wire == 0)
            *ids[field.number - 40] = (int32_t)field.value; /* -1 is ten bytes of varint */
        else if (field.number >= 45 && field.number <= 48 && field.wire == 2)
            copy_text(texts[field.number - 45], sizeof(tokenizer->unk), field.bytes);
    }
    return rc;
}

static int read_normalizer(struct hf_sentencepiece *tokenizer, struct bytes in)
{
    bool collapses = true, maps = false, escapes = true; /* the message's defaults */
    struct field field;
    int rc;

    while ((rc = next_field(&in, &field)) > 0) {
        if (field.number == 2 && field.wire == 2)
            maps = field.bytes.at < field.bytes.end;
        else if (field.number == 3 && field.wire == 0)
            tokenizer->adds_space = field.value != 0;
        else if (field.number == 4 && field.wire == 0)
            collapses = field.value != 0;
        else if (field.number == 5 && field.wire == 0)
            escapes = field.value != 0;
    }
    tokenizer->normalizes = collapses || maps || !escapes;
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
        .adds_space = true,
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

int hf_sentencepiece_pieces(const void *bytes, size_t size,
                            void (*see)(void *user, const struct hf_piece *piece), void *user)
{
    struct bytes in = {bytes, (const unsigned char *)bytes + size};
    struct field field, part;
    int64_t id = 0;
    int rc;

    while ((rc = next_field(&in, &field)) > 0) {
        char text[HF_PIECE_SIZE] = "";
        struct hf_piece piece = {.type = HF_PIECE_NORMAL};

        if (field.number != 1 || field.wire != 2)
            continue;
        while ((rc = next_field(&field.bytes, &part)) > 0) {
            uint32_t bits = (uint32_t)part.value;

            if (part.number == 1 && part.wire == 2)
                copy_text(text, sizeof(text), part.bytes);
            else if (part.number == 2 && part.wire == 5)
                memcpy(&piece.score, &bits, sizeof(bits));
            else if (part.number == 3 && part.wire == 0)
                piece.type = (int)part.value;
        }
        if (rc < 0)
            return -1;
        piece.text = *text ? text : NULL;
        piece.id = id++;
        see(user, &piece);
    }
    return rc == 0 && id > 0 ? 0 : -1;
}
