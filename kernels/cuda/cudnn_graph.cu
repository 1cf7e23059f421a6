/* See the header. Every object of cuDNN's interface is a descriptor that is created, given its
 * attributes one by one, and finalized; libcudnn.so.9 is a thin layer that loads the larger
 * libraries beside it when they are needed.
 */
#include "kernels/cuda/cudnn_graph.h"

#include <dlfcn.h>
#include <string.h>

/* What is called of it. 9.10.0 and 9.10.1 have wrong gradients (cudnn-frontend refuses them). */
enum { OLDEST_VERSION = 91002 };
static struct {
    bool tried;
    size_t version; /* 0: not there */
    cudnnHandle_t handle;
    cudaStream_t stream;
    decltype(&cudnnGetVersion) get_version;
    decltype(&cudnnCreate) create;
    decltype(&cudnnSetStream) set_stream;
    decltype(&cudnnBackendCreateDescriptor) create_descriptor;
    decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor;
    decltype(&cudnnBackendSetAttribute) set_attribute;
    decltype(&cudnnBackendGetAttribute) get_attribute;
    decltype(&cudnnBackendFinalize) finalize;
    decltype(&cudnnBackendExecute) execute;
} library;

template <class F> static bool find(void *handle, const char *name, F *function)
{
    *function = (F)dlsym(handle, name);
    return *function;
}

static bool library_open(void)
{
    void *handle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);

    return handle && find(handle, "cudnnGetVersion", &library.get_version) &&
           find(handle, "cudnnCreate", &library.create) &&
           find(handle, "cudnnSetStream", &library.set_stream) &&
           find(handle, "cudnnBackendCreateDescriptor", &library.create_descriptor) &&
           find(handle, "cudnnBackendDestroyDescriptor", &library.destroy_descriptor) &&
           find(handle, "cudnnBackendSetAttribute", &library.set_attribute) &&
           find(handle, "cudnnBackendGetAttribute", &library.get_attribute) &&
           find(handle, "cudnnBackendFinalize", &library.finalize) &&
           find(handle, "cudnnBackendExecute", &library.execute) &&
           library.get_version() >= OLDEST_VERSION &&
           library.create(&library.handle) == CUDNN_STATUS_SUCCESS;
}

size_t cudnn_version(void)
{
    if (!library.tried) {
        library.tried = true;
        if (library_open())
            library.version = library.get_version();
    }
    return library.version;
}

/* --- descriptors --------------------------------------------------------------------------------
 */

static cudnnBackendDescriptor_t create(struct graph *graph, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t descriptor = nullptr;

    if (graph->status != CUDNN_STATUS_SUCCESS)
        return nullptr;
    assert(graph->descriptor_count < GRAPH_DESCRIPTORS);
    graph->status = library.create_descriptor(type, &descriptor);
    if (graph->status != CUDNN_STATUS_SUCCESS)
        return nullptr;
    graph->descriptors[graph->descriptor_count++] = descriptor;
    return descriptor;
}

static void set(struct graph *graph, cudnnBackendDescriptor_t descriptor,
                cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                const void *values)
{
    if (graph->status == CUDNN_STATUS_SUCCESS)
        graph->status = library.set_attribute(descriptor, name, type, count, values);
}

static void set_descriptor(struct graph *graph, cudnnBackendDescriptor_t descriptor,
                           cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t value)
{
    set(graph, descriptor, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void set_type(struct graph *graph, cudnnBackendDescriptor_t descriptor,
                     cudnnBackendAttributeName_t name, cudnnDataType_t value)
{
    set(graph, descriptor, name, CUDNN_TYPE_DATA_TYPE, 1, &value);
}

static void finalize(struct graph *graph, cudnnBackendDescriptor_t descriptor)
{
    if (graph->status == CUDNN_STATUS_SUCCESS)
        graph->status = library.finalize(descriptor);
}

static void finish_operation(struct graph *graph, cudnnBackendDescriptor_t operation)
{
    finalize(graph, operation);
    assert(graph->operation_count < GRAPH_OPERATIONS);
    graph->operations[graph->operation_count++] = operation;
}

/* --- tensors ------------------------------------------------------------------------------------
 */

enum residence { MEMORY, HOST_SCALAR, NOWHERE };

static tensor create_tensor(struct graph *graph, int64_t number, cudnnDataType_t type,
                            const struct layout *layout, enum residence residence)
{
    const int64_t alignment = 16;
    const bool yes = true;
    tensor created = create(graph, CUDNN_BACKEND_TENSOR_DESCRIPTOR);

    set_type(graph, created, CUDNN_ATTR_TENSOR_DATA_TYPE, type);
    set(graph, created, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, layout->dims);
    set(graph, created, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, layout->strides);
    set(graph, created, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &number);
    set(graph, created, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (residence == NOWHERE)
        set(graph, created, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &yes);
    if (residence == HOST_SCALAR)
        set(graph, created, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes);
    finalize(graph, created);
    return created;
}

tensor graph_tensor(struct graph *graph, int64_t number, cudnnDataType_t type,
                    const struct layout *layout)
{
    return create_tensor(graph, number, type, layout, MEMORY);
}

tensor graph_scalar(struct graph *graph, int64_t number)
{
    const struct layout one = {{1, 1, 1, 1}, {1, 1, 1, 1}};

    return create_tensor(graph, number, CUDNN_DATA_FLOAT, &one, HOST_SCALAR);
}

tensor graph_virtual(struct graph *graph, cudnnDataType_t type, const struct layout *layout)
{
    return create_tensor(graph, -++graph->virtual_count, type, layout, NOWHERE);
}

/* --- operations ---------------------------------------------------------------------------------
 */

void graph_matmul(struct graph *graph, tensor c, tensor a, tensor b)
{
    cudnnBackendDescriptor_t matmul = create(graph, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    cudnnBackendDescriptor_t operation = create(graph, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);

    set_type(graph, matmul, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
    finalize(graph, matmul);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_MATMUL_DESC, matmul);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    finish_operation(graph, operation);
}

/* b and where may be NULL; dimension is -1 but for indices. */
static void pointwise(struct graph *graph, cudnnPointwiseMode_t mode, cudnnDataType_t precision,
                      int64_t dimension, tensor y, tensor x, tensor b, tensor where)
{
    cudnnBackendDescriptor_t function = create(graph, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    cudnnBackendDescriptor_t operation =
        create(graph, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);

    set(graph, function, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set_type(graph, function, CUDNN_ATTR_POINTWISE_MATH_PREC, precision);
    if (dimension >= 0)
        set(graph, function, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &dimension);
    finalize(graph, function);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, function);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b)
        set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    if (where)
        set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, where);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    finish_operation(graph, operation);
}

void graph_pointwise(struct graph *graph, cudnnPointwiseMode_t mode, cudnnDataType_t precision,
                     tensor y, tensor x, tensor b)
{
    pointwise(graph, mode, precision, -1, y, x, b, nullptr);
}

void graph_select(struct graph *graph, tensor y, tensor x, tensor b, tensor where)
{
    pointwise(graph, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, -1, y, x, b, where);
}

void graph_index(struct graph *graph, tensor y, tensor x, int64_t dimension)
{
    pointwise(graph, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, dimension, y, x, nullptr,
              nullptr);
}

void graph_reduce(struct graph *graph, cudnnReduceTensorOp_t function, tensor y, tensor x)
{
    cudnnBackendDescriptor_t reduction = create(graph, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    cudnnBackendDescriptor_t operation =
        create(graph, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);

    set_type(graph, reduction, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    set(graph, reduction, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1,
        &function);
    finalize(graph, reduction);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    finish_operation(graph, operation);
}

void graph_view(struct graph *graph, tensor y, tensor x)
{
    cudnnBackendDescriptor_t operation = create(graph, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);

    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_descriptor(graph, operation, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    finish_operation(graph, operation);
}

/* --- plans --------------------------------------------------------------------------------------
 */

/* Whether the engine of a configuration is one whose results depend on the order of its threads. */
static bool nondeterministic(struct graph *graph, cudnnBackendDescriptor_t configuration)
{
    cudnnBackendDescriptor_t engine = create(graph, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t count = 0;

    if (!engine ||
        library.get_attribute(configuration, CUDNN_ATTR_ENGINECFG_ENGINE,
                              CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count,
                              &engine) != CUDNN_STATUS_SUCCESS ||
        library.get_attribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                              CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count,
                              notes) != CUDNN_STATUS_SUCCESS)
        return true;
    for (int64_t i = 0; i < count; i++)
        if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)
            return true;
    return false;
}

/* Makes `plan` of a configuration, if that can be had and is modest enough. */
static bool build(cudnnBackendDescriptor_t configuration, struct plan *plan, int64_t limit)
{
    cudnnBackendDescriptor_t built;
    int64_t count, bytes;

    if (library.get_attribute(configuration, CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                              1, &count, &bytes) == CUDNN_STATUS_SUCCESS &&
        bytes > limit)
        return false;
    if (library.create_descriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &built) !=
        CUDNN_STATUS_SUCCESS)
        return false;
    if (library.set_attribute(built, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                              CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                              &configuration) == CUDNN_STATUS_SUCCESS &&
        library.finalize(built) == CUDNN_STATUS_SUCCESS &&
        library.get_attribute(built, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                              &count, &bytes) == CUDNN_STATUS_SUCCESS &&
        bytes <= limit) {
        plan->descriptor = built;
        plan->workspace_bytes = bytes;
        return true;
    }
    library.destroy_descriptor(built);
    return false;
}

/* How many configurations of cuDNN's choice, best first, are looked at. */
enum { CONFIGURATIONS = 8 };

static int64_t choose(struct graph *graph, cudnnBackendDescriptor_t *configurations)
{
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    cudnnBackendDescriptor_t whole = create(graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    cudnnBackendDescriptor_t choice = create(graph, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    int64_t count = 0;

    set(graph, whole, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &library.handle);
    set(graph, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
        graph->operation_count, graph->operations);
    finalize(graph, whole);
    set_descriptor(graph, choice, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole);
    set(graph, choice, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finalize(graph, choice);
    for (int i = 0; i < CONFIGURATIONS; i++)
        configurations[i] = create(graph, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (graph->status == CUDNN_STATUS_SUCCESS)
        graph->status = library.get_attribute(choice, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                              CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIGURATIONS, &count,
                                              configurations);
    return graph->status == CUDNN_STATUS_SUCCESS ? count : 0;
}

bool graph_plan(struct graph *graph, struct plan *plan, int64_t workspace_bytes)
{
    cudnnBackendDescriptor_t configurations[CONFIGURATIONS];
    int64_t count = choose(graph, configurations);
    bool found = false;

    for (int64_t i = 0; i < count && !found; i++)
        found = !nondeterministic(graph, configurations[i]) &&
                build(configurations[i], plan, workspace_bytes);
    while (graph->descriptor_count)
        library.destroy_descriptor(graph->descriptors[--graph->descriptor_count]);
    memset(graph, 0, sizeof(*graph));
    return found;
}

void plan_run(const struct plan *plan, struct stream *stream, int count, const int64_t *numbers,
              void *const *memory, void *workspace)
{
    cudnnBackendDescriptor_t pack = nullptr;
    cudaStream_t handle = handle_of(stream);
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;

    if (handle != library.stream)
        status = library.set_stream(library.handle, handle);
    if (status == CUDNN_STATUS_SUCCESS) {
        library.stream = handle;
        status = library.create_descriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    }
    if (status == CUDNN_STATUS_SUCCESS)
        status = library.set_attribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64,
                                       count, numbers);
    if (status == CUDNN_STATUS_SUCCESS)
        status = library.set_attribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                       CUDNN_TYPE_VOID_PTR, count, memory);
    if (status == CUDNN_STATUS_SUCCESS)
        status = library.set_attribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR,
                                       1, &workspace);
    if (status == CUDNN_STATUS_SUCCESS)
        status = library.finalize(pack);
    if (status == CUDNN_STATUS_SUCCESS)
        status = library.execute(library.handle, plan->descriptor, pack);
    if (pack)
        library.destroy_descriptor(pack);
    if (status != CUDNN_STATUS_SUCCESS)
        cuda_note(cudaErrorUnknown, "a plan of cuDNN");
}
