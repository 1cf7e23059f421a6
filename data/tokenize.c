/* mtllm-data tokenize: text in, a token file out. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "data/commands.h"
#include "data/corpus.h"
#include "data/encoder.h"
#include "data/guard.h"
#include "data/progress.h"
#include "data/tokenizer.h"

enum { BAD_LINES_SHOWN = 20, THREADS_MOST = 512 };

struct tokenize {
    /* What was asked for. */
    const char *tokenizer_path, *output, *key;
    enum corpus_format format;
    enum corpus_documents documents;
    bool bos, eod, strict;
    int threads;

    struct tokenizer *tokenizer;
    struct token_writer *writer;
    struct corpus *corpus;
    struct encoder *encoder;
    struct progress progress;
    bool document_open; /* tokens of an unfinished document were written */
    int64_t empty, bad;
};

static int available_processors(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

static int parse(struct tokenize *tokenize, const struct command *command,
                 const char *const *values, struct error *error)
{
    const char *threads = option_value(command, values, "threads");
    const char *format = option_value(command, values, "format");
    const char *documents = option_value(command, values, "split-documents");
    long long number;

    tokenize->tokenizer_path = option_value(command, values, "tokenizer");
    tokenize->output = option_value(command, values, "output");
    tokenize->key = option_value(command, values, "key");
    tokenize->bos = strcmp(option_value(command, values, "bos"), "yes") == 0;
    tokenize->eod = strcmp(option_value(command, values, "eod"), "yes") == 0;
    tokenize->strict = option_value(command, values, "strict") != NULL;
    if (!tokenize->tokenizer_path || !*tokenize->tokenizer_path)
        return error_set(error, EXIT_STATUS_USAGE,
                         "--tokenizer=PATH is missing: a tokenizer.json, a SentencePiece model, or "
                         "their directory");
    if (!tokenize->output || !*tokenize->output)
        return error_set(error, EXIT_STATUS_USAGE,
                         "--output=PREFIX is missing: PREFIX.bin and PREFIX.idx will be written");
    tokenize->threads = available_processors();
    if (tokenize->threads > THREADS_MOST)
        tokenize->threads = THREADS_MOST;
    if (threads) {
        if (option_number("--threads", threads, 1, THREADS_MOST, &number, error) < 0)
            return -1;
        tokenize->threads = (int)number;
    }
    tokenize->format = !format                       ? CORPUS_BY_NAME
                       : strcmp(format, "text") == 0 ? CORPUS_TEXT
                                                     : CORPUS_JSONL;
    tokenize->documents = strcmp(documents, "file") == 0   ? CORPUS_FILE
                          : strcmp(documents, "line") == 0 ? CORPUS_LINE
                                                           : CORPUS_PARAGRAPH;
    return 0;
}

static int load_tokenizer(struct tokenize *tokenize, struct error *error)
{
    if (tokenizer_open(&tokenize->tokenizer, tokenize->tokenizer_path, error) < 0)
        return -1;
    if (tokenize->bos && tokenizer_bos(tokenize->tokenizer) < 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%s: has no token for the beginning of a document; use --bos=no",
                         tokenize->tokenizer_path);
    if (tokenize->eod && tokenizer_eos(tokenize->tokenizer) < 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%s: has no token for the end of a document; use --eod=no",
                         tokenize->tokenizer_path);
    return 0;
}

static int report_bad_line(struct tokenize *tokenize, const struct corpus_batch *batch,
                           const struct corpus_part *part, struct error *error)
{
    if (tokenize->strict)
        return error_set(error, EXIT_STATUS_DATA, "%s:%lld: %s", batch->path, (long long)part->line,
                         part->problem);
    tokenize->bad++;
    progress_clear(&tokenize->progress);
    if (tokenize->bad <= BAD_LINES_SHOWN)
        log_warning("%s:%lld: %s; skipped", batch->path, (long long)part->line, part->problem);
    if (tokenize->bad == BAD_LINES_SHOWN)
        log_warning("further bad lines are only counted");
    return 0;
}

static int write_part(struct tokenize *tokenize, const struct corpus_part *part,
                      const int32_t *tokens, struct error *error)
{
    struct token_writer *writer = tokenize->writer;
    int32_t bos = tokenizer_bos(tokenize->tokenizer), eos = tokenizer_eos(tokenize->tokenizer);

    if (part->tokens > 0) {
        if (!tokenize->document_open && tokenize->bos &&
            token_writer_append(writer, &bos, 1, error) < 0)
            return -1;
        tokenize->document_open = true;
        if (token_writer_append(writer, tokens, part->tokens, error) < 0)
            return -1;
    }
    if (!part->last)
        return 0;
    if (!tokenize->document_open) {
        tokenize->empty++;
        return 0;
    }
    tokenize->document_open = false;
    if (tokenize->eod && token_writer_append(writer, &eos, 1, error) < 0)
        return -1;
    return token_writer_end_document(writer, error);
}

static int write_batch(struct tokenize *tokenize, const struct corpus_batch *batch,
                       struct error *error)
{
    const int32_t *tokens = batch->tokens.ids;

    for (int64_t i = 0; i < batch->count; i++) {
        const struct corpus_part *part = &batch->parts[i];
        int result = part->problem ? report_bad_line(tokenize, batch, part, error)
                                   : write_part(tokenize, part, tokens, error);

        if (result < 0)
            return -1;
        tokens += part->tokens;
    }
    return 0;
}

/* Keep the threads supplied, and write what they have done. */
static int convert(struct tokenize *tokenize, struct error *error)
{
    bool more = true;

    for (;;) {
        struct corpus_batch *batch;
        int found;

        while (more && (batch = encoder_vacant(tokenize->encoder))) {
            found = corpus_next(tokenize->corpus, batch, error);
            if (found < 0)
                return -1;
            more = found > 0;
            if (more)
                encoder_submit(tokenize->encoder);
        }
        found = encoder_oldest(tokenize->encoder, &batch, error);
        if (found < 0 || (found > 0 && write_batch(tokenize, batch, error) < 0))
            return -1;
        if (found == 0)
            return 0;
        encoder_release(tokenize->encoder);
        progress_update(&tokenize->progress, corpus_bytes_read(tokenize->corpus),
                        token_writer_documents(tokenize->writer));
    }
}

static int finish(struct tokenize *tokenize, struct error *error)
{
    int64_t documents = token_writer_documents(tokenize->writer);
    int64_t tokens = token_writer_tokens(tokenize->writer);
    double megabytes = 1e-6 * (double)corpus_bytes_read(tokenize->corpus), seconds;

    if (documents == 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "no document in the input (%lld empty, %lld bad lines); nothing written",
                         (long long)tokenize->empty, (long long)tokenize->bad);
    if (guard_commit(tokenize->writer, error) < 0)
        return -1;
    seconds = progress_elapsed_s(&tokenize->progress);
    printf("%s: %lld documents, %lld tokens (%s), %.2f MB of text in %.1f s (%.2f MB/s)",
           tokenize->output, (long long)documents, (long long)tokens,
           token_writer_dtype_name(tokenize->writer), megabytes, seconds,
           seconds > 0 ? megabytes / seconds : 0.0);
    if (tokenize->empty > 0)
        printf(", %lld empty documents skipped", (long long)tokenize->empty);
    if (tokenize->bad > 0)
        printf(", %lld bad lines skipped", (long long)tokenize->bad);
    printf("\n");
    return 0;
}

static int run(const struct command *command, const char *const *values, char *const *operands,
               int operand_count, struct error *error)
{
    struct tokenize tokenize = {0};
    int result = -1;

    if (parse(&tokenize, command, values, error) < 0 || load_tokenizer(&tokenize, error) < 0 ||
        corpus_open(&tokenize.corpus, operands, operand_count, tokenize.format, tokenize.documents,
                    tokenize.tokenizer, error) < 0)
        goto out;
    if (guard_open(&tokenize.writer, tokenize.output, tokenizer_vocab_size(tokenize.tokenizer),
                   error) < 0 ||
        encoder_start(&tokenize.encoder, tokenize.tokenizer, tokenize.key, tokenize.threads,
                      error) < 0)
        goto out;
    progress_begin(&tokenize.progress, corpus_bytes(tokenize.corpus));
    result = convert(&tokenize, error);
    progress_clear(&tokenize.progress);
    if (result == 0)
        result = finish(&tokenize, error);
out:
    encoder_stop(tokenize.encoder);
    guard_close(tokenize.writer);
    corpus_close(tokenize.corpus);
    tokenizer_close(tokenize.tokenizer);
    return result;
}

static const struct option_entry options[] = {
    {"tokenizer", "PATH", NULL, NULL, "tokenizer.json, SentencePiece model, or their directory"},
    {"output", "PREFIX", NULL, NULL, "write PREFIX.bin and PREFIX.idx"},
    {"format", "NAME", "text|jsonl", NULL, "of all inputs, instead of by name"},
    {"key", "NAME", NULL, "text", "member of a JSON object that holds the text"},
    {"split-documents", "HOW", "file|paragraph|line", "file", "what one document of plain text is"},
    {"bos", "WHETHER", "yes|no", "no", "put the beginning token before each document"},
    {"eod", "WHETHER", "yes|no", "yes", "put the end token behind each document"},
    {"threads", "N", NULL, NULL, "threads that encode; all processors if unset"},
    {"strict", NULL, NULL, NULL, "stop at the first bad line of JSON"},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command command_tokenize = {
    .name = "tokenize",
    .operands = "INPUT...",
    .least_operands = 1,
    .most_operands = 1 << 30,
    .help = "Turn plain text and JSON lines (.jsonl, .json, .ndjson) into a token file.\n"
            "INPUT - is standard input.",
    .options = options,
    .run = run,
};
