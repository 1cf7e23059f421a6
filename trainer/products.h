/* How this rank computes its products, written down in the run: RUN/products/RRRRR.txt.
 *
 * Where a device offers several ways to compute a product, the fastest is found by measuring, and
 * another start could find another. A run that goes on takes the ones it began with, so that its
 * bits are those of a run that was never stopped.
 */
#ifndef MTLLM_TRAINER_PRODUCTS_H
#define MTLLM_TRAINER_PRODUCTS_H

#include "core/error.h"
#include "kernels/kernels.h"
#include "trainer/run_directory.h"

/* Before stage_create(). A record of another device or library is left alone, with a warning. */
void products_adopt(const struct kernels *kernels, const struct run_directory *run, int rank);

/* After stage_create(); a record that says the same is not written again. Error: EXIT_STATUS_IO. */
int products_record(const struct kernels *kernels, const struct run_directory *run, int rank,
                    struct error *error);

#endif
