/* Text to token ids and back, with a SentencePiece model or a tokenizer.json of Hugging Face.
 *
 * With SentencePiece, a document of any length is encoded in parts of about 8 KB, cut at line ends
 * where the model provably keeps no token across the cut; the ids are those of the whole document.
 * A model that gives no such guarantee, and a tokenizer.json, are fed whole documents. A tokenizer
 * may be used by several threads at once.
 *
 * Built without one of the libraries, tokenizer_open() says which package is missing.
 */
#ifndef MTLLM_DATA_TOKENIZER_H
#define MTLLM_DATA_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A growing list of ids; all zeros is an empty one. */
struct token_list {
    int32_t *ids; /* [count], free() it */
    int64_t count, capacity;
};

/* -1: out of memory. */
int token_list_reserve(struct token_list *list, int64_t more);

/* Bytes [begin, end) of a text. */
struct token_span {
    uint32_t begin, end;
};

struct tokenizer;

/* Ids beyond this are taken for damage. */
#define TOKENIZER_IDS_MOST (1 << 24)

/* What can be encoded at once. */
#define TOKENIZER_BYTES_MOST (1 << 30)

/* `path` is a SentencePiece model, a tokenizer.json (with the ending .json; tokenizer_config.json
 * beside it names the tokens around a document), or a directory with one of them: tokenizer.json
 * comes first, as for transformers. Beside a SentencePiece model, added_tokens.json names tokens
 * behind its own. Error: EXIT_STATUS_IO
 * (cannot be read), EXIT_STATUS_DATA (not a model), EXIT_STATUS_CONFIGURATION (built without). */
int tokenizer_open(struct tokenizer **tokenizer, const char *path, struct error *error);
void tokenizer_close(struct tokenizer *tokenizer);

/* Give the tokens of --add-tokens (core/token_names.h) the ids that hf-to-h5 and mtllm-train give
 * them; one that is there already keeps its own. Not while others use the tokenizer. Errors as of
 * token_names_parse(). */
int tokenizer_add_tokens(struct tokenizer *tokenizer, const char *option, struct error *error);

int64_t tokenizer_vocab_size(const struct tokenizer *tokenizer);
/* Ids of special tokens; -1 where the model has none. */
int32_t tokenizer_bos(const struct tokenizer *tokenizer);
int32_t tokenizer_eos(const struct tokenizer *tokenizer);
int32_t tokenizer_unk(const struct tokenizer *tokenizer);

/* The id of a token that text is never taken for by chance: an added token of a tokenizer.json, any
 * piece of SentencePiece. -1: it is none. */
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *text);
/* The token as it is written; NULL when there is none of this id. */
const char *tokenizer_text(const struct tokenizer *tokenizer, int32_t id, size_t *bytes);
/* Are tokens such as </s> found in text that is encoded? SentencePiece takes them for text. */
bool tokenizer_sees_tokens(const struct tokenizer *tokenizer);

/* Append the ids of a whole document, special tokens not added. Bytes that are no UTF-8 count as
 * U+FFFD. Error: EXIT_STATUS_DATA or EXIT_STATUS_SYSTEM (out of memory). */
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                     struct token_list *list, struct error *error);

/* The same, and what each token comes from: *spans, to be freed, has one for each id appended. The
 * text must be UTF-8. A token that holds a part of a character comes from all of it; one without
 * text of its own, such as the space that some models begin with, from what follows or from
 * nothing. For a tokenizer.json these are the offsets of Hugging Face's tokenizers (in bytes, and
 * before a post-processor trims them), for SentencePiece the library's. `written`, unless NULL, has
 * a 1 for each byte that is text, whatever it looks like, and a 0 where tokens are found. */
int tokenizer_encode_spans(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                           const uint8_t *written, struct token_list *list,
                           struct token_span **spans, struct error *error);

/* As tokenizer_encode() by parts, for documents that do not fit in memory. The first part of the
 * document that `text` continues ends at the returned position. `whole`: the document ends at
 * `bytes`; else 0 means that more text is needed to tell. `scanned` (0 for each new part) is where
 * the search goes on after more text came. */
size_t tokenizer_part(const struct tokenizer *tokenizer, const char *text, size_t bytes, bool whole,
                      size_t *scanned);
/* Append the ids of one part; `first`: the document begins with it. */
int tokenizer_encode_part(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                          bool first, struct token_list *list, struct error *error);

/* *text is malloc()ed, *bytes long, and ends with a zero byte that does not count. */
int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, int64_t count,
                     char **text, size_t *bytes, struct error *error);

#ifdef __cplusplus
}
#endif

#endif
