#include "data/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/tokenizer_kind.h"

int token_list_reserve(struct token_list *list, int64_t more)
{
    int64_t capacity = list->capacity ? list->capacity : 1024;
    int32_t *ids;

    if (list->count + more <= list->capacity)
        return 0;
    while (capacity < list->count + more)
        capacity *= 2;
    ids = realloc(list->ids, (size_t)capacity * sizeof(*ids));
    if (!ids)
        return -1;
    list->ids = ids;
    list->capacity = capacity;
    return 0;
}

static bool ends_with(const char *path, const char *end)
{
    size_t length = strlen(path), tail = strlen(end);

    return length >= tail && strcmp(path + length - tail, end) == 0;
}

/* The file of a directory that is the tokenizer: what transformers would take, if it is there. */
static int find_file(const char *directory, char **path, struct error *error)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer.model"};

    for (int i = 0; i < 2; i++) {
        if (asprintf(path, "%s/%s", directory, names[i]) < 0)
            return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        if (access(*path, F_OK) == 0)
            return 0;
        free(*path);
    }
    return error_set(error, EXIT_STATUS_IO,
                     "%s: neither tokenizer.json nor tokenizer.model in this directory", directory);
}

/* What else its directory knows of tokens. */
static int look_around(struct tokenizer *tokenizer, const char *path, struct error *error)
{
    const char *slash = strrchr(path, '/');

    tokenizer->directory = strndup(path, slash ? (size_t)(slash + 1 - path) : 0);
    if (!tokenizer->directory)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    /* A tokenizer.json has all of its tokens. */
    return tokenizer->sees_tokens ? 0 : new_tokens_read(tokenizer, error);
}

int tokenizer_open(struct tokenizer **tokenizer, const char *path, struct error *error)
{
    struct stat status;
    char *file = NULL;
    int result;

    *tokenizer = NULL;
    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode)) {
        if (find_file(path, &file, error) < 0)
            return -1;
        path = file;
    }
    result = ends_with(path, ".json") ? tokenizer_json_open(tokenizer, path, error)
                                      : sentencepiece_open(tokenizer, path, error);
    if (result == 0 && look_around(*tokenizer, path, error) < 0) {
        tokenizer_close(*tokenizer);
        *tokenizer = NULL;
        result = -1;
    }
    free(file);
    return result;
}

void tokenizer_close(struct tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    free(tokenizer->directory);
    tokenizer->kind->close(tokenizer);
}

int64_t tokenizer_vocab_size(const struct tokenizer *tokenizer)
{
    return tokenizer->vocab_size;
}

int32_t tokenizer_bos(const struct tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int32_t tokenizer_eos(const struct tokenizer *tokenizer)
{
    return tokenizer->eos;
}

int32_t tokenizer_unk(const struct tokenizer *tokenizer)
{
    return tokenizer->unk;
}

int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *text)
{
    return tokenizer->kind->find(tokenizer, text);
}

const char *tokenizer_text(const struct tokenizer *tokenizer, int32_t id, size_t *bytes)
{
    return id < 0 || id >= tokenizer->vocab_size ? NULL
                                                 : tokenizer->kind->text(tokenizer, id, bytes);
}

bool tokenizer_sees_tokens(const struct tokenizer *tokenizer)
{
    return tokenizer->sees_tokens;
}

size_t tokenizer_part(const struct tokenizer *tokenizer, const char *text, size_t bytes, bool whole,
                      size_t *scanned)
{
    return tokenizer->kind->part(tokenizer, text, bytes, whole, scanned);
}

int tokenizer_encode_part(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                          bool first, struct token_list *list, struct error *error)
{
    return tokenizer->kind->encode_part(tokenizer, text, bytes, first, list, error);
}

int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                     struct token_list *list, struct error *error)
{
    for (size_t done = 0; done < bytes;) {
        size_t scanned = 0;
        size_t part = tokenizer_part(tokenizer, text + done, bytes - done, true, &scanned);

        if (tokenizer_encode_part(tokenizer, text + done, part, done == 0, list, error) < 0)
            return -1;
        done += part;
    }
    return 0;
}

int tokenizer_encode_spans(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                           const uint8_t *written, struct token_list *list,
                           struct token_span **spans, struct error *error)
{
    *spans = NULL;
    if (bytes > TOKENIZER_BYTES_MOST)
        return error_set(error, EXIT_STATUS_DATA, "%zu bytes of text; at most %d can be encoded",
                         bytes, TOKENIZER_BYTES_MOST);
    return tokenizer->kind->encode_spans(tokenizer, text, bytes, written, list, spans, error);
}

int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, int64_t count,
                     char **text, size_t *bytes, struct error *error)
{
    *text = NULL;
    *bytes = 0;
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= tokenizer->vocab_size)
            return error_set(error, EXIT_STATUS_DATA,
                             "token %d is outside the tokenizer's vocabulary of %lld", ids[i],
                             (long long)tokenizer->vocab_size);
    return tokenizer->kind->decode(tokenizer, ids, count, text, bytes, error);
}
