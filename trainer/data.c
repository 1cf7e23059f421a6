/* The data of a run: sources, samples of the three sets, and the threads that read them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "trainer/training.h"

static const enum setting_id source_settings[] = {
    [DATASET_TRAIN] = SETTING_DATA,
    [DATASET_VALID] = SETTING_VALID_DATA,
    [DATASET_TEST] = SETTING_TEST_DATA,
};

static bool is_wanted(const struct training *t, enum dataset_split set)
{
    bool eval_only = setting_boolean(t->settings, SETTING_EVAL_ONLY);

    switch (set) {
    case DATASET_TRAIN:
        return !eval_only;
    case DATASET_VALID:
        return eval_only || setting_integer(t->settings, SETTING_EVAL_INTERVAL) > 0;
    default:
        return !eval_only && setting_boolean(t->settings, SETTING_TEST);
    }
}

/* As many samples as the whole run will take: Megatron's counts, on which the order depends. */
static int64_t samples_wanted(const struct training *t, enum dataset_split set)
{
    int64_t interval = setting_integer(t->settings, SETTING_EVAL_INTERVAL);
    int64_t batches = setting_integer(t->settings, SETTING_EVAL_STEPS);

    if (!is_wanted(t, set))
        return 0;
    if (set == DATASET_TRAIN)
        return setting_is_set(t->settings, SETTING_TRAIN_SAMPLES)
                   ? setting_integer(t->settings, SETTING_TRAIN_SAMPLES)
                   : t->steps * t->global_batch;
    if (set == DATASET_VALID && interval > 0)
        batches *= t->steps / interval + 1;
    return batches * t->global_batch;
}

static int settle_end_of_document(const struct training *t, struct dataset_options *options,
                                  struct error *error)
{
    const enum setting_id ids[] = {SETTING_EOD_MASK_LOSS, SETTING_RESET_POSITION_IDS,
                                   SETTING_RESET_ATTENTION_MASK};

    options->eod = (int32_t)t->model.eos_token;
    if (setting_is_set(t->settings, SETTING_EOD_TOKEN))
        options->eod = (int32_t)setting_integer(t->settings, SETTING_EOD_TOKEN);
    for (size_t i = 0; i < sizeof(ids) / sizeof(*ids); i++)
        if (options->eod < 0 && setting_boolean(t->settings, ids[i]))
            return error_set(error, EXIT_STATUS_CONFIGURATION,
                             "%s=yes: the model does not say which token ends a document; name "
                             "its id with --eod-token",
                             setting_table[ids[i]].name);
    return 0;
}

static int settle_options(const struct training *t, struct dataset_options *options, char *cache,
                          size_t cache_size, struct error *error)
{
    const struct settings *settings = t->settings;

    *options = (struct dataset_options){
        .seq_length = t->seq_length,
        .vocab_size = t->model.vocab_size,
        .seed = (uint32_t)setting_integer(settings, SETTING_SEED),
        .nonempty_splits = strcmp(setting_text(settings, SETTING_SPLITS), "nonempty") == 0,
        .packing = setting_boolean(settings, SETTING_PACKING),
        .loss_mask_weight = setting_real(settings, SETTING_LOSS_MASK_WEIGHT),
        .eod_mask_loss = setting_boolean(settings, SETTING_EOD_MASK_LOSS),
        .reset_positions = setting_boolean(settings, SETTING_RESET_POSITION_IDS),
        .reset_attention = setting_boolean(settings, SETTING_RESET_ATTENTION_MASK),
    };
    for (int set = DATASET_TRAIN; set <= DATASET_TEST; set++)
        options->samples[set] = samples_wanted(t, (enum dataset_split)set);
    if (settle_end_of_document(t, options, error) < 0)
        return -1;
    if (setting_is_set(settings, SETTING_DATA_CACHE))
        options->cache = setting_text(settings, SETTING_DATA_CACHE);
    else if (!setting_boolean(settings, SETTING_EVAL_ONLY)) {
        snprintf(cache, cache_size, "%s/data-cache", t->run.path);
        options->cache = cache;
    }
    return 0;
}

static int open_source(struct training *t, enum dataset_split set, struct error *error)
{
    enum setting_id id = source_settings[set];

    if (t->sources[set].count > 0 || !setting_is_set(t->settings, id))
        return 0;
    if (data_source_open(&t->sources[set], setting_text(t->settings, id), error) == 0)
        return 0;
    return error_prefix(error, "%s: ", setting_table[id].name);
}

/* A set has its own source, or its share of that of --data. */
static int open_set(struct training *t, enum dataset_split set, struct dataset_options options,
                    struct error *error)
{
    bool own = setting_is_set(t->settings, source_settings[set]);
    bool divided = !setting_is_set(t->settings, SETTING_VALID_DATA) &&
                   !setting_is_set(t->settings, SETTING_TEST_DATA);
    enum dataset_split from = own ? set : DATASET_TRAIN;

    if (open_source(t, from, error) < 0)
        return -1;
    if (t->sources[from].count == 0)
        return error_set(error, EXIT_STATUS_USAGE,
                         "--data: give the PREFIX of PREFIX.bin and PREFIX.idx, which mtllm-data "
                         "tokenize writes");
    if (!own && !divided)
        return error_set(error, EXIT_STATUS_USAGE,
                         "--%s is missing: --data is not divided (split) when one of --valid-data "
                         "and --test-data is given",
                         setting_table[source_settings[set]].name);
    options.split = divided ? setting_text(t->settings, SETTING_SPLIT) : NULL;
    if (dataset_open(&t->sets[set], &t->sources[from], set, &options, error) < 0)
        return -1;
    if (options.packing && t->world->rank == 0 && set == DATASET_TRAIN)
        log_info("packed rows of %lld tokens are filled to %.1f %%", (long long)t->seq_length,
                 100 * dataset_fill(t->sets[set]));
    return 0;
}

static int open_sets(struct training *t, const struct dataset_options *options, struct error *error)
{
    for (int set = DATASET_TRAIN; set <= DATASET_TEST; set++)
        if (is_wanted(t, (enum dataset_split)set) &&
            open_set(t, (enum dataset_split)set, *options, error) < 0)
            return -1;
    return 0;
}

int training_open_data(struct training *t, struct error *error)
{
    char cache[PATH_MAX + 16];
    struct dataset_options options;
    struct batch_ramp full = {.full = t->global_batch};
    /* The first ranks make the order of samples, the others find it. */
    int turn = t->world->rank == 0 ? 0 : t->world->local_rank == 0 ? 1 : 2;
    int result = settle_options(t, &options, cache, sizeof(cache), error);

    if (team_agree(&t->team, result, error) < 0)
        return -1;
    for (int i = 0; i < 3; i++) {
        result = turn == i ? open_sets(t, &options, error) : 0;
        if (team_agree(&t->team, result, error) < 0)
            return -1;
    }
    if (result == 0)
        result = feed_create(&t->feed, t->team.kernels, &t->layout, t->place.dp, &t->ramp,
                             t->micro_batch, t->seq_length, error);
    if (result == 0 && (t->sets[DATASET_VALID] || t->sets[DATASET_TEST]))
        result = feed_create(&t->eval_feed, t->team.kernels, &t->layout, t->place.dp, &full,
                             t->micro_batch, t->seq_length, error);
    return team_agree(&t->team, result, error);
}

void training_close_data(struct training *t)
{
    feed_destroy(t->feed);
    feed_destroy(t->eval_feed);
    for (int set = DATASET_TRAIN; set <= DATASET_TEST; set++) {
        dataset_close(t->sets[set]);
        data_source_close(&t->sources[set]);
    }
}

int64_t training_row_sequences(const struct settings *settings, int64_t seq_length)
{
    bool several = setting_boolean(settings, SETTING_PACKING) ||
                   setting_boolean(settings, SETTING_RESET_ATTENTION_MASK);

    return several ? dataset_sequences_most(seq_length) : 1;
}

int64_t training_sequences(const struct training *t)
{
    return t->micro_batch * training_row_sequences(t->settings, t->seq_length);
}
