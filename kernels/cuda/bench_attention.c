/* Rates of attention on the device, causal, in bf16 (or --dtype): forward counts 2 B H T^2 d
 * operations, backward 2.5 times that. MTLLM_TEST_ATTENTION chooses the implementation. Not part
 * of the tests.
 */
#include "kernels/cuda/test_device.h"

#include <stdio.h>
#include <stdlib.h>

struct problem {
    int head_dim, heads, kv_heads, length, sequences;
};

struct buffers {
    struct attention_shape shape;
    void *qkv, *out, *lse, *dout, *dqkv, *workspace;
};

static void *allocate(size_t bytes)
{
    void *buffer = cuda->allocate(bytes);

    if (!buffer) {
        fprintf(stderr, "bench_attention: out of memory\n");
        exit(71);
    }
    return buffer;
}

/* Random numbers from a thousand that the host draws, so that the host is not what takes long. */
static void *allocate_random(int64_t count)
{
    enum { BLOCK = 9973 };
    size_t bytes = dtype_bytes(cuda->dtype);
    unsigned char *buffer = allocate((size_t)count * bytes);
    struct twin twin = twin_random("", BLOCK, cuda->dtype, 1);

    for (int64_t i = 0; i < count;) {
        int64_t n = i == 0 ? BLOCK : i; /* doubling what is there */

        if (n > count - i)
            n = count - i;
        cuda->copy(NULL, buffer + (size_t)i * bytes, i == 0 ? twin.device : buffer,
                   (size_t)n * bytes);
        i += n;
    }
    (void)cuda->stream_sync(NULL, &(struct error){0});
    twin_free(&twin);
    return buffer;
}

static void forward(void *user)
{
    struct buffers *b = user;

    cuda->attention_forward(NULL, b->out, b->lse, b->qkv, &b->shape);
}

static void backward(void *user)
{
    struct buffers *b = user;

    cuda->attention_backward(NULL, b->dqkv, b->dout, b->out, b->qkv, b->lse, b->workspace,
                             &b->shape);
}

static void measure(const struct problem *p)
{
    int64_t rows = (int64_t)p->length * p->sequences, head_row = rows * p->head_dim;
    int32_t *starts = malloc((size_t)(p->sequences + 1) * sizeof(int32_t));
    double operations = 2.0 * p->heads * (double)rows * p->length * p->head_dim;
    double forward_us, backward_us;
    struct twin device_starts;
    struct buffers b;

    for (int i = 0; i <= p->sequences; i++)
        starts[i] = i * p->length;
    device_starts = twin_integers("starts", starts, p->sequences + 1);
    b.shape = (struct attention_shape){
        .rows = rows,
        .heads = p->heads,
        .kv_heads = p->kv_heads,
        .head_dim = p->head_dim,
        .sequences = p->sequences,
        .starts = starts,
        .device_starts = device_starts.device,
        .longest = p->length,
    };
    b.qkv = allocate_random(head_row * (p->heads + 2 * p->kv_heads));
    b.dqkv = allocate_random(head_row * (p->heads + 2 * p->kv_heads));
    b.out = allocate_random(head_row * p->heads);
    b.dout = allocate_random(head_row * p->heads);
    b.lse = allocate((size_t)(rows * p->heads) * sizeof(float));
    b.workspace = allocate(cuda->attention_workspace(&b.shape));
    forward_us = time_us(forward, &b, 21, 2);
    backward_us = time_us(backward, &b, 21, 1);
    printf("%4d %5d %3d %3d %3d  %9.1f us %7.1f  %9.1f us %7.1f\n", p->head_dim, p->length,
           p->sequences, p->heads, p->kv_heads, forward_us, operations / forward_us * 1e-6,
           backward_us, 2.5 * operations / backward_us * 1e-6);
    fflush(stdout);
    cuda->release(b.qkv);
    cuda->release(b.dqkv);
    cuda->release(b.out);
    cuda->release(b.dout);
    cuda->release(b.lse);
    cuda->release(b.workspace);
    twin_free(&device_starts);
    free(starts);
}

static void bench(void)
{
    static const struct problem problems[] = {
        {128, 32, 32, 2048, 4}, {128, 32, 32, 4096, 2}, {128, 32, 32, 8192, 1},
        {64, 32, 32, 2048, 4},  {64, 32, 32, 4096, 2},  {64, 32, 32, 8192, 1},
        {64, 32, 4, 4096, 4}, /* TinyLlama */
        {256, 16, 16, 4096, 2}, {80, 32, 32, 4096, 2},
    };

    printf("%s\n   d     T   B   H  kv       forward TFLOP/s      backward TFLOP/s\n",
           dtype_name(cuda->dtype));
    for (size_t i = 0; i < sizeof(problems) / sizeof(*problems); i++)
        measure(problems + i);
}

int main(int argc, char **argv)
{
    static char bf16[] = "--dtype=bf16";
    char *arguments[] = {argv[0], bf16, NULL};

    return argc > 1 ? test_device_main(argc, argv, bench) : test_device_main(2, arguments, bench);
}
