/* mtllm-data tokenize: text in, a token file out. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "data/chat.h"
#include "data/commands.h"
#include "data/corpus.h"
#include "data/encoder.h"
#include "data/outputs.h"
#include "data/progress.h"
#include "data/tokenizer.h"

enum { BAD_LINES_SHOWN = 20, THREADS_MOST = 512 };

struct tokenize {
    /* What was asked for. */
    const char *tokenizer_path, *add_tokens, *output;
    char *key_names, *keys[STREAMS_MOST]; /* the latter point into the former */
    int key_count;
    enum corpus_format format;
    enum corpus_documents documents;
    bool bos, eod, strict;
    int threads;
    struct chat_options chat_options; /* template_name NULL: no conversations */

    struct tokenizer *tokenizer;
    struct chat *chat;
    struct outputs outputs;
    struct corpus *corpus;
    struct encoder *encoder;
    struct progress progress;
    int64_t bad;
};

static int available_processors(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* --key=a,b */
static int parse_keys(struct tokenize *tokenize, const char *text, struct error *error)
{
    char *rest;

    rest = tokenize->key_names = strdup(text);
    if (!rest)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    for (char *key; (key = strsep(&rest, ","));) {
        if (tokenize->key_count == STREAMS_MOST)
            return error_set(error, EXIT_STATUS_USAGE, "--key=%s: more than %d names", text,
                             STREAMS_MOST);
        for (int i = 0; i < tokenize->key_count; i++)
            if (strcmp(key, tokenize->keys[i]) == 0)
                return error_set(error, EXIT_STATUS_USAGE, "--key=%s: names %s twice", text, key);
        tokenize->keys[tokenize->key_count++] = key;
    }
    for (int i = 0; tokenize->key_count > 1 && i < tokenize->key_count; i++)
        if (!*tokenize->keys[i] || strchr(tokenize->keys[i], '/'))
            return error_set(error, EXIT_STATUS_USAGE,
                             "--key=%s: \"%s\" cannot be part of the name of a file", text,
                             tokenize->keys[i]);
    return 0;
}

/* Conversations make two streams; what is put around a document concerns both. */
static int parse_chat(struct tokenize *tokenize, const struct command *command,
                      const char *const *values, struct error *error)
{
    struct chat_options *chat = &tokenize->chat_options;
    const char *eod = option_value(command, values, "eod");

    chat->template_name = option_value(command, values, "chat-template");
    chat->question_key = option_value(command, values, "question-key");
    chat->answer_key = option_value(command, values, "answer-key");
    chat->system_key = option_value(command, values, "system-key");
    chat->bos = tokenize->bos;
    chat->eod = eod && strcmp(eod, "yes") == 0;
    if (chat->template_name) {
        tokenize->bos = tokenize->eod = false;
        return parse_keys(tokenize, "text,role", error);
    }
    if (chat->question_key || chat->answer_key || chat->system_key)
        return error_set(error, EXIT_STATUS_USAGE,
                         "--question-key, --answer-key and --system-key go with --chat-template, "
                         "which is missing");
    return parse_keys(tokenize, option_value(command, values, "key"), error);
}

static int parse(struct tokenize *tokenize, const struct command *command,
                 const char *const *values, struct error *error)
{
    const char *threads = option_value(command, values, "threads");
    const char *format = option_value(command, values, "format");
    const char *documents = option_value(command, values, "split-documents");
    const char *eod = option_value(command, values, "eod");
    long long number;

    tokenize->tokenizer_path = option_value(command, values, "tokenizer");
    tokenize->add_tokens = option_value(command, values, "add-tokens");
    tokenize->output = option_value(command, values, "output");
    tokenize->bos = strcmp(option_value(command, values, "bos"), "yes") == 0;
    tokenize->eod = !eod || strcmp(eod, "yes") == 0;
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
    return parse_chat(tokenize, command, values, error);
}

static int load_tokenizer(struct tokenize *tokenize, struct error *error)
{
    if (tokenizer_open(&tokenize->tokenizer, tokenize->tokenizer_path, error) < 0 ||
        (tokenize->add_tokens &&
         tokenizer_add_tokens(tokenize->tokenizer, tokenize->add_tokens, error) < 0))
        return -1;
    if ((tokenize->bos || tokenize->chat_options.bos) && tokenizer_bos(tokenize->tokenizer) < 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%s: has no token for the beginning of a document; use --bos=no",
                         tokenize->tokenizer_path);
    if ((tokenize->eod || tokenize->chat_options.eod) && tokenizer_eos(tokenize->tokenizer) < 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%s: has no token for the end of a document; use --eod=no",
                         tokenize->tokenizer_path);
    return tokenize->chat_options.template_name
               ? chat_open(&tokenize->chat, &tokenize->chat_options, tokenize->tokenizer, error)
               : 0;
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

/* The names are Megatron's. */
static int open_outputs(struct tokenize *tokenize, struct error *error)
{
    int64_t vocab_size = tokenizer_vocab_size(tokenize->tokenizer);
    int result = 0;

    tokenize->outputs.bos = tokenize->bos ? tokenizer_bos(tokenize->tokenizer) : -1;
    tokenize->outputs.eod = tokenize->eod ? tokenizer_eos(tokenize->tokenizer) : -1;
    if (tokenize->key_count == 1)
        return outputs_add(&tokenize->outputs, tokenize->output, vocab_size, error);
    for (int i = 0; i < tokenize->key_count && result == 0; i++) {
        char *prefix;

        if (asprintf(&prefix, tokenize->chat ? "%s-%s" : "%s_%s_document", tokenize->output,
                     tokenize->keys[i]) < 0)
            return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        /* Roles are few. */
        result = outputs_add(&tokenize->outputs, prefix, tokenize->chat && i > 0 ? 3 : vocab_size,
                             error);
        free(prefix);
    }
    return result;
}

static int write_batch(struct tokenize *tokenize, const struct corpus_batch *batch,
                       struct error *error)
{
    const int32_t *tokens[STREAMS_MOST];

    for (int i = 0; i < STREAMS_MOST; i++)
        tokens[i] = batch->streams[i].ids;
    for (int64_t i = 0; i < batch->count; i++) {
        const struct corpus_part *part = &batch->parts[i];
        int result = part->problem ? report_bad_line(tokenize, batch, part, error)
                                   : outputs_write(&tokenize->outputs, part, tokens, error);

        if (result < 0)
            return -1;
    }
    return 0;
}

static int start_encoder(struct tokenize *tokenize, struct error *error)
{
    const struct encoder_work work = {
        .tokenizer = tokenize->tokenizer,
        .keys = tokenize->keys,
        .streams = tokenize->key_count,
        .chat = tokenize->chat,
    };

    return encoder_start(&tokenize->encoder, &work, tokenize->threads, error);
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
                        outputs_documents(&tokenize->outputs));
    }
}

static int finish(struct tokenize *tokenize, struct error *error)
{
    /* A role is no token, nor are roles a document. */
    const struct token_writer *text = tokenize->outputs.streams[0].writer;
    int64_t documents =
        tokenize->chat ? token_writer_documents(text) : outputs_documents(&tokenize->outputs);
    int64_t tokens =
        tokenize->chat ? token_writer_tokens(text) : outputs_tokens(&tokenize->outputs);
    double megabytes = 1e-6 * (double)corpus_bytes_read(tokenize->corpus), seconds;

    if (documents == 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "no document in the input (%lld empty, %lld bad lines); nothing written",
                         (long long)tokenize->outputs.empty, (long long)tokenize->bad);
    if (outputs_commit(&tokenize->outputs, error) < 0)
        return -1;
    seconds = progress_elapsed_s(&tokenize->progress);
    printf("%s: %lld documents, %lld tokens (%s), %.2f MB of text in %.1f s (%.2f MB/s)",
           tokenize->output, (long long)documents, (long long)tokens, token_writer_dtype_name(text),
           megabytes, seconds, seconds > 0 ? megabytes / seconds : 0.0);
    if (tokenize->outputs.empty > 0)
        printf(", %lld empty documents skipped", (long long)tokenize->outputs.empty);
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
    if (tokenize.key_count > 1 && corpus_has_text(tokenize.corpus)) {
        error_set(error, EXIT_STATUS_USAGE,
                  "%s: an input is plain text, which has no members; use --format=jsonl if it is"
                  " none%s",
                  tokenize.chat ? "--chat-template" : "--key",
                  tokenize.chat ? "" : ", or one name");
        goto out;
    }
    if (open_outputs(&tokenize, error) < 0 || start_encoder(&tokenize, error) < 0)
        goto out;
    progress_begin(&tokenize.progress, corpus_bytes(tokenize.corpus));
    result = convert(&tokenize, error);
    progress_clear(&tokenize.progress);
    if (result == 0)
        result = finish(&tokenize, error);
out:
    encoder_stop(tokenize.encoder);
    outputs_close(&tokenize.outputs);
    corpus_close(tokenize.corpus);
    chat_close(tokenize.chat);
    tokenizer_close(tokenize.tokenizer);
    free(tokenize.key_names);
    return result;
}

static const struct option_entry options[] = {
    {"tokenizer", "PATH", NULL, NULL, "tokenizer.json, SentencePiece model, or their directory"},
    {"add-tokens", "TOKENS", NULL, NULL, "tokens behind its own: TOKEN[,TOKEN]... or @FILE"},
    {"output", "PREFIX", NULL, NULL, "write PREFIX.bin and PREFIX.idx"},
    {"format", "NAME", "text|jsonl", NULL, "of all inputs, instead of by name"},
    {"key", "NAME[,NAME]...", NULL, "text", "member of a JSON object that holds the text"},
    {"split-documents", "HOW", "file|paragraph|line", "file", "what one document of plain text is"},
    {"bos", "WHETHER", "yes|no", "no", "put the beginning token before each document"},
    {"eod", "WHETHER", "yes|no", NULL,
     "put the end token behind each document [yes; no with --chat-template]"},
    {"chat-template", "NAME|FILE", NULL, NULL,
     "JSON lines are conversations; write PREFIX-text and PREFIX-role"},
    {"question-key", "NAME", NULL, NULL, "where a line has no messages: the user's [input]"},
    {"answer-key", "NAME", NULL, NULL, "the assistant's [output]"},
    {"system-key", "NAME", NULL, NULL, "and the system's"},
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
