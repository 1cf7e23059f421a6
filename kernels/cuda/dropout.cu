/* Dropout; kernels/cpu/dropout.c is the explanation, philox.h the mapping. A thread has the
 * elements of one counter: four, or at the ends of the array fewer. */
#include "kernels/cuda/memory.h"

#include "kernels/philox.h"

enum { THREADS = 256, GROUP = 4 };

struct dropout {
    uint64_t seed;
    int64_t first, n;
    uint32_t place, threshold;
    float scale;
};

/* VECTORS: every group is whole, and aligned. */
template <class T, bool VECTORS>
static __global__ void drop(T *y, const T *x, const struct dropout dropout)
{
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    uint64_t group = (uint64_t)(dropout.first / GROUP + at);
    int64_t begin = (int64_t)group * GROUP - dropout.first;
    const uint32_t key[2] = {(uint32_t)dropout.seed, (uint32_t)(dropout.seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)group, (uint32_t)(group >> 32), dropout.place, 1U << 31};
    uint32_t numbers[GROUP];

    if (begin >= dropout.n)
        return;
    philox(numbers, counter, key);
    if (VECTORS) {
        float values[GROUP];

        widen(values, load<GROUP>(x + begin));
#pragma unroll
        for (int i = 0; i < GROUP; i++)
            values[i] = numbers[i] < dropout.threshold ? 0 : values[i] * dropout.scale;
        store(y + begin, narrow<T>(values));
        return;
    }
    for (int i = 0; i < GROUP; i++)
        if (begin + i >= 0 && begin + i < dropout.n) {
            float value[1];

            widen(value, load<1>(x + begin + i));
            value[0] = numbers[i] < dropout.threshold ? 0 : value[0] * dropout.scale;
            store(y + begin + i, narrow<T>(value));
        }
}

template <class T>
void cuda_dropout(struct stream *stream, void *y, const void *x, int64_t n, double rate,
                  uint64_t seed, uint32_t place, int64_t first)
{
    struct dropout dropout = {
        seed, first, n, place, (uint32_t)(rate * 4294967296.0), (float)(1 / (1 - rate))};
    int64_t groups = (first + n - 1) / GROUP - first / GROUP + 1;
    bool vectors = first % GROUP == 0 && n % GROUP == 0 &&
                   ((uintptr_t)x | (uintptr_t)y) % (GROUP * sizeof(T)) == 0;
    unsigned blocks = (unsigned)ceil_div(groups, THREADS);

    assert(rate >= 0 && rate < 1 && first >= 0);
    if (n == 0)
        return;
    if (vectors)
        drop<T, true><<<blocks, THREADS, 0, handle_of(stream)>>>((T *)y, (const T *)x, dropout);
    else
        drop<T, false><<<blocks, THREADS, 0, handle_of(stream)>>>((T *)y, (const T *)x, dropout);
    LAUNCHED("dropout");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_dropout<T>(struct stream *, void *, const void *, int64_t, double,          \
                                  uint64_t, uint32_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
