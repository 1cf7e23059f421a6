/* What computes: the CPU, or one of the node's GPUs. */
#ifndef MTLLM_TRAINER_DEVICE_H
#define MTLLM_TRAINER_DEVICE_H

#include "core/error.h"
#include "core/settings.h"
#include "kernels/kernels.h"
#include "trainer/stage.h"
#include "trainer/world.h"

/* The backend that --device, --dtype and --attention ask for; with --device=auto a GPU where this
 * process sees one. A rank takes the GPU of its number on the node, or the only one it sees, which
 * is how Slurm binds them. Error: EXIT_STATUS_CONFIGURATION, EXIT_STATUS_SYSTEM. */
int device_open(const struct kernels **kernels, const struct settings *settings,
                const struct world *world, struct error *error);

/* What the device multiplies at most, in the type that it computes in, without sparsity, by its
 * vendor's data sheet: TFLOP/s; 0 where that is not known. */
double device_peak_tflops(const struct kernels *kernels);

/* Say on the console what rank 0 plans to take of the device's memory, and after the first step
 * what is taken. Nothing on CPUs. */
void device_report_plan(const struct stage *stage);
void device_report_use(const struct stage *stage);

#endif
