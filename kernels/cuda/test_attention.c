/* Attention on the device against the CPU's: several sequences of odd lengths in one buffer, heads
 * that share keys, windows, dropout (whose masks are to be the CPU's), and head sizes with and
 * without padding. What kernels must write is NaN before, as is the workspace.
 */
#include "kernels/cuda/test_device.h"

#include <stdio.h>
#include <stdlib.h>

struct heads {
    int heads, kv_heads;
};

/* What one shape needs, on both sides. */
struct attention_arrays {
    struct attention_shape shape;
    struct twin starts, qkv, out, lse, dout, dqkv;
    struct twin again_out, again_lse, again_dqkv; /* of the second call; on the device alone */
    struct twin workspace;
};

static void arrays_open(struct attention_arrays *a, const int32_t *starts, int sequences,
                        struct heads heads, int head_dim, int window, double rate)
{
    enum dtype dtype = cuda->dtype;
    int64_t rows = starts[sequences], longest = 0;
    int64_t wide = rows * (heads.heads + 2 * heads.kv_heads) * head_dim;
    int64_t narrow = rows * heads.heads * head_dim;

    for (int i = 0; i < sequences; i++)
        if (starts[i + 1] - starts[i] > longest)
            longest = starts[i + 1] - starts[i];
    a->starts = twin_integers("starts", starts, sequences + 1);
    a->shape = (struct attention_shape){
        .rows = rows,
        .heads = heads.heads,
        .kv_heads = heads.kv_heads,
        .head_dim = head_dim,
        .sequences = sequences,
        .starts = starts,
        .device_starts = a->starts.device,
        .longest = longest,
        .window = window,
        .dropout = {.rate = rate,
                    .seed = 0x123456789abcULL,
                    .place = 3,
                    .first_row = (1LL << 33) + 1003,
                    .first_head = 6},
    };
    a->qkv = twin_random("qkv", wide, dtype, 1);
    a->dout = twin_random("dout", narrow, dtype, 1);
    a->out = twin_poisoned("out", narrow, dtype);
    a->lse = twin_poisoned("lse", rows * heads.heads, DTYPE_F32);
    a->dqkv = twin_poisoned("dqkv", wide, dtype);
    a->again_out = twin_poisoned("out", narrow, dtype);
    a->again_lse = twin_poisoned("lse", rows * heads.heads, DTYPE_F32);
    a->again_dqkv = twin_poisoned("dqkv", wide, dtype);
    a->workspace = twin_poisoned(
        "workspace", (int64_t)(cuda->attention_workspace(&a->shape) / sizeof(float)) + 1,
        DTYPE_F32);
}

static void arrays_close(struct attention_arrays *a)
{
    struct twin *twins[] = {&a->starts,     &a->qkv,      &a->out,       &a->lse,
                            &a->dout,       &a->dqkv,     &a->again_out, &a->again_lse,
                            &a->again_dqkv, &a->workspace};

    for (size_t i = 0; i < sizeof(twins) / sizeof(*twins); i++)
        twin_free(twins[i]);
}

static void test_shape(const int32_t *starts, int sequences, struct heads heads, int head_dim,
                       int window, double rate)
{
    struct attention_arrays a;
    char what[96];

    snprintf(what, sizeof(what), "%d heads of %d, %d for keys, %d sequences, window %d, dropout %g",
             heads.heads, head_dim, heads.kv_heads, sequences, window, rate);
    arrays_open(&a, starts, sequences, heads, head_dim, window, rate);
    cpu->attention_forward(NULL, a.out.host, a.lse.host, a.qkv.host, &a.shape);
    cpu->attention_backward(NULL, a.dqkv.host, a.dout.host, a.out.host, a.qkv.host, a.lse.host,
                            NULL, &a.shape);
    cuda->attention_forward(NULL, a.out.device, a.lse.device, a.qkv.device, &a.shape);
    twin_compare(what, &a.out, tolerance());
    twin_compare(what, &a.lse, 1e-5);
    cuda->attention_backward(NULL, a.dqkv.device, a.dout.device, a.out.device, a.qkv.device,
                             a.lse.device, a.workspace.device, &a.shape);
    twin_compare(what, &a.dqkv, tolerance());
    cuda->attention_forward(NULL, a.again_out.device, a.again_lse.device, a.qkv.device, &a.shape);
    cuda->attention_backward(NULL, a.again_dqkv.device, a.dout.device, a.out.device, a.qkv.device,
                             a.lse.device, a.workspace.device, &a.shape);
    twin_same_bits(what, &a.out, &a.again_out);
    twin_same_bits(what, &a.lse, &a.again_lse);
    twin_same_bits(what, &a.dqkv, &a.again_dqkv);
    arrays_close(&a);
}

static void test(void)
{
    /* sequences of 1, 5, 63, 64, 65, 127, 200 and 333 rows, and one of 1111 */
    static const int32_t starts[] = {0, 1, 6, 69, 133, 198, 325, 525, 858};
    static const int32_t one_start[] = {0, 1111};
    static const int dims[] = {8, 16, 64, 80, 128, 256}, windows[] = {0, 1, 7, 64, 100};
    static const struct heads heads[] = {{1, 1}, {4, 4}, {8, 2}, {8, 1}, {6, 3}};

    if (test_small()) {
        for (int dim = 0; dim < 6; dim++) {
            test_shape(starts, 5, heads[2], dims[dim], 0, 0);
            test_shape(starts, 5, heads[1], dims[dim], 7, 0);
            test_shape(starts, 5, heads[2], dims[dim], 0, 0.2);
        }
        return;
    }
    for (int dim = 0; dim < 6; dim++) {
        for (int i = 0; i < 5; i++)
            test_shape(starts, 8, heads[i], dims[dim], 0, 0);
        for (int i = 1; i < 5; i++)
            test_shape(starts, 8, heads[i], dims[dim], windows[i], 0);
        test_shape(one_start, 1, heads[4], dims[dim], 0, 0);
        test_shape(one_start, 1, heads[2], dims[dim], 300, 0);
        test_shape(starts, 8, heads[2], dims[dim], 0, 0.1);
        test_shape(starts, 8, heads[4], dims[dim], 100, 0.5);
        test_shape(one_start, 1, heads[4], dims[dim], 0, 0.2);
    }
    test_shape(starts, 8, heads[4], 33, 100, 0);
    test_shape(starts, 8, heads[4], 33, 0, 0.2);
}

int main(int argc, char **argv)
{
    return test_device_main(argc, argv, test);
}
