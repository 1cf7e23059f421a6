/* mtllm-plan: layouts for a model and an allocation. See mtllm-plan(1). */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/settings.h"
#include "trainer/plan.h"
#include "trainer/training.h"

/* What the command line says beside the settings. */
struct command {
    long gpus;        /* 0: not said */
    long first, last; /* of --simulate; 0: not asked for */
    bool json, all;
};

static const char *const recompute_names[] = {
    [RECOMPUTE_NONE] = "none", [RECOMPUTE_SELECTIVE] = "selective", [RECOMPUTE_FULL] = "full"};

enum { SHOWN = 12 }; /* lines of each table, unless all are asked for */
enum { MOST_RANKS = 1 << 20 };

static void write_help(void)
{
    puts("usage: mtllm-plan --gpus=N [--NAME=VALUE]...\n"
         "       mtllm-plan --simulate=FIRST:LAST [--NAME=VALUE]...\n"
         "\n"
         "Prints the layouts that a model can be trained with on N devices: the memory that a\n"
         "rank takes, how long a step lasts, the fastest first; then those that are refused, and\n"
         "why. --simulate does so for the powers of two between two numbers of devices and prints\n"
         "the best of each. Settings are those of mtllm-train(1); those that name a layout, a\n"
         "micro-batch-size or a recompute leave only such.\n"
         "\n"
         "  --gpus=N                         ranks, one a device\n"
         "  --simulate=FIRST:LAST            a line for every power of two of them\n"
         "  --all                            every layout, however many\n"
         "  --json                           an object instead of tables\n"
         "  --help, --version");
    settings_write_help(stdout);
}

/* --- command line ---------------------------------------------------------------------------- */

/* A number of ranks up to the end of the text or `end`. */
static bool read_count(const char *text, char end, long *count, const char **rest)
{
    char *stop;

    *count = strtol(text, &stop, 10);
    *rest = stop;
    return stop != text && *stop == end && *count >= 1 && *count <= MOST_RANKS;
}

/* The value of "--NAME=VALUE" if the word is that, NULL otherwise. */
static const char *value_of(const char *word, const char *name)
{
    size_t length = strlen(name);

    return strncmp(word, name, length) == 0 && word[length] == '=' ? word + length + 1 : NULL;
}

static int read_word(struct command *command, const char *word, bool *ours, struct error *error)
{
    const char *gpus = value_of(word, "--gpus"), *simulate = value_of(word, "--simulate"), *rest;

    *ours = true;
    if (gpus && !read_count(gpus, '\0', &command->gpus, &rest))
        return error_set(error, EXIT_STATUS_USAGE, "--gpus=%s: not a number of ranks; use 1 to %d",
                         gpus, MOST_RANKS);
    if (simulate &&
        (!read_count(simulate, ':', &command->first, &rest) ||
         !read_count(rest + 1, '\0', &command->last, &rest) || command->first > command->last))
        return error_set(error, EXIT_STATUS_USAGE,
                         "--simulate=%s: not two numbers of ranks, the smaller first, as in 8:4096",
                         simulate);
    if (strcmp(word, "--gpus") == 0 || strcmp(word, "--simulate") == 0)
        return error_set(error, EXIT_STATUS_USAGE, "%s: give the value behind an equals sign",
                         word);
    if (strcmp(word, "--json") == 0)
        command->json = true;
    else if (strcmp(word, "--all") == 0)
        command->all = true;
    else
        *ours = gpus || simulate;
    return 0;
}

/* What is not the program's own is a setting. */
static int read_command_line(struct command *command, struct settings *settings, int argc,
                             char **argv, struct error *error)
{
    char **rest = calloc((size_t)argc + 1, sizeof(*rest));
    int count = 0, result = 0;

    if (!rest)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    for (int i = 0; i < argc && result == 0; i++) {
        bool ours = false;

        if (i > 0)
            result = read_word(command, argv[i], &ours, error);
        if (!ours)
            rest[count++] = argv[i];
    }
    if (result == 0)
        result = settings_read_command_line(settings, count, rest, error);
    free(rest);
    if (result == 0 && command->gpus == 0 && command->first == 0)
        result = error_set(error, EXIT_STATUS_USAGE, "say for how many devices: --gpus=N");
    return result;
}

/* --- tables ---------------------------------------------------------------------------------- */

static double gib(size_t bytes)
{
    return (double)bytes / (1 << 30);
}

static void write_layout(const struct plan *plan)
{
    printf("%5d %4d %5d %6lld  %-9s", plan->layout.tp, plan->layout.pp, plan->layout.dp,
           (long long)plan->micro_batch, recompute_names[plan->recompute]);
}

static void write_memory(const struct plan_memory *memory)
{
    printf(" %8.2f %8.2f %8.2f %8.2f %8.2f %8.2f", gib(memory->weights), gib(memory->gradients),
           gib(memory->state), gib(memory->activations), gib(memory->outside), gib(memory->total));
}

static void write_speed(const struct plan *plan)
{
    printf(" %9.3f %12.0f", plan->step_s, plan->tokens_per_s);
    if (plan->mfu > 0)
        printf(" %6.1f%%", 100 * plan->mfu);
    putchar('\n');
}

static void write_accepted(const struct plan_list *plans, size_t shown)
{
    printf("%5s %4s %5s %6s  %-9s %8s %8s %8s %8s %8s %8s %9s %12s %7s\n", "tp", "pp", "dp",
           "micro", "recompute", "weights", "gradient", "state", "activat.", "outside", "GiB/rank",
           "s/step", "tokens/s", "MFU");
    for (size_t i = 0; i < plans->accepted && i < shown; i++) {
        write_layout(&plans->list[i]);
        write_memory(&plans->list[i].memory);
        write_speed(&plans->list[i]);
    }
    if (plans->accepted > shown)
        printf("and %zu more that fit (--all)\n", plans->accepted - shown);
}

static void write_refused(const struct plan_list *plans, size_t shown)
{
    size_t refused = plans->count - plans->accepted;

    if (refused == 0)
        return;
    puts("\nrefused:");
    for (size_t i = 0; i < refused && i < shown; i++) {
        const struct plan *plan = &plans->list[plans->accepted + i];

        write_layout(plan);
        printf(" %s\n", plan->reason);
    }
    if (refused > shown)
        printf("and %zu more (--all)\n", refused - shown);
}

static void write_tables(const struct plan_list *plans, const struct command *command)
{
    size_t shown = command->all ? plans->count : SHOWN;

    if (plans->accepted > 0)
        write_accepted(plans, shown);
    else
        puts("no layout fits");
    write_refused(plans, shown);
}

/* --- JSON ------------------------------------------------------------------------------------ */

static json_t *plan_object(const struct plan *plan)
{
    json_t *object = json_pack(
        "{s:i, s:i, s:i, s:I, s:s, s:b}", "tp", plan->layout.tp, "pp", plan->layout.pp, "dp",
        plan->layout.dp, "micro_batch_size", (json_int_t)plan->micro_batch, "recompute",
        recompute_names[plan->recompute], "accepted", plan->refusal == PLAN_ACCEPTED);

    if (plan->refusal != PLAN_ACCEPTED)
        json_object_set_new(object, "reason", json_string(plan->reason));
    if (plan->refusal == PLAN_LAYOUT)
        return object;
    json_object_set_new(
        object, "bytes",
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "weights", (json_int_t)plan->memory.weights,
                  "gradients", (json_int_t)plan->memory.gradients, "state",
                  (json_int_t)plan->memory.state, "activations",
                  (json_int_t)plan->memory.activations, "outside", (json_int_t)plan->memory.outside,
                  "total", (json_int_t)plan->memory.total));
    json_object_set_new(object, "stage", json_integer(plan->memory.stage));
    json_object_set_new(object, "microbatches", json_integer((json_int_t)plan->microbatches));
    json_object_set_new(object, "step_s", json_real(plan->step_s));
    json_object_set_new(object, "tokens_per_s", json_real(plan->tokens_per_s));
    if (plan->mfu > 0)
        json_object_set_new(object, "mfu", json_real(plan->mfu));
    return object;
}

static int write_json(json_t *json, struct error *error)
{
    int result = json ? json_dumpf(json, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : -1;

    json_decref(json);
    putchar('\n');
    return result == 0 ? 0 : error_set(error, EXIT_STATUS_IO, "cannot write JSON");
}

static json_t *plans_array(const struct plan_list *plans)
{
    json_t *array = json_array();

    for (size_t i = 0; i < plans->count; i++)
        json_array_append_new(array, plan_object(&plans->list[i]));
    return array;
}

/* --- what is asked for ----------------------------------------------------------------------- */

/* All layouts of one allocation. EXIT_STATUS_CONFIGURATION without a word in `error` when none
 * fits. */
static int plan_once(const struct plan_job *job, const struct plan_device *device,
                     const struct command *command, struct error *error)
{
    struct plan_list plans;
    int result = 0;

    if (plan_list_create(&plans, job, device, error) < 0)
        return -1;
    if (command->json)
        result = write_json(
            json_pack("{s:i, s:o}", "gpus", job->world, "plans", plans_array(&plans)), error);
    else
        write_tables(&plans, command);
    if (result == 0 && plans.accepted == 0)
        result = EXIT_STATUS_CONFIGURATION;
    plan_list_destroy(&plans);
    return result;
}

/* `error`: why there is no layout to try. */
static void write_best(int gpus, const struct plan_list *plans, const struct error *error)
{
    printf("%5d ", gpus);
    if (plans->accepted == 0) {
        printf(" none: %s\n", plans->count > 0 ? plans->list[0].reason : error->text);
        return;
    }
    write_layout(&plans->list[0]);
    printf(" %8.2f", gib(plans->list[0].memory.total));
    write_speed(&plans->list[0]);
}

/* The best of every power of two. */
static int simulate(struct plan_job *job, const struct plan_device *device,
                    const struct command *command, struct error *error)
{
    json_t *array = command->json ? json_array() : NULL;

    if (!command->json)
        printf("%5s %5s %4s %5s %6s  %-9s %8s %9s %12s %7s\n", "GPUs", "tp", "pp", "dp", "micro",
               "recompute", "GiB/rank", "s/step", "tokens/s", "MFU");
    for (long gpus = command->first; gpus <= command->last; gpus *= 2) {
        struct plan_list plans;

        job->world = (int)gpus;
        /* The next number of devices may be one that the settings go with. */
        if (plan_list_create(&plans, job, device, error) < 0 &&
            error->status != EXIT_STATUS_CONFIGURATION) {
            json_decref(array);
            return -1;
        }
        if (array)
            json_array_append_new(
                array, json_pack("{s:I, s:o}", "gpus", (json_int_t)gpus, "best",
                                 plans.accepted ? plan_object(&plans.list[0]) : json_null()));
        else
            write_best((int)gpus, &plans, error);
        fflush(stdout);
        plan_list_destroy(&plans);
    }
    return array ? write_json(array, error) : 0;
}

static void write_heading(const struct plan_job *job, const struct plan_device *device)
{
    double weights = (double)model_parameters(job->model);
    struct stage_work work;

    training_work(&work, job->settings, job->model);
    printf("%s: %.2f %s weights, sequences of %lld tokens, ",
           setting_is_set(job->settings, SETTING_MODEL) ? setting_text(job->settings, SETTING_MODEL)
           : setting_is_set(job->settings, SETTING_INIT) ? setting_text(job->settings, SETTING_INIT)
                                                         : "the model",
           weights / (weights < 1e9 ? 1e6 : 1e9), weights < 1e9 ? "million" : "billion",
           (long long)work.seq_length);
    if (job->global_batch > 0)
        printf("%lld a step\n", (long long)job->global_batch);
    else
        puts("micro-batch-size x dp a step");
    printf("%s: %.2f GiB, %d a node; products %.4g TFLOP/s, attention %.4g, memory %.4g GB/s, "
           "links %.4g, network %.4g\n\n",
           device->name, device->memory_bytes / (1 << 30), device->per_node,
           device->product_rate / 1e12, device->attention_rate / 1e12,
           device->memory_bandwidth / 1e9, device->link_bandwidth / 1e9,
           device->network_bandwidth / 1e9);
}

static int run(const struct command *command, struct settings *settings, struct error *error)
{
    struct plan_device device;
    struct model model;
    struct plan_job job = {.settings = settings, .model = &model, .world = (int)command->gpus};

    if (settings_read_environment(settings, error) < 0 ||
        settings_read_layers(settings, error) < 0 ||
        training_find_model(&model, settings, error) < 0 ||
        plan_device_from_settings(&device, settings, error) < 0 ||
        training_check_state(settings, device.kernels->dtype, error) < 0)
        return -1;
    if (setting_is_set(settings, SETTING_GLOBAL_BATCH_SIZE))
        job.global_batch = setting_integer(settings, SETTING_GLOBAL_BATCH_SIZE);
    if (!command->json)
        write_heading(&job, &device);
    return command->first > 0 ? simulate(&job, &device, command, error)
                              : plan_once(&job, &device, command, error);
}

int main(int argc, char **argv)
{
    struct settings *settings = settings_create();
    struct command command = {0};
    struct error error = {0};
    int status = -1;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0)
            write_help();
        else if (strcmp(argv[i], "--version") == 0)
            puts("mtllm " MTLLM_VERSION);
        else
            continue;
        settings_destroy(settings);
        return 0;
    }
    if (!settings)
        error_set(&error, EXIT_STATUS_SYSTEM, "out of memory");
    else if (read_command_line(&command, settings, argc, argv, &error) == 0)
        status = run(&command, settings, &error);
    if (status < 0)
        status = error_print(&error);
    settings_destroy(settings);
    return status;
}
