#include "trainer/plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/batch_ramp.h"
#include "trainer/training.h"

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* --- memory ---------------------------------------------------------------------------------- */

/* What a process takes of a GPU before anything is allocated, and in the libraries' own buffers:
 * the context with the module's code (measured at about half a GiB), and cuBLASLt's. */
#define CONTEXT_BYTES ((size_t)640 << 20)
/* NCCL's buffers, of each group of several ranks, as measured on two H100s. */
#define GROUP_BYTES ((size_t)860 << 20)
/* cuda.h: WORKSPACE_BYTES; linear.cu: product_workspace_bytes; comm_nccl.c and comm_mpi.c:
 * SCRATCH_BYTES. */
#define KERNEL_WORKSPACE_BYTES  ((size_t)16 << 20)
#define PRODUCT_WORKSPACE_BYTES ((size_t)64 << 20)
#define SCRATCH_BYTES           ((size_t)1 << 20)

/* Groups of more than one rank that a rank is a member of at most and that get buffers, because
 * they move something: world, tp, replicas, pp, cp, embedding, kv; of wrap its two directions. */
static size_t groups_of(const struct layout *layout, const struct model *model)
{
    size_t groups = layout_world(layout) > 1;

    groups += (layout->tp > 1) + (layout_replicas(layout) > 1) + (layout->pp > 1);
    groups += layout->cp > 1;
    groups += layout->pp > 1;
    groups += layout_kv_sharing(layout, model) > 1;
    groups += layout_chunks(layout) > 1 ? 2 : 0;
    return groups;
}

size_t plan_outside_bytes(const struct plan_device *device, const struct layout *layout,
                          const struct stage *stage)
{
    size_t groups = groups_of(layout, stage->model);
    size_t bytes = groups * SCRATCH_BYTES;

    if (device->gpu)
        return bytes + CONTEXT_BYTES + groups * GROUP_BYTES + KERNEL_WORKSPACE_BYTES +
               PRODUCT_WORKSPACE_BYTES;
    /* On CPUs what a checkpoint is copied to before it is written is of the same memory. */
    if (stage->state_bytes > 0)
        bytes += stage->weight_bytes + stage->state_bytes;
    return bytes;
}

static void note_memory(struct plan_memory *most, const struct plan_device *device,
                        const struct layout *layout, const struct stage *stage)
{
    size_t outside = plan_outside_bytes(device, layout, stage);
    size_t total = stage->memory_bytes + outside;

    if (total <= most->total)
        return;
    *most = (struct plan_memory){
        .weights = stage->weight_bytes,
        .gradients = stage->gradient_bytes,
        .state = stage->state_bytes,
        .activations =
            stage->memory_bytes - stage->weight_bytes - stage->gradient_bytes - stage->state_bytes,
        .outside = outside,
        .total = total,
        .stage = stage->place.pp,
    };
}

/* --- time ------------------------------------------------------------------------------------ */

/* Of the product rate, what products of this shape reach: less where there are few rows for the
 * traffic of weights, or columns for the multiprocessors. Fitted to TinyLlama and Llama 2 7B on
 * H100 and H200 (kernels/cuda/NOTES.md). */
static double product_efficiency(double rows, double in, double out)
{
    return rows / (rows + 200) * fmin(in, out) / (fmin(in, out) + 32);
}

static double product(const struct stage_sizes *n, int64_t in, int64_t out)
{
    double rows = (double)n->rows, wide = (double)in, high = (double)out;

    return 2 * rows * wide * high / product_efficiency(rows, wide, high);
}

/* Work of the four products of a layer, in operations at the full rate; of those that begin a
 * branch, or end one. */
static double products_in(const struct stage_sizes *n)
{
    return product(n, n->hidden, n->qkv_width) + product(n, n->hidden, n->mlp_width);
}

static double products_out(const struct stage_sizes *n)
{
    return product(n, n->mixed_width, n->hidden) + product(n, n->ffn, n->hidden);
}

static double layer_products(const struct stage_sizes *n)
{
    return products_in(n) + products_out(n);
}

/* Operations of a layer's attention, forward: two products over the tokens that one sees. */
static double layer_attention(const struct stage *stage)
{
    const struct stage_sizes *n = &stage->sizes;
    double length = (double)stage->seq_length, window = (double)stage->model->sliding_window;
    double seen =
        window > 0 && window < length ? window - window * window / (2 * length) : length / 2;
    /* Narrow heads give the tensor cores less to do between exponentials. */
    double slower = n->head_dim < 128 ? 1.28 : 1;

    return 4 * (double)n->rows * seen * (double)n->mixed_width * slower;
}

/* Elements that the memory-bound kernels of a layer move, of activations: two norms with their
 * residual, the rotation, and the activation behind gate and up. */
static double layer_moved(const struct stage_sizes *n, bool backward)
{
    double rows = (double)n->rows, stream = (double)(n->shard_rows * n->hidden);
    double qk = (double)(n->heads + n->kv_heads) * n->head_dim;
    double mlp = (double)(n->mlp_width + n->ffn);

    if (backward)
        return 2 * 5 * stream + rows * (2 * qk + mlp + (double)n->mlp_width);
    return 2 * 4 * stream + rows * (2 * qk + mlp);
}

/* What memory-bound kernels reach of a copy's bandwidth, in a whole step. */
#define MEMORY_SHARE 0.85
/* Until a collective moves anything. */
#define MESSAGE_LATENCY_S 20e-6

/* Ranks [rank, rank + stride * count) in steps of `stride`: inside a node? */
static double bandwidth_between(const struct plan_device *device, int stride, int count)
{
    return stride * count <= device->per_node ? device->link_bandwidth : device->network_bandwidth;
}

/* Half an all-reduce round a ring: a reduce-scatter, or an all-gather. */
static double half_reduce_s(double bytes, int ranks, double bandwidth)
{
    if (ranks == 1)
        return 0;
    return MESSAGE_LATENCY_S / 2 * log2(2.0 * ranks) + bytes * (ranks - 1) / ranks / bandwidth;
}

/* What a branch costs in sums over tensor parallelism, in halves of all-reduces: without sequence
 * parallelism an all-reduce of its output, and in backward as much for that of its gradient, beside
 * products. With it a gather of its input and a reduce-scatter, and in backward those of gradients
 * and a gather once more: GPUs of a node copy beside products, of which two halves are slower than
 * the whole; where ranks do not have their memory open to each other nothing is hidden. As measured
 * on two H100s. */
static double forward_sums(const struct plan_device *device, const struct stage *stage)
{
    return stage->sequence_parallel && device->gpu ? 1 : 2;
}

static double backward_sums(const struct plan_device *device, const struct stage *stage)
{
    return stage->sequence_parallel && !device->gpu ? 5 : 2;
}

double plan_microbatch_s(const struct plan_device *device, const struct stage *stage)
{
    const struct stage_sizes *n = &stage->sizes;
    double act = (double)dtype_bytes(stage->kernels->dtype);
    double layers = (double)stage->layers, again = (double)stage->recompute_layers;
    double memory = device->memory_bandwidth * MEMORY_SHARE;
    double stream = (double)(n->rows * n->hidden) * act; /* whole */
    double half =
        half_reduce_s(stream, stage->layout->tp, bandwidth_between(device, 1, stage->layout->tp));
    int branches = stage->model->block == MODEL_BLOCK_SEQUENTIAL ? 2 : 1;
    double forward, again_forward, backward, seconds;

    forward = layer_products(n) / device->product_rate +
              layer_attention(stage) / device->attention_rate +
              layer_moved(n, false) * act / memory + branches * forward_sums(device, stage) * half;
    /* Backward has no use for what the last branch adds; in a parallel block, for neither. */
    again_forward =
        forward - forward_sums(device, stage) / 2 * half -
        (branches == 2 ? product(n, n->ffn, n->hidden) : products_out(n)) / device->product_rate;
    /* Two products for each, and 2.5 times the attention; gradients of weights, fp32, are read and
     * written. What selective recomputation writes once more goes with what it reads anyway. */
    backward = 2 * layer_products(n) / device->product_rate +
               2.5 * layer_attention(stage) / device->attention_rate +
               layer_moved(n, true) * act / memory +
               branches * backward_sums(device, stage) * half +
               (double)(n->hidden * (n->qkv_width + n->mixed_width + n->mlp_width + n->ffn)) * 8 /
                   device->memory_bandwidth;
    if (stage->recompute == RECOMPUTE_SELECTIVE)
        backward += (double)(2 * n->shard_rows * n->hidden + n->rows * n->ffn) * act / memory;
    seconds = layers * (forward + backward) + again * again_forward;
    if (stage->first)
        seconds += 2 * half + 4 * stream / memory;
    if (stage->last)
        seconds += 6 * (double)n->rows * (double)n->hidden * (double)n->vocab_count /
                       product_efficiency((double)n->head_rows, (double)n->hidden,
                                          (double)n->vocab_count) /
                       device->product_rate +
                   3 * (double)(n->rows * n->vocab_count) * act / memory + 2 * half;
    return seconds;
}

/* Of ZB-H1 with forward and both parts of backward alike; of interleaved 1F1B. */
static double filling_of(const struct stage *stage)
{
    if (stage->pipeline.schedule == PIPELINE_ZERO_BUBBLE)
        return 1.0 / 3;
    return 1.0 / stage->pipeline.chunks;
}

double plan_pipeline_s(const double *microbatch_s, int stages, int64_t microbatches, double filling,
                       double message_s)
{
    double slowest = 0, all = 0;

    for (int i = 0; i < stages; i++) {
        slowest = larger(slowest, microbatch_s[i]);
        all += microbatch_s[i];
    }
    return (double)microbatches * slowest + filling * (all - slowest) +
           2 * (stages - 1) * message_s;
}

/* What travels beside `hidden_by` seconds of products, but for the `last` seconds of it: what is
 * longer counts, and half of what is not, for the multiprocessors that it takes. */
static double beside_s(double whole, double last, double hidden_by)
{
    double beside = larger(0, fmin(whole - last, hidden_by));

    return whole - beside / 2;
}

/* Seconds of the reduction over replicas: an all-reduce, or where they share the optimizer's state
 * a reduce-scatter, beside the last backward but for the first layer's and the embedding's part;
 * and in the latter case a gather of the weights, beside the next forward but for the first part.
 */
static double reduction_s(const struct plan_device *device, const struct stage *stage,
                          double microbatch_s)
{
    const struct layout *layout = stage->layout;
    double bandwidth = bandwidth_between(device, layout->tp, layout_replicas(layout));
    double scatter =
        half_reduce_s((double)stage->gradient_bytes, layout_replicas(layout), bandwidth);
    double gather = half_reduce_s((double)stage->weight_bytes, layout_replicas(layout), bandwidth);
    double embedding = (double)(stage->model->vocab_size * stage->model->hidden_size) / layout->tp;
    double elements = (double)stage->parameters.elements;
    double ends = (stage->first ? embedding : 0) + (stage->last ? embedding : 0);
    double first =
        (larger(0, elements - ends) / (double)stage->layers + (stage->first ? embedding : 0)) /
        elements;

    first = fmin(first, 1);
    if (stage->shares == 1)
        return beside_s(2 * scatter, 2 * scatter * first, microbatch_s * 2 / 3);
    return beside_s(scatter, scatter * first, microbatch_s * 2 / 3) +
           beside_s(gather, gather * first, microbatch_s / 3);
}

/* The norm of the gradient, the update, both of this replica's share, and zeros for the next step's
 * gradients. */
static double update_s(const struct plan_device *device, const struct stage *stage)
{
    double gradients = (double)stage->gradient_bytes, weights = (double)stage->weight_bytes;

    return (2 * (double)stage->state_bytes + gradients +
            2 * (gradients + weights) / stage->shares) /
           (device->memory_bandwidth * MEMORY_SHARE);
}

/* --- one plan -------------------------------------------------------------------------------- */

struct measured {
    double *microbatch_s, *after_s; /* of each stage */
    double boundary_bytes, filling;
};

static int measure_stages(struct plan *plan, const struct plan_job *job,
                          const struct plan_device *device, const struct stage_work *work,
                          struct measured *measured, struct error *error)
{
    for (int pp = 0; pp < plan->layout.pp; pp++) {
        /* The first of a tensor parallel group has the most rows of the vocabulary. */
        struct layout_place place = {.pp = pp};
        struct stage stage;

        if (stage_measure(&stage, device->kernels, job->model, &plan->layout, place, work, error) <
            0)
            return -1;
        note_memory(&plan->memory, device, &plan->layout, &stage);
        measured->microbatch_s[pp] = plan_microbatch_s(device, &stage);
        measured->after_s[pp] = work->state == STAGE_EVALUATES
                                    ? 0
                                    : reduction_s(device, &stage, measured->microbatch_s[pp]) +
                                          update_s(device, &stage);
        measured->filling = filling_of(&stage);
        measured->boundary_bytes = (double)(stage.sizes.shard_rows * stage.sizes.hidden) *
                                   (double)dtype_bytes(device->kernels->dtype);
        stage_destroy(&stage);
    }
    return 0;
}

static void set_time(struct plan *plan, const struct plan_job *job,
                     const struct plan_device *device, const struct stage_work *work,
                     const struct measured *measured)
{
    const struct layout *layout = &plan->layout;
    int distance = layout->tp * layout_replicas(layout); /* of neighbouring stages' ranks */
    double bandwidth = bandwidth_between(device, distance, 2), after = 0;
    double message_s = MESSAGE_LATENCY_S + measured->boundary_bytes / bandwidth;
    double tokens =
        (double)(plan->microbatches * plan->micro_batch * layout->dp) * (double)work->seq_length;

    for (int i = 0; i < layout->pp; i++)
        after = larger(after, measured->after_s[i]);
    plan->step_s = plan_pipeline_s(measured->microbatch_s, layout->pp, plan->microbatches,
                                   measured->filling, message_s) +
                   after;
    plan->tokens_per_s = tokens / plan->step_s;
    if (device->peak_rate > 0)
        plan->mfu = plan->tokens_per_s * model_flops_per_token(job->model, work->seq_length, true) /
                    layout_world(layout) / device->peak_rate;
}

static void refuse(struct plan *plan, enum plan_refusal refusal, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void refuse(struct plan *plan, enum plan_refusal refusal, const char *format, ...)
{
    va_list arguments;

    plan->refusal = refusal;
    va_start(arguments, format);
    vsnprintf(plan->reason, sizeof(plan->reason), format, arguments);
    va_end(arguments);
}

/* Whether every size of a ramp of the batch is a multiple of `slice`; refused if not. */
static bool ramp_is_possible(struct plan *plan, const struct plan_job *job, int64_t slice)
{
    const struct layout one = {.tp = 1, .pp = 1, .dp = 1, .cp = 1};
    struct error error = {0};
    struct batch_ramp ramp;

    if (!setting_is_set(job->settings, SETTING_BATCH_SIZE_RAMP))
        return true;
    if (batch_ramp_from_settings(&ramp, job->settings, &one, "", &error) < 0) {
        refuse(plan, PLAN_LAYOUT, "%s", error.text);
    } else if (ramp.samples > 0 && (ramp.start % slice != 0 || ramp.increment % slice != 0)) {
        refuse(plan, PLAN_LAYOUT,
               "batch-size-ramp=%s: not by multiples of micro-batch-size x dp = %lld x %d",
               setting_text(job->settings, SETTING_BATCH_SIZE_RAMP), (long long)plan->micro_batch,
               plan->layout.dp);
    } else {
        plan->fewest_microbatches = ramp.samples > 0 ? ramp.start / slice : 0;
        return true;
    }
    return false;
}

/* Whether it can be at all; refused if not. */
static bool is_possible(struct plan *plan, const struct plan_job *job,
                        const struct plan_device *device)
{
    const struct layout *layout = &plan->layout;
    int64_t slice = plan->micro_batch * layout->dp;
    int node = job->world < device->per_node ? job->world : device->per_node;
    struct error error = {0};

    if (layout_check(layout, job->settings, job->model, "", &error) < 0) {
        refuse(plan, PLAN_LAYOUT, "%s", error.text);
    } else if (node % layout->tp != 0) {
        refuse(plan, PLAN_LAYOUT, "tp=%d: does not divide the %d ranks of a node", layout->tp,
               node);
    } else if (job->global_batch % slice != 0) {
        refuse(plan, PLAN_LAYOUT,
               "global-batch-size=%lld: not a multiple of micro-batch-size x dp = %lld x %d",
               (long long)job->global_batch, (long long)plan->micro_batch, layout->dp);
    } else {
        plan->microbatches = job->global_batch > 0 ? job->global_batch / slice : 1;
        return ramp_is_possible(plan, job, slice);
    }
    return false;
}

int plan_evaluate(struct plan *plan, const struct plan_job *job, const struct plan_device *device,
                  struct error *error)
{
    struct stage_work work;
    struct measured measured = {0};
    struct error trouble = {0};
    int result = -1;

    plan->refusal = PLAN_ACCEPTED;
    plan->fewest_microbatches = 0;
    plan->memory = (struct plan_memory){0};
    if (!is_possible(plan, job, device))
        return 0;
    training_work(&work, job->settings, job->model);
    work.sequences = work.sequences / work.micro_batch * plan->micro_batch;
    work.micro_batch = plan->micro_batch;
    if (training_share_rows(&work, job->settings, &plan->layout, device->kernels, &trouble) < 0) {
        refuse(plan, PLAN_LAYOUT, "%s", trouble.text);
        return 0;
    }
    work.microbatches = plan->microbatches;
    work.fewest_microbatches = plan->fewest_microbatches;
    work.recompute = plan->recompute;
    work.recompute_layers = plan->recompute_layers;
    measured.microbatch_s = calloc((size_t)plan->layout.pp, sizeof(double));
    measured.after_s = calloc((size_t)plan->layout.pp, sizeof(double));
    if (!measured.microbatch_s || !measured.after_s)
        error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    else
        result = measure_stages(plan, job, device, &work, &measured, error);
    if (result == 0)
        set_time(plan, job, device, &work, &measured);
    free(measured.microbatch_s);
    free(measured.after_s);
    if (result == 0 && (double)plan->memory.total > device->memory_bytes)
        refuse(plan, PLAN_MEMORY, "needs %.4g GiB a rank, of %.4g",
               (double)plan->memory.total / (1 << 30), device->memory_bytes / (1 << 30));
    return result;
}
