/* Memory of a GPU that processes of one host open to each other, over NVLink or PCIe. What
 * kernels->copy() writes there is moved by copy engines, beside kernels and without any of their
 * multiprocessors. A part of the CUDA module.
 */
#ifndef MTLLM_KERNELS_PEER_MEMORY_H
#define MTLLM_KERNELS_PEER_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum { PEER_HANDLE_BYTES = 64 };

struct peer_memory {
    /* What another process opens `memory` with, which kernels->allocate() gave. False: the driver
     * does not do that. */
    bool (*handle)(void *memory, char handle[PEER_HANDLE_BYTES]);
    /* Where it is in this process, once for each handle; NULL when the devices cannot reach each
     * other. To be closed before its owner releases it. */
    void *(*open)(const char handle[PEER_HANDLE_BYTES]);
    void (*close)(void *memory);

    /* *flag, here or in opened memory, = value once the stream has done what it got before. */
    void (*signal)(struct stream *stream, uint32_t *flag, uint32_t value);
    /* What the stream gets from now on waits until *flag, of this process, has come to `value`,
     * which is reached in steps; it may wrap round. */
    void (*wait)(struct stream *stream, const uint32_t *flag, uint32_t value);

    /* out[count] = the sum over i < size, in that order, of parts[i][count], act, but of `own` in
     * place of parts[rank]; in fp32, rounded once. Nothing overlaps out but own, which may be it.
     */
    void (*sum)(struct stream *stream, void *out, const void *parts, const void *own, int rank,
                int size, int64_t count, enum dtype dtype);
};

#endif
