/* What tokenizer.h asks of each kind of tokenizer; for those who make one. */
#ifndef MTLLM_DATA_TOKENIZER_KIND_H
#define MTLLM_DATA_TOKENIZER_KIND_H

#include "data/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The functions of tokenizer.h, each with its contract. */
struct tokenizer_kind {
    void (*close)(struct tokenizer *tokenizer);
    size_t (*part)(const struct tokenizer *tokenizer, const char *text, size_t bytes, bool whole,
                   size_t *scanned);
    int (*encode_part)(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                       bool first, struct token_list *list, struct error *error);
    int (*encode_spans)(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                        const uint8_t *written, struct token_list *list, struct token_span **spans,
                        struct error *error);
    /* A token of its own from now on, for find() and where text is looked through for tokens.
     * Returns its id, another than the one given if its text is in the vocabulary; -1: out of
     * memory. */
    int32_t (*add)(struct tokenizer *tokenizer, const char *text, int32_t id);
    int32_t (*find)(const struct tokenizer *tokenizer, const char *text);
    const char *(*text)(const struct tokenizer *tokenizer, int32_t id, size_t *bytes);
    int (*decode)(const struct tokenizer *tokenizer, const int32_t *ids, int64_t count, char **text,
                  size_t *bytes, struct error *error);
};

/* Each kind has this first. */
struct tokenizer {
    const struct tokenizer_kind *kind;
    bool sees_tokens;
    char *directory; /* of its files: "" or with a slash behind it */
    int64_t vocab_size;
    int32_t bos, eos, unk;
};

/* The tokens of added_tokens.json beside it. Error: EXIT_STATUS_DATA, EXIT_STATUS_SYSTEM. */
int new_tokens_read(struct tokenizer *tokenizer, struct error *error);

/* `path` is a file. Errors as of tokenizer_open(). */
int sentencepiece_open(struct tokenizer **tokenizer, const char *path, struct error *error);
int tokenizer_json_open(struct tokenizer **tokenizer, const char *path, struct error *error);

#ifdef __cplusplus
}
#endif

#endif
