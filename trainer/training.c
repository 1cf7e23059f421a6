/* Setting up a run. Whatever can fail on one rank alone is followed by an agreement, so that all
 * ranks go on or all of them end. */
#include "trainer/training.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "ckpt/added_tokens.h"
#include "ckpt/hf_config.h"
#include "core/log.h"
#include "trainer/device.h"
#include "trainer/products.h"
#include "trainer/restore.h"

/* The model, from the settings or, where they name none, from the weights to begin or go on with;
 * both must agree, but for the context of a model to begin with. */
static int settle_model(struct training *t, const struct weights *from, struct error *error)
{
    const struct model *stored = from ? weights_model(from) : NULL;
    const char *difference;

    if (!stored)
        return model_from_settings(&t->model, t->settings, error);
    if (!setting_is_set(t->settings, SETTING_LAYERS)) {
        t->model = *stored;
        if (model_override(&t->model, t->settings, error) < 0)
            return -1;
        if (!t->resumed)
            return 0;
    } else {
        if (model_from_settings(&t->model, t->settings, error) < 0)
            return -1;
        /* The settings say how many tokens there were before they got more. */
        if (setting_is_set(t->settings, SETTING_ADD_TOKENS) &&
            t->model.vocab_size < stored->vocab_size)
            t->model.vocab_size = stored->vocab_size;
        t->model.bos_token = stored->bos_token;
        t->model.eos_token = stored->eos_token;
    }
    difference = model_difference(&t->model, stored);
    if (!difference)
        return 0;
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "%s: the model in it differs from the settings' in %s; leave that away to "
                     "take the stored one",
                     weights_directory(from), difference);
}

static int settle_layout(struct training *t, struct error *error)
{
    struct stage_work work;

    training_work(&work, t->settings, &t->model);
    t->seq_length = work.seq_length;
    if (t->seq_length > t->model.max_positions)
        log_warning("seq-length=%lld is beyond the model's max-positions=%lld",
                    (long long)t->seq_length, (long long)t->model.max_positions);
    if (setting_is_set(t->settings, SETTING_RECOMPUTE_LAYERS) && work.recompute != RECOMPUTE_FULL)
        log_warning("recompute-layers=%s: does nothing without recompute=full",
                    setting_text(t->settings, SETTING_RECOMPUTE_LAYERS));
    if (setting_boolean(t->settings, SETTING_LIMA_DROPOUT) &&
        setting_real(t->settings, SETTING_HIDDEN_DROPOUT) == 0)
        log_warning("lima-dropout=yes: does nothing without hidden-dropout, up to which it grows");
    return layout_check(&t->layout, t->settings, &t->model, "--", error);
}

/* What a fresh run begins with. */
static int begin_progress(struct training *t, struct error *error)
{
    unsigned char bytes[8];
    char id[2 * sizeof(bytes) + 1];

    if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
        return error_set_errno(error, "no random bytes for the run's id");
    for (size_t i = 0; i < sizeof(bytes); i++)
        snprintf(id + 2 * i, 3, "%02x", bytes[i]);
    if (team_share(&t->team, id, sizeof(id), error) < 0)
        return -1;
    t->progress = (struct checkpoint_state){.run_id = strdup(id)};
    loss_scale_begin(&t->scale, &t->progress);
    return t->progress.run_id ? 0 : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

static int adopt_progress(struct training *t, const struct checkpoint_state *state,
                          struct error *error)
{
    t->progress = (struct checkpoint_state){
        .step = state->step,
        .samples = state->samples,
        .tokens = state->tokens,
        .skipped = state->skipped,
        .trained_samples = state->trained_samples,
        .loss_scale = state->loss_scale,
        .scale_clean_steps = state->scale_clean_steps,
        .scale_overflows_left = state->scale_overflows_left,
        .run_id = strdup(state->run_id),
    };
    /* A run that did not use the scale, or had another, goes on in fp16 with a fresh one. */
    if (!t->scale.dynamic || state->loss_scale == 1)
        loss_scale_begin(&t->scale, &t->progress);
    return t->progress.run_id ? 0 : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

/* What checkpoints will record, besides the progress. */
static int describe_run(struct training *t, const struct weights *from, struct error *error)
{
    struct checkpoint_state *progress = &t->progress;
    size_t size;
    FILE *stream = open_memstream(&progress->settings, &size);

    if (!stream || settings_write(t->settings, stream) < 0 || fclose(stream) != 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    progress->config = from ? weights_config(from, &t->model, t->stage.kernels->dtype)
                            : hf_config_write(&t->model, t->stage.kernels->dtype);
    if (!progress->config)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    snprintf(progress->layout, sizeof(progress->layout), "tp%d cp%d pp%d dp%d", t->layout.tp,
             t->layout.cp, t->layout.pp, t->layout.dp);
    progress->files = t->tokenizer.list;
    progress->file_count = t->tokenizer.count;
    return 0;
}

void training_work(struct stage_work *work, const struct settings *settings,
                   const struct model *model)
{
    bool training = !setting_boolean(settings, SETTING_EVAL_ONLY);
    bool bf16 = strcmp(setting_text(settings, SETTING_OPTIMIZER_STATE), "bf16") == 0;
    const char *recompute = setting_text(settings, SETTING_RECOMPUTE);
    const char *schedule = setting_text(settings, SETTING_PP_SCHEDULE);

    *work = (struct stage_work){
        .micro_batch = setting_integer(settings, SETTING_MICRO_BATCH_SIZE),
        .seq_length = setting_is_set(settings, SETTING_SEQ_LENGTH)
                          ? setting_integer(settings, SETTING_SEQ_LENGTH)
                          : model->max_positions,
        .state = !training ? STAGE_EVALUATES
                 : bf16    ? STAGE_TRAINS_BF16
                           : STAGE_TRAINS,
        .split = strcmp(schedule, "auto") == 0   ? STAGE_SPLIT_AUTO
                 : strcmp(schedule, "1f1b") == 0 ? STAGE_SPLIT_NEVER
                                                 : STAGE_SPLIT_ALWAYS,
        .zero = setting_integer(settings, SETTING_ZERO) == 1,
        .dropout = {.rate = setting_real(settings, SETTING_HIDDEN_DROPOUT),
                    .attention = setting_real(settings, SETTING_ATTENTION_DROPOUT),
                    .lima = setting_boolean(settings, SETTING_LIMA_DROPOUT),
                    .seed = (uint64_t)setting_integer(settings, SETTING_SEED)},
        .recompute = strcmp(recompute, "full") == 0        ? RECOMPUTE_FULL
                     : strcmp(recompute, "selective") == 0 ? RECOMPUTE_SELECTIVE
                                                           : RECOMPUTE_NONE,
        .recompute_layers = setting_is_set(settings, SETTING_RECOMPUTE_LAYERS)
                                ? setting_integer(settings, SETTING_RECOMPUTE_LAYERS)
                                : model->layers,
    };
    work->sequences = work->micro_batch * training_row_sequences(settings, work->seq_length);
}

int training_share_rows(struct stage_work *work, const struct settings *settings,
                        const struct layout *layout, const struct kernels *kernels,
                        struct error *error)
{
    int64_t rows = work->micro_batch * work->seq_length;
    bool divides = rows % (layout->tp * layout->cp) == 0;

    if (rows % layout->cp != 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "cp=%d: does not divide the rows of a microbatch, micro-batch-size %lld x "
                         "seq-length %lld; change one of them",
                         layout->cp, (long long)work->micro_batch, (long long)work->seq_length);
    if (!setting_is_set(settings, SETTING_SEQUENCE_PARALLEL))
        work->sequence_parallel = divides && strcmp(kernels->name, "cuda") == 0;
    else
        work->sequence_parallel = setting_boolean(settings, SETTING_SEQUENCE_PARALLEL);
    if (work->sequence_parallel && !divides)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "sequence-parallel=yes: micro-batch-size %lld x seq-length %lld rows, "
                         "which tp=%d%s does not divide; change one of them, or leave it away",
                         (long long)work->micro_batch, (long long)work->seq_length, layout->tp,
                         layout->cp > 1 ? " x cp" : "");
    return 0;
}

int training_check_state(const struct settings *settings, enum dtype weights, struct error *error)
{
    if (weights != DTYPE_F32 || setting_boolean(settings, SETTING_EVAL_ONLY) ||
        strcmp(setting_text(settings, SETTING_OPTIMIZER_STATE), "bf16") != 0)
        return 0;
    return error_set(
        error, EXIT_STATUS_CONFIGURATION,
        "optimizer-state=bf16: the weights are fp32 here; it goes with --dtype=bf16 or "
        "fp16 on a GPU");
}

static int open_stage(struct training *t, struct error *error)
{
    struct stage_work work;

    training_work(&work, t->settings, &t->model);
    if (training_check_state(t->settings, t->team.kernels->dtype, error) < 0 ||
        training_share_rows(&work, t->settings, &t->layout, t->team.kernels, error) < 0)
        return -1;
    if (t->layout.cp > 1 && setting_is_set(t->settings, SETTING_DUMP_LOGITS))
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "dump-logits: goes with --cp=1, since ranks of a context parallel group "
                         "have parts of the rows");
    t->micro_batch = work.micro_batch;
    t->global_batch = t->ramp.full;
    t->microbatches = t->global_batch / (t->micro_batch * t->layout.dp);
    work.microbatches = t->microbatches;
    if (t->ramp.samples > 0)
        work.fewest_microbatches = t->ramp.start / (t->micro_batch * t->layout.dp);
    if (comm_open_kv(&t->groups, t->world, layout_kv_sharing(&t->layout, &t->model), error) < 0 ||
        stage_create(&t->stage, t->team.kernels, &t->model, &t->layout, t->place, &t->groups, &work,
                     error) < 0)
        return -1;
    return work.state != STAGE_EVALUATES
               ? optimizer_create(&t->optimizer, t->settings, &t->stage, error)
               : 0;
}

static int open_tokenizer(struct training *t, const struct weights *from, struct error *error)
{
    if (setting_is_set(t->settings, SETTING_TOKENIZER))
        return kept_files_read_tokenizer(&t->tokenizer,
                                         setting_text(t->settings, SETTING_TOKENIZER), error);
    if (from)
        return kept_files_copy(&t->tokenizer, weights_state(from), error);
    return 0;
}

/* New tokens, into the tokenizer's files and into the model. A run that goes on has rows for them;
 * their ids are the same ones again. */
static int add_tokens(struct training *t, struct weights *from, struct error *error)
{
    struct added_tokens tokens;
    int result;

    if (!setting_is_set(t->settings, SETTING_ADD_TOKENS))
        return 0;
    if (added_tokens_parse(&tokens, setting_text(t->settings, SETTING_ADD_TOKENS), error) < 0)
        return -1;
    result = added_tokens_enter(&tokens, &t->tokenizer, t->model.vocab_size, error);
    if (result == 0 && t->resumed && tokens.end > t->model.vocab_size)
        result = error_set(error, EXIT_STATUS_CONFIGURATION,
                           "add-tokens: %s has a vocabulary of %lld, and with these tokens it is "
                           "%lld; tokens can be added where a run begins, with --init",
                           weights_directory(from), (long long)t->model.vocab_size,
                           (long long)tokens.end);
    if (result == 0 && !t->resumed && from)
        weights_grow(from, tokens.first, tokens.end - tokens.first);
    if (result == 0 && tokens.end > t->model.vocab_size)
        t->model.vocab_size = tokens.end;
    added_tokens_destroy(&tokens);
    return result;
}

/* The checkpoint directory of --resume=DIR, a run or its ckpt/. */
static void resume_root(const char *resume, char *root, size_t size)
{
    size_t length = strlen(resume);

    if (length >= 5 && strcmp(resume + length - 5, "/ckpt") == 0)
        snprintf(root, size, "%s", resume);
    else
        snprintf(root, size, "%s/ckpt", resume);
}

static int none_usable(struct training *t, const struct candidates *candidates, struct error *error)
{
    error_set(error, EXIT_STATUS_DATA,
              "%s: none of the %zu checkpoints can be used (see above); restore one, or start "
              "anew with --resume=never",
              candidates->root, candidates->count);
    return team_agree(&t->team, -1, error);
}

/* The newest checkpoint to go on from; *checkpoint stays NULL when the run begins. The run's own
 * checkpoints come before those of another directory: after a requeue they are newer. */
static int find_checkpoint(struct training *t, struct candidates *candidates,
                           struct weights **checkpoint, struct error *error)
{
    const char *resume = setting_text(t->settings, SETTING_RESUME);
    char root[PATH_MAX + 8];

    *checkpoint = NULL;
    if (candidates_list(candidates, t->run.checkpoints, &t->team, error) < 0)
        return -1;
    if (strcmp(resume, "never") == 0) {
        int result = 0;

        if (t->world->rank == 0 && candidates->count > 0)
            result = run_directory_set_aside(&t->run, error);
        candidates->count = 0;
        return team_agree(&t->team, result, error);
    }
    if (candidates->count == 0 && strcmp(resume, "auto") != 0) {
        resume_root(resume, root, sizeof(root));
        candidates_destroy(candidates);
        if (candidates_list(candidates, root, &t->team, error) < 0)
            return -1;
        if (candidates->count == 0) {
            error_set(error, EXIT_STATUS_DATA, "resume=%s: no checkpoint in %s", resume, root);
            return team_agree(&t->team, -1, error);
        }
    }
    if (candidates_open(candidates, &t->team, checkpoint) || candidates->count == 0)
        return 0;
    return none_usable(t, candidates, error);
}

static int open_init(struct training *t, struct weights **init, struct error *error)
{
    int result = 0;

    if (setting_is_set(t->settings, SETTING_INIT)) {
        result = weights_open(init, setting_text(t->settings, SETTING_INIT), error);
        if (result < 0)
            error_prefix(error, "init: ");
    }
    return team_agree(&t->team, result, error);
}

/* Load the checkpoint to go on from; one whose bytes turn out wrong gives way to the one before. */
static int load_resume(struct training *t, struct candidates *candidates,
                       struct weights **checkpoint, struct error *error)
{
    for (;;) {
        struct error reason = {0};
        bool moments = !setting_boolean(t->settings, SETTING_EVAL_ONLY);
        int result = restore_stage(&t->stage, *checkpoint, moments, &reason);

        if (team_agree(&t->team, result, &reason) == 0)
            return adopt_progress(t, weights_state(*checkpoint), error);
        if (reason.status != EXIT_STATUS_DATA && reason.status != EXIT_STATUS_IO) {
            *error = reason;
            return -1;
        }
        if (reason.text[0])
            log_warning_any_rank("%s; trying the checkpoint before it", reason.text);
        weights_close(*checkpoint);
        *checkpoint = NULL;
        if (!candidates_open(candidates, &t->team, checkpoint))
            return none_usable(t, candidates, error);
    }
}

static int load_weights(struct training *t, struct candidates *candidates,
                        struct weights **checkpoint, struct weights *init, struct error *error)
{
    int result = 0;

    if (*checkpoint) {
        if (load_resume(t, candidates, checkpoint, error) < 0)
            return -1;
        log_info("resuming from %s, step %lld", weights_directory(*checkpoint),
                 (long long)t->progress.step);
        return 0;
    }
    if (init) {
        result = restore_stage(&t->stage, init, false, error);
        log_info("initial weights from %s", weights_directory(init));
    } else {
        stage_randomize(&t->stage, (uint64_t)setting_integer(t->settings, SETTING_SEED));
    }
    if (team_agree(&t->team, result, error) < 0)
        return -1;
    return begin_progress(t, error);
}

static int open_plugin(struct training *t, struct error *error)
{
    bool observes = t->stage.last && t->place.tp == 0;
    const char *path = setting_is_set(t->settings, SETTING_METRICS_PLUGIN)
                           ? setting_text(t->settings, SETTING_METRICS_PLUGIN)
                           : NULL;

    if (metrics_plugin_open(
            &t->plugin, path, &t->team, observes, t->stage.sizes.rows, t->model.vocab_size,
            setting_integer(t->settings, SETTING_METRICS_PLUGIN_TIMEOUT), error) < 0)
        return -1;
    if (t->layout.cp > 1 && metrics_plugin_wants_logits(t->plugin)) {
        log_warning(
            "metrics-plugin=%s: it wants logits, which goes with --cp=1; it is switched off", path);
        metrics_plugin_close(t->plugin);
        t->plugin = NULL;
    }
    return 0;
}

static int open_metrics(struct training *t, struct error *error)
{
    const char **again = calloc((size_t)t->evaluation_set_count + 1, sizeof(*again));
    struct metrics_outputs_options options = {
        .settings = t->settings,
        .run_directory = t->run.path,
        .metrics = t->run.metrics,
        .settings_text = t->progress.settings,
        .model_config = t->progress.config,
        .resume = {t->progress.step, again},
    };
    int count = 0, result;

    if (!again)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    for (int i = 0; i < t->evaluation_set_count; i++)
        if (evaluation_is_due(t, &t->evaluation_sets[i]))
            again[count++] = t->evaluation_sets[i].name;
    result = metrics_outputs_open(&t->metrics, &options, error);
    free(again);
    return result;
}

/* What rank 0 tells the outside. */
static int open_reports(struct training *t, struct error *error)
{
    if (open_metrics(t, error) < 0)
        return -1;
    if (t->world->job[0] == '\0' || !setting_boolean(t->settings, SETTING_JOB_COMMENT))
        return 0;
    return job_comment_open(&t->comment, t->world->job, t->steps, &job_comment_times, error);
}

static int check_profile(const struct training *t, int64_t steps, struct error *error)
{
    if (t->profiled.first <= steps)
        return 0;
    return error_set(error, EXIT_STATUS_USAGE, "profile=%s: the run has %lld steps",
                     setting_text(t->settings, SETTING_PROFILE), (long long)steps);
}

static int open_profile(struct training *t, struct error *error)
{
    char directory[PATH_MAX];

    if (t->profiled.first == 0)
        return 0;
    if (check_profile(t, t->steps, error) < 0)
        return -1;
    snprintf(directory, sizeof(directory), "%s/profile", t->run.path);
    return profile_open(&t->profile, &t->profiled, directory, &t->stage, &t->team, t->world, error);
}

/* Only rank 0 writes into the run directory, apart from the shards. */
static int open_outputs(struct training *t, struct error *error)
{
    int result = 0;

    if (setting_boolean(t->settings, SETTING_EVAL_ONLY))
        return 0;
    if (device_report_plan(&t->stage, &t->team, error) < 0)
        return -1;
    if (products_record(t->team.kernels, &t->run, t->world->rank, error) < 0)
        result = -1;
    else if (t->world->rank == 0)
        result = open_reports(t, error);
    if (t->metrics)
        t->past = *metrics_outputs_past(t->metrics);
    if (result == 0)
        result = open_profile(t, error);
    if (team_agree(&t->team, result, error) < 0)
        return -1;
    if (t->world->rank == 0 && t->progress.step < t->steps)
        run_directory_record_start(&t->run, t->world, t->progress.step, t->progress.layout);
    result = saver_create(&t->saver, &t->stage, &t->team, t->run.checkpoints,
                          (int)setting_integer(t->settings, SETTING_KEEP), error);
    return team_agree(&t->team, result, error);
}

/* What can be judged by the settings alone. */
static int settle_job(struct training *t, struct error *error)
{
    bool eval_only = setting_boolean(t->settings, SETTING_EVAL_ONLY);

    if (!setting_is_set(t->settings, SETTING_STEPS) &&
        !setting_is_set(t->settings, SETTING_TRAIN_SAMPLES) && !eval_only)
        return error_set(error, EXIT_STATUS_USAGE,
                         "--steps: say how many steps to train for, or on how many samples with "
                         "--train-samples");
    if (setting_is_set(t->settings, SETTING_PROFILE) &&
        profile_range_parse(&t->profiled, setting_text(t->settings, SETTING_PROFILE), error) < 0)
        return -1;
    if (setting_is_set(t->settings, SETTING_STEPS) && !eval_only)
        return check_profile(t, setting_integer(t->settings, SETTING_STEPS), error);
    return 0;
}

/* An error that is the same on every rank is said by one. */
static void mute_others(const struct training *t, struct error *error)
{
    if (t->world->rank != 0)
        error->text[0] = '\0';
}

static int open_team(struct training *t, struct error *error)
{
    const struct kernels *kernels;

    if (settle_job(t, error) < 0) {
        mute_others(t, error);
        return -1;
    }
    if (device_open(&kernels, t->settings, t->world, error) < 0)
        return -1;
    /* The model may still be inside a checkpoint; the layout is checked against it later. */
    if (training_choose_layout(&t->layout, t->settings, t->world, kernels, error) < 0 ||
        batch_ramp_from_settings(&t->ramp, t->settings, &t->layout, "--", error) < 0) {
        mute_others(t, error);
        return -1;
    }
    t->place = layout_place(&t->layout, t->world->rank);
    loss_scale_from_settings(&t->scale, t->settings, kernels->dtype == DTYPE_F16);
    if (comm_open(&t->groups, t->world, &t->layout, kernels, error) < 0)
        return -1;
    if (team_create(&t->team, t->groups.world, kernels, error) < 0)
        return -1;
    return peers_open(&t->peers, t->world, &t->team, error);
}

static int open_directory(struct training *t, struct error *error)
{
    int result = 0;

    run_directory_name(&t->run, t->settings, t->world);
    if (t->world->rank == 0 && !setting_boolean(t->settings, SETTING_EVAL_ONLY)) {
        struct error trouble = {0};

        result = run_directory_open(&t->run, t->settings, error);
        /* Before anybody looks for checkpoints: it also puts right a replacement cut short. */
        if (result == 0 && checkpoint_clean(t->run.checkpoints, &trouble) < 0)
            log_warning("%s", trouble.text);
    }
    return team_agree(&t->team, result, error);
}

/* The run's length in steps: those made, and those that its samples are still enough for. */
static void count_steps(struct training *t, int64_t step, int64_t samples)
{
    if (setting_is_set(t->settings, SETTING_STEPS))
        t->steps = setting_integer(t->settings, SETTING_STEPS);
    else if (setting_is_set(t->settings, SETTING_TRAIN_SAMPLES))
        t->steps = step + batch_ramp_steps(&t->ramp, samples,
                                           setting_integer(t->settings, SETTING_TRAIN_SAMPLES));
}

static int settle_schedules(struct training *t, struct error *error)
{
    if (setting_is_set(t->settings, SETTING_SKIP_STEPS) &&
        step_list_parse(&t->skip, setting_text(t->settings, SETTING_SKIP_STEPS), "skip-steps",
                        error) < 0)
        return -1;
    if (lr_schedule_from_settings(&t->schedule, t->settings, t->global_batch, "--", error) < 0)
        return -1;
    return weight_decay_schedule_from_settings(&t->decay, t->settings, t->global_batch, "--",
                                               error);
}

static int open_parts(struct training *t, struct weights *from, struct error *error)
{
    const struct checkpoint_state *made = t->resumed ? weights_state(from) : NULL;
    int result = settle_model(t, from, error);

    count_steps(t, made ? made->step : 0, made ? made->samples : 0);
    products_adopt(t->team.kernels, &t->run, t->world->rank);
    if (result == 0)
        result = open_tokenizer(t, from, error);
    if (result == 0)
        result = add_tokens(t, from, error);
    if (result == 0)
        result = settle_layout(t, error);
    if (result == 0)
        result = open_stage(t, error);
    if (result == 0 && !setting_boolean(t->settings, SETTING_EVAL_ONLY))
        result = settle_schedules(t, error);
    if (team_agree(&t->team, result, error) < 0 ||
        team_agree(&t->team, stage_connect(&t->stage, error), error) < 0)
        return -1;
    return training_open_data(t, error);
}

int training_open(struct training *t, const struct settings *settings, const struct world *world,
                  struct stop *stop, struct error *error)
{
    struct candidates candidates = {0};
    struct weights *checkpoint = NULL, *init = NULL;
    int result = -1;

    *t = (struct training){.settings = settings, .world = world, .stop = stop, .run.lock = -1};
    if (open_team(t, error) < 0)
        return -1;
    if (open_directory(t, error) < 0 || find_checkpoint(t, &candidates, &checkpoint, error) < 0)
        goto out;
    if (!checkpoint && open_init(t, &init, error) < 0)
        goto out;
    t->resumed = checkpoint;
    if (open_parts(t, checkpoint ? checkpoint : init, error) < 0 ||
        load_weights(t, &candidates, &checkpoint, init, error) < 0)
        goto out;
    /* Once more, should it be an older checkpoint in the end. */
    count_steps(t, t->progress.step, t->progress.samples);
    t->start_step = t->progress.step;
    if (team_agree(&t->team, describe_run(t, checkpoint ? checkpoint : init, error), error) < 0 ||
        open_plugin(t, error) < 0 || open_outputs(t, error) < 0)
        goto out;
    result = 0;
out:
    weights_close(checkpoint);
    weights_close(init);
    candidates_destroy(&candidates);
    return result;
}

void training_close(struct training *t)
{
    saver_destroy(t->saver);
    job_comment_close(t->comment);
    profile_close(t->profile);
    metrics_outputs_close(t->metrics);
    metrics_plugin_close(t->plugin);
    free(t->progress.config);
    free(t->progress.settings);
    free(t->progress.run_id);
    kept_files_destroy(&t->tokenizer);
    training_close_data(t);
    step_list_destroy(&t->skip);
    run_directory_close(&t->run);
    if (t->team.scalars)
        team_destroy(&t->team);
    peers_goodbye(t->peers);
    stage_disconnect(&t->stage);
    if (t->groups.world)
        comm_close(&t->groups);
    peers_close(t->peers);
    /* Groups remember the stage's streams. */
    optimizer_destroy(&t->optimizer, &t->stage);
    stage_destroy(&t->stage);
}
