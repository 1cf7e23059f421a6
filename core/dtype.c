#include "core/dtype.h"

static const char *const names[] = {
    [DTYPE_F32] = "fp32",
    [DTYPE_BF16] = "bf16",
    [DTYPE_F16] = "fp16",
};

const char *dtype_name(enum dtype dtype)
{
    return names[dtype];
}

int dtype_from_name(const char *name)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0)
            return i;
    return -1;
}

static uint32_t float_bits(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static float bits_float(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint16_t bf16_from_float(float value)
{
    uint32_t bits = float_bits(value);

    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40); /* NaN: keep it quiet, never round it to infinity */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* IEEE 754 binary16, round to nearest even, subnormals included. */
static uint16_t f16_from_float(float value)
{
    uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;

    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000)
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        /* Adding 0.5 puts the subnormal's bits at the end of the sum's, rounded by the FPU. */
        uint32_t sum = float_bits(bits_float(magnitude) + 0.5f);
        return (uint16_t)(sign | (sum - 0x3f000000));
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | ((magnitude - 0x38000000) >> 13));
}

static float float_from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;

    if (magnitude >= 0x7c00)
        return bits_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    if (magnitude < 0x400) {
        float value = (float)magnitude * 0x1p-24f;
        return sign ? -value : value;
    }
    return bits_float(sign | ((magnitude << 13) + 0x38000000));
}

static float element_get(const void *from, enum dtype type, size_t i)
{
    switch (type) {
    case DTYPE_BF16:
        return bits_float((uint32_t)((const uint16_t *)from)[i] << 16);
    case DTYPE_F16:
        return float_from_f16(((const uint16_t *)from)[i]);
    default:
        return ((const float *)from)[i];
    }
}

void dtype_convert(void *to, enum dtype to_type, const void *from, enum dtype from_type,
                   size_t count)
{
    if (to_type == from_type) {
        memcpy(to, from, count * dtype_bytes(to_type));
        return;
    }
    for (size_t i = 0; i < count; i++) {
        float value = element_get(from, from_type, i);

        switch (to_type) {
        case DTYPE_BF16:
            ((uint16_t *)to)[i] = bf16_from_float(value);
            break;
        case DTYPE_F16:
            ((uint16_t *)to)[i] = f16_from_float(value);
            break;
        default:
            ((float *)to)[i] = value;
        }
    }
}
