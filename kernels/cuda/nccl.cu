/* NCCL, loaded when somebody communicates, and the reductions that it has no order for.
 *
 * NCCL adds up in the order of the algorithm that it finds fastest for a size. Here it is told to
 * use one, the ring, with one protocol, so that the order depends on nothing that could change from
 * one start to the next: the number of elements decides where each one's sum begins, the
 * connections of the GPUs decide how the ring runs. The complete sum travels round the ring
 * unchanged, which gives all ranks the same bits. A user's own NCCL_ALGO and NCCL_PROTO are left
 * alone.
 */
#include "kernels/cuda/cuda.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "kernels/nccl.h"
}

/* --- reductions in rank order ------------------------------------------------------------------
 */

static __device__ inline double widen(double x)
{
    return x;
}
static __device__ inline float widen(float x)
{
    return x;
}
static __device__ inline int32_t widen(int32_t x)
{
    return x;
}
static __device__ inline int64_t widen(int64_t x)
{
    return x;
}
static __device__ inline float widen(bf16 x)
{
    return to_float(x);
}
static __device__ inline float widen(__half x)
{
    return to_float(x);
}

template <class T> static __device__ inline T add(T a, T b)
{
    return a + b;
}
template <> __device__ inline int32_t add(int32_t a, int32_t b)
{
    return (int32_t)((uint32_t)a + (uint32_t)b);
}
template <> __device__ inline int64_t add(int64_t a, int64_t b)
{
    return (int64_t)((uint64_t)a + (uint64_t)b);
}

template <class T, class Wide> static __device__ inline T narrow(Wide x)
{
    return x;
}
template <> __device__ inline bf16 narrow(float x)
{
    return from_float<bf16>(x);
}
template <> __device__ inline __half narrow(float x)
{
    return from_float<__half>(x);
}

/* The second comparison lets NaN win. */
template <class T>
static __global__ void reduce_parts_kernel(T *out, const T *parts, int part_count, int64_t count,
                                           bool maximum)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * blockDim.x) {
        auto sum = widen(parts[i]);

        for (int part = 1; part < part_count; part++) {
            auto x = widen(parts[part * count + i]);

            if (!maximum)
                sum = add(sum, x);
            else if (x > sum || x != x)
                sum = x;
        }
        out[i] = narrow<T>(sum);
    }
}

template <class T>
static void reduce(struct stream *stream, void *out, const void *parts, int part_count,
                   int64_t count, bool maximum)
{
    enum { THREADS = 256 };
    int64_t wanted = ceil_div(count, THREADS), most = (int64_t)cuda_device.multiprocessors * 8;
    unsigned blocks = (unsigned)(wanted < most ? wanted : most);

    if (count == 0)
        return;
    reduce_parts_kernel<T><<<blocks, THREADS, 0, handle_of(stream)>>>((T *)out, (const T *)parts,
                                                                      part_count, count, maximum);
    LAUNCHED("reduction");
}

static void reduce_parts(struct stream *stream, void *out, const void *parts, int part_count,
                         int64_t count, enum nccl_type type, bool maximum)
{
    assert(part_count >= 1 && count >= 0);
    switch (type) {
    case NCCL_F32:
        reduce<float>(stream, out, parts, part_count, count, maximum);
        break;
    case NCCL_F64:
        reduce<double>(stream, out, parts, part_count, count, maximum);
        break;
    case NCCL_I32:
        reduce<int32_t>(stream, out, parts, part_count, count, maximum);
        break;
    case NCCL_I64:
        reduce<int64_t>(stream, out, parts, part_count, count, maximum);
        break;
    case NCCL_BF16:
        reduce<bf16>(stream, out, parts, part_count, count, maximum);
        break;
    case NCCL_F16:
        reduce<__half>(stream, out, parts, part_count, count, maximum);
        break;
    }
}

/* --- points in a stream's work -----------------------------------------------------------------
 */

struct nccl_mark {
    cudaEvent_t event;
};

static struct nccl_mark *mark(struct stream *stream)
{
    struct nccl_mark *mark = new struct nccl_mark;
    cudaError_t status = cudaEventCreateWithFlags(&mark->event, cudaEventDisableTiming);

    if (status != cudaSuccess) {
        cuda_note(status, "a new event");
        delete mark;
        return nullptr;
    }
    cuda_note(cudaEventRecord(mark->event, handle_of(stream)), "an event");
    return mark;
}

static void wait(struct stream *stream, struct nccl_mark *mark)
{
    if (!mark)
        return;
    cuda_note(cudaStreamWaitEvent(handle_of(stream), mark->event, 0), "waiting for an event");
    cuda_note(cudaEventDestroy(mark->event), "the end of an event"); /* once it has happened */
    delete mark;
}

#if __has_include(<nccl.h>)
#include <nccl.h>

/* --- the library -------------------------------------------------------------------------------
 */

#define FUNCTIONS(use)                                                                             \
    use(GetVersion) use(GetUniqueId) use(CommInitRank) use(CommSplit) use(CommDestroy)             \
        use(CommUserRank) use(CommCount) use(CommGetAsyncError) use(GetLastError)                  \
            use(GetErrorString) use(AllReduce) use(ReduceScatter) use(AllGather) use(Broadcast)    \
                use(Send) use(Recv) use(GroupStart) use(GroupEnd)

static struct {
    void *handle;
#define MEMBER(name) decltype(&nccl##name) name;
    FUNCTIONS(MEMBER)
#undef MEMBER
} library;

struct nccl_group {
    ncclComm_t comm;
};

static int find_functions(struct error *error)
{
    const char *missing = nullptr;

#define FIND(name)                                                                                 \
    library.name = (decltype(library.name))dlsym(library.handle, "nccl" #name);                    \
    if (!library.name)                                                                             \
        missing = "nccl" #name;
    FUNCTIONS(FIND)
#undef FIND
    if (missing)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "libnccl.so.2 has no %s; NCCL 2.18 or newer is needed", missing);
    return 0;
}

/* Since 2.24 it can be said of sums alone; before, of everything, and copies are a bit slower. */
static int choose_order(struct error *error)
{
    int version = 0;
    bool each = library.GetVersion(&version) == ncclSuccess && version >= 22400;

    if (setenv("NCCL_ALGO", each ? "allreduce:ring;reducescatter:ring" : "Ring", 0) < 0 ||
        setenv("NCCL_PROTO", each ? "allreduce:simple;reducescatter:simple" : "Simple", 0) < 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    return 0;
}

static int open_library(struct error *error)
{
    if (library.handle)
        return 0;
    library.handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library.handle)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "several GPUs talk through NCCL, which is not installed here: %s",
                         dlerror());
    if (find_functions(error) < 0 || choose_order(error) < 0) {
        dlclose(library.handle);
        library.handle = nullptr;
        return -1;
    }
    return 0;
}

/* 0, or -1 with what NCCL says about it. */
static int judge(ncclResult_t result, struct error *error)
{
    const char *last;

    if (result == ncclSuccess)
        return 0;
    last = library.GetLastError(nullptr);
    return error_set(error, EXIT_STATUS_IO, "%s%s%s%s", library.GetErrorString(result),
                     last && *last ? " (" : "", last ? last : "", last && *last ? ")" : "");
}

/* --- groups ------------------------------------------------------------------------------------
 */

static int new_id(char id[NCCL_ID_BYTES], struct error *error)
{
    ncclUniqueId unique;

    static_assert(sizeof(unique) == NCCL_ID_BYTES, "as NCCL has it");
    if (judge(library.GetUniqueId(&unique), error) < 0)
        return -1;
    memcpy(id, &unique, sizeof(unique));
    return 0;
}

static struct nccl_group *group_of(ncclComm_t comm)
{
    struct nccl_group *group = new struct nccl_group;

    group->comm = comm;
    return group;
}

static int create(struct nccl_group **group, const char *id, int rank, int size,
                  struct error *error)
{
    ncclUniqueId unique;
    ncclComm_t comm;

    *group = nullptr;
    memcpy(&unique, id, sizeof(unique));
    if (judge(library.CommInitRank(&comm, size, unique, rank), error) < 0)
        return -1;
    *group = group_of(comm);
    return 0;
}

static int split(struct nccl_group **group, struct nccl_group *parent, int color,
                 struct error *error)
{
    ncclComm_t comm = nullptr;

    *group = nullptr;
    /* The same key everywhere keeps the order. */
    if (judge(library.CommSplit(parent->comm, color < 0 ? NCCL_SPLIT_NOCOLOR : color, 0, &comm,
                                nullptr),
              error) < 0)
        return -1;
    if (comm)
        *group = group_of(comm);
    return 0;
}

static void destroy(struct nccl_group *group)
{
    if (!group)
        return;
    (void)library.CommDestroy(group->comm); /* whose work is done: there is nothing left to fail */
    delete group;
}

static int place(const struct nccl_group *group, int *rank, int *size, struct error *error)
{
    if (judge(library.CommUserRank(group->comm, rank), error) < 0)
        return -1;
    return judge(library.CommCount(group->comm, size), error);
}

static int check(struct nccl_group *group, struct error *error)
{
    ncclResult_t found = ncclSuccess, result = library.CommGetAsyncError(group->comm, &found);

    if (result == ncclSuccess && found == ncclInProgress)
        return 0;
    return judge(result != ncclSuccess ? result : found, error);
}

/* --- work --------------------------------------------------------------------------------------
 */

static const ncclDataType_t types[] = {ncclFloat32, ncclFloat64,  ncclInt32,
                                       ncclInt64,   ncclBfloat16, ncclFloat16};

static int sum(struct nccl_group *group, void *buffer, int64_t count, enum nccl_type type,
               struct stream *stream, struct error *error)
{
    return judge(library.AllReduce(buffer, buffer, (size_t)count, types[type], ncclSum, group->comm,
                                   handle_of(stream)),
                 error);
}

static int sum_parts(struct nccl_group *group, void *out, const void *in, int64_t count,
                     enum nccl_type type, struct stream *stream, struct error *error)
{
    return judge(library.ReduceScatter(in, out, (size_t)count, types[type], ncclSum, group->comm,
                                       handle_of(stream)),
                 error);
}

static int gather(struct nccl_group *group, void *out, const void *in, int64_t bytes,
                  struct stream *stream, struct error *error)
{
    return judge(
        library.AllGather(in, out, (size_t)bytes, ncclInt8, group->comm, handle_of(stream)), error);
}

static int broadcast(struct nccl_group *group, void *buffer, int64_t bytes, int root,
                     struct stream *stream, struct error *error)
{
    return judge(library.Broadcast(buffer, buffer, (size_t)bytes, ncclInt8, root, group->comm,
                                   handle_of(stream)),
                 error);
}

static int exchange(struct nccl_group *group, const struct nccl_message *messages, int count,
                    struct stream *stream, struct error *error)
{
    ncclResult_t result = library.GroupStart(), end;

    for (int i = 0; i < count && result == ncclSuccess; i++) {
        const struct nccl_message *m = &messages[i];

        assert(m->bytes > 0);
        result = m->receiving ? library.Recv(m->buffer, (size_t)m->bytes, ncclInt8, m->peer,
                                             group->comm, handle_of(stream))
                              : library.Send(m->buffer, (size_t)m->bytes, ncclInt8, m->peer,
                                             group->comm, handle_of(stream));
    }
    end = library.GroupEnd();
    return judge(result != ncclSuccess ? result : end, error);
}

const struct nccl cuda_nccl = {open_library, new_id,   create,       split,     destroy,
                               place,        check,    sum,          sum_parts, gather,
                               broadcast,    exchange, reduce_parts, mark,      wait};

#else

static int open_library(struct error *error)
{
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "several GPUs talk through NCCL, and mtllm was built where its header nccl.h "
                     "is not");
}

/* Who cannot open it uses nothing else. */
const struct nccl cuda_nccl = {open_library};

#endif
