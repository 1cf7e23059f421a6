/* The directory of one run: where it is, that it can be written, and that nobody else writes it. */
#ifndef MTLLM_TRAINER_RUN_DIRECTORY_H
#define MTLLM_TRAINER_RUN_DIRECTORY_H

#include <limits.h>

#include "core/error.h"
#include "core/settings.h"
#include "trainer/world.h"

struct run_directory {
    char path[PATH_MAX];
    char checkpoints[PATH_MAX + 8]; /* PATH/ckpt */
    char metrics[PATH_MAX + 16];    /* PATH/metrics.jsonl */
    int lock;                       /* descriptor; -1 on ranks other than 0 */
};

/* Where --run-dir, or the job's id, puts the run. Touches no file. */
void run_directory_name(struct run_directory *run, const struct settings *settings,
                        const struct world *world);

/* By rank 0: make the directory, lock it and write settings.ini. The lock lasts as long as the
 * process. Error: EXIT_STATUS_IO; EXIT_STATUS_CONFIGURATION when another process has the run. */
int run_directory_open(struct run_directory *run, const struct settings *settings,
                       struct error *error);
void run_directory_close(struct run_directory *run);

/* Move checkpoints and metrics of an earlier run out of the way, to ckpt.N, those for TensorBoard
 * and W&B too: --resume=never starts anew but destroys nothing. */
int run_directory_set_aside(struct run_directory *run, struct error *error);

#endif
