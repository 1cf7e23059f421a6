/* The directory of a run's checkpoints, RUN/ckpt, and what may lie in it:
 *
 *   step-NNNNNNNN            a complete checkpoint
 *   latest                   a link to the newest, for people
 *   .step-NNNNNNNN.tmp       one being written, or an attempt that ended early
 *   .replaced-step-NNNNNNNN  one that makes way for another of the same step
 *   .trash-step-NNNNNNNN     one being removed
 */
#ifndef MTLLM_CKPT_DIRECTORY_H
#define MTLLM_CKPT_DIRECTORY_H

#include <stdbool.h>
#include <stdint.h>

#define DIRECTORY_REPLACED ".replaced-"
#define DIRECTORY_TRASH    ".trash-"

/* The step that a name "step-NNNNNNNN" stands for, or -1. */
int64_t directory_step(const char *name);

#endif
