/* The data of a run: sources, samples of the three sets, and the threads that read them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/special_tokens.h"
#include "core/log.h"
#include "trainer/training.h"

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

/* How many bytes of a word NAME=PREFIX are the name; 0: it is no such word. */
static size_t evaluation_set_name(const char *text)
{
    size_t length = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                 "_-");

    return text[length] == '=' ? length : 0;
}

static int settle_template_tokens(struct training *t, struct dataset_options *options,
                                  struct error *error)
{
    const int64_t ends[] = {t->model.bos_token, t->model.eos_token, options->eod};

    t->template_tokens = calloc((size_t)t->model.vocab_size, 1);
    if (!t->template_tokens)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    special_tokens_mark(t->template_tokens, t->model.vocab_size, &t->tokenizer);
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
        if (ends[i] >= 0 && ends[i] < t->model.vocab_size && t->template_tokens[ends[i]] == 0)
            t->template_tokens[ends[i]] = 1;
    options->template_tokens = t->template_tokens;
    return 0;
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

static int settle_options(struct training *t, struct dataset_options *options, char *cache,
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
    if (settle_end_of_document(t, options, error) < 0 ||
        settle_template_tokens(t, options, error) < 0)
        return -1;
    if (setting_is_set(settings, SETTING_DATA_CACHE))
        options->cache = setting_text(settings, SETTING_DATA_CACHE);
    else if (!setting_boolean(settings, SETTING_EVAL_ONLY)) {
        snprintf(cache, cache_size, "%s/data-cache", t->run.path);
        options->cache = cache;
    }
    return 0;
}

static int open_source(struct data_source *source, enum setting_id id, const char *text,
                       struct error *error)
{
    if (data_source_open(source, text, error) == 0)
        return 0;
    if (id == SETTING_VALID_DATA && strchr(text, '='))
        error_prefix(error, "not NAME=PREFIX with a NAME of letters, digits, _ and -, and ");
    return error_prefix(error, "%s: ", setting_table[id].name);
}

/* Once, whoever wants a share of it. */
static int open_data(struct training *t, struct error *error)
{
    if (t->source.count > 0)
        return 0;
    if (!setting_is_set(t->settings, SETTING_DATA))
        return error_set(error, EXIT_STATUS_USAGE,
                         "--data: give the PREFIX of PREFIX.bin and PREFIX.idx, which mtllm-data "
                         "tokenize writes");
    return open_source(&t->source, SETTING_DATA, setting_text(t->settings, SETTING_DATA), error);
}

/* --data is divided unless validation or test data are given. */
static bool is_divided(const struct training *t)
{
    return !setting_is_set(t->settings, SETTING_VALID_DATA) &&
           !setting_is_set(t->settings, SETTING_TEST_DATA);
}

/* Of a part of --data: a mixture may have a file twice, under one name. Made if it is not there. */
static struct metrics_dataset *seen_of_part(struct training *t, int part)
{
    const char *name = dataset_part_name(t->dataset, part);
    int i = 0;

    while (i < t->seen_count && strcmp(t->seen[i].name, name) != 0)
        i++;
    if (i == t->seen_count)
        t->seen[t->seen_count++].name = name;
    return &t->seen[i];
}

static int prepare_counts(struct training *t, struct error *error)
{
    int parts = dataset_parts(t->dataset);

    t->seen = calloc((size_t)parts, sizeof(*t->seen));
    if (!t->seen)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    for (int i = 0; i < parts; i++)
        (void)seen_of_part(t, i);
    return 0;
}

static int open_training_set(struct training *t, struct dataset_options options,
                             struct error *error)
{
    options.split = is_divided(t) ? setting_text(t->settings, SETTING_SPLIT) : NULL;
    if (open_data(t, error) < 0 ||
        dataset_open(&t->dataset, &t->source, DATASET_TRAIN, &options, error) < 0)
        return -1;
    if (t->world->rank == 0 && prepare_counts(t, error) < 0)
        return -1;
    if (options.packing && t->world->rank == 0)
        log_info("packed rows of %lld tokens are filled to %.1f %%", (long long)t->seq_length,
                 100 * dataset_fill(t->dataset));
    return 0;
}

/* A set of that name, of its own data or, without any (`text` NULL), of its share of --data. */
static int add_evaluation_set(struct training *t, enum dataset_split split, const char *name,
                              const char *text, struct dataset_options options, struct error *error)
{
    enum setting_id id = split == DATASET_TEST ? SETTING_TEST_DATA : SETTING_VALID_DATA;
    size_t count = (size_t)t->evaluation_set_count + 1;
    struct evaluation_set *sets = realloc(t->evaluation_sets, count * sizeof(*sets)), *set;

    if (!sets)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    t->evaluation_sets = sets;
    set = &sets[t->evaluation_set_count++];
    *set = (struct evaluation_set){.name = strdup(name), .split = split};
    if (!set->name)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (text)
        return open_source(&set->source, id, text, error) < 0
                   ? -1
                   : dataset_open(&set->dataset, &set->source, split, &options, error);
    if (!is_divided(t))
        return error_set(error, EXIT_STATUS_USAGE,
                         "--%s is missing: --data is not divided (split) when one of --valid-data "
                         "and --test-data is given",
                         setting_table[id].name);
    options.split = setting_text(t->settings, SETTING_SPLIT);
    return open_data(t, error) < 0
               ? -1
               : dataset_open(&set->dataset, &t->source, split, &options, error);
}

/* Of "NAME=DATA NAME=DATA ...". */
static int add_named_sets(struct training *t, char *text, const struct dataset_options *options,
                          struct error *error)
{
    while (*text) {
        size_t length = evaluation_set_name(text);
        char *name = text, *data = text + length + 1, *end;

        /* Up to the word that begins the next one. */
        do {
            end = text + strcspn(text, " \t\n");
            text = end + strspn(end, " \t\n");
        } while (*text && evaluation_set_name(text) == 0);
        *end = '\0';
        name[length] = '\0';
        for (int i = 0; i < t->evaluation_set_count; i++)
            if (strcmp(t->evaluation_sets[i].name, name) == 0)
                return error_set(error, EXIT_STATUS_USAGE,
                                 "valid-data: two sets have the name %s; give each its own", name);
        if (strcmp(name, "test") == 0)
            return error_set(error, EXIT_STATUS_USAGE,
                             "valid-data: test is the name of --test-data; give the set another");
        if (add_evaluation_set(t, DATASET_VALID, name, data, *options, error) < 0)
            return -1;
    }
    return 0;
}

static int open_validation_sets(struct training *t, const struct dataset_options *options,
                                struct error *error)
{
    const char *text = setting_text(t->settings, SETTING_VALID_DATA);
    char *copy;
    int result;

    if (!setting_is_set(t->settings, SETTING_VALID_DATA))
        return add_evaluation_set(t, DATASET_VALID, "valid", NULL, *options, error);
    text += strspn(text, " \t\n");
    if (evaluation_set_name(text) == 0)
        return add_evaluation_set(t, DATASET_VALID, "valid", text, *options, error);
    copy = strdup(text);
    result = copy ? add_named_sets(t, copy, options, error)
                  : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    free(copy);
    return result;
}

static int open_sets(struct training *t, const struct dataset_options *options, struct error *error)
{
    const char *test = setting_is_set(t->settings, SETTING_TEST_DATA)
                           ? setting_text(t->settings, SETTING_TEST_DATA)
                           : NULL;

    if (is_wanted(t, DATASET_TRAIN) && open_training_set(t, *options, error) < 0)
        return -1;
    if (is_wanted(t, DATASET_VALID) && open_validation_sets(t, options, error) < 0)
        return -1;
    return is_wanted(t, DATASET_TEST)
               ? add_evaluation_set(t, DATASET_TEST, "test", test, *options, error)
               : 0;
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
    if (result == 0 && t->evaluation_set_count > 0)
        result = feed_create(&t->eval_feed, t->team.kernels, &t->layout, t->place.dp, &full,
                             t->micro_batch, t->seq_length, error);
    return team_agree(&t->team, result, error);
}

void training_count_data(struct training *t)
{
    int parts = dataset_parts(t->dataset);
    double *counts = calloc(2 * (size_t)parts, sizeof(*counts));

    if (!counts)
        return; /* the next step counts them too */
    dataset_count(t->dataset, t->seen_samples, t->progress.samples - t->seen_samples, counts,
                  counts + parts);
    t->seen_samples = t->progress.samples;
    for (int i = 0; i < parts; i++) {
        struct metrics_dataset *seen = seen_of_part(t, i);

        seen->tokens += counts[i];
        seen->epochs += counts[parts + i];
    }
    free(counts);
}

void training_close_data(struct training *t)
{
    feed_destroy(t->feed);
    feed_destroy(t->eval_feed);
    for (int i = 0; i < t->evaluation_set_count; i++) {
        dataset_close(t->evaluation_sets[i].dataset);
        data_source_close(&t->evaluation_sets[i].source);
        free(t->evaluation_sets[i].name);
    }
    free(t->evaluation_sets);
    free(t->seen);
    dataset_close(t->dataset);
    data_source_close(&t->source);
    free(t->template_tokens);
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
