/* Attention: which implementation a call goes to. */
#include "kernels/cuda/attention.h"

#include <string.h>

/* The fastest first (NOTES.md has the rates); the last supports everything that there is. Those
 * that were not built are NULL. */
static const struct attention_implementation *const implementations[] = {
    &attention_wgmma,
    &attention_cudnn,
    &attention_mma,
    &attention_simt,
};
enum { IMPLEMENTATIONS = sizeof(implementations) / sizeof(*implementations) };

/* Set by open: what is asked first, and what is not asked. */
static const struct attention_implementation *preferred;
static bool cudnn_unwanted;

int cuda_attention_open(const char *choice, struct error *error)
{
    preferred = nullptr;
    cudnn_unwanted = strcmp(choice, "flash") == 0;
    if (cudnn_unwanted || strcmp(choice, "auto") == 0)
        return 0;
    for (int i = 0; i < IMPLEMENTATIONS; i++)
        if (implementations[i] && strcmp(implementations[i]->name, choice) == 0)
            preferred = implementations[i];
    if (!preferred)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "attention=%s: this build of the CUDA backend lacks it; use "
                         "--attention=auto, or build where cuDNN's headers are",
                         choice);
    return 0;
}

static enum dtype dtype_of(float)
{
    return DTYPE_F32;
}
static enum dtype dtype_of(bf16)
{
    return DTYPE_BF16;
}
static enum dtype dtype_of(__half)
{
    return DTYPE_F16;
}

static void check(const struct attention_shape *shape)
{
    assert(shape->heads > 0 && shape->kv_heads > 0 && shape->heads % shape->kv_heads == 0);
    assert(shape->head_dim > 0 && shape->window >= 0);
    assert(shape->rows <= INT32_MAX && shape->longest <= shape->rows);
    assert(shape->dropout.rate >= 0 && shape->dropout.rate < 1);
    (void)shape;
}

struct attention_drops attention_drops_of(const struct attention_shape *shape)
{
    const struct attention_dropout *dropout = &shape->dropout;
    struct attention_drops drops = {};

    drops.kept = 1;
    if (dropout->rate == 0)
        return drops;
    drops.seed[0] = (uint32_t)dropout->seed;
    drops.seed[1] = (uint32_t)(dropout->seed >> 32);
    drops.place = dropout->place;
    drops.threshold = (uint32_t)(dropout->rate * 4294967296.0);
    drops.kept = (float)(1 / (1 - dropout->rate));
    drops.first_row = dropout->first_row;
    drops.first_head = dropout->first_head;
    return drops;
}

static const struct attention_implementation *choose(const struct attention_shape *shape,
                                                     enum dtype dtype, enum attention_pass pass)
{
    check(shape);
    if (preferred && preferred->supports(shape, dtype, pass))
        return preferred;
    for (int i = 0; i < IMPLEMENTATIONS; i++)
        if (implementations[i] && !(cudnn_unwanted && implementations[i] == &attention_cudnn) &&
            implementations[i]->supports(shape, dtype, pass))
            return implementations[i];
    assert(!"a head_dim that attention_simt supports");
    return nullptr;
}

template <class T>
void cuda_attention_forward(struct stream *stream, void *out, float *lse, const void *qkv,
                            const struct attention_shape *shape)
{
    enum dtype dtype = dtype_of(T());

    choose(shape, dtype, ATTENTION_FORWARD)->forward(stream, out, lse, qkv, shape, dtype);
}

/* Whichever is chosen when the lengths are others finds enough. cuDNN's, which is large, counts
 * only where it is chosen: only for equal lengths, like these, can it be. */
template <class T> size_t cuda_attention_workspace(const struct attention_shape *shape)
{
    const struct attention_implementation *chosen =
        choose(shape, dtype_of(T()), ATTENTION_BACKWARD);
    size_t most = 0;

    for (int i = 0; i < IMPLEMENTATIONS; i++) {
        bool counts = implementations[i] &&
                      (implementations[i] != &attention_cudnn || chosen == &attention_cudnn);
        size_t bytes = counts ? implementations[i]->workspace(shape) : 0;

        if (bytes > most)
            most = bytes;
    }
    return most;
}

template <class T>
void cuda_attention_backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                             const void *qkv, const float *lse, void *workspace,
                             const struct attention_shape *shape)
{
    enum dtype dtype = dtype_of(T());

    choose(shape, dtype, ATTENTION_BACKWARD)
        ->backward(stream, dqkv, dout, out, qkv, lse, workspace, shape, dtype);
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_attention_forward<T>(struct stream *, void *, float *, const void *,        \
                                            const struct attention_shape *);                       \
    template size_t cuda_attention_workspace<T>(const struct attention_shape *);                   \
    template void cuda_attention_backward<T>(struct stream *, void *, const void *, const void *,  \
                                             const void *, const float *, void *,                  \
                                             const struct attention_shape *);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
