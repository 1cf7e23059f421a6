/* The module's one symbol, the device, its memory and streams.
 *
 * Failures are kept until somebody synchronizes: kernels are launched without looking, and an
 * asynchronous failure would show at some later call anyway.
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern "C" {
#include "kernels/module.h"
}

struct cuda_device cuda_device;

/* Of the first failure; `what` is NULL while there was none. */
static pthread_mutex_t failure_mutex = PTHREAD_MUTEX_INITIALIZER;
static const char *failure_what;
static cudaError_t failure_status;

void cuda_note(cudaError_t status, const char *what)
{
    if (status == cudaSuccess)
        return;
    pthread_mutex_lock(&failure_mutex);
    if (!failure_what) {
        failure_what = what;
        failure_status = status;
    }
    pthread_mutex_unlock(&failure_mutex);
}

static void *device_allocate(size_t bytes)
{
    void *buffer = nullptr;

    if (cudaMalloc(&buffer, bytes ? bytes : 1) != cudaSuccess) {
        (void)cudaGetLastError(); /* an answer, not a failure of what comes later */
        return nullptr;
    }
    /* On the stream that will use it: the others do not wait for CUDA's default stream. */
    cuda_note(cudaMemsetAsync(buffer, 0, bytes, cuda_device.compute.handle), "memory set to zero");
    cuda_note(cudaStreamSynchronize(cuda_device.compute.handle), "memory set to zero");
    return buffer;
}

static void device_release(void *buffer)
{
    cuda_note(cudaFree(buffer), "memory given back");
}

/* --- pinned host memory ------------------------------------------------------------------------
 *
 * Checkpoints take gigabytes of it. Its pages are made by several threads, huge ones where the
 * system gives them, and pinned afterwards: several times faster than cudaHostAlloc(), which holds
 * up every launch of a kernel meanwhile. The size lies before the buffer, for munmap(). */

enum { HOST_THREADS = 8, HOST_HEADER = 4096 };
static const size_t huge_page_bytes = (size_t)2 << 20;

struct touched {
    char *begin;
    size_t bytes;
};

static void *touch(void *user)
{
    struct touched *part = (struct touched *)user;

    for (size_t i = 0; i < part->bytes; i += 4096)
        part->begin[i] = 0;
    return nullptr;
}

static void touch_all(char *memory, size_t bytes)
{
    size_t each = (bytes / HOST_THREADS + huge_page_bytes) / huge_page_bytes * huge_page_bytes;
    struct touched parts[HOST_THREADS];
    pthread_t threads[HOST_THREADS];
    int started = 0;

    for (; started < HOST_THREADS && started * each < bytes; started++) {
        size_t left = bytes - started * each;

        parts[started] = {memory + started * each, left < each ? left : each};
        if (pthread_create(&threads[started], nullptr, touch, &parts[started]) != 0)
            break; /* the pages come when they are used */
    }
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], nullptr);
}

static void *host_allocate(size_t bytes)
{
    size_t whole = (bytes + HOST_HEADER + huge_page_bytes) / huge_page_bytes * huge_page_bytes;
    char *memory =
        (char *)mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return nullptr;
    (void)madvise(memory, whole, MADV_HUGEPAGE); /* advice: without it all works as well */
    touch_all(memory, whole);
    cuda_note(cudaSetDevice(cuda_device.number), "device chosen");
    if (cudaHostRegister(memory, whole, cudaHostRegisterDefault) != cudaSuccess) {
        (void)cudaGetLastError();
        (void)munmap(memory, whole);
        return nullptr;
    }
    *(size_t *)memory = whole;
    return memory + HOST_HEADER;
}

static void host_release(void *buffer)
{
    char *memory = (char *)buffer - HOST_HEADER;

    cuda_note(cudaHostUnregister(memory), "host memory given back");
    (void)munmap(memory, *(size_t *)memory);
}

/* Other threads than the one that opened the device have not chosen it yet. */
static void copy(struct stream *stream, void *to, const void *from, size_t bytes,
                 enum cudaMemcpyKind kind, const char *what)
{
    cuda_note(cudaSetDevice(cuda_device.number), "device chosen");
    cuda_note(cudaMemcpyAsync(to, from, bytes, kind, handle_of(stream)), what);
}

static void to_device(struct stream *stream, void *device, const void *host, size_t bytes)
{
    copy(stream, device, host, bytes, cudaMemcpyHostToDevice, "copy to the device");
}

static void to_host(struct stream *stream, void *host, const void *device, size_t bytes)
{
    copy(stream, host, device, bytes, cudaMemcpyDeviceToHost, "copy to the host");
}

static void device_copy(struct stream *stream, void *to, const void *from, size_t bytes)
{
    copy(stream, to, from, bytes, cudaMemcpyDeviceToDevice, "copy on the device");
}

static void device_zero(struct stream *stream, void *buffer, size_t bytes)
{
    cuda_note(cudaMemsetAsync(buffer, 0, bytes, handle_of(stream)), "memory set to zero");
}

static int stream_sync(struct stream *stream, struct error *error)
{
    int result = 0;

    cuda_note(cudaSetDevice(cuda_device.number), "device chosen");
    cuda_note(cudaStreamSynchronize(handle_of(stream)), "work on the device");
    pthread_mutex_lock(&failure_mutex);
    if (failure_what)
        result = error_set(error, EXIT_STATUS_SYSTEM, "CUDA device %d: %s: %s", cuda_device.number,
                           failure_what, cudaGetErrorString(failure_status));
    pthread_mutex_unlock(&failure_mutex);
    return result;
}

static struct stream *stream_create(void)
{
    struct stream *stream = new struct stream;

    cuda_note(cudaStreamCreateWithFlags(&stream->handle, cudaStreamNonBlocking), "a new stream");
    return stream;
}

static void stream_destroy(struct stream *stream)
{
    if (!stream)
        return;
    cuda_note(cudaStreamDestroy(stream->handle), "the end of a stream");
    delete stream;
}

static void stream_wait(struct stream *stream, struct stream *other)
{
    cudaEvent_t event;

    cuda_note(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "a new event");
    cuda_note(cudaEventRecord(event, handle_of(other)), "an event");
    cuda_note(cudaStreamWaitEvent(handle_of(stream), event, 0), "waiting for an event");
    cuda_note(cudaEventDestroy(event), "the end of an event"); /* once it has happened */
}

struct mark {
    cudaEvent_t event;
};

static struct mark *mark_create(void)
{
    struct mark *mark = new struct mark;

    if (cudaEventCreate(&mark->event) == cudaSuccess)
        return mark;
    (void)cudaGetLastError(); /* an answer, not a failure of what comes later */
    delete mark;
    return nullptr;
}

static void mark_destroy(struct mark *mark)
{
    cuda_note(cudaEventDestroy(mark->event), "the end of a mark");
    delete mark;
}

static void mark_set(struct stream *stream, struct mark *mark)
{
    cuda_note(cudaEventRecord(mark->event, handle_of(stream)), "a mark");
}

static double mark_seconds(const struct mark *from, const struct mark *to)
{
    float ms = 0;

    cuda_note(cudaEventElapsedTime(&ms, from->event, to->event), "the time between two marks");
    return 1e-3 * ms;
}

/* --- by the type of the buffer, not of the backend ------------------------------------------- */

static void random_normal(struct stream *stream, void *w, enum dtype dtype, const struct tile *tile,
                          double std, uint64_t seed, uint64_t tensor)
{
    if (dtype == DTYPE_F32)
        cuda_random_normal<float>(stream, w, tile, std, seed, tensor);
    else if (dtype == DTYPE_BF16)
        cuda_random_normal<bf16>(stream, w, tile, std, seed, tensor);
    else
        cuda_random_normal<__half>(stream, w, tile, std, seed, tensor);
}

static void fill(struct stream *stream, void *w, enum dtype dtype, double value, int64_t n)
{
    if (dtype == DTYPE_F32)
        cuda_fill<float>(stream, w, value, n);
    else if (dtype == DTYPE_BF16)
        cuda_fill<bf16>(stream, w, value, n);
    else
        cuda_fill<__half>(stream, w, value, n);
}

template <class To, class From>
static __global__ void convert_kernel(To *to, const From *from, int64_t n)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        to[i] = from_float<To>(to_float(from[i]));
}

template <class To>
static void convert_to(cudaStream_t stream, void *to, const void *from, enum dtype from_type,
                       int64_t n)
{
    enum { THREADS = 256 };
    int64_t wanted = ceil_div(n, THREADS), most = (int64_t)cuda_device.multiprocessors * 16;
    unsigned blocks = (unsigned)(wanted < most ? wanted : most);

    if (n == 0)
        return;
    if (from_type == DTYPE_F32)
        convert_kernel<<<blocks, THREADS, 0, stream>>>((To *)to, (const float *)from, n);
    else if (from_type == DTYPE_BF16)
        convert_kernel<<<blocks, THREADS, 0, stream>>>((To *)to, (const bf16 *)from, n);
    else
        convert_kernel<<<blocks, THREADS, 0, stream>>>((To *)to, (const __half *)from, n);
    LAUNCHED("convert");
}

static void convert(struct stream *stream, void *to, enum dtype to_type, const void *from,
                    enum dtype from_type, int64_t n)
{
    if (to_type == DTYPE_F32)
        convert_to<float>(handle_of(stream), to, from, from_type, n);
    else if (to_type == DTYPE_BF16)
        convert_to<bf16>(handle_of(stream), to, from, from_type, n);
    else
        convert_to<__half>(handle_of(stream), to, from, from_type, n);
}

template <class T> static const struct kernels *table(enum dtype dtype)
{
    static struct kernels table;

    table.name = "cuda";
    table.dtype = dtype;
    table.head_rows = 4096;
    table.allocate = device_allocate;
    table.release = device_release;
    table.host_allocate = host_allocate;
    table.host_release = host_release;
    table.to_device = to_device;
    table.to_host = to_host;
    table.copy = device_copy;
    table.zero = device_zero;
    table.stream_sync = stream_sync;
    table.stream_create = stream_create;
    table.stream_destroy = stream_destroy;
    table.stream_wait = stream_wait;
    table.mark_create = mark_create;
    table.mark_destroy = mark_destroy;
    table.mark_set = mark_set;
    table.mark_seconds = mark_seconds;
    table.linear_prepare = cuda_linear_prepare<T>;
    table.products_text = cuda_products_text;
    table.products_adopt = cuda_products_adopt;
    table.linear_forward = cuda_linear_forward<T>;
    table.linear_backward_input = cuda_linear_backward_input<T>;
    table.linear_backward_weight = cuda_linear_backward_weight<T>;
    table.bias_forward = cuda_bias_forward<T>;
    table.bias_backward = cuda_bias_backward<T>;
    table.rmsnorm_forward = cuda_rmsnorm_forward<T>;
    table.rmsnorm_backward = cuda_rmsnorm_backward<T>;
    table.layernorm_forward = cuda_layernorm_forward<T>;
    table.layernorm_backward = cuda_layernorm_backward<T>;
    table.rope = cuda_rope<T>;
    table.attention_forward = cuda_attention_forward<T>;
    table.attention_workspace = cuda_attention_workspace<T>;
    table.attention_backward = cuda_attention_backward<T>;
    table.swiglu_forward = cuda_swiglu_forward<T>;
    table.swiglu_backward = cuda_swiglu_backward<T>;
    table.dropout = cuda_dropout<T>;
    table.gelu_forward = cuda_gelu_forward<T>;
    table.gelu_backward = cuda_gelu_backward<T>;
    table.embedding_forward = cuda_embedding_forward<T>;
    table.embedding_backward = cuda_embedding_backward<T>;
    table.cross_entropy_partial = cuda_cross_entropy_partial<T>;
    table.cross_entropy_rescale = cuda_cross_entropy_rescale;
    table.cross_entropy_best = cuda_cross_entropy_best;
    table.cross_entropy_finish = cuda_cross_entropy_finish<T>;
    table.copy_columns = cuda_copy_columns<T>;
    table.add = cuda_add<T>;
    table.sum_squares = cuda_sum_squares;
    table.weighted_sum = cuda_weighted_sum;
    table.adamw = cuda_adamw<T>;
    table.random_normal = random_normal;
    table.fill = fill;
    table.convert = convert;
    return &table;
}

/* Streams that share a hardware queue wait for each other. There are to be as many queues as
 * streams, because a message that waits for another device must not hold up what that one waits
 * for; the driver reads this when it starts. */
static int device_count(void)
{
    int count = 0;

    (void)setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return count;
}

static char name[256];

static int take_device(int number, struct error *error)
{
    struct cudaDeviceProp properties;
    cudaError_t status = cudaSetDevice(number);

    if (status == cudaSuccess)
        status = cudaGetDeviceProperties(&properties, number);
    if (status == cudaSuccess)
        status = cudaStreamCreateWithFlags(&cuda_device.compute.handle, cudaStreamNonBlocking);
    if (status == cudaSuccess)
        status = cudaMalloc(&cuda_device.workspace, WORKSPACE_BYTES);
    if (status != cudaSuccess)
        return error_set(error, EXIT_STATUS_SYSTEM, "CUDA device %d: %s", number,
                         cudaGetErrorString(status));
    if (properties.major < 8)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "CUDA device %d (%s) has compute capability %d.%d; 8.0 or newer is needed",
                         number, properties.name, properties.major, properties.minor);
    cuda_device.number = number;
    cuda_device.multiprocessors = properties.multiProcessorCount;
    cuda_device.major = properties.major;
    cuda_device.minor = properties.minor;
    cuda_device.shared_bytes = properties.sharedMemPerBlockOptin;
    snprintf(name, sizeof(name), "%s", properties.name);
    return cuda_linear_open(error);
}

static const struct kernels *open_device(const struct cuda_options *options, struct error *error)
{
    if (take_device(options->device, error) < 0 ||
        cuda_attention_open(options->attention, error) < 0)
        return nullptr;
    switch (options->dtype) {
    case DTYPE_F32:
        return table<float>(DTYPE_F32);
    case DTYPE_BF16:
        return table<bf16>(DTYPE_BF16);
    case DTYPE_F16:
        return table<__half>(DTYPE_F16);
    }
    return nullptr;
}

static const char *device_name(void)
{
    return name;
}

static void memory(size_t *total, size_t *used)
{
    size_t available = 0;

    *total = 0;
    cuda_note(cudaMemGetInfo(&available, total), "amount of memory");
    *used = *total - available;
}

extern "C" __attribute__((visibility("default"))) const struct cuda_module mtllm_cuda_module;
const struct cuda_module mtllm_cuda_module = {CUDA_MODULE_VERSION, device_count, open_device,
                                              device_name,         memory,       &cuda_nccl,
                                              &cuda_peer_memory};
