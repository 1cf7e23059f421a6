#include "data/streams.h"

static int write_part(struct streams *streams, struct token_writer *writer, bool last,
                      const int32_t *tokens, int64_t count, struct error *error)
{
    if (count > 0) {
        if (token_writer_open_tokens(writer) == 0 && streams->bos >= 0 &&
            token_writer_append(writer, &streams->bos, 1, error) < 0)
            return -1;
        if (token_writer_append(writer, tokens, count, error) < 0)
            return -1;
    }
    if (!last)
        return 0;
    if (token_writer_open_tokens(writer) == 0) {
        streams->empty++;
        return 0;
    }
    if (streams->eod >= 0 && token_writer_append(writer, &streams->eod, 1, error) < 0)
        return -1;
    return token_writer_end_document(writer, error);
}

/* Of a document that came in several parts, those that were good are taken back. */
static int drop_document(struct streams *streams, struct error *error)
{
    streams->bad++;
    streams->dropping = true;
    for (int i = 0; i < streams->outputs.count; i++)
        if (token_writer_drop_document(streams->outputs.writers[i], error) < 0)
            return -1;
    return 0;
}

int streams_write(struct streams *streams, const struct corpus_batch *batch,
                  int (*report)(void *context, const struct corpus_batch *batch,
                                const struct corpus_part *part, struct error *error),
                  void *context, struct error *error)
{
    int64_t at[STREAMS_MOST] = {0};

    for (int64_t i = 0; i < batch->count; i++) {
        const struct corpus_part *part = &batch->parts[i];

        if (part->problem && !streams->dropping &&
            (report(context, batch, part, error) < 0 || drop_document(streams, error) < 0))
            return -1;
        for (int s = 0; s < streams->outputs.count; s++) {
            if (!streams->dropping &&
                write_part(streams, streams->outputs.writers[s], part->last,
                           batch->streams[s].ids + at[s], part->tokens[s], error) < 0)
                return -1;
            at[s] += part->tokens[s];
        }
        if (part->last)
            streams->dropping = false;
    }
    return 0;
}

int64_t streams_documents(const struct streams *streams)
{
    int64_t documents = 0;

    for (int i = 0; i < streams->outputs.count; i++)
        documents += token_writer_documents(streams->outputs.writers[i]);
    return documents;
}

int64_t streams_tokens(const struct streams *streams)
{
    int64_t tokens = 0;

    for (int i = 0; i < streams->outputs.count; i++)
        tokens += token_writer_tokens(streams->outputs.writers[i]);
    return tokens;
}
