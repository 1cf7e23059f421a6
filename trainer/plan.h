/* Planning a layout: the memory that every rank of it takes, and how long a step lasts.
 *
 * Memory is not modelled: it is the stage's own arithmetic (stage_measure()), the buffers that the
 * trainer has outside the stage, and a reserve for what CUDA and NCCL take. Time is modelled, from
 * a few measured rates of the device and its links:
 *
 *   a microbatch on a stage: products at the product rate, less where matrices are small; attention
 *     at its own rate; what is bound by memory at the memory's bandwidth; sums over tensor
 *     parallelism at the link's.
 *   a step: the slowest stage for all microbatches, the other stages for one (with several chunks
 *     or zero-bubble a part of that), and the messages that fill and drain the pipeline; then what
 *     of the reduction over replicas, and of the gathering of weights, the passes beside it do not
 *     hide, and the optimizer's update at the memory's bandwidth.
 */
#ifndef MTLLM_TRAINER_PLAN_H
#define MTLLM_TRAINER_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/layout.h"
#include "core/model.h"
#include "core/settings.h"
#include "kernels/kernels.h"
#include "trainer/stage.h"

/* What a layout is planned for. */
struct plan_device {
    const char *name;
    const struct kernels *kernels; /* only what stage_measure() wants need be there */
    struct kernels facts;          /* of a GPU that is not here; kernels points to it then */
    bool gpu;
    double memory_bytes; /* that a rank may take, in all */
    int per_node;        /* ranks of a node */
    /* As measured, operations and bytes a second; peak_rate, the vendor's, is what MFU is a share
     * of: 0, not known. */
    double product_rate, attention_rate, peak_rate;
    double memory_bandwidth, link_bandwidth, network_bandwidth;
};

/* The device that --device-type and what goes with it describe; it may point into itself, and is
 * not to be copied. Error: EXIT_STATUS_CONFIGURATION for a dtype that it has not. */
int plan_device_from_settings(struct plan_device *device, const struct settings *settings,
                              struct error *error);

/* The rates of a device by the name that its driver gives it; memory and kernels are the caller's.
 * Settings that are given come first. */
void plan_device_rates(struct plan_device *device, const struct settings *settings,
                       const char *name);

/* What is trained, whatever the layout. */
struct plan_job {
    const struct settings *settings;
    const struct model *model;
    int world;
    int64_t global_batch; /* 0: micro-batch-size x dp */
};

/* Bytes of a rank. `outside`: what the trainer takes beside the stage, reserve included. */
struct plan_memory {
    size_t weights, gradients, state, activations, outside, total;
    int stage; /* the pipeline stage that these are of */
};

enum plan_refusal {
    PLAN_ACCEPTED,
    PLAN_LAYOUT, /* cannot be, whatever the memory */
    PLAN_MEMORY, /* does not fit */
};

/* One way to train. */
struct plan {
    struct layout layout;
    int64_t micro_batch, recompute_layers;
    int64_t microbatches, fewest_microbatches; /* the latter 0: all steps are alike */
    enum recompute recompute;
    enum plan_refusal refusal;
    char reason[512];          /* of a refusal */
    struct plan_memory memory; /* of the rank that takes most */
    double step_s, tokens_per_s, mfu;
};

/* Fill in the rest of a plan whose layout, micro_batch, recompute and recompute_layers are set.
 * Error: EXIT_STATUS_SYSTEM (memory of this host). */
int plan_evaluate(struct plan *plan, const struct plan_job *job, const struct plan_device *device,
                  struct error *error);

/* What there is outside of the stage on a rank of the layout. */
size_t plan_outside_bytes(const struct plan_device *device, const struct layout *layout,
                          const struct stage *stage);

/* Seconds that a stage computes on one microbatch, forward and backward. */
double plan_microbatch_s(const struct plan_device *device, const struct stage *stage);

/* Seconds of a step, the stages' microbatch_s given, without reduction and update. `filling`: how
 * long filling and emptying the pipeline takes, in that of 1F1B. */
double plan_pipeline_s(const double *microbatch_s, int stages, int64_t microbatches, double filling,
                       double message_s);

/* --- choosing (plan_list.c) ------------------------------------------------------------------ */

struct plan_list {
    struct plan *list; /* accepted ones first, the fastest first; then those that were refused */
    size_t count, accepted;
};

/* All layouts of a job. What the settings say of tp, pp, dp, micro-batch-size and recompute is
 * kept; the rest is tried: every tp and pp that divide the world, microbatches of up to 16
 * sequences, every kind of recomputation. Error: EXIT_STATUS_SYSTEM; EXIT_STATUS_CONFIGURATION when
 * nothing is left to try. */
int plan_list_create(struct plan_list *plans, const struct plan_job *job,
                     const struct plan_device *device, struct error *error);
void plan_list_destroy(struct plan_list *plans);

/* The layout of a training that names neither tp nor pp: the smallest tp x pp whose memory fits, tp
 * inside a node, the fastest of those; micro-batch-size and recompute as the settings have them.
 * Error: EXIT_STATUS_CONFIGURATION with the least that any needs. */
int plan_default_layout(struct layout *layout, const struct plan_job *job,
                        const struct plan_device *device, struct error *error);

#endif
