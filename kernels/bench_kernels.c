/* Measures the kernels on the shapes of llama-100m (hidden 768, 12 heads of 64, feed-forward 2048,
 * vocabulary 32000, 12 layers) at sequence 512, beside plain cblas_sgemm, and adds up what a
 * training step of them would reach. Not part of the tests.
 *
 *   bench_kernels [--threads=N] [--sequences=N]   a table
 *   bench_kernels [--threads=N] --sgemm           one number: GFLOP/s of a large square sgemm
 */
#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "kernels/kernels.h"

enum {
    HIDDEN = 768,
    QKV = 3 * HIDDEN,
    HEADS = 12,
    HEAD_DIM = 64,
    HALF_HEAD = HEAD_DIM / 2,
    FFN = 2048,
    GATE_UP = 2 * FFN,
    VOCABULARY = 32000,
    LAYERS = 12,
    SEQUENCE = 512,
    REPEATS = 3
};

struct bench {
    const struct kernels *k;
    int64_t rows;
    struct attention_shape attention;
    int32_t *tokens, *positions;
    float *hidden, *hidden2, *norm_weight, *rstd; /* [rows, HIDDEN] twice */
    float *qkv, *dqkv, *lse, *out;                /* [rows, 3 HIDDEN] twice, [rows, HIDDEN] */
    float *cosine, *sine;                         /* [SEQUENCE, HEAD_DIM / 2] */
    float *gate_up, *product;                     /* [rows, 2 FFN], [rows, FFN] */
    float *weight, *grad, *m, *v;                 /* [VOCABULARY, HIDDEN], the largest */
    float *logits, *maximum, *sum, *target, *loss, *row_weight; /* [rows, VOCABULARY], [rows] */
    int32_t *best;
    double step_s, step_flops, product_s; /* of a whole training step, added up */
};

static void *allocate(const struct kernels *k, int64_t elements)
{
    void *buffer = k->allocate((size_t)elements * sizeof(float));

    if (!buffer) {
        fprintf(stderr, "bench_kernels: out of memory; use fewer --sequences\n");
        exit(71);
    }
    return buffer;
}

static float *allocate_random(const struct kernels *k, int64_t rows, int64_t columns)
{
    struct tile tile = {0, rows, 0, columns, columns};
    float *x = allocate(k, rows * columns);

    k->random_normal(NULL, x, DTYPE_F32, &tile, 0.02, 1, 1);
    return x;
}

/* --- plain sgemm --------------------------------------------------------------------------- */

/* Best rate of several runs, GFLOP/s. */
static double sgemm_rate(const struct kernels *k, int n, int runs)
{
    float *a = allocate_random(k, n, n), *b = allocate_random(k, n, n),
          *c = allocate(k, (int64_t)n * n);
    double best_s = INFINITY;

    for (int run = 0; run <= runs; run++) {
        double begin_s = clock_now_s(CLOCK_MONOTONIC);

        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, n, n, 1, a, n, b, n, 0, c, n);
        if (run > 0) /* the first one wakes the threads */
            best_s = fmin(best_s, clock_now_s(CLOCK_MONOTONIC) - begin_s);
    }
    k->release(a);
    k->release(b);
    k->release(c);
    return 2.0 * n * n * n / best_s * 1e-9;
}

/* --- kernels ------------------------------------------------------------------------------- */

/* Time `call`, print a line, and add `calls` of it to the step. */
#define MEASURE(bench, name, flops, bytes, calls, call)                                            \
    do {                                                                                           \
        double best_s = INFINITY;                                                                  \
                                                                                                   \
        for (int repeat = 0; repeat < REPEATS; repeat++) {                                         \
            double begin_s = clock_now_s(CLOCK_MONOTONIC);                                         \
                                                                                                   \
            call;                                                                                  \
            best_s = fmin(best_s, clock_now_s(CLOCK_MONOTONIC) - begin_s);                         \
        }                                                                                          \
        report(bench, name, (double)(flops), (double)(bytes), calls, best_s);                      \
    } while (0)

static void report(struct bench *b, const char *name, double flops, double bytes, int calls,
                   double best_s)
{
    printf("%-28s %9.3f ms", name, best_s * 1e3);
    if (flops > 0)
        printf(" %8.1f GFLOP/s", flops / best_s * 1e-9);
    else
        printf(" %8.1f GB/s   ", bytes / best_s * 1e-9);
    printf("  x %2d = %8.1f ms\n", calls, best_s * calls * 1e3);
    b->step_s += best_s * calls;
    b->step_flops += flops * calls;
}

static void bench_linear(struct bench *b, const char *name, const float *x, float *y, int64_t in,
                         int64_t out, int calls)
{
    double flops = 2.0 * (double)(b->rows * in * out), before_s = b->step_s;
    char line[64];

    snprintf(line, sizeof(line), "%s forward", name);
    MEASURE(b, line, flops, 0, calls,
            b->k->linear_forward(NULL, y, x, b->weight, b->rows, in, out, false));
    snprintf(line, sizeof(line), "%s backward input", name);
    MEASURE(b, line, flops, 0, calls,
            b->k->linear_backward_input(NULL, b->hidden2, y, b->weight, b->rows, in, out, false));
    snprintf(line, sizeof(line), "%s backward weight", name);
    MEASURE(b, line, flops, 0, calls,
            b->k->linear_backward_weight(NULL, b->grad, y, x, b->rows, in, out));
    b->product_s += b->step_s - before_s;
}

static void bench_layer(struct bench *b)
{
    const struct kernels *k = b->k;
    int64_t n = b->rows * HIDDEN, nf = b->rows * FFN;
    /* half of the full square: what a causal mask leaves; backward is twice the forward */
    double attention_flops = 2.0 * SEQUENCE * (double)n;

    MEASURE(b, "attention forward", attention_flops, 0, LAYERS,
            k->attention_forward(NULL, b->out, b->lse, b->qkv, &b->attention));
    MEASURE(b, "attention backward", 2 * attention_flops, 0, LAYERS,
            k->attention_backward(NULL, b->dqkv, b->hidden, b->out, b->qkv, b->lse, NULL,
                                  &b->attention));
    MEASURE(b, "rmsnorm forward", 0, 16 * n, 2 * LAYERS + 1,
            k->rmsnorm_forward(NULL, b->out, b->rstd, b->hidden2, b->hidden, b->hidden2,
                               b->norm_weight, 1e-5, b->rows, HIDDEN));
    k->rmsnorm_forward(NULL, b->out, b->rstd, NULL, b->hidden, NULL, b->norm_weight, 1e-5, b->rows,
                       HIDDEN);
    MEASURE(b, "rmsnorm backward", 0, 16 * n, 2 * LAYERS + 1,
            k->rmsnorm_backward(NULL, b->hidden2, b->grad, NULL, b->out, b->hidden, b->norm_weight,
                                b->rstd, b->hidden2, b->rows, HIDDEN));
    MEASURE(b, "rope", 0, 16 * n, 2 * LAYERS,
            k->rope(NULL, b->qkv, b->cosine, b->sine, b->positions, b->rows, HEADS, HEADS, HEAD_DIM,
                    false));
    MEASURE(b, "swiglu forward", 0, 12 * nf, LAYERS,
            k->swiglu_forward(NULL, b->product, b->gate_up, b->rows, FFN));
    MEASURE(b, "swiglu backward", 0, 20 * nf, LAYERS,
            k->swiglu_backward(NULL, b->gate_up, NULL, b->product, b->gate_up, b->rows, FFN));
}

static void bench_vocabulary(struct bench *b)
{
    const struct kernels *k = b->k;
    int64_t n = b->rows * HIDDEN, nlogits = b->rows * VOCABULARY;

    MEASURE(b, "embedding forward", 0, 8 * n, 1,
            k->embedding_forward(NULL, b->hidden2, b->tokens, b->weight, 0, VOCABULARY, b->rows,
                                 HIDDEN));
    MEASURE(
        b, "embedding backward", 0, 12 * n, 1,
        k->embedding_backward(NULL, b->grad, b->tokens, b->hidden, 0, VOCABULARY, b->rows, HIDDEN));
    MEASURE(b, "cross-entropy partial", 0, 4 * nlogits, 1,
            k->cross_entropy_partial(NULL, b->maximum, b->sum, b->target, b->best, b->logits,
                                     b->tokens, 0, VOCABULARY, VOCABULARY, b->rows));
    MEASURE(b, "cross-entropy finish", 0, 8 * nlogits, 1,
            k->cross_entropy_finish(NULL, b->loss, b->logits, b->tokens, b->row_weight, b->maximum,
                                    b->sum, b->target, 0, VOCABULARY, VOCABULARY, b->rows, true));
}

static void bench_optimizer(struct bench *b, double parameters)
{
    const int64_t n = (int64_t)VOCABULARY * HIDDEN;
    const struct adamw update = {
        .lr = 3e-4,
        .beta1 = 0.9,
        .beta2 = 0.95,
        .eps = 1e-8,
        .weight_decay = 0.1,
        .grad_scale = 1,
        .step = 10,
    };
    const struct tile whole = {0, VOCABULARY, 0, HIDDEN, HIDDEN};
    double squares = 0, before_s = b->step_s, whole_s;

    MEASURE(b, "zero gradients", 0, 4 * n, 1, b->k->zero(NULL, b->grad, (size_t)n * sizeof(float)));
    MEASURE(b, "sum of squares", 0, 4 * n, 1, b->k->sum_squares(NULL, &squares, b->grad, n));
    MEASURE(b, "adamw", 0, 28 * n, 1,
            b->k->adamw(NULL, b->weight, NULL, b->m, b->v, b->grad, n, &update));
    whole_s = (b->step_s - before_s) * parameters / (double)n;
    MEASURE(b, "random_normal", 0, 4 * n, 0,
            b->k->random_normal(NULL, b->weight, DTYPE_F32, &whole, 0.02, 1, 1));
    printf("%-28s %*s of all %.0f M parameters: %.1f ms\n", "", 33, "", parameters * 1e-6,
           whole_s * 1e3);
    b->step_s = before_s + whole_s;
}

static void bench_open(struct bench *b, const struct kernels *k, int sequences)
{
    int64_t rows = (int64_t)sequences * SEQUENCE;
    int32_t *starts = allocate(k, sequences + 1);

    memset(b, 0, sizeof(*b));
    b->k = k;
    b->rows = rows;
    for (int i = 0; i <= sequences; i++)
        starts[i] = i * SEQUENCE;
    b->attention = (struct attention_shape){
        .rows = rows,
        .heads = HEADS,
        .kv_heads = HEADS,
        .head_dim = HEAD_DIM,
        .sequences = sequences,
        .starts = starts,
    };
    b->tokens = allocate(k, rows);
    b->positions = allocate(k, rows);
    b->best = allocate(k, rows);
    for (int64_t row = 0; row < rows; row++) {
        b->tokens[row] = (int32_t)(row * 7919 % VOCABULARY);
        b->positions[row] = (int32_t)(row % SEQUENCE);
    }
    b->hidden = allocate_random(k, rows, HIDDEN);
    b->hidden2 = allocate_random(k, rows, FFN); /* the widest input of a product */
    b->norm_weight = allocate_random(k, 1, HIDDEN);
    b->rstd = allocate(k, rows);
    b->qkv = allocate_random(k, rows, QKV);
    b->dqkv = allocate_random(k, rows, QKV);
    b->lse = allocate(k, rows * HEADS);
    b->out = allocate_random(k, rows, HIDDEN);
    b->cosine = allocate_random(k, SEQUENCE, HALF_HEAD);
    b->sine = allocate_random(k, SEQUENCE, HALF_HEAD);
    b->gate_up = allocate_random(k, rows, GATE_UP);
    b->product = allocate_random(k, rows, FFN);
    b->weight = allocate_random(k, VOCABULARY, HIDDEN);
    b->grad = allocate_random(k, VOCABULARY, HIDDEN);
    b->m = allocate(k, (int64_t)VOCABULARY * HIDDEN);
    b->v = allocate(k, (int64_t)VOCABULARY * HIDDEN);
    b->logits = allocate_random(k, rows, VOCABULARY);
    b->maximum = allocate(k, rows);
    b->sum = allocate(k, rows);
    b->target = allocate(k, rows);
    b->loss = allocate(k, rows);
    b->row_weight = allocate(k, rows);
    k->fill(NULL, b->row_weight, DTYPE_F32, 1 / (double)rows, rows);
}

static void bench_close(struct bench *b)
{
    void *const buffers[] = {
        (void *)b->attention.starts,
        b->tokens,
        b->positions,
        b->best,
        b->hidden,
        b->hidden2,
        b->norm_weight,
        b->rstd,
        b->qkv,
        b->dqkv,
        b->lse,
        b->out,
        b->cosine,
        b->sine,
        b->gate_up,
        b->product,
        b->weight,
        b->grad,
        b->m,
        b->v,
        b->logits,
        b->maximum,
        b->sum,
        b->target,
        b->loss,
        b->row_weight,
    };

    for (size_t i = 0; i < sizeof(buffers) / sizeof(*buffers); i++)
        b->k->release(buffers[i]);
}

static void bench_step(const struct kernels *k, int sequences)
{
    const double parameters = 2.0 * VOCABULARY * HIDDEN + (2.0 * LAYERS + 1) * HIDDEN +
                              LAYERS * (4.0 * HIDDEN * HIDDEN + 3.0 * HIDDEN * FFN);
    double square, rate;
    struct bench bench, *b = &bench;

    for (int n = 512; n <= 2048; n *= 2)
        printf("sgemm %-22d %9s    %8.1f GFLOP/s\n", n, "", square = sgemm_rate(k, n, 5));
    bench_open(b, k, sequences);
    printf("%d sequences of %d:\n", sequences, SEQUENCE);
    bench_linear(b, "qkv", b->hidden, b->dqkv, HIDDEN, QKV, LAYERS);
    bench_linear(b, "output", b->out, b->hidden, HIDDEN, HIDDEN, LAYERS);
    bench_linear(b, "gate_up", b->hidden, b->gate_up, HIDDEN, GATE_UP, LAYERS);
    bench_linear(b, "down", b->product, b->hidden, FFN, HIDDEN, LAYERS);
    bench_linear(b, "head", b->hidden, b->logits, HIDDEN, VOCABULARY, 1);
    bench_layer(b);
    bench_vocabulary(b);
    bench_optimizer(b, parameters);
    rate = b->step_flops / b->step_s * 1e-9;
    printf("a step of these: %.0f ms (products %.0f ms), %.1f GFLOP/s, %.2f of sgemm %.1f\n",
           b->step_s * 1e3, b->product_s * 1e3, rate, rate / square, square);
    bench_close(b);
}

int main(int argc, char **argv)
{
    int threads = omp_get_num_procs(), sequences = 4;
    bool sgemm = false;
    const struct kernels *k;

    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--threads=", 10) == 0) {
            threads = atoi(argv[i] + 10);
        } else if (strncmp(argv[i], "--sequences=", 12) == 0) {
            sequences = atoi(argv[i] + 12);
        } else if (strcmp(argv[i], "--sgemm") == 0) {
            sgemm = true;
        } else {
            fprintf(stderr, "bench_kernels: %s: use --threads=N, --sequences=N or --sgemm\n",
                    argv[i]);
            return 64;
        }
    }
    if (threads < 1 || sequences < 1 || sequences > 1024) {
        fprintf(stderr, "bench_kernels: --threads and --sequences are numbers from 1\n");
        return 64;
    }
    k = kernels_cpu(threads);
    if (sgemm)
        printf("%.1f\n", sgemm_rate(k, 2048, 10));
    else
        bench_step(k, sequences);
    return 0;
}
