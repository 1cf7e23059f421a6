/* A training run: everything it holds, how it is set up and how it ends. */
#ifndef MTLLM_TRAINER_TRAINING_H
#define MTLLM_TRAINER_TRAINING_H

#include "ckpt/kept_files.h"
#include "core/batch_ramp.h"
#include "core/settings.h"
#include "data/dataset.h"
#include "trainer/feed.h"
#include "trainer/job_comment.h"
#include "trainer/loss_scale.h"
#include "trainer/metrics_outputs.h"
#include "trainer/metrics_plugin.h"
#include "trainer/optimizer.h"
#include "trainer/peers.h"
#include "trainer/pipeline.h"
#include "trainer/profile.h"
#include "trainer/run_directory.h"
#include "trainer/saver.h"
#include "trainer/schedule.h"
#include "trainer/stage.h"
#include "trainer/step_list.h"
#include "trainer/stop.h"
#include "trainer/team.h"
#include "trainer/world.h"

/* What is evaluated on. */
struct evaluation_set {
    char *name; /* "valid" or that given with it; "test" */
    enum dataset_split split;
    struct data_source source; /* its own; nothing: its share of --data */
    struct dataset *dataset;
};

struct training {
    const struct settings *settings;
    const struct world *world;
    struct stop *stop;

    struct layout layout;
    struct layout_place place;
    struct model model;
    struct comm_groups groups;
    struct team team;
    struct peers *peers; /* NULL: nothing is watched */
    struct run_directory run;
    struct kept_files tokenizer;

    int64_t steps, seq_length, micro_batch;
    int64_t microbatches, global_batch; /* of a full step */
    struct batch_ramp ramp;             /* of training; evaluations take full batches */
    struct stage stage;
    struct optimizer optimizer;
    struct lr_schedule schedule;
    struct weight_decay_schedule decay;
    struct loss_scale scale;
    struct step_list skip; /* steps without an update */
    struct saver *saver;
    struct metrics_outputs *metrics;  /* rank 0; NULL elsewhere */
    struct metrics_interval interval; /* since the last line on the console */
    /* Of rank 0, for metrics: */
    struct metrics_past past;
    struct metrics_dataset *seen; /* [seen_count] by name, up to sample seen_samples */
    int seen_count;
    int64_t seen_samples;
    int64_t unsaid_skips;             /* steps of this process skipped for their gradients */
    double saving_s;                  /* that saving has taken since the last step */
    double reported_s, pace_s;        /* when the last step was reported; seconds a step */
    double memory_gib, memory_read_s; /* in use; when that was found out */
    struct job_comment *comment;      /* rank 0 of a Slurm job; NULL elsewhere */
    struct profile_range profiled;    /* zeros: nothing */
    struct profile *profile;

    struct data_source source; /* --data */
    struct dataset *dataset;   /* of training */
    uint8_t *template_tokens;  /* [model.vocab_size], of dataset_options */
    /* The validation sets, and behind them the test set. */
    struct evaluation_set *evaluation_sets;
    int evaluation_set_count;
    struct feed *feed, *eval_feed; /* of training, and of evaluations */
    struct metrics_plugin *plugin; /* of the site, of evaluations; NULL: none */

    struct checkpoint_state progress; /* where the run is; what a checkpoint records */
    int64_t start_step;               /* progress.step when this process began */
    bool resumed;                     /* from a checkpoint */
};

/* What the settings give a stage to do; the microbatches of a step, and how rows are shared, which
 * follow from the layout, are left 0. */
void training_work(struct stage_work *work, const struct settings *settings,
                   const struct model *model);

/* Whether the optimizer can have the state that the settings want, beside weights of this type.
 * Error: EXIT_STATUS_CONFIGURATION. */
int training_check_state(const struct settings *settings, enum dtype weights, struct error *error);

/* Ranks that share the rows of a microbatch divide them; whether tensor parallel ranks do: as the
 * settings say, or where it is faster. Error: EXIT_STATUS_CONFIGURATION. */
int training_share_rows(struct stage_work *work, const struct settings *settings,
                        const struct layout *layout, const struct kernels *kernels,
                        struct error *error);

/* The model that a run begins with, as far as settings tell: theirs, or where they name none the
 * one that --init stores. Error: EXIT_STATUS_CONFIGURATION, or that of weights_open(). */
int training_find_model(struct model *model, const struct settings *settings, struct error *error);

/* The layout: the settings', or where they name neither tp nor pp and the memory of the device is
 * known, the smallest that fits (plan.h). The same on every rank. Collective.
 * Error: EXIT_STATUS_CONFIGURATION, EXIT_STATUS_SYSTEM; the same on every rank. */
int training_choose_layout(struct layout *layout, const struct settings *settings,
                           const struct world *world, const struct kernels *kernels,
                           struct error *error);

/* Open everything, up to the state of the checkpoint to go on from. Collective. On failure every
 * rank has the same error status, and those that have something to say a text. training_close()
 * belongs to both cases. */
int training_open(struct training *training, const struct settings *settings,
                  const struct world *world, struct stop *stop, struct error *error);
void training_close(struct training *training);

/* Train until the run is complete, or until stopped. Returns EXIT_STATUS_OK or
 * EXIT_STATUS_UNFINISHED, alike on every rank; -1 with `error`. Collective. */
int training_run(struct training *training, struct error *error);

/* --- data (data.c) --------------------------------------------------------------------------- */

/* Sequences of a row at most, and of a microbatch. */
int64_t training_row_sequences(const struct settings *settings, int64_t seq_length);
int64_t training_sequences(const struct training *training);

/* Open sources and sets, and the threads that read them. Collective. */
int training_open_data(struct training *training, struct error *error);
void training_close_data(struct training *training);

/* On rank 0: bring `seen` up to date with the progress. A process that goes on counts from the
 * beginning, by the data that it has. */
void training_count_data(struct training *training);

/* --- validation (evaluate.c) ---------------------------------------------------------------- */

struct evaluation {
    /* Sums over the evaluated tokens of all ranks. */
    double loss, weight;           /* weighted loss; weights */
    double tokens, right;          /* of weight other than 0; of these, predicted right */
    double answers, right_answers; /* likewise, of the assistant's own words */
    int64_t sequences;
    const struct metrics_custom *custom; /* rank 0: [custom_count], until the next evaluation */
    int custom_count;
    bool stopped; /* asked to stop before it was over: no result */
};

/* Is the set evaluated on at this step? The test set is when the run is complete. */
bool evaluation_is_due(const struct training *training, const struct evaluation_set *set);

/* Evaluate on a set: the batches of a validation set that belong to this step, or the first of the
 * test set. With `dump` the first batch's tokens, targets, masks and logits are written to that
 * file. Collective. */
int evaluate(struct training *training, const struct evaluation_set *set, const char *dump,
             struct evaluation *evaluation, struct error *error);

#endif
