/* What the files of the CPU backend share: the members of its table, see kernels.h for their
 * contracts, and how work is cut into threads.
 */
#ifndef MTLLM_KERNELS_CPU_CPU_H
#define MTLLM_KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

/* Elements below which waking other threads costs more than they save. */
#define PARALLEL_ELEMENTS 16384

struct range {
    int64_t begin, end;
};

/* This thread's part of [0, n) inside a parallel region: contiguous, by thread number, cut at
 * multiples of `grain`. */
struct range thread_range(int64_t n, int64_t grain);

/* Around a parallel region whose threads call BLAS: makes each of those calls use one thread, with
 * libraries that would not do so by themselves. */
void blas_serial_begin(void);
void blas_serial_end(void);

/* linear.c */
void cpu_linear_forward(struct stream *stream, void *y, const void *x, const void *w, int64_t rows,
                        int64_t in, int64_t out, bool accumulate);
void cpu_linear_backward_input(struct stream *stream, void *dx, const void *dy, const void *w,
                               int64_t rows, int64_t in, int64_t out, bool accumulate);
void cpu_linear_backward_weight(struct stream *stream, float *dw, const void *dy, const void *x,
                                int64_t rows, int64_t in, int64_t out);

/* bias.c */
void cpu_bias_forward(struct stream *stream, void *y, const void *bias, int64_t rows,
                      int64_t columns);
void cpu_bias_backward(struct stream *stream, float *dbias, const void *dy, int64_t rows,
                       int64_t columns);

/* norm.c */
void cpu_rmsnorm_forward(struct stream *stream, void *y, float *rstd, void *sum, const void *x,
                         const void *residual, const void *w, double eps, int64_t rows,
                         int64_t columns);
void cpu_rmsnorm_backward(struct stream *stream, void *dx, float *dw, void *y, const void *dy,
                          const void *s, const void *w, const float *rstd, const void *dresidual,
                          int64_t rows, int64_t columns);
void cpu_layernorm_forward(struct stream *stream, void *y, float *mean, float *rstd, void *sum,
                           const void *x, const void *residual, const void *w, const void *b,
                           double eps, int64_t rows, int64_t columns);
void cpu_layernorm_backward(struct stream *stream, void *dx, float *dw, float *db, void *y,
                            const void *dy, const void *s, const void *w, const void *b,
                            const float *mean, const float *rstd, const void *dresidual,
                            int64_t rows, int64_t columns);

/* rope.c */
void cpu_rope(struct stream *stream, void *qkv, const float *cosine, const float *sine,
              const int32_t *positions, int64_t rows, int heads, int kv_heads, int head_dim,
              bool inverse);

/* attention.c, attention_backward.c */
void cpu_attention_forward(struct stream *stream, void *out, float *lse, const void *qkv,
                           const struct attention_shape *shape);
void cpu_attention_backward(struct stream *stream, void *dqkv, const void *dout, const void *out,
                            const void *qkv, const float *lse, void *workspace,
                            const struct attention_shape *shape);

/* swiglu.c */
void cpu_swiglu_forward(struct stream *stream, void *y, const void *gate_up, int64_t rows,
                        int64_t f);
void cpu_swiglu_backward(struct stream *stream, void *dgate_up, void *y, const void *dy,
                         const void *gate_up, int64_t rows, int64_t f);

/* gelu.c */
void cpu_dropout(struct stream *stream, void *y, const void *x, int64_t n, double rate,
                 uint64_t seed, uint32_t place, int64_t first);
void cpu_gelu_forward(struct stream *stream, void *y, const void *x, int64_t n);
void cpu_gelu_backward(struct stream *stream, void *dx, void *y, const void *dy, const void *x,
                       int64_t n);

/* embedding.c */
void cpu_embedding_forward(struct stream *stream, void *y, const int32_t *tokens, const void *w,
                           int64_t first, int64_t count, int64_t rows, int64_t columns);
void cpu_embedding_backward(struct stream *stream, float *dw, const int32_t *tokens, const void *dy,
                            int64_t first, int64_t count, int64_t rows, int64_t columns);

/* cross_entropy.c */
void cpu_cross_entropy_partial(struct stream *stream, float *maximum, float *sum, float *target,
                               int32_t *best, const void *logits, const int32_t *targets,
                               int64_t first, int64_t count, int64_t stride, int64_t rows);
void cpu_cross_entropy_rescale(struct stream *stream, float *sum, const float *local_maximum,
                               const float *maximum, int64_t rows);
void cpu_cross_entropy_best(struct stream *stream, int32_t *best, const float *maxima,
                            const int32_t *bests, int ranks, int64_t rows);
void cpu_cross_entropy_finish(struct stream *stream, float *loss, void *logits,
                              const int32_t *targets, const float *weight, const float *maximum,
                              const float *sum, const float *target, int64_t first, int64_t count,
                              int64_t stride, int64_t rows, bool backward);

/* optimizer.c */
void cpu_sum_squares(struct stream *stream, double *out, const float *x, int64_t n);
void cpu_weighted_sum(struct stream *stream, double *out, const float *weight, const float *x,
                      int64_t n);
void cpu_adamw(struct stream *stream, void *weight, float *master, void *m, void *v,
               const float *grad, int64_t n, const struct adamw *update);

/* random.c */
void cpu_random_normal(struct stream *stream, void *w, enum dtype dtype, const struct tile *tile,
                       double std, uint64_t seed, uint64_t tensor);

#endif
