#include "ckpt/tensor_check.h"

#include <assert.h>

void tensor_slices_begin(struct tensor_slices *slices, const int64_t shape[2],
                         int64_t most_elements)
{
    assert(most_elements > 0 && shape[0] > 0 && shape[1] > 0);
    *slices = (struct tensor_slices){
        .shape = {shape[0], shape[1]},
        .rows = most_elements / shape[1],
        .columns = shape[1],
    };
    if (slices->rows == 0) {
        slices->rows = 1;
        slices->columns = most_elements;
    }
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

bool tensor_slices_next(struct tensor_slices *slices, int64_t start[2], int64_t extent[2])
{
    if (slices->start[0] >= slices->shape[0])
        return false;
    start[0] = slices->start[0];
    start[1] = slices->start[1];
    extent[0] = smaller(slices->rows, slices->shape[0] - start[0]);
    extent[1] = smaller(slices->columns, slices->shape[1] - start[1]);
    slices->start[1] += extent[1];
    if (slices->start[1] >= slices->shape[1]) {
        slices->start[0] += extent[0];
        slices->start[1] = 0;
    }
    return true;
}

double tensor_element(const void *data, enum dtype dtype, int64_t i)
{
    float value;

    dtype_convert(&value, DTYPE_F32, (const char *)data + i * (int64_t)dtype_bytes(dtype), dtype,
                  1);
    return (double)value;
}

/* The bits of the exponent, which are all set in NaN and infinity. */
static uint32_t exponent_mask(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 0x7f800000 : dtype == DTYPE_BF16 ? 0x7f80 : 0x7c00;
}

static inline bool finite_at(const void *data, enum dtype dtype, uint32_t mask, int64_t i)
{
    uint32_t bits = dtype == DTYPE_F32 ? ((const uint32_t *)data)[i] : ((const uint16_t *)data)[i];

    return (bits & mask) != mask;
}

/* Compilers make these two vector code: no branch depends on an element. */
static bool any_nonfinite32(const uint32_t *bits, uint32_t mask, int64_t count)
{
    uint32_t found = 0;

    for (int64_t i = 0; i < count; i++)
        found |= (bits[i] & mask) == mask;
    return found;
}

static bool any_nonfinite16(const uint16_t *bits, uint16_t mask, int64_t count)
{
    uint16_t found = 0;

    for (int64_t i = 0; i < count; i++)
        found |= (bits[i] & mask) == mask;
    return found;
}

#define BLOCK 4096

int64_t tensor_find_nonfinite(const void *data, enum dtype dtype, int64_t count)
{
    uint32_t mask = exponent_mask(dtype);

    for (int64_t first = 0; first < count; first += BLOCK) {
        int64_t size = smaller(BLOCK, count - first);
        bool found = dtype == DTYPE_F32
                         ? any_nonfinite32((const uint32_t *)data + first, mask, size)
                         : any_nonfinite16((const uint16_t *)data + first, (uint16_t)mask, size);

        for (int64_t i = first; found && i < first + size; i++)
            if (!finite_at(data, dtype, mask, i))
                return i;
    }
    return -1;
}

int64_t tensor_find_overflow(const void *from, enum dtype from_type, const void *to,
                             enum dtype to_type, int64_t count)
{
    int64_t first = tensor_find_nonfinite(to, to_type, count);

    for (int64_t i = first < 0 ? count : first; i < count; i++)
        if (!finite_at(to, to_type, exponent_mask(to_type), i) &&
            finite_at(from, from_type, exponent_mask(from_type), i))
            return i;
    return -1;
}
