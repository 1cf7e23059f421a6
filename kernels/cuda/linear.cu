/* Products, by cuBLASLt.
 *
 * cuBLASLt is column-major: a row-major matrix is its transpose there, so y = x W^T is asked for as
 * y^T = W x^T. Which of its algorithms computes a shape is decided once, by measuring those it
 * recommends (linear_prepare). Measuring is noisy, and two runs are to have the same bits: so only
 * those are measured that give the bits of the first recommendation, which does not depend on the
 * clock. Most do, because they add up over k in the same order. Still products_text() gives the
 * choices of a run to write down, and a resumed run takes them from there. A shape that nobody
 * prepared gets the first recommendation. Split sums over k use a workspace in a fixed order; the
 * scheme that adds in place is left out.
 */
#include "kernels/cuda/cuda.h"

#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST_SHAPES = 256,
    CANDIDATES = 12,
    TIMED_RUNS = 3,
    ALGORITHM_WORDS = (int)(sizeof(cublasLtMatmulAlgo_t) / sizeof(uint64_t)),
};
static const size_t product_workspace_bytes = (size_t)64 << 20;

enum product_kind { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, PRODUCT_KINDS };
static const char *const kind_names[PRODUCT_KINDS] = {"forward", "backward-input",
                                                      "backward-weight"};

/* One product of one shape, and how it is computed. */
struct product {
    enum product_kind kind;
    cudaDataType_t type;
    int64_t rows, in, out;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
    bool chosen; /* by measuring, or taken from a record */
};

static cublasLtHandle_t handle;
static void *workspace;
static struct product products[MOST_SHAPES];
static int product_count;

static void note(cublasStatus_t status, const char *what)
{
    if (status != CUBLAS_STATUS_SUCCESS) {
        fprintf(stderr, "mtllm: cuBLASLt: %s: %s\n", what, cublasLtGetStatusString(status));
        cuda_note(cudaErrorUnknown, what);
    }
}

int cuda_linear_open(struct error *error)
{
    cublasStatus_t status = cublasLtCreate(&handle);

    if (status != CUBLAS_STATUS_SUCCESS)
        return error_set(error, EXIT_STATUS_SYSTEM, "cuBLASLt: %s",
                         cublasLtGetStatusString(status));
    if (cudaMalloc(&workspace, product_workspace_bytes) != cudaSuccess)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of device memory for products");
    return 0;
}

template <class T> static cudaDataType_t type_of();
template <> cudaDataType_t type_of<float>()
{
    return CUDA_R_32F;
}
template <> cudaDataType_t type_of<bf16>()
{
    return CUDA_R_16BF;
}
template <> cudaDataType_t type_of<__half>()
{
    return CUDA_R_16F;
}

/* The column-major sizes of a product, d[m, n] = op(a) op(b) with k between them. */
struct sizes {
    int64_t m, n, k;
    bool transpose_a, transpose_b;
};

static struct sizes sizes_of(const struct product *p)
{
    switch (p->kind) {
    case FORWARD: /* y^T[out, rows] = W[out, in] x^T[in, rows] */
        return {p->out, p->rows, p->in, true, false};
    case BACKWARD_INPUT: /* dx^T[in, rows] = W^T[in, out] dy^T[out, rows] */
        return {p->in, p->rows, p->out, false, false};
    default: /* dW^T[in, out] = x^T[in, rows] dy[rows, out] */
        return {p->in, p->out, p->rows, false, true};
    }
}

/* A matrix that is [rows, columns] after op, column-major without gaps. */
static cublasLtMatrixLayout_t layout_of(cudaDataType_t type, int64_t rows, int64_t columns,
                                        bool transposed)
{
    cublasLtMatrixLayout_t layout = nullptr;
    int64_t r = transposed ? columns : rows, c = transposed ? rows : columns;

    note(cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)r, (uint64_t)c, r), "a layout");
    return layout;
}

static void describe(struct product *p)
{
    struct sizes s = sizes_of(p);
    cublasOperation_t a = s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t b = s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;

    note(cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "an operation");
    note(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof(a)),
         "an operand");
    note(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof(b)),
         "an operand");
    p->a = layout_of(p->type, s.m, s.k, s.transpose_a);
    p->b = layout_of(p->type, s.k, s.n, s.transpose_b);
    p->d = layout_of(p->kind == BACKWARD_WEIGHT ? CUDA_R_32F : p->type, s.m, s.n, false);
}

/* How many algorithms cuBLASLt recommends, the best by its own estimate first. */
static int recommend(const struct product *p, cublasLtMatmulHeuristicResult_t *results, int most)
{
    cublasLtMatmulPreference_t preference;
    size_t bytes = product_workspace_bytes;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_MASK & ~CUBLASLT_REDUCTION_SCHEME_INPLACE;
    int count = 0;

    note(cublasLtMatmulPreferenceCreate(&preference), "a preference");
    note(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &bytes, sizeof(bytes)),
         "a preference");
    note(cublasLtMatmulPreferenceSetAttribute(
             preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof(schemes)),
         "a preference");
    note(cublasLtMatmulAlgoGetHeuristic(handle, p->operation, p->a, p->b, p->d, p->d, preference,
                                        most, results, &count),
         "no algorithm for a product");
    cublasLtMatmulPreferenceDestroy(preference);
    return count;
}

static struct product *find(enum product_kind kind, cudaDataType_t type, int64_t rows, int64_t in,
                            int64_t out)
{
    cublasLtMatmulHeuristicResult_t first;
    struct product *p;

    for (p = products; p < products + product_count; p++)
        if (p->kind == kind && p->rows == rows && p->in == in && p->out == out && p->type == type)
            break;
    if (p < products + product_count && p->operation)
        return p;
    if (p == products + product_count) {
        assert(product_count < MOST_SHAPES);
        *p = {kind, type, rows, in, out};
        product_count++;
    }
    describe(p);
    if (!p->chosen && recommend(p, &first, 1) > 0)
        p->algorithm = first.algo;
    return p;
}

static cublasStatus_t multiply(const struct product *p, cudaStream_t stream,
                               const cublasLtMatmulAlgo_t *algorithm, void *d, const void *a,
                               const void *b, bool accumulate)
{
    const float one = 1, beta = accumulate ? 1 : 0;

    return cublasLtMatmul(handle, p->operation, &one, a, p->a, b, p->b, &beta, d, p->d, d, p->d,
                          algorithm, workspace, product_workspace_bytes, stream);
}

template <class T>
void cuda_linear_forward(struct stream *stream, void *y, const void *x, const void *w, int64_t rows,
                         int64_t in, int64_t out, bool accumulate)
{
    const struct product *p = find(FORWARD, type_of<T>(), rows, in, out);

    note(multiply(p, handle_of(stream), &p->algorithm, y, w, x, accumulate), "linear_forward");
}

template <class T>
void cuda_linear_backward_input(struct stream *stream, void *dx, const void *dy, const void *w,
                                int64_t rows, int64_t in, int64_t out, bool accumulate)
{
    const struct product *p = find(BACKWARD_INPUT, type_of<T>(), rows, in, out);

    note(multiply(p, handle_of(stream), &p->algorithm, dx, w, dy, accumulate),
         "linear_backward_input");
}

template <class T>
void cuda_linear_backward_weight(struct stream *stream, float *dw, const void *dy, const void *x,
                                 int64_t rows, int64_t in, int64_t out)
{
    const struct product *p = find(BACKWARD_WEIGHT, type_of<T>(), rows, in, out);

    note(multiply(p, handle_of(stream), &p->algorithm, dw, x, dy, true), "linear_backward_weight");
}

/* --- the choice of algorithms ------------------------------------------------------------------
 */

/* The three matrices of a product filled with numbers of the size that training has, and what the
 * first recommendation makes of them. */
struct operands {
    void *a, *b, *d, *expected;
    size_t d_bytes;
    int *differ; /* device */
};

template <class T> static bool allocate_operands(const struct product *p, struct operands *o)
{
    struct sizes s = sizes_of(p);
    const struct tile a = {0, s.m, 0, s.k, s.k}, b = {0, s.n, 0, s.k, s.k};
    size_t d_bytes = (size_t)(s.m * s.n) * (p->kind == BACKWARD_WEIGHT ? sizeof(float) : sizeof(T));

    *o = {};
    o->d_bytes = d_bytes;
    if (cudaMalloc(&o->a, (size_t)(s.m * s.k) * sizeof(T)) != cudaSuccess ||
        cudaMalloc(&o->b, (size_t)(s.n * s.k) * sizeof(T)) != cudaSuccess ||
        cudaMalloc(&o->d, d_bytes) != cudaSuccess ||
        cudaMalloc(&o->expected, d_bytes) != cudaSuccess ||
        cudaMalloc(&o->differ, sizeof(*o->differ)) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    cuda_random_normal<T>(nullptr, o->a, &a, 0.02, 1, 1);
    cuda_random_normal<T>(nullptr, o->b, &b, 1, 1, 2);
    return true;
}

static void free_operands(struct operands *o)
{
    cudaFree(o->a);
    cudaFree(o->b);
    cudaFree(o->d);
    cudaFree(o->expected);
    cudaFree(o->differ);
}

static __global__ void compare_kernel(int *differ, const uint16_t *a, const uint16_t *b, size_t n)
{
    bool same = true;

    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        same = same && a[i] == b[i];
    if (!same)
        *differ = 1; /* whoever writes, it is the same */
}

/* Whether an algorithm gives the expected bits; it gives what is expected when `first`. */
static bool same_bits(const struct product *p, const cublasLtMatmulAlgo_t *algorithm,
                      const struct operands *o, bool first)
{
    cudaStream_t stream = handle_of(nullptr);
    void *d = first ? o->expected : o->d;
    int differ = 0;

    cuda_note(cudaMemsetAsync(d, 0, o->d_bytes, stream), "memory set to zero");
    if (multiply(p, stream, algorithm, d, o->a, o->b, p->kind == BACKWARD_WEIGHT) !=
            CUBLAS_STATUS_SUCCESS ||
        first)
        return first;
    cuda_note(cudaMemsetAsync(o->differ, 0, sizeof(differ), stream), "memory set to zero");
    compare_kernel<<<cuda_device.multiprocessors * 8, 256, 0, stream>>>(
        o->differ, (const uint16_t *)o->d, (const uint16_t *)o->expected,
        o->d_bytes / sizeof(uint16_t));
    LAUNCHED("compare");
    cuda_note(cudaMemcpyAsync(&differ, o->differ, sizeof(differ), cudaMemcpyDeviceToHost, stream),
              "copy to the host");
    cuda_note(cudaStreamSynchronize(stream), "products that are compared");
    return differ == 0;
}

/* Best time of some runs of one algorithm, in ms; negative when it does not run. */
static float time_ms(const struct product *p, const cublasLtMatmulAlgo_t *algorithm,
                     const struct operands *o, cudaEvent_t begin, cudaEvent_t end)
{
    cudaStream_t stream = handle_of(nullptr);
    bool accumulate = p->kind == BACKWARD_WEIGHT;
    float best = -1;

    for (int run = 0; run <= TIMED_RUNS; run++) {
        float ms;

        cuda_note(cudaEventRecord(begin, stream), "an event");
        if (multiply(p, stream, algorithm, o->d, o->a, o->b, accumulate) != CUBLAS_STATUS_SUCCESS)
            return -1;
        cuda_note(cudaEventRecord(end, stream), "an event");
        cuda_note(cudaEventSynchronize(end), "a product that is measured");
        cuda_note(cudaEventElapsedTime(&ms, begin, end), "a time");
        if (run > 0 && (best < 0 || ms < best)) /* the first loads the code */
            best = ms;
    }
    return best;
}

template <class T> static int choose(struct product *p, struct error *error)
{
    cublasLtMatmulHeuristicResult_t candidates[CANDIDATES];
    int count = recommend(p, candidates, CANDIDATES);
    float best_ms = -1;
    struct operands o;
    cudaEvent_t begin, end;

    if (count == 0)
        return error_set(error, EXIT_STATUS_SYSTEM,
                         "cuBLASLt has no algorithm for a product of %lld rows, %lld in, %lld out",
                         (long long)p->rows, (long long)p->in, (long long)p->out);
    cuda_note(cudaEventCreate(&begin), "a new event");
    cuda_note(cudaEventCreate(&end), "a new event");
    if (allocate_operands<T>(p, &o)) {
        for (int i = 0; i < count; i++) {
            float ms = same_bits(p, &candidates[i].algo, &o, i == 0)
                           ? time_ms(p, &candidates[i].algo, &o, begin, end)
                           : -1;

            if (ms >= 0 && (best_ms < 0 || ms < best_ms)) {
                best_ms = ms;
                p->algorithm = candidates[i].algo;
            }
        }
        p->chosen = true;
    } /* without memory to measure in the first recommendation stays */
    free_operands(&o);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return 0;
}

template <class T>
int cuda_linear_prepare(int64_t rows, int64_t in, int64_t out, struct error *error)
{
    for (int kind = 0; kind < PRODUCT_KINDS; kind++) {
        struct product *p = find((enum product_kind)kind, type_of<T>(), rows, in, out);

        if (!p->chosen && choose<T>(p, error) < 0)
            return -1;
    }
    return 0;
}

/* The first line of a record: choices hold for one device and one library only. */
static void title(char *text, size_t size)
{
    struct cudaDeviceProp properties = {};

    cuda_note(cudaGetDeviceProperties(&properties, cuda_device.number), "the device's properties");
    snprintf(text, size, "%s, cuBLASLt %zu", properties.name, cublasLtGetVersion());
}

char *cuda_products_text(void)
{
    char *text = nullptr, first[320];
    size_t size;
    FILE *stream = open_memstream(&text, &size);

    if (!stream)
        return nullptr;
    title(first, sizeof(first));
    fprintf(stream, "%s\n", first);
    for (const struct product *p = products; p < products + product_count; p++) {
        if (!p->chosen)
            continue;
        fprintf(stream, "%s %d %lld %lld %lld", kind_names[p->kind], (int)p->type,
                (long long)p->rows, (long long)p->in, (long long)p->out);
        for (int i = 0; i < ALGORITHM_WORDS; i++)
            fprintf(stream, " %llx", (unsigned long long)p->algorithm.data[i]);
        fputc('\n', stream);
    }
    return fclose(stream) == 0 ? text : nullptr;
}

/* One line of a record; false when it is not one. */
static bool read_line(const char *line, struct product *p)
{
    char kind[32];
    int type, used;
    long long rows, in, out;

    if (sscanf(line, "%31s %d %lld %lld %lld%n", kind, &type, &rows, &in, &out, &used) != 5)
        return false;
    *p = {FORWARD, (cudaDataType_t)type, rows, in, out};
    while (p->kind < PRODUCT_KINDS && strcmp(kind, kind_names[p->kind]) != 0)
        p->kind = (enum product_kind)(p->kind + 1);
    for (int i = 0; i < ALGORITHM_WORDS; i++) {
        unsigned long long word;
        int more;

        if (sscanf(line + used, " %llx%n", &word, &more) != 1)
            return false;
        p->algorithm.data[i] = word;
        used += more;
    }
    p->chosen = true;
    return p->kind < PRODUCT_KINDS;
}

bool cuda_products_adopt(const char *text)
{
    char first[320];

    title(first, sizeof(first));
    if (strncmp(text, first, strlen(first)) != 0 || text[strlen(first)] != '\n')
        return false;
    for (const char *line = strchr(text, '\n') + 1; line && *line;) {
        const char *end = strchr(line, '\n');

        if (!end || product_count == MOST_SHAPES || !read_line(line, &products[product_count]))
            return false;
        product_count++;
        line = end + 1;
    }
    return true;
}

#define INSTANTIATE(T)                                                                             \
    template void cuda_linear_forward<T>(struct stream *, void *, const void *, const void *,      \
                                         int64_t, int64_t, int64_t, bool);                         \
    template void cuda_linear_backward_input<T>(struct stream *, void *, const void *,             \
                                                const void *, int64_t, int64_t, int64_t, bool);    \
    template void cuda_linear_backward_weight<T>(struct stream *, float *, const void *,           \
                                                 const void *, int64_t, int64_t, int64_t);         \
    template int cuda_linear_prepare<T>(int64_t, int64_t, int64_t, struct error *);
INSTANTIATE(float)
INSTANTIATE(bf16)
INSTANTIATE(__half)
