/* What the command lines of h5-to-hf and hf-to-h5 have in common. */
#ifndef MTLLM_CKPT_HF_OPTIONS_H
#define MTLLM_CKPT_HF_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/error.h"

/* "fp32", "bf16" or "fp16" of --dtype. Error: EXIT_STATUS_USAGE. */
int hf_option_dtype(const char *text, int *dtype, struct error *error);

/* "5GB": a number and B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB.
 * Error: EXIT_STATUS_USAGE. */
int hf_option_size(const char *name, const char *text, int64_t *bytes, struct error *error);

/* "yes" or "no". Error: EXIT_STATUS_USAGE. */
int hf_option_boolean(const char *name, const char *text, bool *value, struct error *error);

/* What getopt_long() refused: '?' or ':'. */
int hf_option_refuse(int result, char **argv, int next, struct error *error);

/* Exactly two operands stand at argv[first]. Error: EXIT_STATUS_USAGE. */
int hf_operands(int argc, char **argv, int first, const char *names, const char **source,
                const char **target, struct error *error);

#endif
