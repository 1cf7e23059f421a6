#include "data/corpus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BATCH_BYTES = 256 << 10, /* a batch is closed when it has reached this, */
    BATCH_PARTS = 1 << 14,   /* or this */
    READ_BYTES = 64 << 10,
};

struct corpus {
    char *const *inputs;
    int input_count, next_input;
    enum corpus_format format;
    enum corpus_documents documents;
    const struct tokenizer *tokenizer;
    int64_t bytes, bytes_read;

    /* The input being read. */
    const char *path;
    FILE *stream;
    bool json, at_end;
    int64_t line; /* of the next byte to be put into a batch */
    char *text;   /* [text_bytes] read and not yet in a batch */
    size_t text_bytes, text_room, scanned;
    char *line_text; /* getline()'s */
    size_t line_room;
    bool document_begun;
};

static bool ends_with(const char *name, const char *end)
{
    size_t length = strlen(name), tail = strlen(end);

    return length > tail && strcasecmp(name + length - tail, end) == 0;
}

static bool is_json(const struct corpus *corpus, const char *path)
{
    if (corpus->format != CORPUS_BY_NAME)
        return corpus->format == CORPUS_JSONL;
    return ends_with(path, ".jsonl") || ends_with(path, ".json") || ends_with(path, ".ndjson");
}

static int no_memory(const char *path, struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
}

/* Make sure that `bytes` more fit behind `used`. */
static int make_room(char **text, size_t *room, size_t used, size_t bytes)
{
    size_t wanted = *room ? *room : 4096;
    char *grown;

    if (used + bytes <= *room)
        return 0;
    while (wanted < used + bytes)
        wanted *= 2;
    grown = realloc(*text, wanted);
    if (!grown)
        return -1;
    *text = grown;
    *room = wanted;
    return 0;
}

/* Refuse now what would be refused after hours of work. */
static int check_input(struct corpus *corpus, const char *path, struct error *error)
{
    struct stat status;

    if (strcmp(path, "-") == 0) {
        if (corpus->format == CORPUS_BY_NAME)
            return error_set(error, EXIT_STATUS_USAGE,
                             "-: standard input has no name to tell its format by; add"
                             " --format=text or --format=jsonl");
        corpus->bytes = -1;
        return 0;
    }
    /* Not by opening it: the writer of a named pipe would see the reader go. */
    if (stat(path, &status) < 0 || access(path, R_OK) < 0)
        return error_set_errno(error, "%s: cannot read", path);
    if (S_ISDIR(status.st_mode))
        return error_set(error, EXIT_STATUS_IO, "%s: is a directory; name the files in it", path);
    if (!S_ISREG(status.st_mode))
        corpus->bytes = -1;
    else if (corpus->bytes >= 0)
        corpus->bytes += status.st_size;
    return 0;
}

int corpus_open(struct corpus **result, char *const *inputs, int count, enum corpus_format format,
                enum corpus_documents documents, const struct tokenizer *tokenizer,
                struct error *error)
{
    struct corpus *corpus = calloc(1, sizeof(*corpus));

    *result = NULL;
    if (!corpus)
        return no_memory("input", error);
    corpus->inputs = inputs;
    corpus->input_count = count;
    corpus->format = format;
    corpus->documents = documents;
    corpus->tokenizer = tokenizer;
    for (int i = 0; i < count; i++)
        if (check_input(corpus, inputs[i], error) < 0) {
            corpus_close(corpus);
            return -1;
        }
    *result = corpus;
    return 0;
}

static void close_input(struct corpus *corpus)
{
    if (corpus->stream && corpus->stream != stdin)
        fclose(corpus->stream);
    corpus->stream = NULL;
}

void corpus_close(struct corpus *corpus)
{
    if (!corpus)
        return;
    close_input(corpus);
    free(corpus->text);
    free(corpus->line_text);
    free(corpus);
}

bool corpus_has_text(const struct corpus *corpus)
{
    for (int i = 0; i < corpus->input_count; i++)
        if (!is_json(corpus, corpus->inputs[i]))
            return true;
    return false;
}

int64_t corpus_bytes(const struct corpus *corpus)
{
    return corpus->bytes;
}

int64_t corpus_bytes_read(const struct corpus *corpus)
{
    return corpus->bytes_read;
}

static int open_input(struct corpus *corpus, struct error *error)
{
    corpus->path = corpus->inputs[corpus->next_input++];
    if (strcmp(corpus->path, "-") == 0)
        corpus->stream = stdin;
    else
        corpus->stream = fopen(corpus->path, "rb");
    if (!corpus->stream)
        return error_set_errno(error, "%s: cannot open", corpus->path);
    corpus->json = is_json(corpus, corpus->path);
    corpus->at_end = false;
    corpus->line = 1;
    corpus->text_bytes = 0;
    corpus->scanned = 0;
    corpus->document_begun = false;
    return 0;
}

/* A UTF-8 byte order mark says nothing and would become a token. */
static size_t mark_bytes(const char *text, size_t bytes)
{
    return bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}

static int add_part(struct corpus_batch *batch, const char *text, size_t bytes,
                    const struct corpus_part *like)
{
    struct corpus_part *part;

    if (batch->count == batch->capacity) {
        int64_t capacity = batch->capacity ? 2 * batch->capacity : 64;
        struct corpus_part *parts = realloc(batch->parts, (size_t)capacity * sizeof(*parts));

        if (!parts)
            return -1;
        batch->parts = parts;
        batch->capacity = capacity;
    }
    if (make_room(&batch->text, &batch->room, batch->bytes, bytes) < 0)
        return -1;
    if (bytes > 0)
        memcpy(batch->text + batch->bytes, text, bytes);
    part = &batch->parts[batch->count++];
    *part = *like;
    part->offset = batch->bytes;
    part->bytes = bytes;
    batch->bytes += bytes;
    return 0;
}

/* The next line without its end in corpus->line_text. -1: none, or an error. */
static ssize_t read_line(struct corpus *corpus)
{
    ssize_t length = getline(&corpus->line_text, &corpus->line_room, corpus->stream);
    size_t mark;

    if (length < 0)
        return -1;
    corpus->bytes_read += length;
    mark = corpus->line == 1 ? mark_bytes(corpus->line_text, (size_t)length) : 0;
    if (mark) {
        length -= (ssize_t)mark;
        memmove(corpus->line_text, corpus->line_text + mark, (size_t)length + 1);
    }
    if (length > 0 && corpus->line_text[length - 1] == '\n')
        length--;
    if (length > 0 && corpus->line_text[length - 1] == '\r')
        length--;
    return length;
}

/* Lines of JSON, or lines that are documents. */
static int next_lines(struct corpus *corpus, struct corpus_batch *batch, struct error *error)
{
    while (batch->bytes < BATCH_BYTES && batch->count < BATCH_PARTS) {
        struct corpus_part part = {.first = true, .last = true, .line = corpus->line};
        ssize_t length = read_line(corpus);

        if (length < 0) {
            corpus->at_end = true;
            return 0;
        }
        if (corpus->json && strspn(corpus->line_text, " \t\r\n") >= (size_t)length) {
            corpus->line++;
            continue;
        }
        if (add_part(batch, corpus->line_text, (size_t)length, &part) < 0)
            return no_memory(corpus->path, error);
        corpus->line++;
    }
    return 0;
}

/* Paragraphs are gathered in corpus->text, their lines joined by \n. */
static int next_paragraphs(struct corpus *corpus, struct corpus_batch *batch, struct error *error)
{
    struct corpus_part part = {.first = true, .last = true};

    while (batch->bytes < BATCH_BYTES && !corpus->at_end) {
        ssize_t length = read_line(corpus);

        corpus->at_end = length < 0;
        if (length < 0 || strspn(corpus->line_text, " \t\v\f\r") >= (size_t)length) {
            if (corpus->text_bytes > 0 &&
                add_part(batch, corpus->text, corpus->text_bytes, &part) < 0)
                return no_memory(corpus->path, error);
            corpus->text_bytes = 0;
        } else {
            if (make_room(&corpus->text, &corpus->text_room, corpus->text_bytes,
                          (size_t)length + 1) < 0)
                return no_memory(corpus->path, error);
            if (corpus->text_bytes > 0)
                corpus->text[corpus->text_bytes++] = '\n';
            else
                part.line = corpus->line;
            memcpy(corpus->text + corpus->text_bytes, corpus->line_text, (size_t)length);
            corpus->text_bytes += (size_t)length;
        }
        corpus->line++;
    }
    return 0;
}

static int64_t count_lines(const char *text, size_t bytes)
{
    int64_t lines = 0;

    for (size_t i = 0; i < bytes; i++)
        lines += text[i] == '\n';
    return lines;
}

static int read_text(struct corpus *corpus, struct error *error)
{
    size_t size;

    if (make_room(&corpus->text, &corpus->text_room, corpus->text_bytes, READ_BYTES) < 0)
        return no_memory(corpus->path, error);
    size = fread(corpus->text + corpus->text_bytes, 1, READ_BYTES, corpus->stream);
    corpus->bytes_read += (int64_t)size;
    corpus->at_end = size < READ_BYTES;
    if (corpus->text_bytes == 0 && !corpus->document_begun) {
        size_t mark = mark_bytes(corpus->text, size);

        size -= mark;
        memmove(corpus->text, corpus->text + mark, size);
    }
    corpus->text_bytes += size;
    return 0;
}

/* A file that is one document, part by part. */
static int next_file_parts(struct corpus *corpus, struct corpus_batch *batch, struct error *error)
{
    size_t used = 0;

    while (batch->bytes < BATCH_BYTES) {
        const char *text = corpus->text + used;
        size_t left = corpus->text_bytes - used;
        size_t bytes = left > 0 ? tokenizer_part(corpus->tokenizer, text, left, corpus->at_end,
                                                 &corpus->scanned)
                                : 0;
        struct corpus_part part = {.first = !corpus->document_begun, .line = corpus->line};

        if (bytes == 0 && !corpus->at_end) {
            if (used > 0)
                memmove(corpus->text, text, left);
            corpus->text_bytes = left;
            used = 0;
            if (read_text(corpus, error) < 0)
                return -1;
            continue;
        }
        part.last = corpus->at_end && bytes == left;
        if (add_part(batch, text, bytes, &part) < 0)
            return no_memory(corpus->path, error);
        corpus->line += count_lines(text, bytes);
        corpus->document_begun = true;
        corpus->scanned = 0;
        used += bytes;
        if (part.last)
            break;
    }
    if (used > 0)
        memmove(corpus->text, corpus->text + used, corpus->text_bytes - used);
    corpus->text_bytes -= used;
    return 0;
}

static int fill(struct corpus *corpus, struct corpus_batch *batch, struct error *error)
{
    int result;

    batch->path = corpus->path;
    batch->json = corpus->json;
    if (corpus->json || corpus->documents == CORPUS_LINE)
        result = next_lines(corpus, batch, error);
    else if (corpus->documents == CORPUS_PARAGRAPH)
        result = next_paragraphs(corpus, batch, error);
    else
        result = next_file_parts(corpus, batch, error);
    if (result == 0 && ferror(corpus->stream))
        result = error_set_errno(error, "%s: cannot read", corpus->path);
    return result;
}

int corpus_next(struct corpus *corpus, struct corpus_batch *batch, struct error *error)
{
    for (int64_t i = 0; i < batch->count; i++)
        free(batch->parts[i].problem);
    batch->count = 0;
    batch->bytes = 0;
    for (int i = 0; i < STREAMS_MOST; i++)
        batch->streams[i].count = 0;
    for (;;) {
        if (!corpus->stream) {
            if (corpus->next_input == corpus->input_count)
                return 0;
            if (open_input(corpus, error) < 0)
                return -1;
        }
        if (fill(corpus, batch, error) < 0)
            return -1;
        /* The last part of a file has gone out when nothing of it is left here. */
        if (corpus->at_end && corpus->text_bytes == 0)
            close_input(corpus);
        if (batch->count > 0)
            return 1;
    }
}

void corpus_batch_clear(struct corpus_batch *batch)
{
    for (int64_t i = 0; i < batch->count; i++)
        free(batch->parts[i].problem);
    free(batch->parts);
    free(batch->text);
    for (int i = 0; i < STREAMS_MOST; i++)
        free(batch->streams[i].ids);
    memset(batch, 0, sizeof(*batch));
}
