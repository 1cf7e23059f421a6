/* Checkpoints written while training goes on.
 *
 * saver_start() starts a thread that copies this rank's state to host memory and then writes it;
 * only an update of the weights has to wait for the copy (saver_release_state). When every rank's
 * shard is on disk, rank 0's thread makes the checkpoint complete. Ranks learn of each other's
 * state by two numbers that travel with the sums of every step (saver_report, saver_advance);
 * nothing waits.
 *
 * A save that fails is reported and given up; training goes on and the checkpoints before it stay.
 */
#ifndef MTLLM_TRAINER_SAVER_H
#define MTLLM_TRAINER_SAVER_H

#include "ckpt/checkpoint.h"
#include "trainer/stage.h"
#include "trainer/team.h"

struct saver;

enum saver_event { SAVER_NOTHING, SAVER_SAVED, SAVER_FAILED };

/* `root` is RUN/ckpt. Host memory for one copy of the state is taken beside what the caller goes on
 * to do: it can be as much as the device has, which takes seconds. Error: EXIT_STATUS_SYSTEM. */
int saver_create(struct saver **saver, const struct stage *stage, const struct team *team,
                 const char *root, int keep, struct error *error);
/* Waits for this rank's thread. */
void saver_destroy(struct saver *saver);

/* 0 while there may be memory to save in, -1 once it is known that there is not: EXIT_STATUS_SYSTEM
 * with the bytes asked for. */
int saver_check_memory(struct saver *saver, struct error *error);

/* From saver_start() to its event; alike on all ranks. */
bool saver_busy(const struct saver *saver);

/* Begin to save; not while saver_busy(). `state` is copied. Error: the device's, or
 * EXIT_STATUS_SYSTEM when no thread or no memory can be had. */
int saver_start(struct saver *saver, const struct checkpoint_state *state, struct error *error);

/* Wait until weights and optimizer state may be changed. */
void saver_release_state(struct saver *saver);

/* This rank's two numbers, to be summed over the world. */
void saver_report(struct saver *saver, double numbers[2]);
/* Go on, given the sums. */
enum saver_event saver_advance(struct saver *saver, const double sums[2]);

/* Wait until the save under way is over, on all ranks. Collective. */
enum saver_event saver_finish(struct saver *saver, struct team *team, struct error *error);

/* Step of the newest checkpoint this saver completed, or -1. */
int64_t saver_saved_step(const struct saver *saver);

#endif
