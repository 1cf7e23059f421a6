/* What the files of test_memory share. test_memory.c has main().
 */
#ifndef MTLLM_KERNELS_CUDA_TEST_MEMORY_H
#define MTLLM_KERNELS_CUDA_TEST_MEMORY_H

#include "kernels/cuda/test_device.h"

/* The type of activations. */
enum dtype act(void);
/* Another array with the values that `twin` has on the CPU. */
struct twin copied(const struct twin *twin);
/* The bytes of the device's array, or its numbers in fp32; to be freed. */
void *fetched(const struct twin *twin);
void *fetched_wide(const struct twin *twin);
/* Where the device has that element: starts that are no multiple of 16 bytes. */
void *element_of(const struct twin *twin, int64_t index);
void free_all(struct twin *twins, int count);

/* test_memory_norm.c */
void test_rmsnorm(int64_t rows, int64_t columns);
void test_layernorm(int64_t rows, int64_t columns);
void test_layernorm_starts(void); /* that vectors do not fit, and rows far from zero */

/* test_memory_optimizer.c */
void test_sums(void);
void test_adamw(void);

#endif
