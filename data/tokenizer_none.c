/* In place of tokenizer.cc where SentencePiece was not there at build time. */
#include <stdlib.h>

#include "data/tokenizer.h"

static int refuse(struct error *error)
{
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "built without SentencePiece, so text cannot be tokenized; install"
                     " libsentencepiece-dev (Debian) and build again");
}

int token_list_reserve(struct token_list *list, int64_t more)
{
    (void)list;
    (void)more;
    return -1;
}

int tokenizer_open(struct tokenizer **tokenizer, const char *path, struct error *error)
{
    (void)path;
    *tokenizer = NULL;
    return refuse(error);
}

void tokenizer_close(struct tokenizer *tokenizer)
{
    (void)tokenizer;
}

int64_t tokenizer_vocab_size(const struct tokenizer *tokenizer)
{
    (void)tokenizer;
    return 0;
}

int32_t tokenizer_bos(const struct tokenizer *tokenizer)
{
    (void)tokenizer;
    return -1;
}

int32_t tokenizer_eos(const struct tokenizer *tokenizer)
{
    (void)tokenizer;
    return -1;
}

int32_t tokenizer_unk(const struct tokenizer *tokenizer)
{
    (void)tokenizer;
    return -1;
}

size_t tokenizer_part(const struct tokenizer *tokenizer, const char *text, size_t bytes, bool whole,
                      size_t *scanned)
{
    (void)tokenizer;
    (void)text;
    (void)scanned;
    return whole ? bytes : 0;
}

int tokenizer_encode_part(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                          bool first, struct token_list *list, struct error *error)
{
    (void)tokenizer;
    (void)text;
    (void)bytes;
    (void)first;
    (void)list;
    return refuse(error);
}

int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                     struct token_list *list, struct error *error)
{
    return tokenizer_encode_part(tokenizer, text, bytes, true, list, error);
}

int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, int64_t count,
                     char **text, size_t *bytes, struct error *error)
{
    (void)tokenizer;
    (void)ids;
    (void)count;
    *text = NULL;
    *bytes = 0;
    return refuse(error);
}
