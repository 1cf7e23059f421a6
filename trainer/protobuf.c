#include "trainer/protobuf.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

enum wire_type { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_LENGTH = 2, WIRE_32 = 5 };

enum { VARINT_BYTES = 10 };

void protobuf_clear(struct protobuf *buffer)
{
    buffer->length = 0;
    buffer->failed = false;
}

void protobuf_destroy(struct protobuf *buffer)
{
    free(buffer->bytes);
    *buffer = (struct protobuf){0};
}

/* Room for more bytes behind the last one; NULL where there is no memory. */
static unsigned char *more(struct protobuf *buffer, size_t length)
{
    if (buffer->length + length > buffer->capacity) {
        size_t capacity = 2 * (buffer->length + length) + 64;
        unsigned char *bytes = realloc(buffer->bytes, capacity);

        if (!bytes) {
            buffer->failed = true;
            return NULL;
        }
        buffer->bytes = bytes;
        buffer->capacity = capacity;
    }
    buffer->length += length;
    return buffer->bytes + buffer->length - length;
}

void protobuf_append(struct protobuf *buffer, const void *bytes, size_t length)
{
    unsigned char *to = more(buffer, length);

    if (to && length > 0)
        memcpy(to, bytes, length);
}

/* Returns how many of the bytes it takes. */
static size_t varint(unsigned char bytes[VARINT_BYTES], uint64_t value)
{
    size_t length = 0;

    for (; value >= 0x80; value >>= 7)
        bytes[length++] = (unsigned char)(value | 0x80);
    bytes[length++] = (unsigned char)value;
    return length;
}

static void append_varint(struct protobuf *buffer, uint64_t value)
{
    unsigned char bytes[VARINT_BYTES];

    protobuf_append(buffer, bytes, varint(bytes, value));
}

static void append_key(struct protobuf *buffer, int field, enum wire_type type)
{
    append_varint(buffer, (uint64_t)field << 3 | type);
}

void protobuf_integer(struct protobuf *buffer, int field, int64_t value)
{
    append_key(buffer, field, WIRE_VARINT);
    append_varint(buffer, (uint64_t)value);
}

void protobuf_double(struct protobuf *buffer, int field, double value)
{
    uint64_t bits;

    memcpy(&bits, &value, sizeof(bits));
    bits = htole64(bits);
    append_key(buffer, field, WIRE_64);
    protobuf_append(buffer, &bits, sizeof(bits));
}

void protobuf_float(struct protobuf *buffer, int field, float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    bits = htole32(bits);
    append_key(buffer, field, WIRE_32);
    protobuf_append(buffer, &bits, sizeof(bits));
}

void protobuf_bytes(struct protobuf *buffer, int field, const void *bytes, size_t length)
{
    append_key(buffer, field, WIRE_LENGTH);
    append_varint(buffer, length);
    protobuf_append(buffer, bytes, length);
}

void protobuf_text(struct protobuf *buffer, int field, const char *text)
{
    size_t length = strlen(text), start;

    append_key(buffer, field, WIRE_LENGTH);
    append_varint(buffer, length);
    start = buffer->length;
    protobuf_append(buffer, text, length);
    if (buffer->failed || utf8_is_text(text))
        return;
    for (size_t i = start; i < buffer->length; i++)
        if (buffer->bytes[i] >= 0x80)
            buffer->bytes[i] = '?';
}

size_t protobuf_begin(struct protobuf *buffer, int field)
{
    append_key(buffer, field, WIRE_LENGTH);
    return buffer->length;
}

/* The length stands before the message, and is known behind it. */
void protobuf_end(struct protobuf *buffer, size_t begun)
{
    unsigned char bytes[VARINT_BYTES];
    size_t inside = buffer->length - begun, length = varint(bytes, inside);

    if (buffer->failed || !more(buffer, length))
        return;
    memmove(buffer->bytes + begun + length, buffer->bytes + begun, inside);
    memcpy(buffer->bytes + begun, bytes, length);
}

static bool read_varint(const unsigned char **at, const unsigned char *end, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 7 * VARINT_BYTES && *at < end; shift += 7) {
        unsigned char byte = *(*at)++;

        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

bool protobuf_next(const unsigned char **at, const unsigned char *end, struct protobuf_field *field)
{
    uint64_t key, bits = 0;
    size_t width;

    *field = (struct protobuf_field){0};
    if (!read_varint(at, end, &key))
        return false;
    field->number = (int)(key >> 3 & 0x1fffffff);
    switch (key & 7) {
    case WIRE_VARINT:
        return read_varint(at, end, &field->value);
    case WIRE_LENGTH:
        if (!read_varint(at, end, &bits) || bits > (uint64_t)(end - *at))
            return false;
        field->bytes = *at;
        field->length = (size_t)bits;
        *at += field->length;
        return true;
    case WIRE_64:
    case WIRE_32:
        width = (key & 7) == WIRE_64 ? 8 : 4;
        if ((size_t)(end - *at) < width)
            return false;
        memcpy(&bits, *at, width);
        field->value = le64toh(bits);
        *at += width;
        return true;
    }
    return false;
}

bool protobuf_find(const void *message, size_t length, int number, struct protobuf_field *field)
{
    const unsigned char *at = message, *end = at + length;

    while (protobuf_next(&at, end, field))
        if (field->number == number)
            return true;
    return false;
}

/* Four bits at a time; the polynomial is reflected. */
static uint32_t crc32_of(uint32_t polynomial, uint32_t before, const void *bytes, size_t length)
{
    const unsigned char *at = bytes;
    uint32_t table[16], crc = ~before;

    for (uint32_t i = 0; i < 16; i++) {
        table[i] = i;
        for (int bit = 0; bit < 4; bit++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? polynomial : 0);
    }
    for (size_t i = 0; i < length; i++) {
        crc ^= at[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

uint32_t crc32_ieee(uint32_t before, const void *bytes, size_t length)
{
    return crc32_of(0xedb88320, before, bytes, length);
}

uint32_t crc32_castagnoli(const void *bytes, size_t length)
{
    return crc32_of(0x82f63b78, 0, bytes, length);
}
