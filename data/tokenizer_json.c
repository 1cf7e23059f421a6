/* Hugging Face's tokenizer.json: added tokens are found first; what lies between them is
 * normalized, cut into pieces, and each piece is encoded by the model. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "data/added_set.h"
#include "data/bpe.h"
#include "data/decoder.h"
#include "data/pieces.h"
#include "data/steps.h"
#include "data/tokenizer_kind.h"
#include "data/unicode.h"

#define FILE_MOST ((long)256 << 20)

struct json_tokenizer {
    struct tokenizer base;
    struct bpe *bpe;
    struct steps *normalizer, *pre_tokenizer;
    struct decoder *decoder;
    struct added_set raw, normalized; /* found before and after the text is normalized */
    struct added_set added;           /* all of them, as they are shown */
    pthread_key_t work;
    bool has_work;
};

/* What a thread encodes with. */
struct work {
    struct bpe_scratch *scratch;
    struct pieces_pair pair;
    struct pieces utf8, text; /* the document where it was none; normalized */
    struct spans *spans;      /* NULL: not asked for */
    const uint8_t *written;   /* where no token is looked for; NULL: anywhere */
};

/* What tokens come from, as long as the list of them. */
struct spans {
    struct token_span *list;
    size_t count, room;
    uint32_t *ends; /* of the tokens of a piece */
    size_t ends_room;
};

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

static const struct json_tokenizer *self(const struct tokenizer *base)
{
    return (const struct json_tokenizer *)base;
}

/* --- encoding --------------------------------------------------------------------------------- */

static void destroy_work(void *pointer)
{
    struct work *work = pointer;

    bpe_scratch_destroy(work->scratch);
    pieces_destroy(&work->pair.now);
    pieces_destroy(&work->pair.next);
    pieces_destroy(&work->utf8);
    pieces_destroy(&work->text);
    free(work);
}

static struct work *get_work(const struct json_tokenizer *tokenizer)
{
    struct work *work = pthread_getspecific(tokenizer->work);

    if (work)
        return work;
    work = calloc(1, sizeof(*work));
    if (work)
        work->scratch = bpe_scratch_create();
    if (work && work->scratch && pthread_setspecific(tokenizer->work, work) == 0)
        return work;
    if (work)
        destroy_work(work);
    return NULL;
}

static int begin_piece(struct pieces_pair *pair, const char *text, size_t bytes)
{
    pieces_clear(&pair->now);
    return pieces_append(&pair->now, text, bytes) < 0 ? -1 : pieces_end(&pair->now);
}

/* As many of the tokens as there are. */
static struct token_span *add_spans(struct spans *spans, size_t count)
{
    if (spans->count + count >= spans->room) { /* also for none: NULL is an error */
        size_t room = 2 * (spans->count + count) + 64;
        struct token_span *list = realloc(spans->list, room * sizeof(*list));

        if (!list)
            return NULL;
        spans->list = list;
        spans->room = room;
    }
    spans->count += count;
    return spans->list + spans->count - count;
}

/* A piece [begin, end) of work->pair.now, with the spans of its tokens. */
static int encode_tracked(const struct bpe *bpe, struct work *work, size_t begin, size_t end,
                          struct token_list *list)
{
    const struct token_span *origins = work->pair.now.origins + begin;
    struct spans *spans = work->spans;
    int64_t before = list->count;
    struct token_span *to;
    size_t count;

    if (end - begin > spans->ends_room) {
        free(spans->ends);
        spans->ends_room = 2 * (end - begin) + 64;
        spans->ends = malloc(spans->ends_room * sizeof(*spans->ends));
        if (!spans->ends) {
            spans->ends_room = 0;
            return -1;
        }
    }
    if (bpe_encode(bpe, work->scratch, work->pair.now.text + begin, end - begin, list,
                   spans->ends) < 0)
        return -1;
    count = (size_t)(list->count - before);
    to = add_spans(spans, count);
    for (size_t i = 0, at = 0; to && i < count; at = spans->ends[i++])
        to[i] = (struct token_span){origins[at].begin, origins[spans->ends[i] - 1].end};
    return to ? 0 : -1;
}

/* Normalized text without added tokens. */
static int encode_plain(const struct json_tokenizer *tokenizer, struct work *work,
                        const struct piece *text, bool begins, struct token_list *list,
                        struct error *error)
{
    const struct pieces *now = &work->pair.now;
    size_t begin = 0;

    pieces_clear(&work->pair.now);
    if (pieces_take(&work->pair.now, text, 0, text->bytes) < 0 || pieces_end(&work->pair.now) < 0)
        return out_of_memory(error);
    if (steps_apply(tokenizer->pre_tokenizer, &work->pair, begins, error) < 0)
        return -1;
    for (size_t i = 0; i < now->count; begin = now->ends[i++])
        if ((work->spans ? encode_tracked(tokenizer->bpe, work, begin, now->ends[i], list)
                         : bpe_encode(tokenizer->bpe, work->scratch, now->text + begin,
                                      now->ends[i] - begin, list, NULL)) < 0)
            return out_of_memory(error);
    return 0;
}

typedef int encode_between(const struct json_tokenizer *tokenizer, struct work *work,
                           const struct piece *text, bool begins, struct token_list *list,
                           struct error *error);

/* An added token that stands for [begin, end) of the text. */
static int append_added(struct work *work, int32_t id, const struct piece *text, size_t begin,
                        size_t end, struct token_list *list)
{
    struct token_span *span = NULL;

    if (token_list_reserve(list, 1) < 0 || (work->spans && !(span = add_spans(work->spans, 1))))
        return -1;
    if (span)
        *span = (struct token_span){text->origins[begin].begin, text->origins[end - 1].end};
    list->ids[list->count++] = id;
    return 0;
}

/* The tokens of the set, and by `between` what lies between them. */
static int encode_around(const struct json_tokenizer *tokenizer, struct work *work,
                         const struct added_set *set, const struct pieces *pieces, bool begins,
                         encode_between *between, struct token_list *list, struct error *error)
{
    const struct piece whole = pieces_slice(pieces, 0, pieces->bytes);
    size_t done = 0, begin, end;
    int32_t id;

    while (done < whole.bytes) {
        bool found = added_set_find(set, &whole, done, work->written, &begin, &end, &id);
        struct piece text = pieces_slice(pieces, done, (found ? begin : whole.bytes) - done);

        if (text.bytes > 0 && between(tokenizer, work, &text, begins && done == 0, list, error) < 0)
            return -1;
        if (!found)
            return 0;
        if (append_added(work, id, &whole, begin, end, list) < 0)
            return out_of_memory(error);
        done = end;
    }
    return 0;
}

/* Text without those tokens that are found before it is normalized. */
static int encode_text(const struct json_tokenizer *tokenizer, struct work *work,
                       const struct piece *text, bool begins, struct token_list *list,
                       struct error *error)
{
    struct pieces swap = work->text;

    pieces_clear(&work->pair.now);
    if (pieces_take(&work->pair.now, text, 0, text->bytes) < 0 || pieces_end(&work->pair.now) < 0)
        return out_of_memory(error);
    if (steps_apply(tokenizer->normalizer, &work->pair, begins, error) < 0)
        return -1;
    work->text = work->pair.now;
    work->pair.now = swap;
    return encode_around(tokenizer, work, &tokenizer->normalized, &work->text, begins, encode_plain,
                         list, error);
}

/* Whether what is encoded next is tracked. */
static void set_tracked(struct work *work, struct spans *spans)
{
    work->spans = spans;
    work->pair.now.tracked = work->pair.next.tracked = work->utf8.tracked = work->text.tracked =
        spans != NULL;
}

static int encode_part(const struct tokenizer *base, const char *text, size_t bytes, bool first,
                       struct token_list *list, struct error *error)
{
    const struct json_tokenizer *tokenizer = self(base);
    struct work *work = get_work(tokenizer);

    if (bytes > TOKENIZER_BYTES_MOST)
        return error_set(error, EXIT_STATUS_DATA,
                         "a document of %zu bytes; at most %d can be encoded", bytes,
                         TOKENIZER_BYTES_MOST);
    if (!work)
        return out_of_memory(error);
    pieces_clear(&work->utf8);
    if (append_lossy(&work->utf8, text, bytes) < 0)
        return out_of_memory(error);
    return encode_around(tokenizer, work, &tokenizer->raw, &work->utf8, first, encode_text, list,
                         error);
}

/* Every byte of a character comes from all of it. */
static void begin_origins(struct pieces *pieces)
{
    for (size_t at = 0, next; at < pieces->bytes; at = next) {
        next_character(pieces->text, pieces->bytes, at, &next);
        for (size_t i = at; i < next; i++)
            pieces->origins[i] = (struct token_span){(uint32_t)at, (uint32_t)next};
    }
}

static int encode_spans(const struct tokenizer *base, const char *text, size_t bytes,
                        const uint8_t *written, struct token_list *list, struct token_span **result,
                        struct error *error)
{
    const struct json_tokenizer *tokenizer = self(base);
    struct work *work = get_work(tokenizer);
    struct spans spans = {0};
    int rc;

    if (!work)
        return out_of_memory(error);
    set_tracked(work, &spans);
    work->written = written;
    pieces_clear(&work->utf8);
    rc = pieces_append(&work->utf8, text, bytes);
    if (rc < 0) {
        out_of_memory(error);
    } else {
        begin_origins(&work->utf8);
        rc = encode_around(tokenizer, work, &tokenizer->raw, &work->utf8, true, encode_text, list,
                           error);
    }
    set_tracked(work, NULL);
    work->written = NULL;
    free(spans.ends);
    if (rc < 0)
        free(spans.list);
    else
        *result = spans.list;
    return rc;
}

/* Nothing tells where a text could be divided. */
static size_t part(const struct tokenizer *base, const char *text, size_t bytes, bool whole,
                   size_t *scanned)
{
    (void)base;
    (void)text;
    *scanned = bytes;
    return whole ? bytes : 0;
}

/* --- decoding --------------------------------------------------------------------------------- */

static const char *text_of(const struct tokenizer *base, int32_t id, size_t *bytes)
{
    const struct json_tokenizer *tokenizer = self(base);

    for (size_t i = 0; i < tokenizer->added.count; i++)
        if (tokenizer->added.list[i].id == id) {
            *bytes = tokenizer->added.list[i].bytes;
            return tokenizer->added.list[i].text;
        }
    return bpe_text(tokenizer->bpe, id, bytes);
}

static int32_t find_added(const struct tokenizer *base, const char *text)
{
    const struct added_set *added = &self(base)->added;

    for (size_t i = 0; i < added->count; i++)
        if (strcmp(added->list[i].text, text) == 0)
            return added->list[i].id;
    return -1;
}

static int decode(const struct tokenizer *base, const int32_t *ids, int64_t count, char **text,
                  size_t *bytes, struct error *error)
{
    const struct json_tokenizer *tokenizer = self(base);
    struct pieces_pair pair = {0};
    int rc = 0;

    for (int64_t i = 0; rc == 0 && i < count; i++) {
        size_t length = 0;
        const char *token = text_of(base, ids[i], &length);

        if (pieces_append(&pair.now, token, token ? length : 0) < 0 || pieces_end(&pair.now) < 0)
            rc = out_of_memory(error);
    }
    if (rc == 0)
        rc = decoder_apply(tokenizer->decoder, &pair, error);
    if (rc == 0 && pieces_append(&pair.now, "", 1) < 0)
        rc = out_of_memory(error);
    if (rc == 0) {
        *text = pair.now.text;
        *bytes = pair.now.bytes - 1;
        pair.now.text = NULL;
    }
    pieces_destroy(&pair.now);
    pieces_destroy(&pair.next);
    return rc;
}

/* --- reading ---------------------------------------------------------------------------------- */

static json_t *load(const char *path, struct error *error)
{
    json_error_t reason;
    FILE *stream = fopen(path, "rb");
    json_t *json = NULL;
    long size;

    if (!stream || fseek(stream, 0, SEEK_END) != 0 || (size = ftell(stream)) < 0) {
        error_set_errno(error, "%s: cannot open the tokenizer", path);
    } else if (size > FILE_MOST) {
        error_set(error, EXIT_STATUS_DATA, "%s: %ld bytes are too many for a tokenizer", path,
                  size);
    } else {
        rewind(stream);
        json = json_loadf(stream, JSON_REJECT_DUPLICATES, &reason);
        if (!json)
            error_set(error, EXIT_STATUS_DATA, "%s:%d: %s", path, reason.line, reason.text);
    }
    if (stream)
        fclose(stream);
    return json;
}

/* As a normalizer would change it; the token itself where there is none. */
static char *normalize(const struct steps *normalizer, const char *text, size_t *bytes,
                       struct error *error)
{
    struct pieces_pair pair = {0};
    char *result = NULL;

    if (begin_piece(&pair, text, *bytes) < 0) {
        out_of_memory(error);
    } else if (steps_apply(normalizer, &pair, true, error) == 0) {
        *bytes = pair.now.bytes;
        result = strndup(pair.now.text, pair.now.bytes);
        if (!result)
            out_of_memory(error);
    }
    pieces_destroy(&pair.now);
    pieces_destroy(&pair.next);
    return result;
}

static int add_token(struct json_tokenizer *tokenizer, const json_t *json, struct error *error)
{
    const char *content = json_string_value(json_object_get(json, "content"));
    const json_t *id = json_object_get(json, "id");
    bool is_normalized = json_is_true(json_object_get(json, "normalized"));
    struct added_token token = {
        .bytes = content ? strlen(content) : 0,
        .id = (int32_t)json_integer_value(id),
        .single_word = json_is_true(json_object_get(json, "single_word")),
        .left_strip = json_is_true(json_object_get(json, "lstrip")),
        .right_strip = json_is_true(json_object_get(json, "rstrip")),
    };
    struct added_token shown = token;
    int32_t known;

    if (token.bytes == 0 || !json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) >= TOKENIZER_IDS_MOST)
        return error_set(error, EXIT_STATUS_DATA,
                         "added_tokens: one without content, or without "
                         "an id below %d",
                         TOKENIZER_IDS_MOST);
    known = bpe_find(tokenizer->bpe, content, token.bytes);
    if (known >= 0)
        token.id = known;
    if (token.id >= tokenizer->base.vocab_size)
        tokenizer->base.vocab_size = token.id + 1;
    shown.id = token.id;
    shown.text = strdup(content);
    if (!shown.text || added_set_add(&tokenizer->added, shown) < 0)
        return out_of_memory(error);
    token.text = is_normalized ? normalize(tokenizer->normalizer, content, &token.bytes, error)
                               : strdup(content);
    if (!token.text)
        return is_normalized ? -1 : out_of_memory(error);
    if (token.bytes == 0) {
        free(token.text);
        return 0;
    }
    return added_set_add(is_normalized ? &tokenizer->normalized : &tokenizer->raw, token) < 0
               ? out_of_memory(error)
               : 0;
}

static int read_parts(struct json_tokenizer *tokenizer, json_t *json, struct error *error)
{
    const json_t *token;
    size_t i;

    if (bpe_create(&tokenizer->bpe, json_object_get(json, "model"), error) < 0 ||
        steps_create_normalizer(&tokenizer->normalizer, json_object_get(json, "normalizer"),
                                error) < 0 ||
        steps_create_pre_tokenizer(&tokenizer->pre_tokenizer,
                                   json_object_get(json, "pre_tokenizer"), error) < 0 ||
        decoder_create(&tokenizer->decoder, json_object_get(json, "decoder"), error) < 0)
        return -1;
    tokenizer->base.vocab_size = bpe_vocab_size(tokenizer->bpe);
    tokenizer->base.unk = bpe_unk(tokenizer->bpe);
    json_array_foreach(json_object_get(json, "added_tokens"), i, token)
    {
        if (add_token(tokenizer, token, error) < 0)
            return -1;
    }
    added_set_sort(&tokenizer->raw);
    added_set_sort(&tokenizer->normalized);
    return 0;
}

/* As it is written, found before the text is normalized. */
static int add_found(struct json_tokenizer *tokenizer, const char *text, int32_t id)
{
    struct added_token token = {.text = strdup(text), .bytes = strlen(text), .id = id};
    struct added_token shown = {.text = strdup(text), .bytes = token.bytes, .id = id};

    if (!token.text || !shown.text) {
        free(token.text);
        free(shown.text);
        return -1;
    }
    if (added_set_add(&tokenizer->added, shown) < 0) {
        free(token.text);
        return -1;
    }
    return added_set_add(&tokenizer->raw, token);
}

static int32_t add_new(struct tokenizer *base, const char *text, int32_t id)
{
    struct json_tokenizer *tokenizer = (struct json_tokenizer *)base;
    int32_t known = bpe_find(tokenizer->bpe, text, strlen(text));

    if (known >= 0)
        id = known;
    if (add_found(tokenizer, text, id) < 0)
        return -1;
    added_set_sort(&tokenizer->raw);
    return id;
}

/* --- the tokens around a document ------------------------------------------------------------- */

static int32_t find_id(const struct json_tokenizer *tokenizer, const char *text)
{
    int32_t id = text ? find_added(&tokenizer->base, text) : -1;

    if (!text || id >= 0)
        return id;
    return bpe_find(tokenizer->bpe, text, strlen(text));
}

/* "text", or {"content": "text"} */
static const char *token_text(const json_t *config, const char *key)
{
    const json_t *token = json_object_get(config, key);

    return json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
}

/* The special token in front of the text in a template. */
static const char *template_bos(const json_t *processor)
{
    const json_t *first = json_array_get(json_object_get(processor, "single"), 0), *part;
    const char *found;
    size_t i;

    found = json_string_value(json_object_get(json_object_get(first, "SpecialToken"), "id"));
    json_array_foreach(json_object_get(processor, "processors"), i, part)
    {
        if (!found)
            found = template_bos(part);
    }
    return found;
}

/* By the file that transformers asks, else by the template. */
static void find_ends(struct json_tokenizer *tokenizer, const json_t *json, const char *path)
{
    const char *slash = strrchr(path, '/');
    json_t *config = NULL;
    char *beside;

    if (asprintf(&beside, "%.*stokenizer_config.json", slash ? (int)(slash + 1 - path) : 0, path) >=
        0) {
        /* As reals: its model_max_length may be 10^30. */
        config = json_load_file(beside, JSON_DECODE_INT_AS_REAL, NULL);
        free(beside);
    }
    tokenizer->base.bos = find_id(tokenizer, token_text(config, "bos_token"));
    tokenizer->base.eos = find_id(tokenizer, token_text(config, "eos_token"));
    if (tokenizer->base.bos < 0)
        tokenizer->base.bos =
            find_id(tokenizer, template_bos(json_object_get(json, "post_processor")));
    json_decref(config);
}

/* --------------------------------------------------------------------------------------------- */

static void close_tokenizer(struct tokenizer *base)
{
    struct json_tokenizer *tokenizer = (struct json_tokenizer *)base;

    if (tokenizer->has_work) {
        struct work *work = pthread_getspecific(tokenizer->work);

        /* Other threads' goes when they end. */
        if (work)
            destroy_work(work);
        (void)pthread_key_delete(tokenizer->work);
    }
    added_set_destroy(&tokenizer->raw);
    added_set_destroy(&tokenizer->normalized);
    added_set_destroy(&tokenizer->added);
    decoder_destroy(tokenizer->decoder);
    steps_destroy(tokenizer->normalizer);
    steps_destroy(tokenizer->pre_tokenizer);
    bpe_destroy(tokenizer->bpe);
    free(tokenizer);
}

static const struct tokenizer_kind kind = {close_tokenizer, part,       encode_part, encode_spans,
                                           add_new,         find_added, text_of,     decode};

int tokenizer_json_open(struct tokenizer **result, const char *path, struct error *error)
{
    struct json_tokenizer *tokenizer;
    json_t *json = load(path, error);
    int rc;

    if (!json)
        return -1;
    tokenizer = calloc(1, sizeof(*tokenizer));
    if (!tokenizer) {
        json_decref(json);
        return out_of_memory(error);
    }
    tokenizer->base.kind = &kind;
    tokenizer->base.sees_tokens = true;
    rc = pthread_key_create(&tokenizer->work, destroy_work);
    tokenizer->has_work = rc == 0;
    if (rc != 0) {
        errno = rc;
        rc = error_set_errno(error, "no room for the tokenizer's threads");
    } else if (read_parts(tokenizer, json, error) < 0) {
        rc = error_prefix(error, "%s: ", path);
    } else {
        find_ends(tokenizer, json, path);
        *result = &tokenizer->base;
    }
    json_decref(json);
    if (rc < 0)
        close_tokenizer(&tokenizer->base);
    return rc;
}
