/* Which part of a mixture each sample comes from: Megatron's blend. */
#ifndef MTLLM_DATA_BLEND_H
#define MTLLM_DATA_BLEND_H

#include <stdint.h>

/* For samples 0 to count - 1: parts[t] is the part whose weight, which all add up to 1, is least
 * served so far (the first of several), and locals[t] its next sample. Error (-1): out of memory.
 */
int blend_build(const double *weights, int part_count, int64_t count, int32_t *parts,
                int64_t *locals);

/* Samples of a part that a mixture of `samples` is built from: half a percent more than its share.
 */
int64_t blend_share(int64_t samples, double weight);

#endif
