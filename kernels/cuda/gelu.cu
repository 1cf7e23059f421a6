/* GELU (Hendrycks and Gimpel, 2016); kernels/cpu/gelu.c has the formulas, normal.h the function.
 *
 * A thread reads its elements of x and dy before it writes any, so that dx may lie where x was and
 * y where dy was. Forward and backward make y of the same operations, named one by one: what the
 * compiler fuses may differ from one kernel to the other.
 */
#include "kernels/cuda/memory.h"

#include "kernels/normal.h"

enum { THREADS = 256, VECTORS = 2 };

/* e = exp(-x^2 / 2) */
static __device__ inline float bell(float x)
{
    return exp2_fast(__fmul_rn(__fmul_rn(-0.72134752f, x), x)); /* 1 / (2 ln 2) */
}

/* Of what is neither near zero nor near infinity, within a unit in the last place. */
static __device__ inline float reciprocal(float x)
{
    float y;

    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Phi(x), with that e. */
static __device__ inline float cumulative(float x, float e)
{
    float scaled = __fmul_rn(NORMAL_SCALE, fminf(fabsf(x), NORMAL_LIMIT));

    return normal_cumulative(x, e, __fmul_rn(scaled, reciprocal(__fadd_rn(1, scaled))));
}

/* y[count] vectors of N elements. */
template <class T, int N> static __global__ void forward(T *y, const T *x, int64_t count)
{
    int64_t begin = (int64_t)blockIdx.x * (THREADS * VECTORS) + threadIdx.x;
    elements<T, N> in[VECTORS];

#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (begin + k * THREADS < count)
            in[k] = load<N>(x + (begin + k * THREADS) * N);
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (begin + k * THREADS < count) {
            float out[N];

            widen(out, in[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                out[i] = __fmul_rn(out[i], cumulative(out[i], bell(out[i])));
            store(y + (begin + k * THREADS) * N, narrow<T>(out));
        }
}

template <class T> void cuda_gelu_forward(struct stream *stream, void *y, const void *x, int64_t n)
{
    constexpr int N = pack<T>::size;
    int64_t vectors = packs<T>(0, y, x) ? n / N : 0, rest = n - vectors * N;
    cudaStream_t handle = handle_of(stream);

    if (vectors > 0)
        forward<T, N><<<blocks_for(vectors, THREADS, VECTORS), THREADS, 0, handle>>>(
            (T *)y, (const T *)x, vectors);
    if (rest > 0)
        forward<T, 1><<<blocks_for(rest, THREADS, VECTORS), THREADS, 0, handle>>>(
            (T *)y + vectors * N, (const T *)x + vectors * N, rest);
    LAUNCHED("GELU");
}

template <class T, int N>
static __global__ void backward(T *dx, T *y, const T *dy, const T *x, int64_t count)
{
    int64_t begin = (int64_t)blockIdx.x * (THREADS * VECTORS) + threadIdx.x;
    elements<T, N> gradient[VECTORS], in[VECTORS];

#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (begin + k * THREADS < count) {
            gradient[k] = load<N>(dy + (begin + k * THREADS) * N);
            in[k] = load<N>(x + (begin + k * THREADS) * N);
        }
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (begin + k * THREADS < count) {
            float d[N], at[N], out[N];

            widen(d, gradient[k]);
            widen(at, in[k]);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float e = bell(at[i]), phi = cumulative(at[i], e);

                out[i] = __fmul_rn(at[i], phi);
                d[i] *= phi + at[i] * (NORMAL_DENSITY * e);
            }
            store(dx + (begin + k * THREADS) * N, narrow<T>(d));
            if (y)
                store(y + (begin + k * THREADS) * N, narrow<T>(out));
        }
}

template <class T>
void cuda_gelu_backward(struct stream *stream, void *dx, void *y, const void *dy, const void *x,
                        int64_t n)
{
    constexpr int N = pack<T>::size;
    int64_t vectors = packs<T>(0, dx, y, dy, x) ? n / N : 0, rest = n - vectors * N;
    cudaStream_t handle = handle_of(stream);
    T *rest_y = y ? (T *)y + vectors * N : nullptr;

    if (vectors > 0)
        backward<T, N><<<blocks_for(vectors, THREADS, VECTORS), THREADS, 0, handle>>>(
            (T *)dx, (T *)y, (const T *)dy, (const T *)x, vectors);
    if (rest > 0)
        backward<T, 1><<<blocks_for(rest, THREADS, VECTORS), THREADS, 0, handle>>>(
            (T *)dx + vectors * N, rest_y, (const T *)dy + vectors * N, (const T *)x + vectors * N,
            rest);
    LAUNCHED("GELU's backward");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_gelu_forward<T>(struct stream *, void *, const void *, int64_t);            \
    template void cuda_gelu_backward<T>(struct stream *, void *, void *, const void *,             \
                                        const void *, int64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
