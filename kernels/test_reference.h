/* The forwards once more, in double precision and plain loops, and finite differences over them:
 * what the kernels are held against. Shares no code with them.
 */
#ifndef MTLLM_KERNELS_TEST_REFERENCE_H
#define MTLLM_KERNELS_TEST_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* y[rows, out] = x[rows, in] w[out, in]^T */
void reference_linear(double *y, const double *x, const double *w, int64_t rows, int64_t in,
                      int64_t out);
/* y[rows, columns] = s / rms(s) * w; rstd may be NULL */
void reference_rmsnorm(double *y, double *rstd, const double *s, const double *w, double eps,
                       int64_t rows, int64_t columns);
/* y[rows, columns] = (s - mean) * rstd * w + b; mean and rstd may be NULL */
void reference_layernorm(double *y, double *mean, double *rstd, const double *s, const double *w,
                         const double *b, double eps, int64_t rows, int64_t columns);
/* turned[rows, (heads + 2 kv_heads) head_dim] from qkv; angle = position * base^(-2 i / dim) */
void reference_rope(double *turned, const double *qkv, const int32_t *positions, double base,
                    int64_t rows, int heads, int kv_heads, int head_dim);
/* out[rows, heads * head_dim]; lse[heads, rows] may be NULL */
void reference_attention(double *out, double *lse, const double *qkv,
                         const struct attention_shape *shape);
void reference_swiglu(double *y, const double *gate_up, int64_t rows, int64_t f);
void reference_gelu(double *y, const double *x, int64_t n);
/* -log softmax(logits)[target] of one row of `count` */
double reference_cross_entropy(const double *logits, int64_t target, int64_t count);

/* The `n` numbers that a kernel takes are `inputs`, the gradient that it found of
 * loss(inputs, problem) is `gradient`. Fails unless finite differences of loss agree: element by
 * element (for a sample of them when there are many) and along random directions through all
 * elements at once, relative to the gradient's root mean square. */
void check_gradient(const char *what, double (*loss)(const double *inputs, const void *problem),
                    const void *problem, const double *inputs, const float *gradient, int64_t n);

/* Fails unless got[i] is within `tolerance` * (|want[i]| + root mean square of want). */
void check_close(const char *what, const float *got, const double *want, int64_t n,
                 double tolerance);

void check_same_bits(const float *x, const float *y, int64_t n);

double dot(const double *x, const double *y, int64_t n);

/* Numbers for inputs: the same in every run. About uniform in [-1, 1), or below `n`. */
float random_float(void);
int32_t random_below(int32_t n);

/* New arrays, to be freed: `n` random numbers times scale, NaNs, and copies in double. */
float *random_array(int64_t n, float scale);
float *poisoned_array(int64_t n);
double *widened(const float *x, int64_t n);
float *copied(const float *x, int64_t n);

#endif
