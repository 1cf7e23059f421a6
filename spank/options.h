/* The --llm-* options of sbatch, salloc and srun: the settings whose table line says SUBMIT,
 * and --llm-dry-run.
 *
 * Slurm calls an option's callback once to three times, with what the job inherits before what
 * the command line says, so the last value wins and nothing is judged before all are known.
 * Values are kept as they were written.
 */
#ifndef MTLLM_SPANK_OPTIONS_H
#define MTLLM_SPANK_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "core/settings.h"
#include "spank/slurm.h"

/* Register every option. Returns 0, or -1 after saying why. */
int options_register(spank_t spank);

/* Forget all values. */
void options_clear(void);

/* Whether the job uses any option at all; if not, the plugin has nothing to do. */
bool options_given(void);

/* What was written behind --llm-NAME=, or NULL. */
const char *option_text(enum setting_id id);

/* What was written behind --llm-dry-run=, or NULL. */
const char *option_dry_run(void);

/* The option's value with a relative path made absolute: it is taken from `directory`, the one
 * that the job was submitted from. Writes at most `size` bytes; returns -1 if they do not do. */
int option_value(enum setting_id id, const char *directory, char *value, size_t size);

/* "--llm-NAME"; `size` of 64 is always enough. */
void option_name(enum setting_id id, char *name, size_t size);

#endif
