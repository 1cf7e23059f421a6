/* What was read and is not in a batch yet is a piece of one buffer, text[begin..end). */
#include "data/corpus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/input.h"

enum {
    BATCH_BYTES = 256 << 10, /* a batch is closed when it has reached this, */
    BATCH_PARTS = 1 << 14,   /* or this */
    READ_BYTES = 64 << 10,
};

struct corpus {
    struct corpus_request request;
    int next_input;
    int64_t bytes;                    /* of all files; -1: not known */
    int64_t text_before, file_before; /* bytes of the inputs done */

    /* The input being read. */
    const char *path;
    struct input *input; /* NULL: none */
    bool json, at_end;
    int64_t line; /* of the next byte to be put into a batch */
    char *text;
    size_t begin, end, room;
    size_t scanned;      /* for tokenizer_part() */
    bool document_begun; /* with a part that is in a batch */
    char *paragraph;     /* [paragraph_bytes] lines of one; none between two batches */
    size_t paragraph_bytes, paragraph_room;
};

static bool ends_with(const char *name, size_t length, const char *end)
{
    size_t tail = strlen(end);

    return length > tail && strncasecmp(name + length - tail, end, tail) == 0;
}

static bool is_json(const struct corpus *corpus, const char *path)
{
    size_t length = input_name_length(path);

    if (corpus->request.format != CORPUS_BY_NAME)
        return corpus->request.format == CORPUS_JSONL;
    return ends_with(path, length, ".jsonl") || ends_with(path, length, ".json") ||
           ends_with(path, length, ".ndjson");
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
        if (corpus->request.format == CORPUS_BY_NAME)
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
    return input_check(path, error);
}

int corpus_open(struct corpus **result, const struct corpus_request *request, struct error *error)
{
    struct corpus *corpus = calloc(1, sizeof(*corpus));

    *result = NULL;
    if (!corpus)
        return no_memory("input", error);
    corpus->request = *request;
    if (make_room(&corpus->text, &corpus->room, 0, READ_BYTES) < 0) {
        corpus_close(corpus);
        return no_memory("input", error);
    }
    for (int i = 0; i < request->count; i++)
        if (check_input(corpus, request->inputs[i], error) < 0) {
            corpus_close(corpus);
            return -1;
        }
    *result = corpus;
    return 0;
}

static void close_input(struct corpus *corpus)
{
    if (corpus->input) {
        corpus->text_before += input_offset(corpus->input);
        corpus->file_before += input_file_offset(corpus->input);
    }
    input_close(corpus->input);
    corpus->input = NULL;
}

void corpus_close(struct corpus *corpus)
{
    if (!corpus)
        return;
    close_input(corpus);
    free(corpus->text);
    free(corpus->paragraph);
    free(corpus);
}

bool corpus_has_text(const struct corpus *corpus)
{
    for (int i = 0; i < corpus->request.count; i++)
        if (!is_json(corpus, corpus->request.inputs[i]))
            return true;
    return false;
}

bool corpus_has_files(const struct corpus *corpus)
{
    return corpus->bytes >= 0;
}

int64_t corpus_bytes(const struct corpus *corpus)
{
    return corpus->bytes;
}

static int open_input(struct corpus *corpus, struct error *error)
{
    corpus->path = corpus->request.inputs[corpus->next_input++];
    corpus->json = is_json(corpus, corpus->path);
    corpus->at_end = false;
    corpus->line = 1;
    corpus->begin = corpus->end = corpus->scanned = 0;
    corpus->document_begun = false;
    return input_open(&corpus->input, corpus->path, error);
}

static struct corpus_position position(const struct corpus *corpus)
{
    size_t left = corpus->end - corpus->begin;
    struct corpus_position here = {.input = corpus->next_input,
                                   .line = 1,
                                   .text_bytes = corpus->text_before,
                                   .file_bytes = corpus->file_before};

    if (corpus->input) {
        here.input--;
        here.offset = input_offset(corpus->input) - (int64_t)left;
        here.line = corpus->line;
        here.document_begun = corpus->document_begun;
        here.text_bytes += here.offset;
        here.file_bytes += input_file_offset(corpus->input);
    }
    return here;
}

int corpus_seek(struct corpus *corpus, const struct corpus_position *to, struct error *error)
{
    corpus->next_input = (int)to->input;
    corpus->text_before = to->text_bytes - to->offset;
    for (int i = 0; i < corpus->next_input; i++) {
        struct stat status;

        if (stat(corpus->request.inputs[i], &status) == 0)
            corpus->file_before += status.st_size;
    }
    if (corpus->next_input == corpus->request.count)
        return 0;
    if (open_input(corpus, error) < 0 || input_skip(corpus->input, to->offset, error) < 0)
        return -1;
    corpus->line = to->line;
    corpus->document_begun = to->document_begun;
    return 0;
}

/* More text behind text[begin..end), which moves to the front of the buffer. */
static int read_more(struct corpus *corpus, struct error *error)
{
    bool is_first = input_offset(corpus->input) == 0;
    ssize_t got;

    if (corpus->begin > 0)
        memmove(corpus->text, corpus->text + corpus->begin, corpus->end - corpus->begin);
    corpus->end -= corpus->begin;
    corpus->begin = 0;
    if (make_room(&corpus->text, &corpus->room, corpus->end, READ_BYTES) < 0)
        return no_memory(corpus->path, error);
    got = input_read(corpus->input, corpus->text + corpus->end, READ_BYTES, error);
    if (got < 0)
        return -1;
    corpus->end += (size_t)got;
    corpus->at_end = got < READ_BYTES;
    /* A UTF-8 byte order mark says nothing and would become a token. */
    if (is_first && got >= 3 && memcmp(corpus->text, "\xef\xbb\xbf", 3) == 0)
        corpus->begin = 3;
    return 0;
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
    if (make_room(&batch->text, &batch->room, batch->bytes, bytes + 1) < 0) /* never NULL */
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

/* In the place of a document. */
static int add_too_long(struct corpus_batch *batch, const char *what, int64_t line)
{
    struct corpus_part part = {.first = true, .last = true, .line = line};

    if (asprintf(&part.problem, "this %s is longer than %d bytes, the most there may be", what,
                 CORPUS_LINE_BYTES_MOST) < 0)
        return -1;
    if (add_part(batch, NULL, 0, &part) == 0)
        return 0;
    free(part.problem);
    return -1;
}

/* The next line without its end, until more is read. 1: done; 0: there is no more. A line that is
 * too long is passed over: *line is NULL. */
static int next_line(struct corpus *corpus, const char **line, size_t *length, struct error *error)
{
    size_t scanned = 0;
    bool too_long = false;
    const char *at, *found;

    for (;;) {
        size_t left = corpus->end - corpus->begin;

        at = corpus->text + corpus->begin;
        found = left > scanned ? memchr(at + scanned, '\n', left - scanned) : NULL;
        *length = found ? (size_t)(found - at) : left;
        too_long = too_long || *length > CORPUS_LINE_BYTES_MOST;
        if (found || corpus->at_end)
            break;
        if (too_long)
            corpus->begin = corpus->end;
        scanned = too_long ? 0 : left;
        if (read_more(corpus, error) < 0)
            return -1;
    }
    if (!found && *length == 0 && !too_long)
        return 0;
    corpus->begin += *length + (found != NULL);
    corpus->line++;
    if (*length > 0 && at[*length - 1] == '\r')
        --*length;
    *line = too_long ? NULL : at;
    return 1;
}

static bool consists_of(const char *text, size_t bytes, const char *characters)
{
    for (size_t i = 0; i < bytes; i++)
        if (!text[i] || !strchr(characters, text[i]))
            return false;
    return true;
}

/* Lines of JSON, or lines that are documents. */
static int next_lines(struct corpus *corpus, struct corpus_batch *batch, struct error *error)
{
    while (batch->bytes < BATCH_BYTES && batch->count < BATCH_PARTS) {
        struct corpus_part part = {.first = true, .last = true, .line = corpus->line};
        const char *line;
        size_t length;
        int found = next_line(corpus, &line, &length, error);

        if (found <= 0)
            return found;
        if (line && corpus->json && consists_of(line, length, " \t\r"))
            continue;
        if ((line ? add_part(batch, line, length, &part) : add_too_long(batch, "line", part.line)) <
            0)
            return no_memory(corpus->path, error);
    }
    return 0;
}

/* The paragraph that began with line `line` has ended. */
static int end_paragraph(struct corpus *corpus, struct corpus_batch *batch, int64_t line,
                         bool too_long)
{
    struct corpus_part part = {.first = true, .last = true, .line = line};
    size_t bytes = corpus->paragraph_bytes;

    corpus->paragraph_bytes = 0;
    if (too_long)
        return add_too_long(batch, "paragraph", line);
    return bytes > 0 ? add_part(batch, corpus->paragraph, bytes, &part) : 0;
}

static int add_line(struct corpus *corpus, const char *line, size_t length)
{
    if (make_room(&corpus->paragraph, &corpus->paragraph_room, corpus->paragraph_bytes,
                  length + 1) < 0)
        return -1;
    if (corpus->paragraph_bytes > 0)
        corpus->paragraph[corpus->paragraph_bytes++] = '\n';
    memcpy(corpus->paragraph + corpus->paragraph_bytes, line, length);
    corpus->paragraph_bytes += length;
    return 0;
}

/* The lines of a paragraph are joined by \n. */
static int next_paragraphs(struct corpus *corpus, struct corpus_batch *batch, struct error *error)
{
    int64_t first = 0;
    bool too_long = false;
    int found = 1;

    while (found > 0 && batch->bytes < BATCH_BYTES && batch->count < BATCH_PARTS) {
        const char *line = NULL;
        size_t length = 0;
        int failed = 0;

        found = next_line(corpus, &line, &length, error);
        if (found < 0)
            return -1;
        if (found == 0 || (line && consists_of(line, length, " \t\v\f\r"))) {
            failed = end_paragraph(corpus, batch, first, too_long);
            too_long = false;
            first = 0;
            if (failed < 0)
                return no_memory(corpus->path, error);
            continue;
        }
        if (first == 0)
            first = corpus->line - 1;
        too_long = too_long || !line || corpus->paragraph_bytes + length > CORPUS_LINE_BYTES_MOST;
        if (!too_long && add_line(corpus, line, length) < 0)
            return no_memory(corpus->path, error);
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

/* A file that is one document, part by part. */
static int next_file_parts(struct corpus *corpus, struct corpus_batch *batch, struct error *error)
{
    while (batch->bytes < BATCH_BYTES) {
        struct corpus_part part = {.first = !corpus->document_begun, .line = corpus->line};
        const char *text = corpus->text + corpus->begin;
        size_t left = corpus->end - corpus->begin, bytes = 0;

        if (left > 0)
            bytes = tokenizer_part(corpus->request.tokenizer, text, left, corpus->at_end,
                                   &corpus->scanned);
        if (bytes == 0 && !corpus->at_end) {
            if (left > TOKENIZER_BYTES_MOST)
                return error_set(error, EXIT_STATUS_DATA,
                                 "%s:%lld: more than %d bytes without a place where this tokenizer"
                                 " allows to divide the text; add --split-documents=line or"
                                 " paragraph",
                                 corpus->path, (long long)corpus->line, TOKENIZER_BYTES_MOST);
            if (read_more(corpus, error) < 0)
                return -1;
            continue;
        }
        part.last = corpus->at_end && bytes == left;
        if (add_part(batch, text, bytes, &part) < 0)
            return no_memory(corpus->path, error);
        corpus->line += count_lines(text, bytes);
        corpus->document_begun = true;
        corpus->scanned = 0;
        corpus->begin += bytes;
        if (part.last)
            break;
    }
    return 0;
}

static int fill(struct corpus *corpus, struct corpus_batch *batch, struct error *error)
{
    batch->path = corpus->path;
    batch->json = corpus->json;
    if (corpus->json || corpus->request.documents == CORPUS_LINE)
        return next_lines(corpus, batch, error);
    if (corpus->request.documents == CORPUS_PARAGRAPH)
        return next_paragraphs(corpus, batch, error);
    return next_file_parts(corpus, batch, error);
}

static void empty_batch(struct corpus_batch *batch)
{
    for (int64_t i = 0; i < batch->count; i++)
        free(batch->parts[i].problem);
    batch->count = 0;
    batch->bytes = 0;
    for (int i = 0; i < STREAMS_MOST; i++)
        batch->streams[i].count = 0;
}

int corpus_next(struct corpus *corpus, struct corpus_batch *batch, struct error *error)
{
    empty_batch(batch);
    for (;;) {
        if (!corpus->input) {
            if (corpus->next_input == corpus->request.count)
                return 0;
            if (open_input(corpus, error) < 0)
                return -1;
        }
        if (fill(corpus, batch, error) < 0)
            return -1;
        /* The last part of a file has gone out when nothing of it is left here. */
        if (corpus->at_end && corpus->begin == corpus->end)
            close_input(corpus);
        if (batch->count > 0) {
            batch->after = position(corpus);
            return 1;
        }
    }
}

void corpus_batch_clear(struct corpus_batch *batch)
{
    empty_batch(batch);
    free(batch->parts);
    free(batch->text);
    for (int i = 0; i < STREAMS_MOST; i++)
        free(batch->streams[i].ids);
    memset(batch, 0, sizeof(*batch));
}
