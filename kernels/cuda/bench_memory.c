/* Measures the memory-bound kernels of the CUDA backend at training sizes, beside a large copy on
 * the device: what each moves (every input once, every output once) in its time, and the share of
 * the copy's rate. Not part of the tests.
 *
 *   bench_memory [--dtype=NAME] [--only=TEXT]   a table; bf16 without --dtype; of the kernels
 *                                               that have TEXT in their name
 *
 * Arrays that the cache of the device could keep from call to call are there three times, used in
 * turn.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/test_device.h"

enum { SETS = 3, RUNS = 20, ROWS = 16384, HEAD_ROWS = 4096, SEQUENCE = 4096 };

static size_t element; /* bytes of an activation */
static double copy_rate;
static const char *only = "";

static void *allocate(int64_t count, size_t bytes)
{
    void *buffer = cuda->allocate((size_t)count * bytes);

    if (!buffer) {
        fprintf(stderr, "bench_memory: out of memory\n");
        exit(71);
    }
    return buffer;
}

static void *activations(int64_t count, double std)
{
    static uint64_t tensor;
    struct tile tile = {0, 1, 0, count, count};
    void *buffer = allocate(count, element);

    cuda->random_normal(NULL, buffer, cuda->dtype, &tile, std, 1, ++tensor);
    return buffer;
}

/* Random fp32 numbers, or bf16 ones, in [low, high): a few, repeated. */
static void *numbers(int64_t count, enum dtype dtype, double low, double high)
{
    enum { FEW = 1 << 18 };
    size_t bytes = dtype_bytes(dtype), all = (size_t)count * bytes, done = FEW * bytes;
    float *values = malloc(FEW * sizeof(*values));
    void *narrow = malloc(done), *buffer = allocate(count, bytes);
    struct error error;

    for (int i = 0; i < FEW; i++)
        values[i] = (float)(low + (high - low) * test_below(1 << 24) / (1 << 24));
    if (dtype == DTYPE_F32)
        memcpy(narrow, values, done);
    else
        dtype_convert(narrow, dtype, values, DTYPE_F32, FEW);
    done = done < all ? done : all;
    cuda->to_device(NULL, buffer, narrow, done);
    while (done < all) {
        size_t more = done < all - done ? done : all - done;

        cuda->copy(NULL, (char *)buffer + done, buffer, more);
        done += more;
    }
    (void)cuda->stream_sync(NULL, &error);
    free(values);
    free(narrow);
    return buffer;
}

static int32_t *integers(int64_t count, int32_t below, int every)
{
    int32_t *values = malloc((size_t)count * sizeof(*values));
    int32_t *buffer = allocate(count, sizeof(*values));
    struct error error;

    for (int64_t i = 0; i < count; i++)
        values[i] = every && test_below(every) == 0 ? below / 2 : test_below(below);
    cuda->to_device(NULL, buffer, values, (size_t)count * sizeof(*values));
    (void)cuda->stream_sync(NULL, &error);
    free(values);
    return buffer;
}

/* One kernel: arrays[set][i] are its arguments in the order of the kernel's declaration. */
struct call {
    void *arrays[SETS][10];
    int64_t rows, columns, first, count; /* as each kernel takes them */
    int heads, kv_heads, head_dim;
    struct adamw update;
    int turn;
};

static void **next(struct call *call)
{
    return call->arrays[call->turn++ % SETS];
}

static void release(struct call *call)
{
    for (int set = 0; set < SETS; set++)
        for (int i = 0; i < 10; i++) {
            bool seen = false;

            for (int before = 0; before < set * 10 + i; before++)
                seen = seen || call->arrays[before / 10][before % 10] == call->arrays[set][i];
            if (!seen)
                cuda->release(call->arrays[set][i]);
        }
}

static void measure(const char *name, const char *shape, void (*run)(void *), struct call *call,
                    double bytes)
{
    double guess = bytes / 3e6; /* microseconds at 3 TB/s */
    int repeats = guess > 5000 ? 1 : (int)(5000 / guess) + 1;
    double us, rate;

    if (copy_rate > 0 && !strstr(name, only)) {
        release(call);
        return;
    }
    us = time_us(run, call, RUNS, repeats > 100 ? 100 : repeats);
    rate = bytes / us / 1e3;
    if (copy_rate == 0)
        copy_rate = rate;
    printf("%-28s %-22s %9.1f us %8.0f GB/s %6.1f %%\n", name, shape, us, rate,
           100 * rate / copy_rate);
    fflush(stdout);
    release(call);
}

/* --- the calls ----------------------------------------------------------------------------- */

static void run_copy(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->copy(NULL, a[0], a[1], (size_t)call->count);
}

static void run_norm_forward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->rmsnorm_forward(NULL, a[0], a[1], a[2], a[3], a[4], a[5], 1e-5, call->rows,
                          call->columns);
}

static void run_norm_backward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->rmsnorm_backward(NULL, a[0], a[1], NULL, a[2], a[3], a[4], a[5], a[6], call->rows,
                           call->columns);
}

static void run_layernorm_forward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->layernorm_forward(NULL, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], 1e-5, call->rows,
                            call->columns);
}

static void run_layernorm_backward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->layernorm_backward(NULL, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[0],
                             call->rows, call->columns);
}

static void run_bias_forward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->bias_forward(NULL, a[0], a[1], call->rows, call->columns);
}

static void run_bias_backward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->bias_backward(NULL, a[0], a[1], call->rows, call->columns);
}

static void run_gelu_forward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->gelu_forward(NULL, a[0], a[1], call->count);
}

static void run_gelu_backward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->gelu_backward(NULL, a[0], a[1], a[2], a[3], call->count);
}

static void run_rope(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->rope(NULL, a[0], a[1], a[2], a[3], call->rows, call->heads, call->kv_heads,
               call->head_dim, false);
}

static void run_swiglu_forward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->swiglu_forward(NULL, a[0], a[1], call->rows, call->columns);
}

static void run_swiglu_backward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->swiglu_backward(NULL, a[0], NULL, a[1], a[2], call->rows, call->columns);
}

static void run_embedding_forward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->embedding_forward(NULL, a[0], a[1], a[2], 0, call->count, call->rows, call->columns);
}

static void run_embedding_backward(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->embedding_backward(NULL, a[0], a[1], a[2], 0, call->count, call->rows, call->columns);
}

static void run_partial(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->cross_entropy_partial(NULL, a[0], a[1], a[2], a[3], a[4], a[5], 0, call->count,
                                call->count, call->rows);
}

static void run_finish(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->cross_entropy_finish(NULL, a[6], a[4], a[5], a[7], a[0], a[1], a[2], 0, call->count,
                               call->count, call->rows, true);
}

static void run_add(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->add(NULL, a[0], a[1], call->count);
}

static void run_fill(void *user)
{
    struct call *call = user;

    cuda->fill(NULL, next(call)[0], cuda->dtype, 0.5, call->count);
}

static void run_random(void *user)
{
    struct call *call = user;
    struct tile tile = {0, 1, 0, call->count, call->count};

    cuda->random_normal(NULL, next(call)[0], cuda->dtype, &tile, 0.02, 1, 2);
}

static void run_sum_squares(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->sum_squares(NULL, a[0], a[1], call->count);
}

static void run_weighted_sum(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->weighted_sum(NULL, a[0], a[1], a[2], call->count);
}

static void run_adamw(void *user)
{
    struct call *call = user;
    void **a = next(call);

    cuda->adamw(NULL, a[0], a[1], a[2], a[3], a[4], call->count, &call->update);
}

/* --- the table ----------------------------------------------------------------------------- */

static void bench_copy(void)
{
    struct call call = {.count = (int64_t)1 << 30};

    for (int set = 0; set < SETS; set++)
        for (int i = 0; i < 2; i++)
            call.arrays[set][i] = numbers(call.count / 4, DTYPE_F32, -1, 1);
    measure("copy on the device", "1 GiB", run_copy, &call, 2.0 * (double)call.count);
}

static void bench_norm(int64_t columns)
{
    double n = (double)ROWS * (double)columns * (double)element;
    char shape[32];

    snprintf(shape, sizeof(shape), "%d x %lld", ROWS, (long long)columns);
    for (int kind = 0; kind < 3; kind++) {
        struct call call = {.rows = ROWS, .columns = columns};

        for (int set = 0; set < SETS; set++) {
            void **a = call.arrays[set];
            void *large = activations(ROWS * columns, 1),
                 *statistics = numbers(ROWS, DTYPE_F32, 1, 2);

            if (kind < 2) {
                a[0] = large;
                a[1] = statistics;
                a[2] = kind ? activations(ROWS * columns, 1) : NULL;
                a[3] = activations(ROWS * columns, 1);
                a[4] = kind ? activations(ROWS * columns, 1) : NULL;
                a[5] = activations(columns, 1);
            } else {
                a[0] = a[6] = large; /* as the trainer calls it */
                a[1] = numbers(columns, DTYPE_F32, -1, 1);
                a[2] = activations(ROWS * columns, 1e-3);
                a[3] = activations(ROWS * columns, 1);
                a[4] = activations(columns, 1);
                a[5] = statistics;
            }
        }
        measure(kind == 0   ? "rmsnorm_forward"
                : kind == 1 ? "rmsnorm_forward, residual"
                            : "rmsnorm_backward, residual",
                shape, kind < 2 ? run_norm_forward : run_norm_backward, &call,
                kind == 0 ? 2 * n : 4 * n);
    }
}

static void bench_layernorm(int64_t columns)
{
    static const char *const names[] = {"layernorm_forward", "layernorm_forward, residual",
                                        "layernorm_backward, residual",
                                        "layernorm_backward, and y"};
    double n = (double)ROWS * (double)columns * (double)element;
    char shape[32];

    snprintf(shape, sizeof(shape), "%d x %lld", ROWS, (long long)columns);
    for (int kind = 0; kind < 4; kind++) {
        struct call call = {.rows = ROWS, .columns = columns};

        for (int set = 0; set < SETS; set++) {
            void **a = call.arrays[set];

            a[0] = activations(ROWS * columns, 1);
            if (kind < 2) {
                a[1] = numbers(ROWS, DTYPE_F32, -1, 1);
                a[2] = numbers(ROWS, DTYPE_F32, 1, 2);
                a[3] = kind ? activations(ROWS * columns, 1) : NULL;
                a[4] = activations(ROWS * columns, 1);
                a[5] = kind ? activations(ROWS * columns, 1) : NULL;
                a[6] = activations(columns, 1);
                a[7] = activations(columns, 1);
            } else {
                a[1] = numbers(columns, DTYPE_F32, -1, 1);
                a[2] = numbers(columns, DTYPE_F32, -1, 1);
                a[3] = kind == 3 ? activations(ROWS * columns, 1) : NULL;
                a[4] = activations(ROWS * columns, 1e-3);
                a[5] = activations(ROWS * columns, 1);
                a[6] = activations(columns, 1);
                a[7] = activations(columns, 1);
                a[8] = numbers(ROWS, DTYPE_F32, -1, 1);
                a[9] = numbers(ROWS, DTYPE_F32, 1, 2);
            }
        }
        measure(names[kind], shape, kind < 2 ? run_layernorm_forward : run_layernorm_backward,
                &call,
                kind == 0   ? 2 * n
                : kind == 3 ? 5 * n
                            : 4 * n);
    }
}

static void bench_bias(int64_t columns)
{
    double n = (double)ROWS * (double)columns * (double)element;
    struct call forward = {.rows = ROWS, .columns = columns}, backward = forward;
    char shape[32];

    snprintf(shape, sizeof(shape), "%d x %lld", ROWS, (long long)columns);
    for (int set = 0; set < SETS; set++) {
        forward.arrays[set][0] = activations(ROWS * columns, 1);
        forward.arrays[set][1] = activations(columns, 1e-3);
        backward.arrays[set][0] = numbers(columns, DTYPE_F32, -1, 1);
        backward.arrays[set][1] = activations(ROWS * columns, 1);
    }
    measure("bias_forward", shape, run_bias_forward, &forward, 2 * n);
    measure("bias_backward", shape, run_bias_backward, &backward, n);
}

static void bench_gelu(int64_t columns)
{
    static const char *const names[] = {"gelu_forward", "gelu_backward", "gelu_backward, and y"};
    double n = (double)ROWS * (double)columns * (double)element;
    char shape[32];

    snprintf(shape, sizeof(shape), "%d x %lld", ROWS, (long long)columns);
    for (int kind = 0; kind < 3; kind++) {
        struct call call = {.count = ROWS * columns};

        for (int set = 0; set < SETS; set++) {
            void **a = call.arrays[set];

            a[0] = activations(call.count, 1);
            a[1] = kind == 1 ? NULL : activations(call.count, 1);
            a[2] = kind == 0 ? NULL : activations(call.count, 1);
            a[3] = kind == 0 ? NULL : activations(call.count, 1);
        }
        measure(names[kind], shape, kind ? run_gelu_backward : run_gelu_forward, &call,
                (kind + 2) * n);
    }
}

static void bench_rope(int heads, int kv_heads, int head_dim)
{
    struct call call = {.rows = ROWS, .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim};
    int64_t stride = (int64_t)(heads + 2 * kv_heads) * head_dim;
    double turned = (double)ROWS * (heads + kv_heads) * head_dim * (double)element;
    double angles = (double)SEQUENCE * head_dim * sizeof(float);
    int32_t *where = malloc(ROWS * sizeof(*where));
    struct error error;
    char shape[32];

    for (int row = 0; row < ROWS; row++)
        where[row] = row % SEQUENCE;
    for (int set = 0; set < SETS; set++) {
        void **a = call.arrays[set];

        a[0] = activations(ROWS * stride, 1);
        a[1] = numbers(SEQUENCE * head_dim / 2, DTYPE_F32, -1, 1);
        a[2] = numbers(SEQUENCE * head_dim / 2, DTYPE_F32, -1, 1);
        a[3] = allocate(ROWS, sizeof(*where));
        cuda->to_device(NULL, a[3], where, ROWS * sizeof(*where));
        (void)cuda->stream_sync(NULL, &error);
    }
    snprintf(shape, sizeof(shape), "%d x (%d + %d) x %d", ROWS, heads, kv_heads, head_dim);
    measure("rope", shape, run_rope, &call, 2 * turned + angles + 4.0 * ROWS);
    free(where);
}

static void bench_swiglu(int64_t f)
{
    double n = (double)ROWS * (double)f * (double)element;
    char shape[32];

    snprintf(shape, sizeof(shape), "%d x %lld", ROWS, (long long)f);
    for (int kind = 0; kind < 3; kind++) {
        struct call call = {.rows = ROWS, .columns = f};

        for (int set = 0; set < SETS; set++) {
            void **a = call.arrays[set];

            a[0] = activations(ROWS * f * (kind ? 2 : 1), 1);
            a[1] = activations(ROWS * f * (kind ? 1 : 2), 1);
            a[2] = kind == 0 ? NULL : kind == 1 ? activations(ROWS * 2 * f, 1) : a[0];
        }
        measure(kind == 0   ? "swiglu_forward"
                : kind == 1 ? "swiglu_backward"
                            : "swiglu_backward, in place",
                shape, kind ? run_swiglu_backward : run_swiglu_forward, &call,
                kind ? 5 * n : 3 * n);
    }
}

/* Of the rows, one in `every` has the same token. */
static void bench_embedding(int64_t rows, int64_t columns, int32_t vocabulary, int every)
{
    double n = (double)rows * (double)columns;
    struct call call = {.rows = rows, .columns = columns, .count = vocabulary};
    struct call backward = call;
    double different = vocabulary; /* tokens, about */
    char shape[32];

    if (every == 1)
        different = 1;
    else if (rows < vocabulary)
        different = (double)rows * (1 - (double)rows / vocabulary / 2);
    for (int set = 0; set < SETS; set++) {
        void **a = call.arrays[set];

        a[0] = activations(rows * columns, 1);
        a[1] = integers(rows, vocabulary, every);
        a[2] = activations((int64_t)vocabulary * columns, 1);
        backward.arrays[set][0] = numbers((int64_t)vocabulary * columns, DTYPE_F32, -1, 1);
        backward.arrays[set][1] = integers(rows, vocabulary, every);
        backward.arrays[set][2] = activations(rows * columns, 1);
    }
    snprintf(shape, sizeof(shape), "%lld x %lld of %d%s", (long long)rows, (long long)columns,
             vocabulary,
             every == 0   ? ""
             : every == 1 ? ", one"
                          : ", often");
    measure("embedding_forward", shape, run_embedding_forward, &call, 2 * n * (double)element);
    measure("embedding_backward", shape, run_embedding_backward, &backward,
            n * (double)element + different * (double)columns * 8);
}

static void bench_cross_entropy(int64_t count)
{
    double n = (double)HEAD_ROWS * (double)count * (double)element;
    char shape[32];

    snprintf(shape, sizeof(shape), "%d x %lld", HEAD_ROWS, (long long)count);
    for (int kind = 0; kind < 2; kind++) {
        struct call call = {.rows = HEAD_ROWS, .count = count};

        for (int set = 0; set < SETS; set++) {
            void **a = call.arrays[set];

            a[0] = numbers(HEAD_ROWS, DTYPE_F32, 3, 4);
            a[1] = numbers(HEAD_ROWS, DTYPE_F32, 100, 1000);
            for (int i = 2; i < 8; i++)
                a[i] = i == 4   ? activations(HEAD_ROWS * count, 1)
                       : i == 5 ? integers(HEAD_ROWS, (int32_t)count, 0)
                                : numbers(HEAD_ROWS, DTYPE_F32, 0, 1);
        }
        measure(kind ? "cross_entropy_finish" : "cross_entropy_partial", shape,
                kind ? run_finish : run_partial, &call, kind ? 2 * n : n);
    }
}

static void bench_elementwise(void)
{
    const int64_t n = 100000000;

    for (int kind = 0; kind < 5; kind++) {
        struct call call = {.count = n};

        for (int set = 0; set < SETS; set++) {
            void **a = call.arrays[set];

            a[0] = kind < 3 ? activations(n, 1) : allocate(1, sizeof(double));
            a[1] = kind == 0 ? activations(n, 1) : kind < 3 ? NULL : numbers(n, DTYPE_F32, -1, 1);
            a[2] = kind == 4 ? numbers(n, DTYPE_F32, -1, 1) : NULL;
        }
        if (kind == 0)
            measure("add", "100 M", run_add, &call, 3e8 * (double)element);
        else if (kind == 1)
            measure("fill", "100 M", run_fill, &call, 1e8 * (double)element);
        else if (kind == 2)
            measure("random_normal", "100 M", run_random, &call, 1e8 * (double)element);
        else if (kind == 3)
            measure("sum_squares", "100 M", run_sum_squares, &call, 4e8);
        else
            measure("weighted_sum", "100 M", run_weighted_sum, &call, 8e8);
    }
}

static void bench_adamw(const char *shape, bool master, enum dtype moments, int64_t columns)
{
    const int64_t n = 100000000 / columns * columns;
    struct tile tile = {0, n / columns, 0, columns, 2 * columns};
    struct call call = {.count = n};
    double state = (double)dtype_bytes(moments), weight = (double)element;
    void *a[5];

    a[0] = activations(n, 1);
    a[1] = master ? numbers(n, DTYPE_F32, -1, 1) : NULL;
    a[2] = numbers(n, moments, -1e-3, 1e-3);
    a[3] = numbers(n, moments, 0, 1e-6);
    a[4] = numbers(n, DTYPE_F32, -1e-3, 1e-3);
    for (int set = 0; set < SETS; set++)
        memcpy(call.arrays[set], a, sizeof(a));
    call.update = (struct adamw){
        .lr = 1e-4,
        .beta1 = 0.9,
        .beta2 = 0.95,
        .eps = 1e-8,
        .weight_decay = 0.1,
        .grad_scale = 0.5,
        .step = 1000,
        .moments = moments,
        .tile = &tile,
        .seed = 1,
        .tensor = 2,
    };
    measure("adamw", shape, run_adamw, &call,
            (double)n * (4 + 4 * state + (master ? 8 + weight : 2 * weight)));
}

static void bench(void)
{
    element = dtype_bytes(cuda->dtype);
    bench_copy();
    bench_norm(2048);
    bench_norm(4096);
    for (int i = 0; i < 2; i++) {
        static const int64_t columns[] = {4544, 8192}; /* Falcon 7B and 40B */

        bench_layernorm(columns[i]);
        bench_bias(columns[i]);
        bench_gelu(columns[i]);
    }
    bench_rope(32, 8, 64);
    bench_rope(32, 8, 128);
    bench_swiglu(5632);
    bench_swiglu(11008);
    bench_cross_entropy(32000);
    bench_cross_entropy(128256);
    bench_adamw("100 M, master", true, DTYPE_F32, 4096);
    bench_adamw("100 M, master, bf16 m", true, DTYPE_BF16, 4096);
    bench_adamw("100 M, 16 bits", false, DTYPE_BF16, 4096);
    bench_adamw("100 M, 16 bits, odd", false, DTYPE_BF16, 625);
    bench_elementwise();
    bench_embedding(ROWS, 2048, 32000, 0);
    bench_embedding(ROWS, 2048, 128256, 8);
    bench_embedding(ROWS, 4096, 32000, 1);
    bench_embedding(65536, 2048, 32000, 2);
}

int main(int argc, char **argv)
{
    char standard[] = "--dtype=bf16", *arguments[] = {argv[0], standard};
    bool typed = false;

    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--only=", 7) == 0)
            only = argv[i] + 7;
        typed = typed || strncmp(argv[i], "--dtype=", 8) == 0;
    }
    return test_device_main(typed ? argc : 2, typed ? argv : arguments, bench);
}
