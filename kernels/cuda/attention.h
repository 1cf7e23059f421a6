/* What an implementation of attention is to attention.cu, which chooses one for every call.
 *
 * All of them read and write the same data (kernels.h has the layouts), so that a forward pass of
 * one can be followed by the backward pass of another: lse is the natural logarithm of the sum of
 * exp(q k^T / sqrt(head_dim)), [heads, rows] fp32.
 */
#ifndef MTLLM_KERNELS_CUDA_ATTENTION_H
#define MTLLM_KERNELS_CUDA_ATTENTION_H

#include "kernels/attention_workspace.h"
#include "kernels/cuda/cuda.h"

enum attention_pass { ATTENTION_FORWARD, ATTENTION_BACKWARD };

struct attention_implementation {
    const char *name;
    /* Whether this device, and what was built and found, can do that pass for that shape: head_dim,
     * window, what heads / kv_heads is, dropout. Cheap: asked before every call. */
    bool (*supports)(const struct attention_shape *shape, enum dtype dtype,
                     enum attention_pass pass);
    /* Called only for what is supported, with all pointers aligned to 16 bytes. The elements that
     * kernels.h names are all written; the same input gives the same bits. */
    void (*forward)(struct stream *stream, void *out, float *lse, const void *qkv,
                    const struct attention_shape *shape, enum dtype dtype);
    /* Bytes backward() needs for whatever lengths of at most that many sequences in that many rows
     * and heads: `starts` and `longest` must not be looked at. Also asked for shapes that are not
     * supported (0 is a good answer then). */
    size_t (*workspace)(const struct attention_shape *shape);
    void (*backward)(struct stream *stream, void *dqkv, const void *dout, const void *out,
                     const void *qkv, const float *lse, void *workspace,
                     const struct attention_shape *shape, enum dtype dtype);
};

/* any type and head_dim up to 256, all arithmetic in fp32; with dropout */
extern const struct attention_implementation attention_simt;
/* bf16 and fp16, sm_80 and newer, head_dim a multiple of 8 up to 256; with dropout */
extern const struct attention_implementation attention_mma;
/* These two are there when they were built; preferred where they support what is asked, which
 * dropout is not. */
extern const struct attention_implementation attention_wgmma __attribute__((weak));
extern const struct attention_implementation attention_cudnn __attribute__((weak));

/* Dropout as kernels see it; of attention_simt and attention_mma alone. */
struct attention_drops {
    uint32_t seed[2], place;
    uint32_t threshold; /* of random numbers: what is below drops; 0: no dropout */
    float kept;         /* what is left is multiplied by it */
    int64_t first_row;  /* of row 0 among all rows of the run */
    int first_head;     /* of head 0 among all of the model */
};

struct attention_drops attention_drops_of(const struct attention_shape *shape);

/* Which are used from now on: "auto" (the first of the list that supports a call), "flash" (the
 * same without cuDNN) or the name of one, which is used wherever it supports the call. Error:
 * EXIT_STATUS_CONFIGURATION for one that was not built. */
int cuda_attention_open(const char *choice, struct error *error);

#endif
