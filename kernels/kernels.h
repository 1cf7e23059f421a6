/* The arithmetic of training, one contract for every device.
 *
 * A backend is a table of functions. kernels/cpu is the readable reference: fp32, CBLAS and
 * OpenMP. kernels/cuda is a module (kernels/module.h). Everything works on buffers of the device;
 * work is ordered on streams. The stream NULL computes; others move data beside it. Weights and
 * activations ("act") have the backend's `dtype`; gradients of weights, norms' statistics, losses
 * and optimizer state are fp32 where nothing else is said.
 *
 * Conventions: row-major; a row is one token; rows = sequences * tokens a sequence. "accumulate"
 * and "+=" add to what is there, everything else overwrites every element. Reductions have a
 * fixed order: the same inputs and the same number of threads give the same bits. Arguments that
 * break a stated condition are bugs and assert.
 */
#ifndef MTLLM_KERNELS_KERNELS_H
#define MTLLM_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/error.h"

struct stream;
struct mark; /* a moment of a stream */

/* Dropout of attention's probabilities in training: each becomes 0 with probability `rate` in
 * [0, 1), or itself / (1 - rate). Which do follows from the seed, the place in the model, the row
 * and head of the query and the key's index within its sequence (philox.h has the mapping), so that
 * backward, and forward once more, have the same ones. */
struct attention_dropout {
    double rate; /* 0: none, and the rest is not looked at */
    uint64_t seed;
    uint32_t place;    /* from 1 on, below 2^31 */
    int64_t first_row; /* of row 0 among all rows of the run */
    int first_head;    /* of query head 0 among all of the model */
};

/* One attention problem: `sequences` of them packed one behind the other in the rows. Token i of
 * a sequence sees tokens j of the same sequence with j <= i and, if window > 0, j > i - window. */
struct attention_shape {
    int64_t rows;
    int heads, kv_heads, head_dim; /* of this rank; kv head j serves query heads
                                      j * heads / kv_heads and following */
    int sequences;
    const int32_t *starts;        /* [sequences + 1] host memory: first row of each; last = rows */
    const int32_t *device_starts; /* the same in memory of the device */
    int64_t longest;              /* rows of the longest sequence */
    bool varying;                 /* number and lengths are others in other calls */
    int window;                   /* 0: none */
    struct attention_dropout dropout;
};

/* A rectangle of a larger matrix: rows [row, row + rows), columns [column, column + columns) of
 * one with `total_columns`. */
struct tile {
    int64_t row, rows, column, columns, total_columns;
};

struct adamw {
    double lr, beta1, beta2, eps, weight_decay;
    double grad_scale; /* the gradient is multiplied by this first (clipping) */
    int64_t step;      /* 1 for the first update: bias correction */
    /* Of m and v. What is narrower than fp32 (moments in bf16; a 16-bit weight without a master) is
     * rounded stochastically, with random numbers keyed by (seed, tensor) and counted by step and
     * the element's index in the whole matrix, of which the n elements are `tile`. */
    enum dtype moments;
    const struct tile *tile;
    uint64_t seed, tensor;
};

struct kernels {
    const char *name;  /* "cpu", "cuda" */
    enum dtype dtype;  /* of weights and activations */
    int64_t head_rows; /* tokens whose logits are best computed at one time */

    /* --- memory and order ----------------------------------------------------------------
     * Copies between host and device are complete for the host when the stream is synchronized;
     * until then the host's buffer is the copy's. */
    void *(*allocate)(size_t bytes); /* 64-byte aligned or better, zeroed; NULL: out of memory */
    void (*release)(void *buffer);
    /* Memory of the host that copies to and from the device without a detour, zeroed; NULL: none
     * left. Callable from any thread. */
    void *(*host_allocate)(size_t bytes);
    void (*host_release)(void *buffer);
    void (*to_device)(struct stream *stream, void *device, const void *host, size_t bytes);
    void (*to_host)(struct stream *stream, void *host, const void *device, size_t bytes);
    void (*copy)(struct stream *stream, void *to, const void *from, size_t bytes);
    void (*zero)(struct stream *stream, void *buffer, size_t bytes);
    /* Waits; returns the first failure of any work so far. Callable from any thread. */
    int (*stream_sync)(struct stream *stream, struct error *error);
    /* A further stream, for copies and communication; NULL where there is only one. */
    struct stream *(*stream_create)(void);
    void (*stream_destroy)(struct stream *stream);
    /* What `stream` gets from now on waits for what `other` has so far. */
    void (*stream_wait)(struct stream *stream, struct stream *other);

    /* --- time ------------------------------------------------------------------------------ */
    struct mark *(*mark_create)(void);       /* NULL: there is no memory left */
    void (*mark_destroy)(struct mark *mark); /* NULL is nothing */
    /* The moment when `stream` has done what it has got so far. */
    void (*mark_set)(struct stream *stream, struct mark *mark);
    /* From one moment to another, s; the streams have been synchronized since. */
    double (*mark_seconds)(const struct mark *from, const struct mark *to);
    /* Ranges, one within the other, for a profiler that watches the process; NULL where the host
     * computes. */
    void (*range_begin)(const char *name);
    void (*range_end)(void);

    /* --- products: y = x W^T with W as Hugging Face stores it, [out, in] -------------------- */
    /* Decide how the three products of this shape will be computed, unless that is decided: by
     * measuring, where there is a choice. The choice is part of what decides bits. */
    int (*linear_prepare)(int64_t rows, int64_t in, int64_t out, struct error *error);
    /* All decisions so far, as text to be freed; NULL where there are none to make. */
    char *(*products_text)(void);
    /* Take decisions from such a text, before any other. False when it is of another device or
     * library, or damaged: then what it says is measured anew. */
    bool (*products_adopt)(const char *text);
    /* y[rows, out] (+)= x[rows, in] W[out, in]^T */
    void (*linear_forward)(struct stream *stream, void *y, const void *x, const void *w,
                           int64_t rows, int64_t in, int64_t out, bool accumulate);
    /* dx[rows, in] (+)= dy[rows, out] W[out, in] */
    void (*linear_backward_input)(struct stream *stream, void *dx, const void *dy, const void *w,
                                  int64_t rows, int64_t in, int64_t out, bool accumulate);
    /* dw[out, in] (fp32) += dy[rows, out]^T x[rows, in] */
    void (*linear_backward_weight)(struct stream *stream, float *dw, const void *dy, const void *x,
                                   int64_t rows, int64_t in, int64_t out);
    /* The bias of a product: y[rows, columns] += bias[columns], both act */
    void (*bias_forward)(struct stream *stream, void *y, const void *bias, int64_t rows,
                         int64_t columns);
    /* dbias[columns] (fp32) += the sum over the rows of dy[rows, columns] */
    void (*bias_backward)(struct stream *stream, float *dbias, const void *dy, int64_t rows,
                          int64_t columns);

    /* --- norm: y = s / rms(s) * w, rms(s) = sqrt(mean(s^2) + eps), s = x + residual ----------
     * residual may be NULL: s = x, and sum is not written. Otherwise sum[rows, columns] = s (sum
     * may be x or residual). rstd[rows] (fp32) = 1 / rms(s). */
    void (*rmsnorm_forward)(struct stream *stream, void *y, float *rstd, void *sum, const void *x,
                            const void *residual, const void *w, double eps, int64_t rows,
                            int64_t columns);
    /* dx[rows, columns] = the gradient of s + dresidual (NULL: none; may be dx itself);
     * dw[columns] (fp32) += ; y (NULL: not wanted; may be dy itself) = what forward made of s, the
     * same bits, for who did not keep it. */
    void (*rmsnorm_backward)(struct stream *stream, void *dx, float *dw, void *y, const void *dy,
                             const void *s, const void *w, const float *rstd, const void *dresidual,
                             int64_t rows, int64_t columns);

    /* --- LayerNorm: y = (s - mean(s)) * rstd * w + b, s = x + residual ------------------------
     * mean[rows] (fp32) is that of the row; rstd[rows] (fp32) = 1 / sqrt(var(s) + eps), var(s) =
     * mean((s - mean(s))^2), computed so and not as mean(s^2) - mean(s)^2. w[columns] and
     * b[columns] act; residual and sum as in rmsnorm_forward. */
    void (*layernorm_forward)(struct stream *stream, void *y, float *mean, float *rstd, void *sum,
                              const void *x, const void *residual, const void *w, const void *b,
                              double eps, int64_t rows, int64_t columns);
    /* dw[columns] and db[columns] (fp32) += ; dx, y and dresidual as in rmsnorm_backward. b is read
     * for y alone. */
    void (*layernorm_backward)(struct stream *stream, void *dx, float *dw, float *db, void *y,
                               const void *dy, const void *s, const void *w, const void *b,
                               const float *mean, const float *rstd, const void *dresidual,
                               int64_t rows, int64_t columns);

    /* --- rotary positions, Hugging Face's half-rotation, in place ---------------------------
     * qkv[rows, (heads + 2 * kv_heads) * head_dim] is [q heads | k heads | v heads]; q and k are
     * turned by the angles of positions[rows] (device); cosine and sine are
     * [table rows, head_dim / 2] fp32 (device). inverse turns back: the backward of the same. */
    void (*rope)(struct stream *stream, void *qkv, const float *cosine, const float *sine,
                 const int32_t *positions, int64_t rows, int heads, int kv_heads, int head_dim,
                 bool inverse);

    /* --- attention: softmax(q k^T / sqrt(head_dim)) v, never a [T, T] matrix -----------------
     * out[rows, heads * head_dim]; lse[heads, rows] (fp32) = log of the sum of exponentials, which
     * dropout does not change. */
    void (*attention_forward)(struct stream *stream, void *out, float *lse, const void *qkv,
                              const struct attention_shape *shape);
    /* Bytes of device memory that attention_backward works in for a shape of that many rows and
     * heads and at most that many sequences, whatever their lengths. */
    size_t (*attention_workspace)(const struct attention_shape *shape);
    /* dqkv has the layout of qkv and is overwritten whole. */
    void (*attention_backward)(struct stream *stream, void *dqkv, const void *dout, const void *out,
                               const void *qkv, const float *lse, void *workspace,
                               const struct attention_shape *shape);

    /* --- SwiGLU: y[rows, f] = silu(gate) * up, gate_up[rows, 2 f] is [gate | up] ------------ */
    void (*swiglu_forward)(struct stream *stream, void *y, const void *gate_up, int64_t rows,
                           int64_t f);
    /* dgate_up may be gate_up itself; y as in rmsnorm_backward. */
    void (*swiglu_backward)(struct stream *stream, void *dgate_up, void *y, const void *dy,
                            const void *gate_up, int64_t rows, int64_t f);

    /* --- GELU: y[n] = x Phi(x), Phi the normal distribution's cumulative function -------------
     * That is x (1 + erf(x / sqrt(2))) / 2 to the precision of fp32, not its tanh approximation. */
    void (*gelu_forward)(struct stream *stream, void *y, const void *x, int64_t n);
    /* dx[n]; may be x itself; y as in rmsnorm_backward. */
    void (*gelu_backward)(struct stream *stream, void *dx, void *y, const void *dy, const void *x,
                          int64_t n);

    /* --- embedding, rows [first, first + count) of the vocabulary being here -----------------
     * y[rows, columns]: zeros for tokens that are elsewhere. tokens[rows] device. */
    void (*embedding_forward)(struct stream *stream, void *y, const int32_t *tokens, const void *w,
                              int64_t first, int64_t count, int64_t rows, int64_t columns);
    /* dw[count, columns] (fp32) +=, in row order */
    void (*embedding_backward)(struct stream *stream, float *dw, const int32_t *tokens,
                               const void *dy, int64_t first, int64_t count, int64_t rows,
                               int64_t columns);

    /* --- softmax cross-entropy over a vocabulary of which `count` columns are here -----------
     * Part one, of this rank's columns: logits[rows, stride], columns >= count are padding and
     * take no part; maximum[rows]; sum[rows] = sum of exp(logit - maximum); target[rows] = the
     * target's logit, or 0 when it is elsewhere; best[rows] = column of the first maximum + first.
     * targets[rows] are global ids; negative ones have no target. All fp32 but logits. */
    void (*cross_entropy_partial)(struct stream *stream, float *maximum, float *sum, float *target,
                                  int32_t *best, const void *logits, const int32_t *targets,
                                  int64_t first, int64_t count, int64_t stride, int64_t rows);
    /* sum *= exp(local_maximum - maximum): before the sums of several ranks are added up */
    void (*cross_entropy_rescale)(struct stream *stream, float *sum, const float *local_maximum,
                                  const float *maximum, int64_t rows);
    /* best[rows] = the column of the first maximum of the whole vocabulary, from part one's maximum
     * and best of `ranks` shares of it, by their first columns: maxima and bests [ranks, rows] */
    void (*cross_entropy_best)(struct stream *stream, int32_t *best, const float *maxima,
                               const int32_t *bests, int ranks, int64_t rows);
    /* Part two, with maximum, sum and target of the whole vocabulary:
     * loss[rows] = maximum + log(sum) - target (0 without a target). With `backward`, logits
     * become their gradients, weight[row] * (softmax - one-hot), 0 in padding columns and in
     * rows without a target. */
    void (*cross_entropy_finish)(struct stream *stream, float *loss, void *logits,
                                 const int32_t *targets, const float *weight, const float *maximum,
                                 const float *sum, const float *target, int64_t first,
                                 int64_t count, int64_t stride, int64_t rows, bool backward);

    /* --- dropout: y[n] = x[n] / (1 - rate), or 0 with probability `rate` in [0, 1) -------------
     * y may be x. Which elements are dropped follows from the seed, the place in the model and the
     * index of each among all that ever pass there, of which x[0] has `first` (philox.h has the
     * mapping): it can be done once more, and backward is the same of the gradient. */
    void (*dropout)(struct stream *stream, void *y, const void *x, int64_t n, double rate,
                    uint64_t seed, uint32_t place, int64_t first);

    /* --- elementwise and optimizer ----------------------------------------------------------- */
    /* to[rows, columns] (+)= from[rows, columns], act, whose rows begin to_stride and from_stride
     * elements apart. They do not overlap. */
    void (*copy_columns)(struct stream *stream, void *to, int64_t to_stride, const void *from,
                         int64_t from_stride, int64_t rows, int64_t columns, bool accumulate);
    /* y[n] += x[n], both act */
    void (*add)(struct stream *stream, void *y, const void *x, int64_t n);
    /* *out (device, double) += sum of x[i]^2 */
    void (*sum_squares)(struct stream *stream, double *out, const float *x, int64_t n);
    /* *out (device, double) += sum of weight[i] * x[i] */
    void (*weighted_sum)(struct stream *stream, double *out, const float *weight, const float *x,
                         int64_t n);
    /* One AdamW update of n elements: decoupled decay, bias correction,
     * p -= lr * (m^ / (sqrt(v^) + eps) + weight_decay * p). p is the master weight, or the weight
     * itself where master is NULL; the weight is the master rounded to nearest even. */
    void (*adamw)(struct stream *stream, void *weight, float *master, void *m, void *v,
                  const float *grad, int64_t n, const struct adamw *update);
    /* w[tile] ~ N(0, std^2), Philox 4x32-10 keyed by (seed, tensor), counted by the element's
     * index in the whole matrix (philox.h has the mapping): the same values whatever the tile.
     * std 0 gives zeros. */
    void (*random_normal)(struct stream *stream, void *w, enum dtype dtype, const struct tile *tile,
                          double std, uint64_t seed, uint64_t tensor);
    /* w[n] = value */
    void (*fill)(struct stream *stream, void *w, enum dtype dtype, double value, int64_t n);
    /* to[n] = from[n], rounded to nearest even */
    void (*convert)(struct stream *stream, void *to, enum dtype to_type, const void *from,
                    enum dtype from_type, int64_t n);
};

/* The CPU backend, with `threads` OpenMP (and BLAS) threads. OpenMP keeps that number with the
 * thread that calls this: call the kernels from the same one. Never NULL. */
const struct kernels *kernels_cpu(int threads);

#endif
