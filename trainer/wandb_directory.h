/* Where an offline run of W&B is, and what stands in it beside its records.
 *
 *   RUN/wandb/offline-run-YYYYMMDD_HHMMSS-ID/run-ID.wandb
 *                                            files/config.yaml, output.log,
 *                                                  wandb-metadata.json, wandb-summary.json
 *   RUN/wandb/latest-run -> offline-run-...
 *
 * With WANDB_DIR the directory of the run is there instead, and RUN/wandb/latest-run points to it:
 * this link is how a run that goes on finds its W&B run, whatever its id is.
 */
#ifndef MTLLM_TRAINER_WANDB_DIRECTORY_H
#define MTLLM_TRAINER_WANDB_DIRECTORY_H

#include <stdbool.h>

#include <jansson.h>

#include "ckpt/disk.h"
#include "core/error.h"
#include "core/settings.h"

struct wandb_directory {
    char path[DISK_PATH_SIZE]; /* absolute */
    char file[DISK_PATH_SIZE]; /* its .wandb */
    char id[128];
};

/* Asked for by --wandb, and not forbidden by WANDB_MODE or WANDB_DISABLED. */
bool wandb_is_wanted(const struct settings *settings);

/* A variable of the environment that says yes. */
bool wandb_environment_is_true(const char *name);

/* With --wandb, settings take the values of W&B's variables: before what files say, and after the
 * command line and MTLLM_NAME. A value that no setting can have stays with its variable. */
void wandb_read_environment(struct settings *settings);

/* A setting that W&B has a variable for, or that variable; "" if neither is given. */
const char *wandb_setting(const struct settings *settings, enum setting_id id);

/* Find the run's directory, or make one with a new id (WANDB_RUN_ID, or random).
 * Error: EXIT_STATUS_IO; EXIT_STATUS_USAGE for an id that cannot be one. */
int wandb_directory_open(struct wandb_directory *directory, const char *run_directory,
                         struct error *error);

/* files/config.yaml, of an object of any values, and files/wandb-metadata.json, about this process.
 */
int wandb_directory_describe(const struct wandb_directory *directory, json_t *config,
                             struct error *error);

/* Replace files/NAME. Error: EXIT_STATUS_IO, also in errno. */
int wandb_directory_write(const struct wandb_directory *directory, const char *name,
                          const char *text, struct error *error);

#endif
