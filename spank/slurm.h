/* Slurm's headers; spank.h of 22.05 needs two others before it. */
#ifndef MTLLM_SPANK_SLURM_H
#define MTLLM_SPANK_SLURM_H

#include <stdint.h>
#include <sys/types.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

#endif
