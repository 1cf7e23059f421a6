/* The CUDA backend, a shared object that is loaded when a GPU is wanted: programs themselves link
 * no CUDA.
 */
#ifndef MTLLM_KERNELS_MODULE_H
#define MTLLM_KERNELS_MODULE_H

#include "core/dtype.h"
#include "core/error.h"
#include "kernels/kernels.h"
#include "kernels/nccl.h"
#include "kernels/peer_memory.h"

struct cuda_options {
    int device;            /* its number among those that this process sees */
    enum dtype dtype;      /* of weights and activations */
    const char *attention; /* "auto", "flash" or "cudnn" */
};

/* What the module exports, under the name mtllm_cuda_module. */
struct cuda_module {
    int version; /* CUDA_MODULE_VERSION of its build */

    /* Devices that this process sees; 0 where there is no driver. */
    int (*device_count)(void);
    /* Take a device; once a process. Error: EXIT_STATUS_SYSTEM or EXIT_STATUS_CONFIGURATION. */
    const struct kernels *(*open)(const struct cuda_options *options, struct error *error);
    /* "NVIDIA H200", and bytes of its memory in all and taken by this process's card now. */
    const char *(*device_name)(void);
    void (*memory)(size_t *total, size_t *used);
    const struct nccl *nccl; /* communication, with the device that was opened */
    const struct peer_memory *peer_memory;
};

/* Goes up with every change of struct cuda_module, struct kernels or what they point to. */
#define CUDA_MODULE_VERSION 7

/* The module, or NULL with the reason in `error` (EXIT_STATUS_CONFIGURATION): it is not installed,
 * its libraries are not, or it is of another build. It stays loaded, and is
 * looked for once. For one thread at a time. */
const struct cuda_module *cuda_module_load(struct error *error);

#endif
