/* Tensors slice by slice, and a look at their values. */
#ifndef MTLLM_CKPT_TENSOR_CHECK_H
#define MTLLM_CKPT_TENSOR_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/dtype.h"

/* Walks a tensor of shape[2] in row-major order by rectangles of at most a number of elements:
 * whole rows, or parts of one row that is longer. */
struct tensor_slices {
    int64_t shape[2], rows, columns, start[2];
};

void tensor_slices_begin(struct tensor_slices *slices, const int64_t shape[2],
                         int64_t most_elements);
/* False when there are no more. */
bool tensor_slices_next(struct tensor_slices *slices, int64_t start[2], int64_t extent[2]);

double tensor_element(const void *data, enum dtype dtype, int64_t i);

/* The first element that is NaN or infinite, -1 if there is none. */
int64_t tensor_find_nonfinite(const void *data, enum dtype dtype, int64_t count);

/* The first element that was finite before a conversion and is not after it, -1 if there is none.
 */
int64_t tensor_find_overflow(const void *from, enum dtype from_type, const void *to,
                             enum dtype to_type, int64_t count);

#endif
