/* What the files of the CUDA backend share: the device, its streams, how work is launched, and
 * vectors of elements. The members of the table are templates over the element type T (float,
 * __nv_bfloat16, __half), named cuda_NAME, each instantiated for the three where it is defined.
 */
#ifndef MTLLM_KERNELS_CUDA_CUDA_H
#define MTLLM_KERNELS_CUDA_CUDA_H

#include <assert.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

extern "C" {
#include "kernels/kernels.h"
}

using bf16 = __nv_bfloat16;

struct stream {
    cudaStream_t handle;
};

/* The one device of this process, set by open. */
struct cuda_device {
    int number, multiprocessors;
    int major, minor;    /* compute capability */
    size_t shared_bytes; /* a block can have, after cudaFuncSetAttribute */
    struct stream compute;
    /* Kernels on the compute stream leave partial sums here, each its own. */
    void *workspace;
};
enum { WORKSPACE_BYTES = 16 << 20 };
extern struct cuda_device cuda_device;

static inline cudaStream_t handle_of(const struct stream *stream)
{
    return stream ? stream->handle : cuda_device.compute.handle;
}

/* Keeps the first failure for stream_sync() to report. Use after every launch and call. */
void cuda_note(cudaError_t status, const char *what);
#define LAUNCHED(what) cuda_note(cudaGetLastError(), what)

static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* --- in kernels --------------------------------------------------------------------------------
 */

/* 16 bytes of elements. */
template <class T> struct alignas(16) pack {
    static constexpr int size = 16 / (int)sizeof(T);
    T at[size];
};

template <class T> static __device__ inline pack<T> load_pack(const T *from)
{
    return *reinterpret_cast<const pack<T> *>(from);
}

template <class T> static __device__ inline void store_pack(T *to, const pack<T> &value)
{
    *reinterpret_cast<pack<T> *>(to) = value;
}

static __device__ inline float to_float(float x)
{
    return x;
}
static __device__ inline float to_float(bf16 x)
{
    return __bfloat162float(x);
}
static __device__ inline float to_float(__half x)
{
    return __half2float(x);
}

/* Rounded to nearest even. */
template <class T> static __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x)
{
    return x;
}
template <> __device__ inline bf16 from_float<bf16>(float x)
{
    return __float2bfloat16_rn(x);
}
template <> __device__ inline __half from_float<__half>(float x)
{
    return __float2half_rn(x);
}

/* Whether vectors of 16 bytes can be used on rows of that many elements from there. */
template <class T>
static inline bool packs(int64_t columns, const void *a, const void *b = nullptr,
                         const void *c = nullptr, const void *d = nullptr)
{
    uintptr_t bits = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d;

    return columns % pack<T>::size == 0 && bits % 16 == 0;
}

/* --- members of the table ----------------------------------------------------------------------
 */

/* linear.cu */
template <class T>
void cuda_linear_forward(struct stream *stream, void *y, const void *x, const void *w, int64_t rows,
                         int64_t in, int64_t out, bool accumulate);
template <class T>
void cuda_linear_backward_input(struct stream *stream, void *dx, const void *dy, const void *w,
                                int64_t rows, int64_t in, int64_t out, bool accumulate);
template <class T>
void cuda_linear_backward_weight(struct stream *stream, float *dw, const void *dy, const void *x,
                                 int64_t rows, int64_t in, int64_t out);
template <class T>
int cuda_linear_prepare(int64_t rows, int64_t in, int64_t out, struct error *error);
int cuda_linear_open(struct error *error);
char *cuda_products_text(void);
bool cuda_products_adopt(const char *text);

/* bias.cu */
template <class T>
void cuda_bias_forward(struct stream *stream, void *y, const void *bias, int64_t rows,
                       int64_t columns);
template <class T>
void cuda_bias_backward(struct stream *stream, float *dbias, const void *dy, int64_t rows,
                        int64_t columns);

/* norm.cu */
template <class T>
void cuda_rmsnorm_forward(struct stream *stream, void *y, float *rstd, void *sum, const void *x,
                          const void *residual, const void *w, double eps, int64_t rows,
                          int64_t columns);
template <class T>
void cuda_rmsnorm_backward(struct stream *stream, void *dx, float *dw, void *y, const void *dy,
                           const void *s, const void *w, const float *rstd, const void *dresidual,
                           int64_t rows, int64_t columns);
template <class T>
void cuda_layernorm_forward(struct stream *stream, void *y, float *mean, float *rstd, void *sum,
                            const void *x, const void *residual, const void *w, const void *b,
                            double eps, int64_t rows, int64_t columns);
template <class T>
void cuda_layernorm_backward(struct stream *stream, void *dx, float *dw, float *db, void *y,
                             const void *dy, const void *s, const void *w, const void *b,
                             const float *mean, const float *rstd, const void *dresidual,
                             int64_t rows, int64_t columns);

/* rope.cu */
template <class T>
void cuda_rope(struct stream *stream, void *qkv, const float *cosine, const float *sine,
               const int32_t *positions, int64_t rows, int heads, int kv_heads, int head_dim,
               bool inverse);

/* attention.cu: the choice between what follows */
template <class T>
void cuda_attention_forward(struct stream *stream, void *out, float *lse, const void *qkv,
                            const struct attention_shape *shape);
template <class T> size_t cuda_attention_workspace(const struct attention_shape *shape);
template <class T>
void cuda_attention_backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                             const void *qkv, const float *lse, void *workspace,
                             const struct attention_shape *shape);

/* swiglu.cu */
template <class T>
void cuda_swiglu_forward(struct stream *stream, void *y, const void *gate_up, int64_t rows,
                         int64_t f);
template <class T>
void cuda_swiglu_backward(struct stream *stream, void *dgate_up, void *y, const void *dy,
                          const void *gate_up, int64_t rows, int64_t f);

/* gelu.cu */
template <class T>
void cuda_dropout(struct stream *stream, void *y, const void *x, int64_t n, double rate,
                  uint64_t seed, uint32_t place, int64_t first);
template <class T> void cuda_gelu_forward(struct stream *stream, void *y, const void *x, int64_t n);
template <class T>
void cuda_gelu_backward(struct stream *stream, void *dx, void *y, const void *dy, const void *x,
                        int64_t n);

/* embedding.cu */
template <class T>
void cuda_embedding_forward(struct stream *stream, void *y, const int32_t *tokens, const void *w,
                            int64_t first, int64_t count, int64_t rows, int64_t columns);
template <class T>
void cuda_embedding_backward(struct stream *stream, float *dw, const int32_t *tokens,
                             const void *dy, int64_t first, int64_t count, int64_t rows,
                             int64_t columns);

/* cross_entropy.cu */
template <class T>
void cuda_cross_entropy_partial(struct stream *stream, float *maximum, float *sum, float *target,
                                int32_t *best, const void *logits, const int32_t *targets,
                                int64_t first, int64_t count, int64_t stride, int64_t rows);
void cuda_cross_entropy_rescale(struct stream *stream, float *sum, const float *local_maximum,
                                const float *maximum, int64_t rows);
void cuda_cross_entropy_best(struct stream *stream, int32_t *best, const float *maxima,
                             const int32_t *bests, int ranks, int64_t rows);
template <class T>
void cuda_cross_entropy_finish(struct stream *stream, float *loss, void *logits,
                               const int32_t *targets, const float *weight, const float *maximum,
                               const float *sum, const float *target, int64_t first, int64_t count,
                               int64_t stride, int64_t rows, bool backward);

/* optimizer.cu */
void cuda_sum_squares(struct stream *stream, double *out, const float *x, int64_t n);
void cuda_weighted_sum(struct stream *stream, double *out, const float *weight, const float *x,
                       int64_t n);
template <class T>
void cuda_adamw(struct stream *stream, void *weight, float *master, void *m, void *v,
                const float *grad, int64_t n, const struct adamw *update);

/* nccl.cu */
struct nccl;
extern const struct nccl cuda_nccl;
extern const struct peer_memory cuda_peer_memory;

/* elementwise.cu */
template <class T>
void cuda_copy_columns(struct stream *stream, void *to, int64_t to_stride, const void *from,
                       int64_t from_stride, int64_t rows, int64_t columns, bool accumulate);
template <class T> void cuda_add(struct stream *stream, void *y, const void *x, int64_t n);
template <class T> void cuda_fill(struct stream *stream, void *w, double value, int64_t n);
template <class T>
void cuda_random_normal(struct stream *stream, void *w, const struct tile *tile, double std,
                        uint64_t seed, uint64_t tensor);

#endif
