/* The training loop.
 *
 * Between two steps the run is in a state that a checkpoint can record: everything here is
 * arranged so that stopping there and going on later gives the same bits as never stopping.
 * All ranks decide alike, because they decide by sums over all of them.
 */
#include "trainer/training.h"

#include <math.h>
#include <string.h>

#include "core/clock.h"
#include "core/log.h"
#include "trainer/console.h"
#include "trainer/device.h"
#include "trainer/profile.h"

/* The sums of one step; every rank adds its part. */
enum step_sum {
    SUM_LOSS,
    SUM_SQUARED_NORM,
    SUM_PARTS, /* seconds, by enum time_part */
    SUM_PARTS_LAST = SUM_PARTS + TIME_PARTS - 1,
    SUM_SIGNALLED, /* ranks that were told to stop */
    SUM_TIME_UP,   /* ranks whose clock says that the job's time is up */
    SUM_SAVER,     /* two numbers, the saver's */
    SUM_SAVER_FAILED,
    SUM_NO_MEMORY, /* ranks that found none to save a checkpoint in */
    SUM_COUNT
};

struct step {
    double loss, norm, lr, loss_scale, seconds, data_wait_s;
    double parts_s[TIME_PARTS]; /* mean of ranks */
    double computed_s;          /* when gradients were there: CLOCK_MONOTONIC */
    double optimizer_s, checkpoint_s;
    int64_t batch, tokens; /* sequences, targets */
    bool skipped;          /* no update was made */
    bool passed_over;      /* none was to be made: skip-steps */
    enum stop_reason stop;
};

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
    timeline_begin(stage->timeline);
    if (step->passed_over) {
        pipeline_evaluate(stage, batch, NULL);
    } else {
        optimizer_zero_gradients(stage);
        pipeline_train(stage, batch);
        stage_finish_gradients(stage);
    }
    timeline_end(stage->timeline);
    k->to_host(stage->stream, &loss, stage->loss_sum, sizeof(loss));
    if (k->stream_sync(stage->stream, error) < 0)
        return -1;
    step->computed_s = clock_now_s(CLOCK_MONOTONIC);
    timeline_read(stage->timeline, &sums[SUM_PARTS]);
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
    double sums[SUM_COUNT] = {0}, start_s = clock_now_s(CLOCK_MONOTONIC), end_s;
    enum stop_reason reason = stop_requested(t->stop);
    int64_t updates = t->progress.step - t->progress.skipped;
    int memory, result;

    *step = (struct step){
        .lr = lr_at(&t->schedule, t->progress.trained_samples),
        .loss_scale = t->progress.loss_scale,
        .batch = batch_ramp_size(&t->ramp, t->progress.samples),
        .passed_over = step_list_contains(&t->skip, t->progress.step + 1),
    };
    if (compute(t, step, sums, error) < 0)
        return -1;
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
    for (int part = 0; part < TIME_PARTS; part++)
        step->parts_s[part] = sums[SUM_PARTS + part] / t->world->size;
    step->norm = sqrt(sums[SUM_SQUARED_NORM]) / t->progress.loss_scale;
    step->skipped = step->passed_over || !isfinite(step->norm) || !isfinite(step->loss);
    if (step->skipped) {
        t->progress.skipped++;
    } else {
        double held_s = clock_now_s(CLOCK_MONOTONIC);

        saver_release_state(t->saver);
        step->checkpoint_s = clock_now_s(CLOCK_MONOTONIC) - held_s;
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
    end_s = clock_now_s(CLOCK_MONOTONIC);
    step->seconds = end_s - start_s;
    step->optimizer_s = end_s - step->computed_s - step->checkpoint_s;
    step->checkpoint_s += t->saving_s;
    t->saving_s = 0;
    if (sums[SUM_SIGNALLED] > 0)
        step->stop = reason > STOP_TIME_LIMIT ? reason : STOP_SIGTERM;
    else if (sums[SUM_TIME_UP] > 0)
        step->stop = STOP_TIME_LIMIT;
    return 0;
}

/* Rates and parts of a step. */
static void set_times(const struct training *t, const struct step *step, struct metrics_row *row)
{
    double tokens_per_s = (double)step->tokens / step->seconds;
    double rank_tflops = tokens_per_s / t->world->size / 1e12;
    double causal = rank_tflops * model_flops_per_token(&t->model, t->seq_length, true);
    double full = rank_tflops * model_flops_per_token(&t->model, t->seq_length, false);
    double peak = device_peak_tflops(t->stage.kernels);

    metrics_set(row, METRIC_TOKENS_PER_S, tokens_per_s);
    metrics_set(row, METRIC_TOKENS_PER_S_GPU, tokens_per_s / t->world->size);
    metrics_set(row, METRIC_TFLOPS, causal);
    metrics_set(row, METRIC_TFLOPS_FULL, full);
    if (peak > 0) {
        metrics_set(row, METRIC_MFU, causal / peak);
        metrics_set(row, METRIC_MFU_FULL, full / peak);
    }
    metrics_set(row, METRIC_STEP_S, step->seconds);
    metrics_set(row, METRIC_DATA_WAIT_S, step->data_wait_s);
    metrics_set(row, METRIC_FORWARD_S, step->parts_s[TIME_FORWARD]);
    metrics_set(row, METRIC_BACKWARD_S, step->parts_s[TIME_BACKWARD]);
    metrics_set(row, METRIC_COMMUNICATION_S, step->parts_s[TIME_COMMUNICATION]);
    metrics_set(row, METRIC_OPTIMIZER_S, step->optimizer_s);
    if (t->layout.pp > 1)
        metrics_set(row, METRIC_PIPELINE_IDLE, step->parts_s[TIME_PIPELINE] / step->seconds);
    metrics_set(row, METRIC_CHECKPOINT_S, step->checkpoint_s);
}

/* What is unusual about a step, compared with those before it. */
static void set_outliers(struct training *t, const struct step *step, struct metrics_row *row)
{
    double loss = outlier_score(&t->past.loss, step->loss);
    double norm = outlier_score(&t->past.grad_norm, step->norm);

    if (isfinite(loss))
        metrics_set(row, METRIC_LOSS_OUTLIER, loss);
    outlier_add(&t->past.loss, step->loss);
    if (!step->passed_over && isfinite(norm))
        metrics_set(row, METRIC_GRAD_NORM_OUTLIER, norm);
    if (!step->passed_over)
        outlier_add(&t->past.grad_norm, step->norm);
    t->past.nonfinite += !isfinite(step->loss) || !isfinite(step->norm);
    metrics_set(row, METRIC_NONFINITE, (double)t->past.nonfinite);
}

/* Seconds that the rest of the run takes, with all that comes between steps. The first step of a
 * process is slower than others; of the later ones the last twenty count most. */
static double time_left(struct training *t)
{
    double now = clock_now_s(CLOCK_MONOTONIC), seconds = now - t->reported_s;
    int64_t steps = t->progress.step - t->start_step - 1;
    double share = steps > 1 ? 1.0 / (double)(steps < 20 ? steps : 20) : 1;

    t->reported_s = now;
    t->pace_s += share * (seconds - t->pace_s);
    return t->pace_s * (double)(t->steps - t->progress.step);
}

/* Memory hardly changes, and to ask a GPU takes a little. */
static double memory_gib(struct training *t)
{
    double now = clock_now_s(CLOCK_MONOTONIC);

    if (t->memory_gib == 0 || now - t->memory_read_s > 10) {
        t->memory_gib = device_memory_used(t->stage.kernels) / (1 << 30);
        t->memory_read_s = now;
    }
    return t->memory_gib;
}

/* Updates that are skipped one after the other are said once, and counted. */
static void warn_of_skipped(struct training *t, const struct step *step)
{
    if (step->passed_over)
        log_info("step %lld: no update, as skip-steps says", (long long)t->progress.step);
    else if (step->skipped && t->unsaid_skips++ == 0)
        log_warning("step %lld: the gradient is not finite; the update was skipped (%lld so far); "
                    "more of them are counted in \"number of skipped iterations\"",
                    (long long)t->progress.step, (long long)t->progress.skipped);
}

static void report_step(struct training *t, const struct step *step)
{
    int64_t every = setting_integer(t->settings, SETTING_LOG_EVERY);
    bool is_line = t->progress.step % every == 0 || t->progress.step == t->steps;
    struct metrics_row row = {0}, line = {0};

    if (!t->metrics)
        return;
    metrics_set(&row, METRIC_STEP, (double)t->progress.step);
    metrics_set(&row, METRIC_LOSS, step->loss);
    metrics_set(&row, METRIC_LR, step->lr);
    if (!step->passed_over)
        metrics_set(&row, METRIC_GRAD_NORM, step->norm);
    metrics_set(&row, METRIC_LOSS_SCALE, step->loss_scale);
    metrics_set(&row, METRIC_BATCH_SIZE, (double)step->batch);
    metrics_set(&row, METRIC_SAMPLES, (double)t->progress.samples);
    metrics_set(&row, METRIC_TOKENS, (double)t->progress.tokens);
    set_times(t, step, &row);
    set_outliers(t, step, &row);
    metrics_set(&row, METRIC_MEMORY_GIB, memory_gib(t));
    metrics_set(&row, METRIC_ETA_S, time_left(t));
    metrics_set(&row, METRIC_TIME, clock_now_s(CLOCK_REALTIME));
    metrics_set(&row, METRIC_SKIPPED, (double)t->progress.skipped);
    training_count_data(t);
    if (is_line) {
        row.datasets = t->seen;
        row.dataset_count = t->seen_count;
    }
    metrics_outputs_write(t->metrics, &row);
    job_comment_step(t->comment, &row);
    metrics_interval_add(&t->interval, &row);
    if (is_line) {
        metrics_interval_take(&t->interval, &line);
        console_line(&line);
    }
    console_step(&row);
    warn_of_skipped(t, step);
}

static void report_evaluation(struct training *t, const struct evaluation_set *set,
                              const struct evaluation *sums)
{
    struct metrics_row row = {.eval = set->name};
    double loss = sums->weight > 0 ? sums->loss / sums->weight : 0;

    if (t->world->rank != 0)
        return;
    metrics_set(&row, METRIC_STEP, (double)t->progress.step);
    metrics_set(&row, METRIC_LOSS, loss);
    metrics_set(&row, METRIC_PERPLEXITY, exp(loss));
    if (sums->tokens > 0)
        metrics_set(&row, METRIC_ACCURACY, sums->right / sums->tokens);
    metrics_set(&row, METRIC_COUNT_LOSS_MASK, sums->tokens / (double)sums->sequences);
    if (sums->answers > 0) {
        metrics_set(&row, METRIC_INSTRUCT_ACCURACY, sums->right_answers / sums->answers);
        metrics_set(&row, METRIC_COUNT_INSTRUCT_MASK, sums->answers / (double)sums->sequences);
    }
    metrics_set(&row, METRIC_TOKENS, (double)t->progress.tokens);
    metrics_set(&row, METRIC_TIME, clock_now_s(CLOCK_REALTIME));
    row.custom = sums->custom;
    row.custom_count = sums->custom_count;
    if (t->metrics)
        metrics_outputs_write(t->metrics, &row);
    console_line(&row);
}

/* Begin to save, after the save before it. */
static int save(struct training *t, struct error *error)
{
    double start_s = clock_now_s(CLOCK_MONOTONIC);
    int result;

    profile_begin(t->stage.profile, PROFILE_HOST, "checkpoint");
    if (saver_busy(t->saver)) {
        log_info("step %lld: waiting for the checkpoint before this one",
                 (long long)t->progress.step);
        tell_saver_event(t, saver_finish(t->saver, &t->team, error));
    }
    result = saver_start(t->saver, &t->progress, error);
    profile_end(t->stage.profile);
    t->saving_s += clock_now_s(CLOCK_MONOTONIC) - start_s;
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

/* Evaluate on the sets of a kind, by their order. */
static int evaluate_sets(struct training *t, enum dataset_split split, enum stop_reason *stop,
                         struct error *error)
{
    for (int i = 0; i < t->evaluation_set_count && *stop == STOP_NONE; i++) {
        const struct evaluation_set *set = &t->evaluation_sets[i];
        struct evaluation evaluation;
        int result;

        if (set->split != split || !evaluation_is_due(t, set))
            continue;
        profile_begin(t->stage.profile, PROFILE_HOST, "evaluation");
        result = evaluate(t, set, NULL, &evaluation, error);
        profile_end(t->stage.profile);
        if (result < 0)
            return -1;
        if (!evaluation.stopped)
            report_evaluation(t, set, &evaluation);
        else if (agree_to_stop(t, stop, error) < 0)
            return -1;
    }
    return 0;
}

/* What a complete run does last; stopped before that, it goes on with it. */
static int evaluate_test(struct training *t, struct error *error)
{
    enum stop_reason stop = STOP_NONE;

    if (evaluate_sets(t, DATASET_TEST, &stop, error) < 0)
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

    console_close();
    if (t->unsaid_skips > 1)
        log_warning("the updates of %lld steps were skipped, because the gradient was not finite",
                    (long long)t->unsaid_skips);
    if (saver_busy(t->saver))
        tell_saver_event(t, saver_finish(t->saver, &t->team, error));
    /* A run of no steps at all leaves what it began with. */
    if ((t->progress.step > t->start_step || (complete && !t->resumed)) &&
        saver_saved_step(t->saver) != t->progress.step && save_durably(t, error) < 0)
        return -1;
    if (complete) {
        int status = evaluate_test(t, error);

        if (status == EXIT_STATUS_OK)
            metrics_outputs_complete(t->metrics);
        return status;
    }
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

/* Every validation set; the logits are the first one's. */
static int evaluate_only(struct training *t, struct error *error)
{
    const char *dump = setting_text(t->settings, SETTING_DUMP_LOGITS);

    for (int i = 0; i < t->evaluation_set_count; i++) {
        struct evaluation evaluation;

        if (evaluate(t, &t->evaluation_sets[i], i == 0 ? dump : NULL, &evaluation, error) < 0)
            return -1;
        if (evaluation.stopped) {
            error_set(error, EXIT_STATUS_UNFINISHED, "stopped before the validation was over");
            return team_agree(&t->team, -1, error);
        }
        report_evaluation(t, &t->evaluation_sets[i], &evaluation);
    }
    return EXIT_STATUS_OK;
}

int training_run(struct training *t, struct error *error)
{
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
    if (t->world->rank == 0)
        console_open(t->steps);
    t->reported_s = clock_now_s(CLOCK_MONOTONIC);
    feed_begin(t->feed, t->dataset, t->progress.samples, t->steps - t->progress.step);
    while (stop == STOP_NONE) {
        struct step step;
        int result;

        if (profile_step(t->profile, t->progress.step + 1, error) < 0)
            return -1;
        /* Also where a run goes on that was stopped while it validated. */
        if (evaluate_sets(t, DATASET_VALID, &stop, error) < 0)
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
    if (profile_finish(t->profile, t->progress.step, error) < 0)
        return -1;
    status = finish(t, stop, error);
    if (status >= 0)
        job_comment_end(t->comment, status == EXIT_STATUS_OK ? "done" : "stopped");
    return status;
}
