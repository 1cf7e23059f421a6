/* Guards: products on the device are the CPU's, for sizes that training has and for odd ones, in
 * every direction and adding to what is there; the choice of algorithms survives being written down
 * and read; the same product twice gives the same bits. Also streams, copies and conversions. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/test_device.h"

static void check_shape(int64_t rows, int64_t in, int64_t out)
{
    struct twin x = twin_random("x", rows * in, cuda->dtype, 1);
    struct twin w = twin_random("w", out * in, cuda->dtype, 1 / sqrt((double)in));
    struct twin dy = twin_random("dy", rows * out, cuda->dtype, 1);
    struct twin y = twin_poisoned("y", rows * out, cuda->dtype);
    struct twin again = twin_poisoned("y", rows * out, cuda->dtype);
    struct twin dx = twin_poisoned("dx", rows * in, cuda->dtype);
    struct twin dw = twin_random("dw", out * in, DTYPE_F32, 1);
    char what[96];

    snprintf(what, sizeof(what), "linear %lld x %lld x %lld", (long long)rows, (long long)in,
             (long long)out);
    cpu->linear_forward(NULL, y.host, x.host, w.host, rows, in, out, false);
    cuda->linear_forward(NULL, y.device, x.device, w.device, rows, in, out, false);
    cuda->linear_forward(NULL, again.device, x.device, w.device, rows, in, out, false);
    twin_compare(what, &y, tolerance());
    twin_same_bits(what, &y, &again);
    cpu->linear_backward_input(NULL, dx.host, dy.host, w.host, rows, in, out, false);
    cuda->linear_backward_input(NULL, dx.device, dy.device, w.device, rows, in, out, false);
    twin_compare(what, &dx, tolerance());
    cpu->linear_backward_input(NULL, dx.host, dy.host, w.host, rows, in, out, true);
    cuda->linear_backward_input(NULL, dx.device, dy.device, w.device, rows, in, out, true);
    twin_compare(what, &dx, tolerance());
    cpu->linear_backward_weight(NULL, (float *)dw.host, dy.host, x.host, rows, in, out);
    cuda->linear_backward_weight(NULL, dw.device, dy.device, x.device, rows, in, out);
    twin_compare(what, &dw, tolerance());
    twin_free(&x);
    twin_free(&w);
    twin_free(&dy);
    twin_free(&y);
    twin_free(&again);
    twin_free(&dx);
    twin_free(&dw);
}

static void check_record(void)
{
    struct error error = {0};
    char *text, *damaged;

    if (cuda->linear_prepare(512, 768, 2304, &error) < 0)
        test_fail("linear_prepare: %s", error.text);
    check_shape(512, 768, 2304);
    text = cuda->products_text();
    if (!text || !strstr(text, "backward-weight")) {
        test_fail("products_text() lacks the shape that was prepared");
        return;
    }
    if (!cuda->products_adopt(text))
        test_fail("products_adopt() refuses what products_text() gave");
    damaged = strdup(text);
    damaged[strlen(damaged) - 20] = '\0';
    if (cuda->products_adopt(damaged) || cuda->products_adopt("another device\n"))
        test_fail("products_adopt() takes a damaged or foreign record");
    free(text);
    free(damaged);
}

static void check_convert(void)
{
    const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

    for (int from = 0; from < 3; from++) {
        for (int to = 0; to < 3; to++) {
            struct twin x = twin_random("x", 4099, types[from], 3);
            struct twin y = twin_poisoned("converted", 4099, types[to]);
            uint16_t narrow[4099];

            if (types[to] == DTYPE_F32) {
                memcpy(y.host, x.host, sizeof(float) * 4099);
            } else {
                dtype_convert(narrow, types[to], x.host, DTYPE_F32, 4099);
                dtype_convert(y.host, DTYPE_F32, narrow, types[to], 4099);
            }
            cuda->convert(NULL, y.device, types[to], x.device, types[from], 4099);
            twin_compare("convert", &y, 0);
            twin_free(&x);
            twin_free(&y);
        }
    }
}

/* A copy on another stream that was told to wait sees what the compute stream wrote before. */
static void check_streams(void)
{
    enum { COUNT = 1 << 24 };
    struct stream *other = cuda->stream_create();
    float *device = cuda->allocate(COUNT * sizeof(float));
    float *host = cuda->host_allocate(COUNT * sizeof(float));
    struct error error = {0};

    for (int round = 1; round <= 4; round++) {
        cuda->fill(NULL, device, DTYPE_F32, round, COUNT);
        cuda->stream_wait(other, NULL);
        cuda->to_host(other, host, device, COUNT * sizeof(float));
        cuda->stream_wait(NULL, other);
    }
    if (cuda->stream_sync(other, &error) < 0)
        test_fail("stream_sync: %s", error.text);
    for (int64_t i = 0; i < COUNT; i++) {
        if (host[i] != 4) {
            test_fail("a stream that waited saw %g at %lld, expected 4", (double)host[i],
                      (long long)i);
            break;
        }
    }
    cuda->stream_destroy(other);
    cuda->release(device);
    cuda->host_release(host);
}

static void test(void)
{
    check_shape(1, 1, 3);
    check_shape(7, 33, 17);
    check_shape(65, 64, 129);
    check_shape(256, 768, 2304);
    check_shape(300, 2048, 1000);
    check_record();
    check_convert();
    check_streams();
}

int main(int argc, char **argv)
{
    return test_device_main(argc, argv, test);
}
