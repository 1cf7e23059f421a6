/* Validation. */
#include "trainer/dump.h"
#include "trainer/training.h"

#include <stdlib.h>

/* This rank's sums over its rows of a batch on the last stage. */
enum evaluation_sum {
    EVALUATION_LOSS,
    EVALUATION_WEIGHT,
    EVALUATION_TOKENS,
    EVALUATION_RIGHT,
    EVALUATION_ANSWERS,
    EVALUATION_RIGHT_ANSWERS,
    EVALUATION_STOPPED, /* ranks that were told to stop */
    EVALUATION_SUMS
};

static void count_tokens(const struct training *t, const struct batch *batch, const int32_t *best,
                         double *sums)
{
    int64_t rows = t->stage.sizes.rows, all = t->stage.sizes.attention_rows;

    for (int64_t m = 0; m < batch->microbatches; m++) {
        for (int64_t i = 0; i < rows; i++) {
            int64_t at = m * all + t->place.cp * rows + i;
            bool right = best[m * rows + i] == batch->targets[at];

            if (batch->weights[at] == 0)
                continue;
            sums[EVALUATION_WEIGHT] += (double)batch->weights[at];
            sums[EVALUATION_TOKENS]++;
            sums[EVALUATION_RIGHT] += right;
            sums[EVALUATION_ANSWERS] += batch->answers[at];
            sums[EVALUATION_RIGHT_ANSWERS] += right && batch->answers[at];
        }
    }
}

/* What is made of one batch. */
struct observation {
    struct training *training;
    const struct batch *batch;
    const struct token_results *results; /* of this rank's rows; [microbatches, rows] */
    bool collects;                       /* logits, which somebody wants */
    struct logits logits;
    double *sums;
};

static bool observes(const struct training *t)
{
    return t->stage.last && t->place.tp == 0;
}

/* What is known of a microbatch, to the site's metrics. */
static void give_tokens(const struct observation *o, int64_t microbatch)
{
    struct training *t = o->training;
    const struct batch *batch = o->batch;
    int64_t rows = t->stage.sizes.rows, of_results = microbatch * rows;
    int64_t at = microbatch * t->stage.sizes.attention_rows + t->place.cp * rows;

    if (t->plugin && observes(t))
        metrics_plugin_add(t->plugin,
                           &(struct mtllm_metric_tokens){
                               .count = rows,
                               .tokens = batch->tokens + at,
                               .labels = batch->targets + at,
                               .mask = batch->weights + at,
                               .answers = batch->answers + at,
                               .positions = batch->positions + at,
                               .loss = o->results->loss + of_results,
                               .argmax = o->results->best + of_results,
                               .logits = o->collects ? logits_of(&o->logits, microbatch) : NULL,
                           });
}

/* A microbatch is given away before the logits of the next one take its place. */
static void see(void *user, int64_t microbatch, int64_t row, int64_t rows, const void *values)
{
    struct observation *o = user;
    struct stage *stage = &o->training->stage;
    struct error error;

    if (row == 0 && microbatch > 0) {
        /* Its failure is found by the next one. */
        (void)stage->kernels->stream_sync(stage->stream, &error);
        give_tokens(o, microbatch - 1);
    }
    logits_see(&o->logits, microbatch, row, rows, values);
}

/* Adds this rank's part to the sums. */
static int evaluate_batch(struct observation *o, struct error *error)
{
    struct training *t = o->training;
    struct stage *stage = &t->stage;
    const struct kernels *k = stage->kernels;
    struct pipeline_observer observer = {
        .results = *o->results, .see = o->collects ? see : NULL, .user = o};
    double loss = 0;

    k->zero(stage->stream, stage->loss_sum, sizeof(double));
    pipeline_evaluate(stage, o->batch, &observer);
    k->to_host(stage->stream, &loss, stage->loss_sum, sizeof(loss));
    if (k->stream_sync(stage->stream, error) < 0)
        return -1;
    for (int64_t m = o->collects ? o->batch->microbatches - 1 : 0; m < o->batch->microbatches; m++)
        give_tokens(o, m);
    if (!observes(t))
        return 0;
    o->sums[EVALUATION_LOSS] += loss;
    count_tokens(t, o->batch, o->results->best, o->sums);
    return 0;
}

/* The same, with what wants logits. */
static int evaluate_with_logits(struct observation *o, const char *dump_path, struct error *error)
{
    struct training *t = o->training;
    struct error trouble = {0};
    struct dump dump;
    int result = logits_open(&o->logits, t, dump_path ? t->microbatches : 1, error);

    o->collects = true;
    if (result == 0 && dump_path) {
        result = dump_open(&dump, t, &o->logits, dump_path, error);
        if (result < 0)
            (void)dump_close(&dump, &trouble);
    }
    if (team_agree(&t->team, result, error) == 0) {
        result = evaluate_batch(o, error);
        if (result == 0 && dump_path)
            dump_collect(&dump, o->batch);
    }
    if (dump_path && result == 0)
        result = dump_close(&dump, error);
    logits_close(&o->logits);
    return result;
}

bool evaluation_is_due(const struct training *t, const struct evaluation_set *set)
{
    int64_t interval = setting_integer(t->settings, SETTING_EVAL_INTERVAL);

    if (set->split == DATASET_TEST)
        return t->progress.step >= t->steps;
    return interval > 0 && t->progress.step > 0 && t->progress.step % interval == 0;
}

/* The first sample of this step's evaluation: validations follow each other through the data. */
static int64_t first_sample(const struct training *t, const struct evaluation_set *set)
{
    int64_t interval = setting_integer(t->settings, SETTING_EVAL_INTERVAL);
    int64_t number = interval > 0 ? t->progress.step / interval : 0;

    if (set->split != DATASET_VALID || setting_boolean(t->settings, SETTING_EVAL_ONLY) ||
        number == 0)
        return 0;
    return (number - 1) * setting_integer(t->settings, SETTING_EVAL_STEPS) * t->global_batch;
}

/* The sums of all ranks. */
static int evaluate_one(struct training *t, const char *dump_path,
                        const struct token_results *results, double *sums, struct error *error)
{
    struct observation o = {.training = t, .results = results, .sums = sums};
    struct batch *batch;
    double waited_s;
    int result = feed_next(t->eval_feed, &batch, &waited_s, error);

    if (team_agree(&t->team, result, error) < 0)
        return -1;
    o.batch = batch;
    if (dump_path || metrics_plugin_wants_logits(t->plugin))
        result = evaluate_with_logits(&o, dump_path, error);
    else
        result = evaluate_batch(&o, error);
    if (team_agree(&t->team, result, error) < 0)
        return -1;
    return team_sum(&t->team, sums, EVALUATION_SUMS, error);
}

static void results_destroy(const struct kernels *k, struct token_results *results)
{
    if (results->best)
        k->host_release(results->best);
    if (results->loss)
        k->host_release(results->loss);
}

/* Losses for whom mtllm's own sums are not enough. */
static int results_create(struct training *t, struct token_results *results, struct error *error)
{
    const struct kernels *k = t->team.kernels;
    size_t tokens = (size_t)(t->microbatches * t->stage.sizes.rows);
    bool complete;

    *results = (struct token_results){
        .best = k->host_allocate(tokens * sizeof(int32_t)),
        .loss = t->plugin ? k->host_allocate(tokens * sizeof(float)) : NULL,
    };
    complete = results->best && (results->loss || !t->plugin);
    if (team_agree(
            &t->team,
            complete ? 0 : error_set(error, EXIT_STATUS_SYSTEM, "out of memory for an evaluation"),
            error) == 0)
        return 0;
    results_destroy(k, results);
    return -1;
}

int evaluate(struct training *t, const struct evaluation_set *set, const char *dump_path,
             struct evaluation *evaluation, struct error *error)
{
    int64_t batches = setting_integer(t->settings, SETTING_EVAL_STEPS);
    struct token_results results;
    int result = 0;

    *evaluation = (struct evaluation){.sequences = batches * t->global_batch};
    if (results_create(t, &results, error) < 0)
        return -1;
    feed_begin(t->eval_feed, set->dataset, first_sample(t, set), batches);
    if (t->plugin)
        metrics_plugin_begin(t->plugin);
    for (int64_t i = 0; result == 0 && i < batches && !evaluation->stopped; i++) {
        double sums[EVALUATION_SUMS] = {
            [EVALUATION_STOPPED] = stop_requested(t->stop) != STOP_NONE,
        };

        result = evaluate_one(t, i == 0 && dump_path && *dump_path ? dump_path : NULL, &results,
                              sums, error);
        evaluation->loss += sums[EVALUATION_LOSS];
        evaluation->weight += sums[EVALUATION_WEIGHT];
        evaluation->tokens += sums[EVALUATION_TOKENS];
        evaluation->right += sums[EVALUATION_RIGHT];
        evaluation->answers += sums[EVALUATION_ANSWERS];
        evaluation->right_answers += sums[EVALUATION_RIGHT_ANSWERS];
        evaluation->stopped = sums[EVALUATION_STOPPED] > 0;
    }
    if (result == 0 && !evaluation->stopped && t->plugin)
        result =
            metrics_plugin_end(&t->plugin, &evaluation->custom, &evaluation->custom_count, error);
    results_destroy(t->team.kernels, &results);
    return result;
}
