/* The CPU backend's table, its memory, and its threads.
 *
 * There is one stream: every function returns when its work is done. Memory of the device is
 * memory of the process.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/cpu/vector.h"

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

/* Present in some BLAS libraries only. */
extern void openblas_set_num_threads(int threads) __attribute__((weak));
extern int openblas_get_parallel(void) __attribute__((weak));
extern void bli_thread_set_num_threads(long threads) __attribute__((weak));
extern void MKL_Set_Num_Threads(int threads) __attribute__((weak));

static void blas_set_threads(int threads)
{
    if (openblas_set_num_threads)
        openblas_set_num_threads(threads);
    if (bli_thread_set_num_threads)
        bli_thread_set_num_threads(threads);
    if (MKL_Set_Num_Threads)
        MKL_Set_Num_Threads(threads);
}

/* A library that runs on OpenMP sees that it is called inside a parallel region and keeps to one
 * thread. One with threads of its own does not, and would start a team for each of ours. */
static bool blas_has_own_threads(void)
{
    const int openblas_openmp = 2;

    if (openblas_get_parallel)
        return openblas_get_parallel() != openblas_openmp;
    return bli_thread_set_num_threads != NULL;
}

void blas_serial_begin(void)
{
    if (blas_has_own_threads())
        blas_set_threads(1);
}

void blas_serial_end(void)
{
    if (blas_has_own_threads())
        blas_set_threads(omp_get_max_threads());
}

struct range thread_range(int64_t n, int64_t grain)
{
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int64_t grains = (n + grain - 1) / grain;
    struct range range = {grains * thread / threads * grain,
                          grains * (thread + 1) / threads * grain};

    if (range.begin > n)
        range.begin = n;
    if (range.end > n)
        range.end = n;
    return range;
}

static void cpu_zero(struct stream *stream, void *buffer, size_t bytes)
{
    (void)stream;
#pragma omp parallel if (bytes / 4 > PARALLEL_ELEMENTS)
    {
        struct range range = thread_range((int64_t)bytes, 4096);

        if (range.end > range.begin)
            memset((char *)buffer + range.begin, 0, (size_t)(range.end - range.begin));
    }
}

/* Large buffers lie on huge pages where the system gives them: products walk over them in strides
 * that small pages' translations do not cover. */
static void *cpu_allocate(size_t bytes)
{
    size_t alignment = bytes >= 2 * HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 64;
    size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void *buffer;

    if (rounded < bytes)
        return NULL;
    if (rounded == 0)
        rounded = alignment;
    buffer = aligned_alloc(alignment, rounded);
    if (!buffer)
        return NULL;
    if (alignment == HUGE_PAGE_BYTES)
        (void)madvise(buffer, rounded, MADV_HUGEPAGE); /* advice: without it all works as well */
    cpu_zero(NULL, buffer, rounded);
    return buffer;
}

static void cpu_release(void *buffer)
{
    free(buffer);
}

static void cpu_copy(struct stream *stream, void *to, const void *from, size_t bytes)
{
    (void)stream;
#pragma omp parallel if (bytes / 4 > PARALLEL_ELEMENTS)
    {
        struct range range = thread_range((int64_t)bytes, 4096);

        if (range.end > range.begin)
            memcpy((char *)to + range.begin, (const char *)from + range.begin,
                   (size_t)(range.end - range.begin));
    }
}

static int cpu_stream_sync(struct stream *stream, struct error *error)
{
    (void)stream;
    (void)error;
    return 0;
}

static struct stream *cpu_stream_create(void)
{
    return NULL;
}

static void cpu_stream_destroy(struct stream *stream)
{
    (void)stream;
}

static void cpu_stream_wait(struct stream *stream, struct stream *other)
{
    (void)stream;
    (void)other;
}

struct mark {
    struct timespec time;
};

static struct mark *cpu_mark_create(void)
{
    return calloc(1, sizeof(struct mark));
}

static void cpu_mark_destroy(struct mark *mark)
{
    free(mark);
}

static void cpu_mark_set(struct stream *stream, struct mark *mark)
{
    (void)stream;
    clock_gettime(CLOCK_MONOTONIC, &mark->time);
}

static double cpu_mark_seconds(const struct mark *from, const struct mark *to)
{
    return (double)(to->time.tv_sec - from->time.tv_sec) +
           1e-9 * (double)(to->time.tv_nsec - from->time.tv_nsec);
}

static int cpu_linear_prepare(int64_t rows, int64_t in, int64_t out, struct error *error)
{
    (void)rows;
    (void)in;
    (void)out;
    (void)error;
    return 0;
}

static char *cpu_products_text(void)
{
    return NULL;
}

static bool cpu_products_adopt(const char *text)
{
    (void)text;
    return true;
}

static size_t cpu_attention_workspace(const struct attention_shape *shape)
{
    (void)shape;
    return 0;
}

VECTORIZED static void add_range(float *y, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void cpu_copy_columns(struct stream *stream, void *to, int64_t to_stride, const void *from,
                             int64_t from_stride, int64_t rows, int64_t columns, bool accumulate)
{
    (void)stream;
#pragma omp parallel for schedule(static) if (rows * columns > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        float *y = (float *)to + row * to_stride;
        const float *x = (const float *)from + row * from_stride;

        if (accumulate)
            add_range(y, x, columns);
        else
            memcpy(y, x, (size_t)columns * sizeof(float));
    }
}

static void cpu_add(struct stream *stream, void *y, const void *x, int64_t n)
{
    (void)stream;
#pragma omp parallel if (n > PARALLEL_ELEMENTS)
    {
        struct range range = thread_range(n, 1024);

        add_range((float *)y + range.begin, (const float *)x + range.begin,
                  range.end - range.begin);
    }
}

static void cpu_fill(struct stream *stream, void *w, enum dtype dtype, double value, int64_t n)
{
    float *to = w;

    (void)stream;
    (void)dtype;
    assert(dtype == DTYPE_F32);
#pragma omp parallel for simd schedule(static) if (n > PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < n; i++)
        to[i] = (float)value;
}

static void cpu_convert(struct stream *stream, void *to, enum dtype to_type, const void *from,
                        enum dtype from_type, int64_t n)
{
    (void)stream;
    dtype_convert(to, to_type, from, from_type, (size_t)n);
}

const struct kernels *kernels_cpu(int threads)
{
    static const struct kernels table = {
        .name = "cpu",
        .dtype = DTYPE_F32,
        .head_rows = 1024,
        .allocate = cpu_allocate,
        .release = cpu_release,
        .host_allocate = cpu_allocate,
        .host_release = cpu_release,
        .to_device = cpu_copy,
        .to_host = cpu_copy,
        .copy = cpu_copy,
        .zero = cpu_zero,
        .stream_sync = cpu_stream_sync,
        .stream_create = cpu_stream_create,
        .stream_destroy = cpu_stream_destroy,
        .stream_wait = cpu_stream_wait,
        .mark_create = cpu_mark_create,
        .mark_destroy = cpu_mark_destroy,
        .mark_set = cpu_mark_set,
        .mark_seconds = cpu_mark_seconds,
        .linear_prepare = cpu_linear_prepare,
        .products_text = cpu_products_text,
        .products_adopt = cpu_products_adopt,
        .linear_forward = cpu_linear_forward,
        .linear_backward_input = cpu_linear_backward_input,
        .linear_backward_weight = cpu_linear_backward_weight,
        .bias_forward = cpu_bias_forward,
        .bias_backward = cpu_bias_backward,
        .rmsnorm_forward = cpu_rmsnorm_forward,
        .rmsnorm_backward = cpu_rmsnorm_backward,
        .layernorm_forward = cpu_layernorm_forward,
        .layernorm_backward = cpu_layernorm_backward,
        .rope = cpu_rope,
        .attention_forward = cpu_attention_forward,
        .attention_workspace = cpu_attention_workspace,
        .attention_backward = cpu_attention_backward,
        .swiglu_forward = cpu_swiglu_forward,
        .swiglu_backward = cpu_swiglu_backward,
        .dropout = cpu_dropout,
        .gelu_forward = cpu_gelu_forward,
        .gelu_backward = cpu_gelu_backward,
        .embedding_forward = cpu_embedding_forward,
        .embedding_backward = cpu_embedding_backward,
        .cross_entropy_partial = cpu_cross_entropy_partial,
        .cross_entropy_rescale = cpu_cross_entropy_rescale,
        .cross_entropy_best = cpu_cross_entropy_best,
        .cross_entropy_finish = cpu_cross_entropy_finish,
        .copy_columns = cpu_copy_columns,
        .add = cpu_add,
        .sum_squares = cpu_sum_squares,
        .weighted_sum = cpu_weighted_sum,
        .adamw = cpu_adamw,
        .random_normal = cpu_random_normal,
        .fill = cpu_fill,
        .convert = cpu_convert,
    };

    assert(threads >= 1);
    omp_set_dynamic(0); /* the number of threads decides bits: it must not wander */
    omp_set_num_threads(threads);
    blas_set_threads(threads);
    return &table;
}
