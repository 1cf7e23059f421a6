#include "kernels/cuda/test_device.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kernels/module.h"

const struct kernels *cpu, *cuda;
static int failures;

void test_device_open(enum dtype dtype)
{
    struct cuda_options options = {.dtype = dtype, .attention = getenv("MTLLM_TEST_ATTENTION")};
    struct error error = {0};
    const struct cuda_module *module = cuda_module_load(&error);

    if (!options.attention)
        options.attention = "auto";
    if (!module || module->device_count() == 0) {
        fprintf(stderr, "skipped: %s\n", module ? "no GPU" : error.text);
        exit(77);
    }
    cpu = kernels_cpu(16);
    cuda = module->open(&options, &error);
    if (!cuda)
        exit(error_print(&error));
}

static int run_one(enum dtype dtype, void (*test)(void))
{
    struct error error = {0};
    int status = 0;
    pid_t child = fork();

    if (child == 0) {
        test_device_open(dtype);
        test();
        if (cuda->stream_sync(NULL, &error) < 0)
            test_fail("%s", error.text);
        printf("%s: %s\n", dtype_name(dtype), failures ? "FAILED" : "ok");
        fflush(stdout);
        _exit(failures ? 1 : 0);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0)
        return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int test_device_main(int argc, char **argv, void (*test)(void))
{
    static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    int status = 0, only = -1;

    for (int i = 1; i < argc; i++)
        if (strncmp(argv[i], "--dtype=", 8) == 0)
            only = dtype_from_name(argv[i] + 8);
    for (int i = 0; i < 3; i++) {
        int result = only < 0 || only == (int)types[i] ? run_one(types[i], test) : 0;

        if (result == 77)
            return 77;
        status = status || result != 0;
    }
    return status;
}

void test_fail(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    printf("FAILED: ");
    vprintf(format, arguments);
    putchar('\n');
    va_end(arguments);
    failures++;
}

bool test_small(void)
{
    return getenv("MTLLM_TEST_SMALL") != NULL;
}

double tolerance(void)
{
    return cuda->dtype == DTYPE_F32 ? 1e-5 : cuda->dtype == DTYPE_BF16 ? 1e-2 : 2e-3;
}

int32_t test_below(int32_t n)
{
    return (int32_t)(drand48() * n);
}

static double normal(void)
{
    return sqrt(-2 * log(1 - drand48())) * cos(2 * M_PI * drand48());
}

struct twin twin_from(const char *name, const float *values, int64_t count, enum dtype dtype)
{
    struct twin twin = {name, NULL, NULL, count, dtype};
    size_t bytes = (size_t)count * dtype_bytes(dtype);
    void *narrow = malloc(bytes ? bytes : 1);
    struct error error;

    twin.host = cpu->allocate((size_t)count * sizeof(float));
    twin.device = cuda->allocate(bytes);
    if (!narrow || !twin.host || !twin.device) {
        fprintf(stderr, "out of memory for %s\n", name);
        exit(71);
    }
    if (dtype == DTYPE_F32) {
        memcpy(narrow, values, bytes);
        memcpy(twin.host, values, bytes);
    } else {
        dtype_convert(narrow, dtype, values, DTYPE_F32, (size_t)count);
        dtype_convert(twin.host, DTYPE_F32, narrow, dtype, (size_t)count);
    }
    cuda->to_device(NULL, twin.device, narrow, bytes);
    (void)cuda->stream_sync(NULL, &error);
    free(narrow);
    return twin;
}

struct twin twin_random(const char *name, int64_t count, enum dtype dtype, double scale)
{
    float *values = malloc((size_t)count * sizeof(float) + 1);
    struct twin twin;

    for (int64_t i = 0; i < count; i++)
        values[i] = (float)(scale * normal());
    twin = twin_from(name, values, count, dtype);
    free(values);
    return twin;
}

struct twin twin_poisoned(const char *name, int64_t count, enum dtype dtype)
{
    float *values = malloc((size_t)count * sizeof(float) + 1);
    struct twin twin;

    for (int64_t i = 0; i < count; i++)
        values[i] = NAN;
    twin = twin_from(name, values, count, dtype);
    free(values);
    return twin;
}

struct twin twin_integers(const char *name, const int32_t *values, int64_t count)
{
    return twin_from(name, (const float *)(const void *)values, count, DTYPE_F32);
}

void twin_free(struct twin *twin)
{
    cpu->release(twin->host);
    cuda->release(twin->device);
}

/* The device's array as fp32; to be freed. */
static float *fetch(const struct twin *twin)
{
    size_t bytes = (size_t)twin->count * dtype_bytes(twin->dtype);
    void *narrow = malloc(bytes + 1);
    float *wide = malloc((size_t)twin->count * sizeof(float) + 1);
    struct error error = {0};

    cuda->to_host(NULL, narrow, twin->device, bytes);
    if (cuda->stream_sync(NULL, &error) < 0) {
        test_fail("%s: %s", twin->name, error.text);
        exit(1);
    }
    if (twin->dtype == DTYPE_F32)
        memcpy(wide, narrow, bytes);
    else
        dtype_convert(wide, DTYPE_F32, narrow, twin->dtype, (size_t)twin->count);
    free(narrow);
    return wide;
}

void twin_compare(const char *what, const struct twin *twin, double bound)
{
    float *found = fetch(twin);
    double difference = 0, norm = 0, worst = 0, absolute = twin->dtype == DTYPE_F16 ? 1e-7 : 1e-30;
    int64_t worst_at = 0, bad = 0;

    for (int64_t i = 0; i < twin->count; i++) {
        double want = (double)twin->host[i], apart = (double)found[i] - want;

        if (!isfinite(want) && (isnan(want) ? isnan(found[i]) : (double)found[i] == want))
            continue;
        if (!isfinite(apart)) {
            if (bad++ == 0)
                worst_at = i;
            continue;
        }
        difference += apart * apart;
        norm += want * want;
        if (bad == 0 && fabs(apart) > worst) {
            worst = fabs(apart);
            worst_at = i;
        }
    }
    difference = sqrt(difference);
    norm = sqrt(norm);
    /* What fp16 cannot tell from zero is no difference. */
    if (bad > 0 ||
        !(difference <= bound * norm || difference <= absolute * sqrt((double)twin->count)))
        test_fail("%s: %s [%s]: relative difference %.3g (at most %.3g), %lld not finite; element "
                  "%lld of %lld is %g, expected %g",
                  what, twin->name, cuda ? dtype_name(cuda->dtype) : "", difference / norm, bound,
                  (long long)bad, (long long)worst_at, (long long)twin->count,
                  (double)found[worst_at], (double)twin->host[worst_at]);
    else if (getenv("MTLLM_TEST_VERBOSE"))
        printf("%s: %s [%s]: relative difference %.3g (at most %.3g)\n", what, twin->name,
               dtype_name(cuda->dtype), norm > 0 ? difference / norm : 0, bound);
    free(found);
}

void twin_same_bits(const char *what, const struct twin *a, const struct twin *b)
{
    float *x = fetch(a), *y = fetch(b);

    if (memcmp(x, y, (size_t)a->count * sizeof(float)) != 0)
        test_fail("%s: %s [%s]: two calls gave different bits", what, a->name,
                  dtype_name(cuda->dtype));
    free(x);
    free(y);
}

static double now_us(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e6 * (double)time.tv_sec + 1e-3 * (double)time.tv_nsec;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double time_us(void (*call)(void *), void *user, int runs, int repeats)
{
    double *times = calloc((size_t)runs, sizeof(*times)), median;
    struct error error;

    for (int run = -2; run < runs; run++) {
        double begin = now_us();

        for (int i = 0; i < repeats; i++)
            call(user);
        (void)cuda->stream_sync(NULL, &error);
        if (run >= 0)
            times[run] = (now_us() - begin) / repeats;
    }
    qsort(times, (size_t)runs, sizeof(*times), compare_doubles);
    median = times[runs / 2];
    free(times);
    return median;
}
