/* Rotary positions (Su et al., 2021), in place, in Hugging Face's arrangement: element i of the
 * first half of a head turns with element i of the second half. q and k heads lie next to each
 * other in a row of qkv, so one kernel over heads + kv_heads turns both.
 *
 * A thread turns the same elements of a few heads of one row: they share the angles.
 */
#include "kernels/cuda/memory.h"

enum { THREADS = 256, BLOCKS = 4 /* a multiprocessor */, HEADS_A_THREAD = 4 };

/* Items are (row, group, vector): the vector of N elements in each half of the heads group,
 * group + groups and so on. */
template <class T, int N>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    rotate(T *qkv, const float *cosine, const float *sine, const int32_t *positions, uint32_t items,
           int heads, int half, int64_t stride, float direction)
{
    uint32_t vectors = half / N, groups = (heads + HEADS_A_THREAD - 1) / HEADS_A_THREAD;
    uint32_t item = blockIdx.x * THREADS + threadIdx.x;
    uint32_t group = item / vectors % groups, row = item / vectors / groups;
    int from = item % vectors * N;
    T *head = qkv + row * stride + (int64_t)group * 2 * half + from;
    int64_t step = (int64_t)groups * 2 * half, angles;
    elements<T, N> first[HEADS_A_THREAD], second[HEADS_A_THREAD];
    float c[N], s[N];

    if (item >= items)
        return;
    angles = (int64_t)positions[row] * half + from;
#pragma unroll
    for (int k = 0; k < HEADS_A_THREAD; k++)
        if (group + k * groups < heads) {
            first[k] = load<N>(head + k * step);
            second[k] = load<N>(head + k * step + half);
        }
    widen(c, load<N>(cosine + angles));
    widen(s, load<N>(sine + angles));
#pragma unroll
    for (int k = 0; k < HEADS_A_THREAD; k++)
        if (group + k * groups < heads) {
            float a[N], b[N];

            widen(a, first[k]);
            widen(b, second[k]);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float turned = a[i] * c[i] - b[i] * (s[i] * direction);

                b[i] = b[i] * c[i] + a[i] * (s[i] * direction);
                a[i] = turned;
            }
            store(head + k * step, narrow<T>(a));
            store(head + k * step + half, narrow<T>(b));
        }
}

template <class T, int N>
static void launch(cudaStream_t handle, T *qkv, const float *cosine, const float *sine,
                   const int32_t *positions, int64_t rows, int heads, int half, int64_t stride,
                   float direction)
{
    int64_t items = rows * ceil_div(heads, HEADS_A_THREAD) * (half / N);

    assert(items <= INT32_MAX);
    rotate<T, N><<<blocks_for(items, THREADS, 1), THREADS, 0, handle>>>(
        qkv, cosine, sine, positions, (uint32_t)items, heads, half, stride, direction);
}

template <class T>
void cuda_rope(struct stream *stream, void *qkv, const float *cosine, const float *sine,
               const int32_t *positions, int64_t rows, int heads, int kv_heads, int head_dim,
               bool inverse)
{
    cudaStream_t handle = handle_of(stream);
    int half = head_dim / 2, turned = heads + kv_heads;
    int64_t stride = (int64_t)(heads + 2 * kv_heads) * head_dim;
    float direction = inverse ? -1 : 1;

    assert(head_dim % 2 == 0);
    if (rows * turned * half == 0)
        return;
    if (packs<T>(half, qkv, cosine, sine))
        launch<T, pack<T>::size>(handle, (T *)qkv, cosine, sine, positions, rows, turned, half,
                                 stride, direction);
    else
        launch<T, 1>(handle, (T *)qkv, cosine, sine, positions, rows, turned, half, stride,
                     direction);
    LAUNCHED("rotary positions");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_rope<T>(struct stream *, void *, const float *, const float *,              \
                               const int32_t *, int64_t, int, int, int, bool);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
