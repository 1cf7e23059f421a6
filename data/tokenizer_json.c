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

/* Normalized text without added tokens. */
static int encode_plain(const struct json_tokenizer *tokenizer, struct work *work, const char *text,
                        size_t bytes, bool begins, struct token_list *list, struct error *error)
{
    size_t begin = 0;

    if (begin_piece(&work->pair, text, bytes) < 0)
        return out_of_memory(error);
    if (steps_apply(tokenizer->pre_tokenizer, &work->pair, begins, error) < 0)
        return -1;
    for (size_t i = 0; i < work->pair.now.count; begin = work->pair.now.ends[i++])
        if (bpe_encode(tokenizer->bpe, work->scratch, work->pair.now.text + begin,
                       work->pair.now.ends[i] - begin, list) < 0)
            return out_of_memory(error);
    return 0;
}

typedef int encode_between(const struct json_tokenizer *tokenizer, struct work *work,
                           const char *text, size_t bytes, bool begins, struct token_list *list,
                           struct error *error);

/* The tokens of the set, and by `between` what lies between them. */
static int encode_around(const struct json_tokenizer *tokenizer, struct work *work,
                         const struct added_set *set, const char *text, size_t bytes, bool begins,
                         encode_between *between, struct token_list *list, struct error *error)
{
    size_t done = 0, begin, end;
    int32_t id;

    while (done < bytes) {
        bool found = added_set_find(set, text, bytes, done, &begin, &end, &id);
        size_t stop = found ? begin : bytes;

        if (stop > done && between(tokenizer, work, text + done, stop - done, begins && done == 0,
                                   list, error) < 0)
            return -1;
        if (!found)
            return 0;
        if (token_list_reserve(list, 1) < 0)
            return out_of_memory(error);
        list->ids[list->count++] = id;
        done = end;
    }
    return 0;
}

/* Text without those tokens that are found before it is normalized. */
static int encode_text(const struct json_tokenizer *tokenizer, struct work *work, const char *text,
                       size_t bytes, bool begins, struct token_list *list, struct error *error)
{
    struct pieces swap = work->text;

    if (begin_piece(&work->pair, text, bytes) < 0)
        return out_of_memory(error);
    if (steps_apply(tokenizer->normalizer, &work->pair, begins, error) < 0)
        return -1;
    work->text = work->pair.now;
    work->pair.now = swap;
    return encode_around(tokenizer, work, &tokenizer->normalized, work->text.text, work->text.bytes,
                         begins, encode_plain, list, error);
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
    return encode_around(tokenizer, work, &tokenizer->raw, work->utf8.text, work->utf8.bytes, first,
                         encode_text, list, error);
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

static const char *text_of(const struct json_tokenizer *tokenizer, int32_t id, size_t *bytes)
{
    for (size_t i = 0; i < tokenizer->added.count; i++)
        if (tokenizer->added.list[i].id == id) {
            *bytes = tokenizer->added.list[i].bytes;
            return tokenizer->added.list[i].text;
        }
    return bpe_text(tokenizer->bpe, id, bytes);
}

static int decode(const struct tokenizer *base, const int32_t *ids, int64_t count, char **text,
                  size_t *bytes, struct error *error)
{
    const struct json_tokenizer *tokenizer = self(base);
    struct pieces_pair pair = {0};
    int rc = 0;

    for (int64_t i = 0; rc == 0 && i < count; i++) {
        size_t length = 0;
        const char *token = text_of(tokenizer, ids[i], &length);

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

/* --- the tokens around a document ------------------------------------------------------------- */

static int32_t find_id(const struct json_tokenizer *tokenizer, const char *text)
{
    if (!text)
        return -1;
    for (size_t i = 0; i < tokenizer->added.count; i++)
        if (strcmp(tokenizer->added.list[i].text, text) == 0)
            return tokenizer->added.list[i].id;
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
        config = json_load_file(beside, 0, NULL);
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

static const struct tokenizer_kind kind = {close_tokenizer, part, encode_part, decode};

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
