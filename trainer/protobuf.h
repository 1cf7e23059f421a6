/* Protocol buffers' wire format, as much of it as event files of TensorBoard and of W&B need:
 * messages are written field by field, and read back field by field.
 * https://protobuf.dev/programming-guides/encoding/
 *
 * protobuf-c would bring generated code for hundreds of messages, and a library at run time, for
 * these few functions.
 */
#ifndef MTLLM_TRAINER_PROTOBUF_H
#define MTLLM_TRAINER_PROTOBUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that grow as fields are added. Starts from zeros. When memory runs out `failed` is set and
 * stays set until protobuf_clear(). */
struct protobuf {
    unsigned char *bytes;
    size_t length, capacity;
    bool failed;
};

void protobuf_clear(struct protobuf *buffer); /* empty it, and keep its memory */
void protobuf_destroy(struct protobuf *buffer);

/* Integers that are negative take ten bytes, as int64 has it. */
void protobuf_integer(struct protobuf *buffer, int field, int64_t value);
void protobuf_double(struct protobuf *buffer, int field, double value);
void protobuf_float(struct protobuf *buffer, int field, float value);
void protobuf_bytes(struct protobuf *buffer, int field, const void *bytes, size_t length);
/* Readers refuse a string that is not UTF-8: of one, every byte that is not ASCII becomes '?'. */
void protobuf_text(struct protobuf *buffer, int field, const char *text);
/* Between these two stand the fields of a message that is itself a field. */
size_t protobuf_begin(struct protobuf *buffer, int field);
void protobuf_end(struct protobuf *buffer, size_t begun);
/* Bytes as they are: whole fields, or what a file puts around a message. */
void protobuf_append(struct protobuf *buffer, const void *bytes, size_t length);

struct protobuf_field {
    int number;
    uint64_t value;             /* of a number: its bits */
    const unsigned char *bytes; /* of text, bytes or a message; else NULL */
    size_t length;
};

/* The next field of a message from *at on, which moves behind it. False at the end, and where
 * something is no field. */
bool protobuf_next(const unsigned char **at, const unsigned char *end,
                   struct protobuf_field *field);
/* The first field of that number; false when there is none. */
bool protobuf_find(const void *message, size_t length, int number, struct protobuf_field *field);

/* CRC-32 as zlib has it, of bytes that follow on others with the CRC `before` (0: none). */
uint32_t crc32_ieee(uint32_t before, const void *bytes, size_t length);
/* CRC-32C (Castagnoli). */
uint32_t crc32_castagnoli(const void *bytes, size_t length);

#endif
