/* In the place of the kinds of tokenizers whose libraries were not there at build time. */
#include "config.h"
#include "data/tokenizer_kind.h"

#ifndef HAVE_SENTENCEPIECE
int sentencepiece_open(struct tokenizer **tokenizer, const char *path, struct error *error)
{
    *tokenizer = NULL;
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "%s: built without SentencePiece; install libsentencepiece-dev (Debian) and "
                     "build again",
                     path);
}
#endif

#ifndef HAVE_TOKENIZER_JSON
int tokenizer_json_open(struct tokenizer **tokenizer, const char *path, struct error *error)
{
    *tokenizer = NULL;
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "%s: built without Oniguruma or utf8proc; install libonig-dev and "
                     "libutf8proc-dev (Debian) and build again",
                     path);
}
#endif
