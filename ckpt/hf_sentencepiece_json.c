/* SentencePiece begins with single characters and joins, again and again, the neighbours that make
 * the piece of the highest score, the leftmost first. The library tokenizers does the same with a
 * list of pairs in the order of their worth: here, all pairs of pieces that make a piece, in the
 * order of its score. */
#include "ckpt/hf_tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "ckpt/json_text.h"

#define SPACE "\xe2\x96\x81" /* U+2581, which stands for it */

/* Long pieces out of one another have merges without end; 256000 ordinary ones take a sixth of
 * this. */
#define MERGES_BYTES_MAX ((size_t)256 << 20)
#define MERGE_BYTES      80 /* beside its text */

struct piece {
    const char *text; /* of the vocabulary */
    float score;
    int type;
};

struct model {
    json_t *vocabulary; /* {"piece": id}, in the order of ids */
    struct piece *pieces;
    size_t count, bytes, merges_bytes;
    const char *trouble; /* what cannot be said in a tokenizer.json */
    bool no_memory;
};

static void see_piece(void *user, const struct hf_piece *seen)
{
    struct model *model = user;
    struct piece *pieces;

    if (model->trouble || model->no_memory)
        return;
    if (!seen->text || strchr(seen->text, ' '))
        model->trouble = "has a piece that is empty, too long, no UTF-8 or of two words";
    else if (json_object_get(model->vocabulary, seen->text))
        model->trouble = "has a piece twice";
    else if (seen->type == HF_PIECE_USER_DEFINED || seen->type == HF_PIECE_UNUSED ||
             seen->type < HF_PIECE_NORMAL || seen->type > HF_PIECE_BYTE)
        model->trouble = "has pieces that are user-defined, unused or of no known type";
    if (model->trouble)
        return;
    pieces = realloc(model->pieces, (model->count + 1) * sizeof(*pieces));
    if (pieces)
        model->pieces = pieces;
    if (!pieces || json_object_set_new(model->vocabulary, seen->text, json_integer(seen->id)) < 0) {
        model->no_memory = true;
        return;
    }
    pieces[model->count++] = (struct piece){.score = seen->score, .type = seen->type};
    model->bytes += seen->type == HF_PIECE_BYTE;
}

/* --- merges ---------------------------------------------------------------------------------- */

/* A piece that text is made of; NULL when there is none of these bytes. */
static const struct piece *find_piece(const struct model *model, const char *text, size_t length)
{
    const json_t *id = json_object_getn(model->vocabulary, text, length);
    const struct piece *piece = id ? &model->pieces[json_integer_value(id)] : NULL;

    return piece && piece->type == HF_PIECE_NORMAL ? piece : NULL;
}

/* Bytes of the character that `text` begins with. */
static size_t character_bytes(const char *text)
{
    size_t bytes = 1;

    while ((text[bytes] & 0xc0) == 0x80)
        bytes++;
    return bytes;
}

static int by_score(const void *a, const void *b)
{
    const struct piece *left = a, *right = b;

    return (left->score < right->score) - (left->score > right->score);
}

/* All ways to make the piece of two others. */
static void add_merges(struct model *model, const char *text, json_t *merges)
{
    size_t length = strlen(text), step;

    for (size_t at = 0; at < length; at += step) {
        step = character_bytes(text + at);
        if (!find_piece(model, text + at, step)) {
            model->trouble = "has pieces of characters that are no pieces themselves";
            return;
        }
        if (at == 0 || !find_piece(model, text, at) || !find_piece(model, text + at, length - at))
            continue;
        model->merges_bytes += length + MERGE_BYTES;
        if (model->merges_bytes > MERGES_BYTES_MAX) {
            model->trouble = "has too many long pieces that are made of others";
            return;
        }
        if (json_array_append_new(merges, json_sprintf("%.*s %s", (int)at, text, text + at)) < 0)
            model->no_memory = true;
    }
}

/* NULL with model->trouble, or when memory runs out. */
static json_t *make_merges(struct model *model)
{
    struct piece *sorted = calloc(model->count + 1, sizeof(*sorted));
    json_t *merges = json_array(), *id;
    size_t count = 0, at = 0;
    const char *text;

    json_object_foreach(model->vocabulary, text, id)
    {
        model->pieces[at].text = text;
        if (sorted && model->pieces[at].type == HF_PIECE_NORMAL)
            sorted[count++] = model->pieces[at];
        at++;
    }
    model->no_memory |= !sorted || !merges;
    if (sorted)
        qsort(sorted, count, sizeof(*sorted), by_score);
    for (size_t i = 0; i < count && !model->trouble && !model->no_memory; i++) {
        if (i > 0 && !(sorted[i - 1].score > sorted[i].score))
            model->trouble = "has pieces of the same score";
        else
            add_merges(model, sorted[i].text, merges);
    }
    free(sorted);
    if (!model->trouble && !model->no_memory)
        return merges;
    json_decref(merges);
    return NULL;
}

/* --- the parts of tokenizer.json ------------------------------------------------------------- */

/* The new tokens of an added_tokens.json, in the order of their ids. The library tokenizers does
 * not look at these: it counts on from the pieces. */
static void add_new_tokens(struct model *model, json_t *map, json_t *list)
{
    const char **texts = calloc(json_object_size(map) + 1, sizeof(*texts)), *text;
    size_t count = 0, at = 0;
    json_t *id;

    model->no_memory |= !texts;
    json_object_foreach(map, text, id)
    {
        const json_t *known = json_object_get(model->vocabulary, text);
        size_t place = (size_t)json_integer_value(id) - model->count;

        if (known && json_equal(known, id)) {
            json_array_append_new(list, hf_added_token(text, json_integer_value(id)));
            continue;
        }
        count++;
        if (texts && !known && *text && json_is_integer(id) && place < json_object_size(map))
            texts[place] = text;
    }
    for (; texts && at < count && texts[at]; at++)
        json_array_append_new(list, hf_added_token(texts[at], (json_int_t)(model->count + at)));
    if (at < count)
        model->trouble = "has added tokens whose ids do not follow those of its pieces";
    free(texts);
}

static json_t *make_added_tokens(struct model *model, const char *added, size_t size)
{
    json_t *map = added ? json_text_parse(added, size, JSON_TOKENIZER_VALUES, 0, NULL) : NULL;
    json_t *list = json_array();

    for (size_t i = 0; i < model->count; i++)
        if (model->pieces[i].type == HF_PIECE_UNKNOWN || model->pieces[i].type == HF_PIECE_CONTROL)
            json_array_append_new(list, hf_added_token(model->pieces[i].text, (json_int_t)i));
    if (added && !json_is_object(map))
        model->trouble = "has an added_tokens.json that is no JSON object";
    else
        add_new_tokens(model, map, list);
    json_decref(map);
    return list;
}

static json_t *replace(const char *from, const char *to)
{
    return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content",
                     to);
}

static json_t *make_normalizer(const struct hf_sentencepiece *about)
{
    json_t *list = json_array();

    if (about->adds_space)
        json_array_append_new(list, json_pack("{s:s, s:s}", "type", "Prepend", "prepend", SPACE));
    json_array_append_new(list, replace(" ", SPACE));
    return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", list);
}

static json_t *make_decoder(const struct hf_sentencepiece *about)
{
    json_t *list =
        json_pack("[o, {s:s}, {s:s}]", replace(SPACE, " "), "type", "ByteFallback", "type", "Fuse");

    if (about->adds_space)
        json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content",
                                              " ", "start", 1, "stop", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", list);
}

static json_t *sequence(const char *name, int type)
{
    return json_pack("{s:{s:s, s:i}}", "Sequence", "id", name, "type_id", type);
}

static json_t *special(const char *text, int type)
{
    return json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", text, "type_id", type);
}

/* <s> in front of every text. */
static json_t *make_post_processor(const struct hf_sentencepiece *about)
{
    const char *bos = about->bos;

    if (about->bos_id < 0)
        return json_null();
    return json_pack("{s:s, s:[o, o], s:[o, o, o, o], s:{s:{s:s, s:[I], s:[s]}}}", "type",
                     "TemplateProcessing", "single", special(bos, 0), sequence("A", 0), "pair",
                     special(bos, 0), sequence("A", 0), special(bos, 1), sequence("B", 1),
                     "special_tokens", bos, "id", bos, "ids", (json_int_t)about->bos_id, "tokens",
                     bos);
}

static json_t *make_model(struct model *model, const struct hf_sentencepiece *about)
{
    json_t *merges = make_merges(model);

    if (!merges)
        return NULL;
    return json_pack("{s:s, s:n, s:s, s:n, s:n, s:b, s:b, s:b, s:O, s:o}", "type", "BPE", "dropout",
                     "unk_token", about->unk, "continuing_subword_prefix", "end_of_word_suffix",
                     "fuse_unk", 1, "byte_fallback", model->bytes == 256, "ignore_merges", 0,
                     "vocab", model->vocabulary, "merges", merges);
}

/* --------------------------------------------------------------------------------------------- */

/* A special token that there is: transformers would number one of another name anew. */
static bool names(const struct model *model, const char *text, int64_t id)
{
    const json_t *found = json_object_get(model->vocabulary, text);

    return id < 0 || (found && json_integer_value(found) == id);
}

static void read_model(struct model *model, const void *bytes, size_t size,
                       const struct hf_sentencepiece *about)
{
    if (about->model_type != 2)
        model->trouble = "is not a BPE model";
    else if (about->normalizes)
        model->trouble = "normalizes text or its spaces";
    else if (about->space_ends_word)
        model->trouble = "puts spaces behind words";
    else if (hf_sentencepiece_pieces(bytes, size, see_piece, model) < 0)
        model->trouble = "is damaged";
    if (model->trouble || model->no_memory)
        return;
    if (model->bytes != 0 && model->bytes != 256)
        model->trouble = "has some of the 256 bytes as pieces and not the others";
    else if (about->unk_id < 0 || !names(model, about->unk, about->unk_id) ||
             !names(model, about->bos, about->bos_id) || !names(model, about->eos, about->eos_id) ||
             !names(model, about->pad, about->pad_id))
        model->trouble = "names its special tokens otherwise than its pieces";
}

char *hf_sentencepiece_json(const void *bytes, size_t size, const struct hf_sentencepiece *about,
                            const char *added, size_t added_size, const char **trouble)
{
    struct model model = {.vocabulary = json_object()};
    json_t *bpe = NULL, *json = NULL;
    char *text = NULL;

    model.no_memory = !model.vocabulary;
    if (!model.no_memory)
        read_model(&model, bytes, size, about);
    if (!model.trouble && !model.no_memory)
        bpe = make_model(&model, about);
    if (bpe)
        json = json_pack("{s:s, s:n, s:n, s:o, s:o, s:n, s:o, s:o, s:o}", "version", "1.0",
                         "truncation", "padding", "added_tokens",
                         make_added_tokens(&model, added, added_size), "normalizer",
                         make_normalizer(about), "pre_tokenizer", "post_processor",
                         make_post_processor(about), "decoder", make_decoder(about), "model", bpe);
    if (json && !model.trouble && !model.no_memory)
        text = json_dumps(json, JSON_INDENT(2));
    json_decref(json);
    json_decref(model.vocabulary);
    free(model.pieces);
    *trouble = model.trouble;
    return text;
}
