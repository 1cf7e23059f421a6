/* The training loop.
 *
 * Between two steps the run is in a state that a checkpoint can record: everything here is
 * arranged so that stopping there and going on later gives the same bits as never stopping.
 * All ranks decide alike, because they decide by sums over all of them.
 */
#include "trainer/training.h"

#include <math.h>
#include <string.h>
#include <time.h>

#include "core/log.h"
#include "trainer/device.h"
#include "trainer/profile.h"

/* The sums of one step; every rank adds its part. */
enum step_sum {
    SUM_LOSS,
    SUM_SQUARED_NORM,
    SUM_STAGE_WAIT,
    SUM_SIGNALLED, /* ranks that were told to stop */
    SUM_TIME_UP,   /* ranks whose clock says that the job's time is up */
    SUM_SAVER,     /* two numbers, the saver's */
    SUM_SAVER_FAILED,
    SUM_NO_MEMORY, /* ranks that found none to save a checkpoint in */
    SUM_COUNT
};

struct step {
    double loss, norm, lr, seconds, data_wait_s;
    double stage_wait_s;   /* for messages of other pipeline stages, mean of ranks */
    int64_t batch, tokens; /* sequences, targets */
    bool skipped;          /* no update was made */
    bool passed_over;      /* none was to be made: skip-steps */
    enum stop_reason stop;
};

static double now_s(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* The next batch, its weights scaled to the mean loss of the global batch. */
static int next_batch(struct training *t, struct step *step, struct batch **batch,
                      struct error *error)
{
    bool counts = t->stage.last && t->place.tp == 0 && t->place.cp == 0;
    double sums[3] = {0}, waited_s = 0; /* of weights, of targets, of waits */
    int result;

    profile_begin(t->stage.profile, PROFILE_HOST, "data wait");
    result = feed_next(t->feed, batch, &waited_s, error);
    profile_end(t->stage.profile);
    if (team_agree(&t->team, result, error) < 0)
        return -1;
    if (counts) {
        sums[0] = (*batch)->weight_sum;
        sums[1] = (double)(*batch)->target_count;
    }
    sums[2] = waited_s;
    if (team_sum(&t->team, sums, 3, error) < 0)
        return -1;
    batch_scale_weights(*batch, sums[0] > 0 ? t->progress.loss_scale / sums[0] : 0);
    step->tokens = (int64_t)sums[1];
    step->data_wait_s = sums[2] / t->world->size;
    return 0;
}

/* The mean loss over the global batch and, unless the step is passed over, its gradients, summed
 * over replicas. */
static int compute(struct training *t, struct step *step, double sums[SUM_COUNT],
                   struct error *error)
{
    struct stage *stage = &t->stage;
    const struct kernels *k = stage->kernels;
    struct batch *batch;
    double loss = 0;

    if (next_batch(t, step, &batch, error) < 0)
        return -1;
    k->zero(stage->stream, stage->loss_sum, sizeof(double));
    stage->waited_s = 0;
    if (step->passed_over) {
        pipeline_evaluate(stage, batch, NULL, NULL);
    } else {
        optimizer_zero_gradients(stage);
        pipeline_train(stage, batch);
        stage_finish_gradients(stage);
    }
    k->to_host(stage->stream, &loss, stage->loss_sum, sizeof(loss));
    if (k->stream_sync(stage->stream, error) < 0)
        return -1;
    if (stage->last && t->place.tp == 0)
        sums[SUM_LOSS] = loss;
    return step->passed_over
               ? 0
               : optimizer_squared_norm(&t->optimizer, stage, &sums[SUM_SQUARED_NORM], error);
}

static void tell_saver_event(const struct training *t, enum saver_event event)
{
    if (event == SAVER_FAILED)
        log_warning("a checkpoint could not be written; the newest is that of step %lld",
                    (long long)saver_saved_step(t->saver));
}

/* One update. A gradient that is not finite changes nothing but the count of skipped steps. */
static int run_step(struct training *t, struct step *step, struct error *error)
{
    double sums[SUM_COUNT] = {0}, start_s = now_s(CLOCK_MONOTONIC);
    enum stop_reason reason = stop_requested(t->stop);
    int64_t updates = t->progress.step - t->progress.skipped;
    int memory, result;

    *step = (struct step){
        .lr = lr_at(&t->schedule, t->progress.trained_samples),
        .batch = batch_ramp_size(&t->ramp, t->progress.samples),
        .passed_over = step_list_contains(&t->skip, t->progress.step + 1),
    };
    if (compute(t, step, sums, error) < 0)
        return -1;
    sums[SUM_STAGE_WAIT] = t->stage.waited_s;
    sums[SUM_SIGNALLED] = reason > STOP_TIME_LIMIT;
    sums[SUM_TIME_UP] = reason == STOP_TIME_LIMIT;
    saver_report(t->saver, &sums[SUM_SAVER]);
    memory = saver_check_memory(t->saver, error);
    sums[SUM_NO_MEMORY] = memory < 0;
    profile_begin(t->stage.profile, PROFILE_HOST, "wait for ranks");
    result = team_sum(&t->team, sums, SUM_COUNT, error);
    profile_end(t->stage.profile);
    if (result < 0)
        return -1;
    if (sums[SUM_NO_MEMORY] > 0)
        return team_agree(&t->team, memory, error);
    tell_saver_event(t, saver_advance(t->saver, &sums[SUM_SAVER]));
    step->loss = sums[SUM_LOSS] / t->progress.loss_scale;
    step->stage_wait_s = sums[SUM_STAGE_WAIT] / t->world->size;
    step->norm = sqrt(sums[SUM_SQUARED_NORM]) / t->progress.loss_scale;
    step->skipped = step->passed_over || !isfinite(step->norm) || !isfinite(step->loss);
    if (step->skipped) {
        t->progress.skipped++;
    } else {
        saver_release_state(t->saver);
        profile_begin(t->stage.profile, PROFILE_COMPUTE, "optimizer");
        optimizer_update(&t->optimizer, &t->stage, step->lr,
                         weight_decay_at(&t->decay, t->progress.trained_samples), updates + 1,
                         step->norm, t->progress.loss_scale);
        profile_end(t->stage.profile);
        t->progress.trained_samples += step->batch;
    }
    if (!step->passed_over)
        loss_scale_update(&t->scale, &t->progress, step->skipped);
    if (t->stage.kernels->stream_sync(t->stage.stream, error) < 0)
        return -1;
    t->progress.step++;
    t->progress.samples += step->batch;
    t->progress.tokens += step->tokens;
    step->seconds = now_s(CLOCK_MONOTONIC) - start_s;
    if (sums[SUM_SIGNALLED] > 0)
        step->stop = reason > STOP_TIME_LIMIT ? reason : STOP_SIGTERM;
    else if (sums[SUM_TIME_UP] > 0)
        step->stop = STOP_TIME_LIMIT;
    return 0;
}

static void report_step(struct training *t, const struct step *step)
{
    double tokens_per_s = (double)step->tokens / step->seconds;
    double flops = model_flops_per_token(&t->model, t->seq_length, true);
    int64_t every = setting_integer(t->settings, SETTING_LOG_EVERY);
    double peak = device_peak_tflops(t->stage.kernels);
    struct metrics_row row = {0}, line = {0};

    if (!t->metrics)
        return;
    metrics_set(&row, METRIC_STEP, (double)t->progress.step);
    metrics_set(&row, METRIC_LOSS, step->loss);
    metrics_set(&row, METRIC_LR, step->lr);
    if (!step->passed_over)
        metrics_set(&row, METRIC_GRAD_NORM, step->norm);
    metrics_set(&row, METRIC_SAMPLES, (double)t->progress.samples);
    metrics_set(&row, METRIC_TOKENS, (double)t->progress.tokens);
    metrics_set(&row, METRIC_TOKENS_PER_S, tokens_per_s);
    metrics_set(&row, METRIC_TFLOPS, tokens_per_s * flops / 1e12 / t->world->size);
    if (peak > 0)
        metrics_set(&row, METRIC_MFU, tokens_per_s * flops / 1e12 / t->world->size / peak);
    metrics_set(&row, METRIC_STEP_S, step->seconds);
    metrics_set(&row, METRIC_DATA_WAIT_S, step->data_wait_s);
    /* On a GPU it is the device that waits. */
    if (t->layout.pp > 1 && strcmp(t->stage.kernels->name, "cpu") == 0)
        metrics_set(&row, METRIC_PIPELINE_IDLE, step->stage_wait_s / step->seconds);
    metrics_set(&row, METRIC_TIME, now_s(CLOCK_REALTIME));
    metrics_set(&row, METRIC_SKIPPED, (double)t->progress.skipped);
    metrics_write(t->metrics, &row);
    job_comment_step(t->comment, &row);
    metrics_interval_add(&t->interval, &row);
    if (t->progress.step % every == 0 || t->progress.step == t->steps) {
        metrics_interval_take(&t->interval, &line);
        metrics_print(&line, t->steps, step->batch);
    }
    if (step->passed_over)
        log_info("step %lld: no update, as skip-steps says", (long long)t->progress.step);
    else if (step->skipped)
        log_warning("step %lld: the gradient is not finite; the update was skipped (%lld so far)",
                    (long long)t->progress.step, (long long)t->progress.skipped);
}

static void report_evaluation(struct training *t, enum dataset_split set,
                              const struct evaluation *evaluation)
{
    struct metrics_row row = {.eval = set == DATASET_TEST ? "test" : "valid"};

    if (t->world->rank != 0)
        return;
    metrics_set(&row, METRIC_STEP, (double)t->progress.step);
    metrics_set(&row, METRIC_LOSS, evaluation->loss);
    metrics_set(&row, METRIC_PERPLEXITY, exp(evaluation->loss));
    metrics_set(&row, METRIC_TOKENS, (double)t->progress.tokens);
    metrics_set(&row, METRIC_TIME, now_s(CLOCK_REALTIME));
    if (t->metrics)
        metrics_write(t->metrics, &row);
    metrics_print(&row, t->steps, t->global_batch);
}

/* Begin to save, after the save before it. */
static int save(struct training *t, struct error *error)
{
    int result;

    profile_begin(t->stage.profile, PROFILE_HOST, "checkpoint");
    if (saver_busy(t->saver)) {
        log_info("step %lld: waiting for the checkpoint before this one",
                 (long long)t->progress.step);
        tell_saver_event(t, saver_finish(t->saver, &t->team, error));
    }
    result = saver_start(t->saver, &t->progress, error);
    profile_end(t->stage.profile);
    return result;
}

/* Save now and wait until it is durable. */
static int save_durably(struct training *t, struct error *error)
{
    if (save(t, error) < 0)
        return -1;
    if (saver_finish(t->saver, &t->team, error) == SAVER_SAVED)
        return 0;
    error_set(error, EXIT_STATUS_IO,
              "the checkpoint of step %lld could not be written (see above); the run can go on "
              "from the one before it when there is room again",
              (long long)t->progress.step);
    return team_agree(&t->team, -1, error);
}

/* All ranks learn what any of them has been told. */
static int agree_to_stop(struct training *t, enum stop_reason *stop, struct error *error)
{
    enum stop_reason reason = stop_requested(t->stop);
    double sums[2] = {reason > STOP_TIME_LIMIT, reason == STOP_TIME_LIMIT};

    if (team_sum(&t->team, sums, 2, error) < 0)
        return -1;
    *stop = sums[0] > 0   ? (reason > STOP_TIME_LIMIT ? reason : STOP_SIGTERM)
            : sums[1] > 0 ? STOP_TIME_LIMIT
                          : STOP_NONE;
    return 0;
}

static int evaluate_set(struct training *t, enum dataset_split set, enum stop_reason *stop,
                        struct error *error)
{
    struct evaluation evaluation;
    int result;

    profile_begin(t->stage.profile, PROFILE_HOST, "evaluation");
    result = evaluate(t, set, NULL, &evaluation, error);
    profile_end(t->stage.profile);
    if (result < 0)
        return -1;
    if (evaluation.stopped)
        return agree_to_stop(t, stop, error);
    report_evaluation(t, set, &evaluation);
    return 0;
}

/* What a complete run does last; stopped before that, it goes on with it. */
static int evaluate_test(struct training *t, struct error *error)
{
    enum stop_reason stop = STOP_NONE;

    if (t->sets[DATASET_TEST] && evaluate_set(t, DATASET_TEST, &stop, error) < 0)
        return -1;
    if (stop == STOP_NONE)
        return EXIT_STATUS_OK;
    log_info("stopped by %s before the test data were evaluated; the same command does that",
             stop_reason_text(stop));
    return EXIT_STATUS_UNFINISHED;
}

/* The end of this process's part of the run: complete, or to be gone on with. */
static int finish(struct training *t, enum stop_reason stop, struct error *error)
{
    bool complete = t->progress.step >= t->steps;

    if (saver_busy(t->saver))
        tell_saver_event(t, saver_finish(t->saver, &t->team, error));
    /* A run of no steps at all leaves what it began with. */
    if ((t->progress.step > t->start_step || (complete && !t->resumed)) &&
        saver_saved_step(t->saver) != t->progress.step && save_durably(t, error) < 0)
        return -1;
    if (complete)
        return evaluate_test(t, error);
    if (stop == STOP_TIME_LIMIT && t->progress.step == t->start_step) {
        error_set(error, EXIT_STATUS_CONFIGURATION,
                  "no step was possible before the job's time limit less the margin (margin=%s): "
                  "give the job more time or a smaller --margin",
                  setting_text(t->settings, SETTING_MARGIN));
        return team_agree(&t->team, -1, error);
    }
    log_info("stopped by %s at step %lld of %lld; the same command goes on from there",
             stop_reason_text(stop), (long long)t->progress.step, (long long)t->steps);
    return EXIT_STATUS_UNFINISHED;
}

static int evaluate_only(struct training *t, struct error *error)
{
    struct evaluation evaluation;

    if (evaluate(t, DATASET_VALID, setting_text(t->settings, SETTING_DUMP_LOGITS), &evaluation,
                 error) < 0)
        return -1;
    if (evaluation.stopped) {
        error_set(error, EXIT_STATUS_UNFINISHED, "stopped before the validation was over");
        return team_agree(&t->team, -1, error);
    }
    report_evaluation(t, DATASET_VALID, &evaluation);
    return EXIT_STATUS_OK;
}

int training_run(struct training *t, struct error *error)
{
    int64_t eval_interval = setting_integer(t->settings, SETTING_EVAL_INTERVAL);
    int64_t save_interval = setting_integer(t->settings, SETTING_SAVE_INTERVAL);
    enum stop_reason stop = STOP_NONE;
    int status;

    if (setting_boolean(t->settings, SETTING_EVAL_ONLY))
        return evaluate_only(t, error);
    if (t->progress.step >= t->steps && t->resumed)
        log_info("step %lld of %lld: there is nothing left to do; give more --%s to go on",
                 (long long)t->progress.step, (long long)t->steps,
                 setting_is_set(t->settings, SETTING_STEPS) ? "steps" : "train-samples");
    if (agree_to_stop(t, &stop, error) < 0)
        return -1;
    feed_begin(t->feed, t->sets[DATASET_TRAIN], t->progress.samples, t->steps - t->progress.step);
    while (stop == STOP_NONE) {
        struct step step;
        int result;

        if (profile_step(t->profile, t->progress.step + 1, error) < 0)
            return -1;
        /* Also where a run goes on that was stopped while it validated. */
        if (eval_interval > 0 && t->progress.step > 0 && t->progress.step % eval_interval == 0 &&
            evaluate_set(t, DATASET_VALID, &stop, error) < 0)
            return -1;
        if (stop != STOP_NONE || t->progress.step >= t->steps)
            break;
        profile_begin(t->stage.profile, PROFILE_HOST, "step");
        result = run_step(t, &step, error);
        profile_end(t->stage.profile);
        if (result < 0)
            return -1;
        report_step(t, &step);
        if (t->progress.step == t->start_step + 1 && t->world->rank == 0)
            device_report_use(&t->stage);
        stop = step.stop;
        if (stop == STOP_NONE && save_interval > 0 && t->progress.step % save_interval == 0 &&
            save(t, error) < 0)
            return -1;
    }
    if (profile_step(t->profile, INT64_MAX, error) < 0)
        return -1;
    status = finish(t, stop, error);
    if (status >= 0)
        job_comment_end(t->comment, status == EXIT_STATUS_OK ? "done" : "stopped");
    return status;
}
