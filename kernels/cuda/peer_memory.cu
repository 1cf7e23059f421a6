/* Memory that processes of one host open to each other (kernels/peer_memory.h), through CUDA's
 * interprocess handles. Flags are the driver's stream memory operations: neither setting one nor
 * waiting for it takes a kernel, which could not run while another one fills the device. */
#include "kernels/cuda/memory.h"

#include <cudaTypedefs.h>
#include <string.h>

extern "C" {
#include "kernels/peer_memory.h"
}

/* The driver's functions, without linking the driver's library. */
static PFN_cuStreamWriteValue32_v11070 write_value;
static PFN_cuStreamWaitValue32_v11070 wait_value;

static void *driver_function(const char *name)
{
    enum cudaDriverEntryPointQueryResult found;
    void *entry = nullptr;

    if (cudaGetDriverEntryPointByVersion(name, &entry, 11070, cudaEnableDefault, &found) ==
            cudaSuccess &&
        found == cudaDriverEntryPointSuccess)
        return entry;
    (void)cudaGetLastError();
    return nullptr;
}

static bool find_functions()
{
    write_value = (PFN_cuStreamWriteValue32_v11070)driver_function("cuStreamWriteValue32");
    wait_value = (PFN_cuStreamWaitValue32_v11070)driver_function("cuStreamWaitValue32");
    return write_value && wait_value;
}

static bool handle(void *memory, char bytes[PEER_HANDLE_BYTES])
{
    cudaIpcMemHandle_t handle;

    static_assert(sizeof(handle) == PEER_HANDLE_BYTES, "as CUDA has it");
    if (!find_functions() || cudaIpcGetMemHandle(&handle, memory) != cudaSuccess) {
        (void)cudaGetLastError(); /* an answer, not a failure of what comes later */
        return false;
    }
    memcpy(bytes, &handle, sizeof(handle));
    return true;
}

static void *open_memory(const char bytes[PEER_HANDLE_BYTES])
{
    cudaIpcMemHandle_t handle;
    void *memory = nullptr;

    memcpy(&handle, bytes, sizeof(handle));
    if (cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess) {
        (void)cudaGetLastError();
        return nullptr;
    }
    return memory;
}

static void close_memory(void *memory)
{
    cuda_note(cudaIpcCloseMemHandle(memory), "another process's memory given back");
}

static void set_flag(struct stream *stream, uint32_t *flag, uint32_t value)
{
    if (write_value(handle_of(stream), (CUdeviceptr)flag, value, CU_STREAM_WRITE_VALUE_DEFAULT) !=
        CUDA_SUCCESS)
        cuda_note(cudaErrorUnknown, "a flag set");
}

static void wait_for_flag(struct stream *stream, const uint32_t *flag, uint32_t value)
{
    if (wait_value(handle_of(stream), (CUdeviceptr)flag, value, CU_STREAM_WAIT_VALUE_GEQ) !=
        CUDA_SUCCESS)
        cuda_note(cudaErrorUnknown, "waiting for a flag");
}

enum { THREADS = 256 };

/* out[count] vectors of N elements; parts begin `stride` elements apart. */
template <class T, int N>
static __global__ void sum_kernel(T *out, const T *parts, const T *own, int rank, int size,
                                  int64_t stride, int64_t count)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float sum[N] = {};

    if (i >= count)
        return;
#pragma unroll 2
    for (int part = 0; part < size; part++) {
        const T *from = part == rank ? own : parts + part * stride;
        float x[N];

        widen(x, load<N>(from + i * N));
#pragma unroll
        for (int j = 0; j < N; j++)
            sum[j] = part == 0 ? x[j] : sum[j] + x[j];
    }
    store(out + i * N, narrow<T>(sum));
}

template <class T>
static void sum_of(struct stream *stream, void *out, const void *parts, const void *own, int rank,
                   int size, int64_t count)
{
    enum { N = pack<T>::size };

    if (count % N == 0)
        sum_kernel<T, N><<<blocks_for(count / N, THREADS, 1), THREADS, 0, handle_of(stream)>>>(
            (T *)out, (const T *)parts, (const T *)own, rank, size, count, count / N);
    else
        sum_kernel<T, 1><<<blocks_for(count, THREADS, 1), THREADS, 0, handle_of(stream)>>>(
            (T *)out, (const T *)parts, (const T *)own, rank, size, count, count);
    LAUNCHED("sum of parts");
}

static void sum(struct stream *stream, void *out, const void *parts, const void *own, int rank,
                int size, int64_t count, enum dtype dtype)
{
    assert(count >= 0 && rank < size);
    if (count == 0)
        return;
    switch (dtype) {
    case DTYPE_F32:
        sum_of<float>(stream, out, parts, own, rank, size, count);
        break;
    case DTYPE_BF16:
        sum_of<bf16>(stream, out, parts, own, rank, size, count);
        break;
    case DTYPE_F16:
        sum_of<__half>(stream, out, parts, own, rank, size, count);
        break;
    }
}

const struct peer_memory cuda_peer_memory = {handle,   open_memory,   close_memory,
                                             set_flag, wait_for_flag, sum};
