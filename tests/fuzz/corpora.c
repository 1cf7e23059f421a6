/* The targets over what mtllm-data reads:
 *
 *   tokens  one byte for the length of the index, by four; the index; the data
 *   corpus  one byte for the kind of input; the file: it is read and encoded, and then once more
 *           from the end of its first batch
 *   resume  the record of what to go on from
 */
#include <string.h>

#include "data/corpus.h"
#include "data/encoder.h"
#include "data/resume.h"
#include "data/token_file.h"
#include "data/tokenizer_kind.h"
#include "tests/fuzz/fuzz.h"

static void path_in(char path[300], const char *name)
{
    snprintf(path, 300, "%s/%s", model_directory, name);
}

/* What opens can be read to its last token. */
bool run_tokens(const uint8_t *data, size_t size)
{
    size_t index = size > 0 ? (size_t)data[0] * 4 + 2 : 0, rest = size > 0 ? size - 1 : 0;
    char prefix[300], path[300];
    struct token_file *file;
    struct error error = {0};
    int32_t tokens[64];

    index = index < rest ? index : rest;
    path_in(prefix, "tokens");
    path_in(path, "tokens.idx");
    write_file(path, data + (size > 0), index);
    path_in(path, "tokens.bin");
    write_file(path, data + (size > 0) + index, rest - index);
    if (token_file_open(&file, prefix, &error) < 0) {
        check_refusal(&error, prefix);
        return false;
    }
    for (int64_t i = 0; i < token_file_sequences(file); i++)
        for (int64_t done = 0, count; done < token_file_length(file, i); done += count) {
            count = token_file_length(file, i) - done < 64 ? token_file_length(file, i) - done : 64;
            token_file_read(file, i, done, count, tokens);
        }
    for (int64_t i = 0; i <= token_file_documents(file); i++)
        check(token_file_document(file, i) >= 0 &&
              token_file_document(file, i) <= token_file_sequences(file));
    token_file_close(file);
    return true;
}

/* --- corpus ------------------------------------------------------------------------------------*/

/* A tokenizer whose tokens are bytes, and which divides at line ends, or anywhere at last. */
static size_t bytes_part(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                         bool whole, size_t *scanned)
{
    const char *end = bytes > 16 ? memchr(text + 16, '\n', bytes - 16) : NULL;
    (void)tokenizer, (void)scanned;

    if (end)
        return (size_t)(end - text);
    return bytes > 1 << 16 ? 1 << 16 : whole ? bytes : 0;
}

static int bytes_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                        bool first, struct token_list *list, struct error *error)
{
    (void)tokenizer, (void)first, (void)error;
    check(token_list_reserve(list, (int64_t)bytes) == 0);
    for (size_t i = 0; i < bytes; i++)
        list->ids[list->count++] = (unsigned char)text[i];
    return 0;
}

static const struct tokenizer_kind bytes_kind = {.part = bytes_part, .encode_part = bytes_encode};
static const struct tokenizer bytes_tokenizer = {
    .kind = &bytes_kind, .vocab_size = 256, .bos = -1, .eos = -1, .unk = -1};

/* Not blank, and of a batch that is done. */
static uint64_t add_batch(uint64_t hash, const struct corpus_batch *batch, int streams)
{
    for (int64_t i = 0; i < batch->count; i++) {
        const struct corpus_part *part = &batch->parts[i];

        check(part->line >= 1);
        hash = 31 * hash + (uint64_t)part->line + 2 * part->first + 4 * part->last;
        if (part->problem)
            hash = 31 * hash + strlen(part->problem);
        for (int s = 0; s < streams; s++) {
            check(part->tokens[s] >= 0 && (!part->problem || part->tokens[s] == 0));
            hash = 31 * hash + (uint64_t)part->tokens[s];
        }
    }
    for (int s = 0; s < streams; s++)
        for (int64_t i = 0; i < batch->streams[s].count; i++)
            hash = 31 * hash + (uint64_t)batch->streams[s].ids[i];
    return hash;
}

struct reading {
    int64_t batches;
    struct corpus_position first_after; /* the first batch */
    uint64_t rest;                      /* of what is behind it */
};

/* From `from` to the end; NULL: from the beginning. */
static int read_all(const struct corpus_request *request, const struct encoder_work *work,
                    const struct corpus_position *from, struct reading *reading,
                    struct error *error)
{
    struct corpus *corpus;
    struct encoder *encoder;
    int result;

    *reading = (struct reading){0};
    check(corpus_open(&corpus, request, error) == 0);
    check(encoder_start(&encoder, work, 1, error) == 0);
    result = from ? corpus_seek(corpus, from, error) : 0;
    while (result == 0) {
        struct corpus_batch *batch = encoder_vacant(encoder);
        int found = corpus_next(corpus, batch, error);

        if (found <= 0) {
            result = found;
            break;
        }
        encoder_submit(encoder);
        check(encoder_oldest(encoder, &batch, error) == 1);
        if (reading->batches > 0 || from)
            reading->rest = add_batch(reading->rest, batch, work->streams);
        else
            reading->first_after = batch->after;
        reading->batches++;
        encoder_release(encoder);
    }
    encoder_stop(encoder);
    corpus_close(corpus);
    return result;
}

bool run_corpus(const uint8_t *data, size_t size)
{
    static const char *const names[] = {
        "text",           "lines.jsonl",     "text.gz",    "text.zst",
        "lines.jsonl.gz", "lines.jsonl.zst", "text.jsonl", "text"};
    static char first[] = "text", second[] = "a";
    char *const keys[] = {first, second};
    int kind = size > 0 ? data[0] : 0;
    char path[300], *input = path;
    struct corpus_request request = {.inputs = &input,
                                     .count = 1,
                                     .documents = (enum corpus_documents)(kind >> 3 & 3) % 3,
                                     .tokenizer = &bytes_tokenizer};
    struct encoder_work work = {
        .tokenizer = &bytes_tokenizer, .keys = keys, .streams = kind & 1 && kind & 32 ? 2 : 1};
    struct reading whole, rest;
    struct error error = {0};

    path_in(path, names[kind & 7]);
    write_file(path, data + (size > 0), size > 0 ? size - 1 : 0);
    if (read_all(&request, &work, NULL, &whole, &error) < 0) {
        check_refusal(&error, path);
        return false;
    }
    if (whole.batches > 0) {
        check(read_all(&request, &work, &whole.first_after, &rest, &error) == 0);
        check(rest.batches == whole.batches - 1 && rest.rest == whole.rest);
    }
    return whole.batches > 0;
}

/* --- resume ------------------------------------------------------------------------------------*/

/* What is read is what was written. */
bool run_resume(const uint8_t *data, size_t size)
{
    struct resume resume, again;
    struct error error = {0};
    char path[300];

    path_in(path, "out.resume");
    write_file(path, data, size);
    if (!resume_read(&resume, path, "d", 2))
        return false;
    check(resume.position.input >= 0 && resume.position.offset >= 0 && resume.streams == 2);
    for (int i = 0; i < 2; i++)
        check(resume.marks[i].tokens >= 0 && resume.marks[i].sequences >= 0);
    check(resume_write(&resume, path, "d", &error) == 0);
    check(!resume_read(&again, path, "e", 2) && !resume_read(&again, path, "d", 1));
    check(resume_read(&again, path, "d", 2));
    check(again.position.offset == resume.position.offset &&
          again.position.document_begun == resume.position.document_begun &&
          again.dropping == resume.dropping && again.bad == resume.bad &&
          memcmp(again.marks, resume.marks, 2 * sizeof(resume.marks[0])) == 0);
    check(resume_remove(path, &error) == 0);
    return true;
}
