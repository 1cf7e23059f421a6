/* The checksum of the checkpoint format: XXH3, 64 bits, seed 0. */
#ifndef MTLLM_CKPT_CHECKSUM_H
#define MTLLM_CKPT_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

/* The same function with the widest vectors that this processor has, twice as fast on most. Weak,
 * because libxxhash has it only where it was built for x86 with it. */
XXH64_hash_t XXH3_64bits_dispatch(const void *bytes, size_t size) __attribute__((weak));

static inline uint64_t checksum(const void *bytes, size_t size)
{
    return XXH3_64bits_dispatch ? XXH3_64bits_dispatch(bytes, size) : XXH3_64bits(bytes, size);
}

#endif
