/* What tests of the CUDA backend share: the same numbers on the CPU backend and on the device, run
 * through both, compared. Programs take the element type as --dtype=fp32|bf16|fp16 (all three in
 * turn without it) and end with 77 where there is no GPU.
 */
#ifndef MTLLM_KERNELS_CUDA_TEST_DEVICE_H
#define MTLLM_KERNELS_CUDA_TEST_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

extern const struct kernels *cpu, *cuda; /* once test_device_open() returned */

/* Load the module and take device 0 with that type; exits with 77 where there is none. */
void test_device_open(enum dtype dtype);
/* For each type in turn (each in a process of its own): call `test`. Returns the exit status of
 * the program: 1 when some comparison failed. */
int test_device_main(int argc, char **argv, void (*test)(void));

/* One array on both sides. On the CPU it is fp32 whatever the device's type, with values that the
 * device's type can hold. */
struct twin {
    const char *name;
    float *host;
    void *device;
    int64_t count;
    enum dtype dtype;
};

/* Normal random numbers times `scale`, the same on both sides, different for every call. */
struct twin twin_random(const char *name, int64_t count, enum dtype dtype, double scale);
/* NaN everywhere: what the kernel does not write shows. */
struct twin twin_poisoned(const char *name, int64_t count, enum dtype dtype);
struct twin twin_from(const char *name, const float *values, int64_t count, enum dtype dtype);
/* int32 on both sides; `host` is to be cast. */
struct twin twin_integers(const char *name, const int32_t *values, int64_t count);
void twin_free(struct twin *twin);

/* Fails, with a line that says what and where, unless |device - host| / |host| (Euclidean) is at
 * most `tolerance`, or when any element of the device is NaN and the host's is not. */
void twin_compare(const char *what, const struct twin *twin, double tolerance);
/* Norm-relative tolerance of the type under test: 1e-5 in fp32, 1e-2 in bf16, 2e-3 in fp16. */
double tolerance(void);
/* The bits of two device arrays of the same kind are the same. */
void twin_same_bits(const char *what, const struct twin *a, const struct twin *b);
void test_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether $MTLLM_TEST_SMALL asks for few cases, which still reach every kernel: under a tool that
 * makes the device slow. */
bool test_small(void);

/* Random integer in [0, n). */
int32_t test_below(int32_t n);

/* Median time of `call` in microseconds over `runs` runs after two more, from events of the host
 * around a synchronized stream; every run is `repeats` calls. */
double time_us(void (*call)(void *), void *user, int runs, int repeats);

#endif
