/* mtllm-data tokenize: text in, a token file out. */
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "data/chat.h"
#include "data/commands.h"
#include "data/corpus.h"
#include "data/encoder.h"
#include "data/progress.h"
#include "data/source.h"
#include "data/resume.h"
#include "data/streams.h"
#include "data/tokenizer.h"

enum { BAD_SHOWN = 20, THREADS_MOST = 512, SAVE_INTERVAL_MOST_S = 1000000 };

struct tokenize {
    /* What was asked for. */
    const char *tokenizer_path, *add_tokens, *output;
    char *key_names, *keys[STREAMS_MOST]; /* the latter point into the former */
    int key_count;
    enum corpus_format format;
    enum corpus_documents documents;
    bool bos, eod, strict;
    int threads;
    double save_interval_s;
    struct chat_options chat_options; /* template_name NULL: no conversations */

    struct tokenizer *tokenizer;
    struct chat *chat;
    struct streams streams;
    struct corpus *corpus;
    struct encoder *encoder;
    struct progress progress;

    /* What another run of the same command goes on from. */
    char *resume_path;
    char digest[RESUME_DIGEST_SIZE];    /* "": it cannot go on */
    struct corpus_position begun, done; /* the latter is what is written */
    double next_save_s;                 /* as of progress_elapsed_s() */
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
    chat->text_messages = strcmp(option_value(command, values, "message-tokens"), "text") == 0;
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
    if (option_number("--save-interval", option_value(command, values, "save-interval"), 0,
                      SAVE_INTERVAL_MOST_S, &number, error) < 0)
        return -1;
    tokenize->save_interval_s = tokenize->next_save_s = (double)number;
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
    tokenize->streams.bos = tokenize->bos ? tokenizer_bos(tokenize->tokenizer) : -1;
    tokenize->streams.eod = tokenize->eod ? tokenizer_eos(tokenize->tokenizer) : -1;
    return tokenize->chat_options.template_name
               ? chat_open(&tokenize->chat, &tokenize->chat_options, tokenize->tokenizer, error)
               : 0;
}

static int open_corpus(struct tokenize *tokenize, char *const *inputs, int count,
                       struct error *error)
{
    const struct corpus_request request = {.inputs = inputs,
                                           .count = count,
                                           .format = tokenize->format,
                                           .documents = tokenize->documents,
                                           .tokenizer = tokenize->tokenizer};

    if (corpus_open(&tokenize->corpus, &request, error) < 0)
        return -1;
    if (tokenize->key_count > 1 && corpus_has_text(tokenize->corpus))
        return error_set(error, EXIT_STATUS_USAGE,
                         "%s: an input is plain text, which has no members; use --format=jsonl if"
                         " it is none%s",
                         tokenize->chat ? "--chat-template" : "--key",
                         tokenize->chat ? "" : ", or one name");
    return 0;
}

/* The names are Megatron's. */
static int open_outputs(struct tokenize *tokenize, struct error *error)
{
    struct outputs *outputs = &tokenize->streams.outputs;
    int64_t vocab_size = tokenizer_vocab_size(tokenize->tokenizer);
    int result = 0;

    if (tokenize->key_count == 1)
        return outputs_add(outputs, tokenize->output, vocab_size, NULL, error);
    for (int i = 0; i < tokenize->key_count && result == 0; i++) {
        char *prefix;

        if (asprintf(&prefix, tokenize->chat ? "%s-%s" : "%s_%s_document", tokenize->output,
                     tokenize->keys[i]) < 0)
            return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        /* Roles are few. */
        result =
            outputs_add(outputs, prefix, tokenize->chat && i > 0 ? ROLE_ASSISTANT + 1 : vocab_size,
                        NULL, error);
        free(prefix);
    }
    return result;
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

/* Roles are no documents, nor are they tokens. */
static int64_t documents_written(const struct tokenize *tokenize)
{
    const struct streams *streams = &tokenize->streams;

    return tokenize->chat ? token_writer_documents(streams->outputs.writers[0])
                          : streams_documents(streams);
}

/* --- going on ----------------------------------------------------------------------------------*/

static const char interrupted[] =
    "mtllm-data: interrupted; the same command goes on where this one has come to\n";

static int make_digest(struct tokenize *tokenize, const struct command *command,
                       const char *const *values, char *const *inputs, int count,
                       struct error *error)
{
    static const char *const without[] = {"threads", "save-interval", NULL};
    const char *add_tokens = tokenize->add_tokens;
    const char *const files[] = {tokenize->tokenizer_path,
                                 add_tokens && *add_tokens == '@' ? add_tokens + 1 : NULL,
                                 tokenize->chat ? chat_template_file(tokenize->chat) : NULL};
    const struct resume_request request = {.command = command,
                                           .values = values,
                                           .without = without,
                                           .files = files,
                                           .file_count = sizeof(files) / sizeof(files[0]),
                                           .inputs = inputs,
                                           .input_count = count};

    return resume_digest(tokenize->digest, &request, error);
}

/* Is there a record, and everything that it speaks of? */
static bool find_record(struct tokenize *tokenize, struct resume *resume, int inputs)
{
    const struct outputs *outputs = &tokenize->streams.outputs;

    if (!*tokenize->digest ||
        !resume_read(resume, tokenize->resume_path, tokenize->digest, outputs->count) ||
        resume->position.input > inputs)
        return false;
    for (int i = 0; i < outputs->count; i++)
        if (!token_writer_holds(outputs->writers[i], &resume->marks[i]))
            return false;
    return true;
}

/* Go on where an earlier run of the same command was, or begin anew. */
static int begin(struct tokenize *tokenize, const struct command *command,
                 const char *const *values, char *const *inputs, int count, struct error *error)
{
    struct streams *streams = &tokenize->streams;
    struct outputs *outputs = &streams->outputs;
    struct resume resume;
    bool found;

    if (asprintf(&tokenize->resume_path, "%s.resume", token_writer_prefix(outputs->writers[0])) <
        0) {
        tokenize->resume_path = NULL;
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    }
    if (corpus_has_files(tokenize->corpus) &&
        make_digest(tokenize, command, values, inputs, count, error) < 0)
        return -1;
    found = find_record(tokenize, &resume, count);
    /* First of all: what is written now is not what it speaks of. */
    if (!found && resume_remove(tokenize->resume_path, error) < 0)
        return -1;
    if (found)
        outputs_keep(outputs, interrupted);
    for (int i = 0; i < outputs->count; i++)
        if (token_writer_begin(outputs->writers[i], found ? &resume.marks[i] : NULL, error) < 0)
            return -1;
    if (!found)
        return 0;
    streams->dropping = resume.dropping;
    streams->empty = resume.empty;
    streams->bad = resume.bad;
    tokenize->begun = tokenize->done = resume.position;
    log_info("%s: goes on behind %lld documents and %.2f MB of text", tokenize->output,
             (long long)documents_written(tokenize), 1e-6 * (double)resume.position.text_bytes);
    return corpus_seek(tokenize->corpus, &resume.position, error);
}

/* Record how far it is, now and then: the longer that takes, the more seldom. */
static int save(struct tokenize *tokenize, struct error *error)
{
    struct streams *streams = &tokenize->streams;
    struct resume resume = {.position = tokenize->done,
                            .dropping = streams->dropping,
                            .empty = streams->empty,
                            .bad = streams->bad,
                            .streams = streams->outputs.count};
    double begun_s = progress_elapsed_s(&tokenize->progress), ended_s;

    if (!*tokenize->digest || begun_s < tokenize->next_save_s)
        return 0;
    for (int i = 0; i < resume.streams; i++)
        if (token_writer_sync(streams->outputs.writers[i], &resume.marks[i], error) < 0)
            return -1;
    if (resume_write(&resume, tokenize->resume_path, tokenize->digest, error) < 0)
        return -1;
    outputs_keep(&streams->outputs, interrupted);
    ended_s = progress_elapsed_s(&tokenize->progress);
    if (tokenize->save_interval_s > 0)
        tokenize->next_save_s = ended_s + fmax(tokenize->save_interval_s, 20 * (ended_s - begun_s));
    return 0;
}

/* A file that cannot be written may be one that soon can. Input that is damaged has to change, and
 * then nothing can be gone on with. */
static void leave(struct tokenize *tokenize, const struct error *error)
{
    struct error ignored = {0};

    if (!tokenize->resume_path || access(tokenize->resume_path, F_OK) < 0)
        return;
    if (error->status != EXIT_STATUS_DATA) {
        log_info("the same command goes on where this one has come to");
        return;
    }
    outputs_keep(&tokenize->streams.outputs, NULL);
    resume_remove(tokenize->resume_path, &ignored);
}

/* -----------------------------------------------------------------------------------------------*/

static int report_bad(void *context, const struct corpus_batch *batch,
                      const struct corpus_part *part, struct error *error)
{
    struct tokenize *tokenize = context;
    int64_t before = tokenize->streams.bad;

    if (tokenize->strict)
        return error_set(error, EXIT_STATUS_DATA, "%s:%lld: %s", batch->path, (long long)part->line,
                         part->problem);
    progress_clear(&tokenize->progress);
    if (before < BAD_SHOWN)
        log_warning("%s:%lld: %s; %s", batch->path, (long long)part->line, part->problem,
                    part->first && part->last ? "skipped" : "the whole document is skipped");
    if (before == BAD_SHOWN)
        log_warning("further bad documents are only counted");
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
        if (found <= 0)
            return found;
        if (streams_write(&tokenize->streams, batch, report_bad, tokenize, error) < 0)
            return -1;
        tokenize->done = batch->after;
        encoder_release(tokenize->encoder);
        if (save(tokenize, error) < 0)
            return -1;
        progress_update(&tokenize->progress, tokenize->done.file_bytes,
                        documents_written(tokenize));
    }
}

static int finish(struct tokenize *tokenize, struct error *error)
{
    const struct streams *streams = &tokenize->streams;
    const struct token_writer *text = streams->outputs.writers[0];
    long long documents = documents_written(tokenize);
    long long tokens = tokenize->chat ? token_writer_tokens(text) : streams_tokens(streams);
    double megabytes = 1e-6 * (double)tokenize->done.text_bytes;
    double before = 1e-6 * (double)tokenize->begun.text_bytes, seconds;

    if (documents == 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "no document in the input (%lld empty, %lld bad ones); nothing written",
                         (long long)streams->empty, (long long)streams->bad);
    if (outputs_commit(&tokenize->streams.outputs, tokenize->resume_path, error) < 0)
        return -1;
    seconds = progress_elapsed_s(&tokenize->progress);
    printf("%s: %lld documents, %lld tokens (%s), %.2f MB of text in %.1f s (%.2f MB/s)",
           tokenize->output, documents, tokens, token_writer_dtype_name(text), megabytes - before,
           seconds, seconds > 0 ? (megabytes - before) / seconds : 0.0);
    if (before > 0)
        printf(" after %.2f MB earlier", before);
    if (streams->empty > 0)
        printf(", %lld empty documents skipped", (long long)streams->empty);
    if (streams->bad > 0)
        printf(", %lld bad documents skipped", (long long)streams->bad);
    printf("\n");
    return 0;
}

static int run(const struct command *command, const char *const *values, char *const *operands,
               int operand_count, struct error *error)
{
    struct tokenize tokenize = {0};
    int result = -1;

    if (parse(&tokenize, command, values, error) < 0 || load_tokenizer(&tokenize, error) < 0 ||
        open_corpus(&tokenize, operands, operand_count, error) < 0 ||
        open_outputs(&tokenize, error) < 0 ||
        begin(&tokenize, command, values, operands, operand_count, error) < 0 ||
        start_encoder(&tokenize, error) < 0)
        goto out;
    progress_begin(&tokenize.progress, corpus_bytes(tokenize.corpus), tokenize.begun.file_bytes);
    result = convert(&tokenize, error);
    progress_clear(&tokenize.progress);
    if (result == 0)
        result = finish(&tokenize, error);
out:
    if (result < 0)
        leave(&tokenize, error);
    encoder_stop(tokenize.encoder);
    outputs_close(&tokenize.streams.outputs);
    corpus_close(tokenize.corpus);
    chat_close(tokenize.chat);
    tokenizer_close(tokenize.tokenizer);
    free(tokenize.resume_path);
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
    {"message-tokens", "HOW", "special|text", "special",
     "what looks like a special token in a message is: special|text"},
    {"threads", "N", NULL, NULL, "threads that encode; all processors if unset"},
    {"strict", NULL, NULL, NULL, "stop at the first bad document"},
    {"save-interval", "SECONDS", NULL, "5", "how often to record what to go on from"},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command command_tokenize = {
    .name = "tokenize",
    .operands = "INPUT...",
    .least_operands = 1,
    .most_operands = 1 << 30,
    .help = "Turn plain text and JSON lines (.jsonl, .json, .ndjson) into a token file.\n"
            "Files may be compressed (.gz, .zst); INPUT - is standard input. After an interruption"
            " the\nsame command goes on.",
    .options = options,
    .run = run,
};
