/* Element types of tensors. */
#ifndef MTLLM_CORE_DTYPE_H
#define MTLLM_CORE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16 };

static inline size_t dtype_bytes(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 4 : 2;
}

/* "fp32", "bf16" or "fp16", as users write it. */
const char *dtype_name(enum dtype dtype);

/* -1 for a name that is none of the three. */
int dtype_from_name(const char *name);

/* Convert `count` elements; bf16 and fp16 are rounded to nearest even, NaN stays NaN. Widening is
 * exact. `to` and `from` do not overlap. */
void dtype_convert(void *to, enum dtype to_type, const void *from, enum dtype from_type,
                   size_t count);

#endif
