/* The directory of one run: where it is, that it can be written, and that nobody else writes it. */
#ifndef MTLLM_TRAINER_RUN_DIRECTORY_H
#define MTLLM_TRAINER_RUN_DIRECTORY_H

#include <limits.h>
#include <stdint.h>

#include "core/error.h"
#include "core/settings.h"
#include "trainer/world.h"

struct run_directory {
    char path[PATH_MAX];
    char checkpoints[PATH_MAX + 8]; /* PATH/ckpt */
    char metrics[PATH_MAX + 16];    /* PATH/metrics.jsonl */
    char starts[PATH_MAX + 16];     /* PATH/starts.jsonl */
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

/* Move checkpoints, metrics, starts and profiles of an earlier run out of the way, to ckpt.N, and
 * what is for TensorBoard and W&B: --resume=never starts anew but destroys nothing. */
int run_directory_set_aside(struct run_directory *run, struct error *error);

/* By rank 0: append to PATH/starts.jsonl that the trainer begins to train, with `step` updates made
 * before. One JSON object a line:
 *
 *   time        when, seconds since 1970
 *   step        the step of the checkpoint that it goes on from; 0: from the beginning
 *   ranks       of the world
 *   layout      "tp2 cp1 pp2 dp4", as checkpoints have it
 *   job         id, as users know it; absent outside a job
 *   restart     how often Slurm has started the job before; absent where the plugin is not
 *   version     of mtllm
 *
 * A failure is a warning: nothing in a training depends on it. */
void run_directory_record_start(const struct run_directory *run, const struct world *world,
                                int64_t step, const char *layout);

#endif
