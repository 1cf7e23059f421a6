/* What a tokenizer.model, a SentencePiece model, says about itself. */
#ifndef MTLLM_CKPT_HF_SENTENCEPIECE_H
#define MTLLM_CKPT_HF_SENTENCEPIECE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hf_sentencepiece {
    int model_type;       /* 1 unigram, 2 BPE */
    bool normalizes;      /* text is changed before it is split: not what Llama's tokenizer does */
    bool adds_space;      /* in front of the text */
    bool space_ends_word; /* and does not begin it */
    int64_t unk_id, bos_id, eos_id, pad_id; /* -1: none */
    char unk[64], bos[64], eos[64], pad[64];
};

/* Read the trainer's and the normalizer's settings. -1 when the bytes are not a SentencePiece
 * model. */
int hf_sentencepiece_read(struct hf_sentencepiece *tokenizer, const void *bytes, size_t size);

/* SentencePiece's own limit is 512 bytes. */
#define HF_PIECE_SIZE 1024

enum hf_piece_type {
    HF_PIECE_NORMAL = 1,
    HF_PIECE_UNKNOWN,
    HF_PIECE_CONTROL,
    HF_PIECE_USER_DEFINED,
    HF_PIECE_UNUSED,
    HF_PIECE_BYTE,
};

struct hf_piece {
    const char *text; /* NULL when it is longer, empty or no UTF-8 */
    int64_t id;
    float score;
    int type; /* enum hf_piece_type */
};

/* Every piece in the order of ids; it goes away after the call. -1 when the bytes are not a
 * SentencePiece model. */
int hf_sentencepiece_pieces(const void *bytes, size_t size,
                            void (*see)(void *user, const struct hf_piece *piece), void *user);

#endif
