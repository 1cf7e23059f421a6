/* What computes: the CPU, or one of the node's GPUs. */
#ifndef MTLLM_TRAINER_DEVICE_H
#define MTLLM_TRAINER_DEVICE_H

#include "core/error.h"
#include "core/settings.h"
#include "kernels/kernels.h"
#include "trainer/stage.h"
#include "trainer/team.h"
#include "trainer/world.h"

/* The backend that --device, --dtype and --attention ask for; with --device=auto a GPU where this
 * process sees one. A rank takes the GPU of its number on the node, or the only one it sees, which
 * is how Slurm binds them. Error: EXIT_STATUS_CONFIGURATION, EXIT_STATUS_SYSTEM. */
int device_open(const struct kernels **kernels, const struct settings *settings,
                const struct world *world, struct error *error);

/* "NVIDIA H200", "cpu". */
const char *device_name(const struct kernels *kernels);

/* What the device multiplies at most, in the type that it computes in, without sparsity, by its
 * vendor's data sheet: TFLOP/s; 0 where that is not known. */
double device_peak_tflops(const struct kernels *kernels);

/* Bytes that a rank may take: --device-memory, or all that its GPU has; 0, no limit known: on CPUs.
 * What is free now would be another number at every start, and with it the layout. */
double device_memory(const struct kernels *kernels, const struct settings *settings);

/* Bytes taken of this process's GPU, by whomever; on CPUs the most that the process has had. */
double device_memory_used(const struct kernels *kernels);

/* Say on the console how much memory the rank that takes most has planned for, and what for.
 * Collective. Error: EXIT_STATUS_SYSTEM, the device's. */
int device_report_plan(const struct stage *stage, struct team *team, struct error *error);
/* After the first step: what is taken of the device. Nothing on CPUs. */
void device_report_use(const struct stage *stage);

#endif
