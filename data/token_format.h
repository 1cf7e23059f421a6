/* The constants of the token file format, for its reader and its writer. */
#ifndef MTLLM_DATA_TOKEN_FORMAT_H
#define MTLLM_DATA_TOKEN_FORMAT_H

#define TOKEN_INDEX_MAGIC        "MMIDIDX\0" /* and the terminating zero: nine bytes */
#define TOKEN_INDEX_MAGIC_BYTES  9
#define TOKEN_INDEX_VERSION      1
#define TOKEN_INDEX_HEADER_BYTES 34

/* Megatron stores uint16 below this vocabulary and int32 from it on. */
#define TOKEN_UINT16_VOCAB 65500

struct token_dtype {
    int code; /* in the index */
    int bytes;
    const char *name;
};

/* NULL for a code that is none of an integer type. */
const struct token_dtype *token_dtype_find(int code);

#endif
