#include "data/outputs.h"

#include "data/guard.h"

int outputs_add(struct outputs *outputs, const char *prefix, int64_t vocab_size,
                struct error *error)
{
    if (guard_open(&outputs->streams[outputs->count].writer, prefix, vocab_size, error) < 0)
        return -1;
    outputs->count++;
    return 0;
}

static int write_stream(struct outputs *outputs, struct output_stream *stream, bool last,
                        const int32_t *tokens, int64_t count, struct error *error)
{
    struct token_writer *writer = stream->writer;

    if (count > 0) {
        if (!stream->document_open && outputs->bos >= 0 &&
            token_writer_append(writer, &outputs->bos, 1, error) < 0)
            return -1;
        stream->document_open = true;
        if (token_writer_append(writer, tokens, count, error) < 0)
            return -1;
    }
    if (!last)
        return 0;
    if (!stream->document_open) {
        outputs->empty++;
        return 0;
    }
    stream->document_open = false;
    if (outputs->eod >= 0 && token_writer_append(writer, &outputs->eod, 1, error) < 0)
        return -1;
    return token_writer_end_document(writer, error);
}

int outputs_write(struct outputs *outputs, const struct corpus_part *part, const int32_t **tokens,
                  struct error *error)
{
    for (int i = 0; i < outputs->count; i++) {
        if (write_stream(outputs, &outputs->streams[i], part->last, tokens[i], part->tokens[i],
                         error) < 0)
            return -1;
        tokens[i] += part->tokens[i];
    }
    return 0;
}

int64_t outputs_documents(const struct outputs *outputs)
{
    int64_t documents = 0;

    for (int i = 0; i < outputs->count; i++)
        documents += token_writer_documents(outputs->streams[i].writer);
    return documents;
}

int64_t outputs_tokens(const struct outputs *outputs)
{
    int64_t tokens = 0;

    for (int i = 0; i < outputs->count; i++)
        tokens += token_writer_tokens(outputs->streams[i].writer);
    return tokens;
}

int outputs_commit(struct outputs *outputs, struct error *error)
{
    for (int i = 0; i < outputs->count; i++)
        if (guard_commit(outputs->streams[i].writer, error) < 0)
            return -1;
    return 0;
}

void outputs_close(struct outputs *outputs)
{
    for (int i = 0; i < outputs->count; i++)
        guard_close(outputs->streams[i].writer);
}
