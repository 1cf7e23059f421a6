/* Sums over gradients and the AdamW update (Loshchilov and Hutter, 2019).
 *
 * Sums are in double from the first product on: gradients may overflow fp32 when squared. Each
 * block leaves one number in the workspace, a last block adds those up. The number of blocks
 * depends on nothing but the device, so that the same input gives the same bits.
 *
 * AdamW computes in fp32. What it keeps in 16 bits (moments in bf16, a weight without a master)
 * it rounds stochastically; philox.h has the mapping of random bits. Rounding to nearest would
 * lose every change below half a unit in the last place, and most are.
 */
#include "kernels/cuda/memory.h"

extern "C" {
#include "kernels/philox.h"
}

enum {
    SUM_THREADS = 256,
    SUM_BLOCKS = 8, /* a multiprocessor */
    SUM_VECTORS = 4,
    ADAMW_THREADS = 256,
    ADAMW_VECTORS = 2,
    ADAMW_WIDTH = 4, /* elements a vector: 16 bytes of what is fp32 */
};

/* --- sums --------------------------------------------------------------------------------------
 */

/* parts[gridDim.x]: the block's part of the sum of weight[i] * x[i], or of x[i]^2 without weights,
 * of `count` vectors and `rest` elements behind them. */
template <int N, bool WEIGHTED>
static __global__ void __launch_bounds__(SUM_THREADS, SUM_BLOCKS)
    sum_parts(double *parts, const float *weight, const float *x, int64_t count, int rest)
{
    __shared__ double scratch[WARP];
    int64_t thread = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x;
    int64_t threads = (int64_t)gridDim.x * SUM_THREADS;
    double sum = 0;

    for (int64_t at = thread; at < count; at += SUM_VECTORS * threads) {
        elements<float, N> a[SUM_VECTORS] = {}, b[SUM_VECTORS] = {};

#pragma unroll
        for (int k = 0; k < SUM_VECTORS; k++)
            if (at + k * threads < count) {
                a[k] = load<N>(x + (at + k * threads) * N);
                if (WEIGHTED)
                    b[k] = load<N>(weight + (at + k * threads) * N);
            }
#pragma unroll
        for (int k = 0; k < SUM_VECTORS; k++) {
            float one[N], other[N];

            widen(one, a[k]);
            widen(other, WEIGHTED ? b[k] : a[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                sum += (double)one[i] * (double)other[i];
        }
    }
    if (thread < rest)
        sum += (double)x[count * N + thread] *
               (double)(WEIGHTED ? weight[count * N + thread] : x[count * N + thread]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0)
        parts[blockIdx.x] = sum;
}

static __global__ void add_sums(double *out, const double *parts, int count)
{
    __shared__ double scratch[WARP];
    double sum = 0;

    for (int part = threadIdx.x; part < count; part += SUM_THREADS)
        sum += parts[part];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0)
        *out += sum;
}

/* Without weights where `weight` is NULL. */
static void add_products(struct stream *stream, double *out, const float *weight, const float *x,
                         int64_t n)
{
    constexpr int N = pack<float>::size;
    cudaStream_t handle = handle_of(stream);
    double *parts = (double *)cuda_device.workspace;
    bool wide = packs<float>(0, weight, x);
    int64_t count = wide ? n / N : n;
    int blocks = cuda_device.multiprocessors * SUM_BLOCKS;

    assert(handle == cuda_device.compute.handle);
    assert(blocks * sizeof(*parts) <= WORKSPACE_BYTES);
    if (n <= 0)
        return;
    if (wide && weight)
        sum_parts<N, true>
            <<<blocks, SUM_THREADS, 0, handle>>>(parts, weight, x, count, (int)(n % N));
    else if (wide)
        sum_parts<N, false>
            <<<blocks, SUM_THREADS, 0, handle>>>(parts, weight, x, count, (int)(n % N));
    else if (weight)
        sum_parts<1, true><<<blocks, SUM_THREADS, 0, handle>>>(parts, weight, x, count, 0);
    else
        sum_parts<1, false><<<blocks, SUM_THREADS, 0, handle>>>(parts, weight, x, count, 0);
    add_sums<<<1, SUM_THREADS, 0, handle>>>(out, parts, blocks);
    LAUNCHED("a sum");
}

void cuda_sum_squares(struct stream *stream, double *out, const float *x, int64_t n)
{
    add_products(stream, out, nullptr, x, n);
}

void cuda_weighted_sum(struct stream *stream, double *out, const float *weight, const float *x,
                       int64_t n)
{
    if (n > 0)
        add_products(stream, out, weight, x, n);
}

/* --- AdamW -------------------------------------------------------------------------------------
 */

/* The update with everything that does not depend on the element worked out. */
struct step {
    float grad_scale;
    float keep1, take1, keep2, take2; /* of the moments and of the gradient */
    float denominator_scale;          /* 1 / sqrt(1 - beta2^step) */
    float rate;                       /* lr / (1 - beta1^step) */
    float eps, decay;                 /* lr weight_decay */
};

/* Where random bits come from. Element 0 of the tile is number `first` of the whole matrix; a row
 * of the tile has `columns`, one of the matrix `total_columns`. */
struct source {
    uint32_t key[2], tensor[2]; /* tensor[1] with the step in it */
    uint64_t first, columns, total_columns;
};

static __device__ inline void philox_pair(uint32_t (&x)[4], const struct source &source,
                                          uint64_t pair)
{
    const uint32_t counter[4] = {(uint32_t)pair, (uint32_t)(pair >> 32), source.tensor[0],
                                 source.tensor[1]};

    philox(x, counter, source.key);
}

/* Random bits of elements [element, element + N) of the tile: bits[i][0] for the weight, bits[i][1]
 * for the moments. */
template <int N>
static __device__ inline void random_bits(uint32_t (&bits)[N][2], const struct source &source,
                                          uint64_t element)
{
    uint64_t row = (element | source.columns) >> 32 ? element / source.columns
                                                    : (uint32_t)element / (uint32_t)source.columns;
    uint64_t column = element - row * source.columns;
    uint64_t index = source.first + row * source.total_columns + column;
    bool odd = index % 2;

    if (column + N <= source.columns) {
        uint32_t x[N / 2 + 1][4] = {}; /* of the pairs that have a part in it */

#pragma unroll
        for (int i = 0; i < N / 2 + 1; i++)
            if (i < N / 2 || odd || N == 1)
                philox_pair(x[i], source, index / 2 + i);
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                bits[i][j] = odd ? x[(i + 1) / 2][(i + 1) % 2 * 2 + j] : x[i / 2][i % 2 * 2 + j];
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        uint32_t x[4];

        philox_pair(x, source, index / 2);
        bits[i][0] = index % 2 ? x[2] : x[0];
        bits[i][1] = index % 2 ? x[3] : x[1];
        index++;
        if (++column == source.columns) {
            column = 0;
            index += source.total_columns - source.columns;
        }
    }
}

static __device__ inline bool is_finite(float x)
{
    return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

/* A number that bf16 holds, one of the two that x lies between. */
static __device__ inline float round_to(float x, uint32_t bits, bf16)
{
    return is_finite(x) ? __uint_as_float((__float_as_uint(x) + (bits >> 16)) & 0xffff0000u) : x;
}

static __device__ inline float round_to(float x, uint32_t bits, __half)
{
    __half below = __float2half_rz(x);
    float low = __half2float(below);
    float high = __half2float(__ushort_as_half((unsigned short)(__half_as_ushort(below) + 1)));
    float part = (x - low) / (high - low);

    /* NaN and infinity fail the comparison. Past the largest number: down, that is, to it. */
    return (float)bits * 0x1p-32f < part ? high : low;
}

static __device__ inline float round_to(float x, uint32_t, float)
{
    return x;
}

/* Within a unit in the last place or so; 0 where x is denormal. */
static __device__ inline float sqrt_fast(float x)
{
    float y;

    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Every operation by name: what the compiler would fuse depends on the code around it, and an
 * element must get the same bits wherever a tile puts it. */
static __device__ inline void update_element(float *p, float *m, float *v, float gradient,
                                             const struct step &step)
{
    float g = __fmul_rn(gradient, step.grad_scale), ratio;

    *m = __fmaf_rn(step.keep1, *m, __fmul_rn(step.take1, g));
    *v = __fmaf_rn(step.keep2, *v, __fmul_rn(step.take2, __fmul_rn(g, g)));
    ratio = __fdividef(__fmul_rn(step.rate, *m),
                       __fmaf_rn(sqrt_fast(*v), step.denominator_scale, step.eps));
    *p = __fsub_rn(*p, __fmaf_rn(step.decay, *p, ratio));
}

template <class T, class M, bool MASTER, int N>
static __global__ void __launch_bounds__(ADAMW_THREADS)
    adamw(T *weight, float *master, M *m, M *v, const float *grad, int64_t begin, int64_t count,
          const struct step step, const struct source source)
{
    constexpr bool NARROW_WEIGHT = !MASTER && !std::is_same_v<T, float>;
    constexpr bool NARROW_MOMENTS = !std::is_same_v<M, float>;
    int64_t vector = (int64_t)blockIdx.x * (ADAMW_THREADS * ADAMW_VECTORS) + threadIdx.x;
    elements<float, N> gradients[ADAMW_VECTORS], masters[ADAMW_VECTORS];
    elements<T, N> weights[ADAMW_VECTORS];
    elements<M, N> firsts[ADAMW_VECTORS], seconds[ADAMW_VECTORS];

#pragma unroll
    for (int k = 0; k < ADAMW_VECTORS; k++) {
        int64_t at = begin + (vector + k * ADAMW_THREADS) * N;

        if (vector + k * ADAMW_THREADS >= count)
            continue;
        gradients[k] = load<N>(grad + at);
        firsts[k] = load<N>(m + at);
        seconds[k] = load<N>(v + at);
        if (MASTER)
            masters[k] = load<N>(master + at);
        else
            weights[k] = load<N>(weight + at);
    }
#pragma unroll
    for (int k = 0; k < ADAMW_VECTORS; k++) {
        int64_t at = begin + (vector + k * ADAMW_THREADS) * N;
        float g[N], first[N], second[N], p[N];
        uint32_t bits[N][2];

        if (vector + k * ADAMW_THREADS >= count)
            continue;
        widen(g, gradients[k]);
        widen(first, firsts[k]);
        widen(second, seconds[k]);
        if constexpr (MASTER)
            widen(p, masters[k]);
        else
            widen(p, weights[k]);
        if (NARROW_WEIGHT || NARROW_MOMENTS)
            random_bits(bits, source, at);
#pragma unroll
        for (int i = 0; i < N; i++) {
            update_element(&p[i], &first[i], &second[i], g[i], step);
            if (NARROW_MOMENTS) {
                first[i] = round_to(first[i], bits[i][1] << 16, M());
                second[i] = round_to(second[i], bits[i][1], M());
            }
            if (NARROW_WEIGHT)
                p[i] = round_to(p[i], bits[i][0], T());
        }
        store(m + at, narrow<M>(first));
        store(v + at, narrow<M>(second));
        if (MASTER)
            store(master + at, narrow<float>(p));
        store(weight + at, narrow<T>(p));
    }
}

/* Vectors as far as addresses and n permit, the rest element by element. */
template <class T, class M, bool MASTER>
static void launch_adamw(cudaStream_t handle, T *weight, float *master, M *m, M *v,
                         const float *grad, int64_t n, const struct step *step,
                         const struct source *source)
{
    constexpr int N = ADAMW_WIDTH;
    uintptr_t moments = (uintptr_t)m | (uintptr_t)v;
    bool wide = packs<float>(0, master, grad) && (uintptr_t)weight % (N * sizeof(T)) == 0 &&
                moments % (N * sizeof(M)) == 0;
    int64_t vectors = wide ? n / N : 0, rest = n - vectors * N;

    if (vectors > 0)
        adamw<T, M, MASTER, N>
            <<<blocks_for(vectors, ADAMW_THREADS, ADAMW_VECTORS), ADAMW_THREADS, 0, handle>>>(
                weight, master, m, v, grad, 0, vectors, *step, *source);
    if (rest > 0)
        adamw<T, M, MASTER, 1>
            <<<blocks_for(rest, ADAMW_THREADS, ADAMW_VECTORS), ADAMW_THREADS, 0, handle>>>(
                weight, master, m, v, grad, vectors * N, rest, *step, *source);
}

template <class T>
void cuda_adamw(struct stream *stream, void *weight, float *master, void *m, void *v,
                const float *grad, int64_t n, const struct adamw *update)
{
    const struct tile *tile = update->tile;
    const struct step step = {
        (float)update->grad_scale,
        (float)update->beta1,
        (float)(1 - update->beta1),
        (float)update->beta2,
        (float)(1 - update->beta2),
        (float)(1 / sqrt(1 - pow(update->beta2, (double)update->step))),
        (float)(update->lr / (1 - pow(update->beta1, (double)update->step))),
        (float)update->eps,
        (float)(update->lr * update->weight_decay),
    };
    struct source source = {};
    cudaStream_t handle = handle_of(stream);

    assert(update->step >= 1);
    assert(update->moments == DTYPE_F32 || update->moments == DTYPE_BF16);
    assert(tile || (update->moments == DTYPE_F32 && (master || std::is_same_v<T, float>)));
    if (n == 0)
        return;
    if (tile) {
        assert(n == tile->rows * tile->columns);
        source.key[0] = (uint32_t)update->seed;
        source.key[1] = (uint32_t)(update->seed >> 32);
        source.tensor[0] = (uint32_t)update->tensor;
        source.tensor[1] = (uint32_t)(update->tensor >> 32) ^ (uint32_t)update->step;
        source.first = (uint64_t)(tile->row * tile->total_columns + tile->column);
        source.columns = (uint64_t)tile->columns;
        source.total_columns = (uint64_t)tile->total_columns;
        if (tile->columns == tile->total_columns) /* whole rows are as good as one long one */
            source.columns = source.total_columns = (uint64_t)n;
    }
    if (update->moments == DTYPE_F32 && master)
        launch_adamw<T, float, true>(handle, (T *)weight, master, (float *)m, (float *)v, grad, n,
                                     &step, &source);
    else if (update->moments == DTYPE_F32)
        launch_adamw<T, float, false>(handle, (T *)weight, nullptr, (float *)m, (float *)v, grad, n,
                                      &step, &source);
    else if (master)
        launch_adamw<T, bf16, true>(handle, (T *)weight, master, (bf16 *)m, (bf16 *)v, grad, n,
                                    &step, &source);
    else
        launch_adamw<T, bf16, false>(handle, (T *)weight, nullptr, (bf16 *)m, (bf16 *)v, grad, n,
                                     &step, &source);
    LAUNCHED("AdamW");
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_adamw<T>(struct stream *, void *, float *, void *, void *, const float *,   \
                                int64_t, const struct adamw *);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
