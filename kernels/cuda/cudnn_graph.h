/* Graphs of operations for cuDNN, through the C interface of its library, which is opened at run
 * time: a module that was built with this also works where there is no cuDNN.
 *
 * A graph is tensors and operations between them. Tensors of the caller have a number, under which
 * plan_run() gets their memory; the others ("virtual") never exist, because cuDNN finds one kernel
 * for many operations. Which graphs it finds one for is its own secret: those of attention are what
 * NVIDIA's cudnn-frontend builds, operation by operation.
 *
 * All functions are for one thread. Descriptors belong to the graph. A failure is kept and makes
 * what follows do nothing, until graph_plan() returns false.
 */
#ifndef MTLLM_KERNELS_CUDA_CUDNN_GRAPH_H
#define MTLLM_KERNELS_CUDA_CUDNN_GRAPH_H

#include "kernels/cuda/cuda.h"

#include <cudnn.h>

using tensor = cudnnBackendDescriptor_t;

struct layout {
    int64_t dims[4], strides[4]; /* in elements */
};

enum { GRAPH_DESCRIPTORS = 128, GRAPH_OPERATIONS = 32 };

struct graph {
    cudnnBackendDescriptor_t descriptors[GRAPH_DESCRIPTORS], operations[GRAPH_OPERATIONS];
    int descriptor_count, operation_count;
    int64_t virtual_count;
    cudnnStatus_t status;
};

/* An executable form of a graph. All zero: none. */
struct plan {
    cudnnBackendDescriptor_t descriptor;
    int64_t workspace_bytes;
};

/* The version of the library, as in 91400 for 9.14.0; 0 if there is none, or one too old. Opens it
 * the first time. */
size_t cudnn_version(void);

/* For a graph that is all zero. `number` is positive. */
tensor graph_tensor(struct graph *graph, int64_t number, cudnnDataType_t type,
                    const struct layout *layout);
/* One fp32 number, whose memory is the host's. */
tensor graph_scalar(struct graph *graph, int64_t number);
tensor graph_virtual(struct graph *graph, cudnnDataType_t type, const struct layout *layout);

/* Of matrices in the last two dimensions; c = a b. */
void graph_matmul(struct graph *graph, tensor c, tensor a, tensor b);
/* y = mode(x, b), b broadcast; b is NULL for functions of one argument. */
void graph_pointwise(struct graph *graph, cudnnPointwiseMode_t mode, cudnnDataType_t precision,
                     tensor y, tensor x, tensor b);
/* y = where ? x : b */
void graph_select(struct graph *graph, tensor y, tensor x, tensor b, tensor where);
/* y = index of the element of x in that dimension */
void graph_index(struct graph *graph, tensor y, tensor x, int64_t dimension);
/* Along the dimensions that are 1 in y. */
void graph_reduce(struct graph *graph, cudnnReduceTensorOp_t operation, tensor y, tensor x);
/* y is x with other dimensions and strides. */
void graph_view(struct graph *graph, tensor y, tensor x);

/* The best plan that takes at most that much memory to work in, of those that cuDNN does not note
 * as nondeterministic (it does not note all that are: NOTES-cudnn.md); false if there is none. Ends
 * the graph: its descriptors are given back, it is all zero again. */
bool graph_plan(struct graph *graph, struct plan *plan, int64_t workspace_bytes);

/* memory[i] is that of the tensor numbered numbers[i]: every one of the graph. */
void plan_run(const struct plan *plan, struct stream *stream, int count, const int64_t *numbers,
              void *const *memory, void *workspace);

#endif
