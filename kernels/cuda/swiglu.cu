/* SwiGLU (Shazeer, 2020): y = gate sigmoid(gate) up. kernels/cpu/swiglu.c says why sigmoid is
 * written with exp(-|gate|).
 *
 * A thread takes the same columns of gate and up; backward reads both before it writes either, so
 * that the gradient may lie where they were.
 */
#include "kernels/cuda/memory.h"

enum { THREADS = 256, VECTORS_A_THREAD = 2 };

/* Where vector number `item` of [rows, f] is in [rows, f] and in [rows, 2 f]. */
struct place {
    int64_t narrow, wide;
};

template <int N> static __device__ inline place find(uint64_t item, uint32_t vectors, int64_t f)
{
    uint64_t row = N == 1 ? item / vectors : (uint32_t)item / vectors;
    uint64_t column = (item - row * vectors) * N;
    place place = {(int64_t)(row * f + column), (int64_t)(row * 2 * f + column)};

    return place;
}

/* With e = exp(-|gate|). */
static __device__ inline float forward_of(float gate, float up, float e)
{
    return gate * __fdividef(gate < 0 ? e : 1, 1 + e) * up;
}

template <class T, int N>
static __global__ void forward(T *y, const T *gate_up, int64_t items, uint32_t vectors, int64_t f)
{
    int64_t item = (int64_t)blockIdx.x * (THREADS * VECTORS_A_THREAD) + threadIdx.x;
    elements<T, N> gate[VECTORS_A_THREAD], up[VECTORS_A_THREAD];
    place at[VECTORS_A_THREAD];

#pragma unroll
    for (int k = 0; k < VECTORS_A_THREAD; k++)
        if (item + k * THREADS < items) {
            at[k] = find<N>(item + k * THREADS, vectors, f);
            gate[k] = load<N>(gate_up + at[k].wide);
            up[k] = load<N>(gate_up + at[k].wide + f);
        }
#pragma unroll
    for (int k = 0; k < VECTORS_A_THREAD; k++)
        if (item + k * THREADS < items) {
            float g[N], u[N], out[N];

            widen(g, gate[k]);
            widen(u, up[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                out[i] = forward_of(g[i], u[i], exp_fast(-fabsf(g[i])));
            store(y + at[k].narrow, narrow<T>(out));
        }
}

template <class T, int N>
static __global__ void backward(T *dgate_up, T *y, const T *dy, const T *gate_up, int64_t items,
                                uint32_t vectors, int64_t f)
{
    int64_t item = (int64_t)blockIdx.x * (THREADS * VECTORS_A_THREAD) + threadIdx.x;
    elements<T, N> gradient[VECTORS_A_THREAD], gate[VECTORS_A_THREAD], up[VECTORS_A_THREAD];
    place at[VECTORS_A_THREAD];

#pragma unroll
    for (int k = 0; k < VECTORS_A_THREAD; k++)
        if (item + k * THREADS < items) {
            at[k] = find<N>(item + k * THREADS, vectors, f);
            gradient[k] = load<N>(dy + at[k].narrow);
            gate[k] = load<N>(gate_up + at[k].wide);
            up[k] = load<N>(gate_up + at[k].wide + f);
        }
#pragma unroll
    for (int k = 0; k < VECTORS_A_THREAD; k++)
        if (item + k * THREADS < items) {
            float d[N], g[N], u[N], dgate[N], dup[N], out[N];

            widen(d, gradient[k]);
            widen(g, gate[k]);
            widen(u, up[k]);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float e = exp_fast(-fabsf(g[i])), scale = __fdividef(1, 1 + e);
                float sigmoid = (g[i] < 0 ? e : 1) * scale;
                float complement = (g[i] < 0 ? 1 : e) * scale;

                dgate[i] = d[i] * u[i] * (sigmoid * (1 + g[i] * complement));
                dup[i] = d[i] * (g[i] * sigmoid);
                out[i] = forward_of(g[i], u[i], e);
            }
            store(dgate_up + at[k].wide, narrow<T>(dgate));
            store(dgate_up + at[k].wide + f, narrow<T>(dup));
            if (y)
                store(y + at[k].narrow, narrow<T>(out));
        }
}

/* Vectors in a row; with N == 1 their number in all may be more than 32 bits hold. */
template <int N> static uint32_t vectors_in_row(int64_t rows, int64_t f)
{
    assert(f / N <= INT32_MAX && (N == 1 || rows * (f / N) <= INT32_MAX));
    return (uint32_t)(f / N);
}

template <class T, int N>
static void launch_forward(cudaStream_t handle, T *y, const T *gate_up, int64_t rows, int64_t f)
{
    uint32_t vectors = vectors_in_row<N>(rows, f);
    int64_t items = rows * vectors;

    forward<T, N><<<blocks_for(items, THREADS, VECTORS_A_THREAD), THREADS, 0, handle>>>(
        y, gate_up, items, vectors, f);
}

template <class T>
void cuda_swiglu_forward(struct stream *stream, void *y, const void *gate_up, int64_t rows,
                         int64_t f)
{
    cudaStream_t handle = handle_of(stream);

    if (rows * f == 0)
        return;
    if (packs<T>(f, y, gate_up))
        launch_forward<T, pack<T>::size>(handle, (T *)y, (const T *)gate_up, rows, f);
    else
        launch_forward<T, 1>(handle, (T *)y, (const T *)gate_up, rows, f);
    LAUNCHED("SwiGLU");
}

template <class T, int N>
static void launch_backward(cudaStream_t handle, T *dgate_up, T *y, const T *dy, const T *gate_up,
                            int64_t rows, int64_t f)
{
    uint32_t vectors = vectors_in_row<N>(rows, f);
    int64_t items = rows * vectors;

    backward<T, N><<<blocks_for(items, THREADS, VECTORS_A_THREAD), THREADS, 0, handle>>>(
        dgate_up, y, dy, gate_up, items, vectors, f);
}

template <class T>
void cuda_swiglu_backward(struct stream *stream, void *dgate_up, void *y, const void *dy,
                          const void *gate_up, int64_t rows, int64_t f)
{
    cudaStream_t handle = handle_of(stream);

    if (rows * f == 0)
        return;
    if (packs<T>(f, dgate_up, y, dy, gate_up))
        launch_backward<T, pack<T>::size>(handle, (T *)dgate_up, (T *)y, (const T *)dy,
                                          (const T *)gate_up, rows, f);
    else
        launch_backward<T, 1>(handle, (T *)dgate_up, (T *)y, (const T *)dy, (const T *)gate_up,
                              rows, f);
    LAUNCHED("SwiGLU's backward");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_swiglu_forward<T>(struct stream *, void *, const void *, int64_t, int64_t); \
    template void cuda_swiglu_backward<T>(struct stream *, void *, void *, const void *,           \
                                          const void *, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
