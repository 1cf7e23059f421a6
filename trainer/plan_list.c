/* Which layouts there are, and which is taken. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/plan.h"
#include "trainer/training.h"

enum { MOST_SEQUENCES = 16 }; /* of a microbatch that is tried */

static bool is_given(const struct settings *settings, enum setting_id id)
{
    return setting_is_set(settings, id) && setting_source(settings, id) != SETTING_SOURCE_DEFAULT;
}

/* Whether `value` is what the setting says, or the setting says nothing. */
static bool may_be(const struct settings *settings, enum setting_id id, int64_t value)
{
    return !is_given(settings, id) || setting_integer(settings, id) == value;
}

static int append(struct plan_list *plans, const struct plan *plan, const struct plan_job *job,
                  const struct plan_device *device, struct error *error)
{
    struct plan *list = realloc(plans->list, (plans->count + 1) * sizeof(*list));

    if (!list)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    plans->list = list;
    list[plans->count] = *plan;
    return plan_evaluate(&list[plans->count++], job, device, error);
}

/* A layout and microbatch, with what is computed again. What cannot be has one entry. */
static int append_recompute(struct plan_list *plans, struct plan plan, const struct plan_job *job,
                            const struct plan_device *device, struct error *error)
{
    struct stage_work work;

    training_work(&work, job->settings, job->model);
    for (int kind = RECOMPUTE_NONE; kind <= RECOMPUTE_FULL; kind++) {
        plan.recompute = (enum recompute)kind;
        plan.recompute_layers = work.recompute_layers;
        if (is_given(job->settings, SETTING_RECOMPUTE) && work.recompute != plan.recompute)
            continue;
        if (append(plans, &plan, job, device, error) < 0)
            return -1;
        if (plans->list[plans->count - 1].refusal == PLAN_LAYOUT)
            break;
    }
    return 0;
}

static int append_layout(struct plan_list *plans, struct layout layout, const struct plan_job *job,
                         const struct plan_device *device, struct error *error)
{
    bool given = is_given(job->settings, SETTING_MICRO_BATCH_SIZE);
    int64_t first = given ? setting_integer(job->settings, SETTING_MICRO_BATCH_SIZE) : 1;
    int64_t most = given ? first : MOST_SEQUENCES;
    int64_t share = job->global_batch / layout.dp;

    for (int64_t micro = first; micro <= most; micro *= 2) {
        struct plan plan = {.layout = layout, .micro_batch = micro};

        /* One line for all those that are too large for the batch. */
        if (micro > first && share > 0 && share % micro != 0)
            break;
        if (append_recompute(plans, plan, job, device, error) < 0)
            return -1;
        /* Rows of more sequences may be what ranks divide; the first says why it is not. */
        if (micro > first && plans->list[plans->count - 1].refusal == PLAN_LAYOUT)
            plans->count--;
    }
    return 0;
}

static int compare(const void *first, const void *second)
{
    const struct plan *a = first, *b = second;

    if (a->refusal != b->refusal)
        return a->refusal == PLAN_ACCEPTED   ? -1
               : b->refusal == PLAN_ACCEPTED ? 1
               : a->refusal == PLAN_MEMORY   ? -1
                                             : 1;
    if (a->refusal == PLAN_ACCEPTED && a->tokens_per_s != b->tokens_per_s)
        return a->tokens_per_s > b->tokens_per_s ? -1 : 1;
    if (a->memory.total != b->memory.total)
        return a->memory.total < b->memory.total ? -1 : 1;
    if (a->layout.tp != b->layout.tp)
        return a->layout.tp < b->layout.tp ? -1 : 1;
    return a->layout.pp - b->layout.pp;
}

/* No tp x cp x pp x dp is the number of ranks. */
static int nothing_to_try(const struct plan_job *job, struct error *error)
{
    static const enum setting_id factors[] = {SETTING_TP, SETTING_CP, SETTING_PP, SETTING_DP};
    char given[128] = "";

    for (size_t i = 0; i < sizeof(factors) / sizeof(*factors); i++)
        if (is_given(job->settings, factors[i]))
            snprintf(given + strlen(given), sizeof(given) - strlen(given), "%s--%s=%lld",
                     *given ? " " : "", setting_table[factors[i]].name,
                     (long long)setting_integer(job->settings, factors[i]));
    return error_set(
        error, EXIT_STATUS_CONFIGURATION,
        "%s: no layout of %d ranks has that, tp x cp x pp x dp has to be the number of "
        "ranks; change one, or leave it away",
        given, job->world);
}

int plan_list_create(struct plan_list *plans, const struct plan_job *job,
                     const struct plan_device *device, struct error *error)
{
    *plans = (struct plan_list){0};
    for (int tp = 1; tp <= job->world; tp++)
        for (int pp = 1; pp <= job->world / tp; pp++) {
            struct layout layout = {.tp = tp,
                                    .pp = pp,
                                    .cp = (int)setting_integer(job->settings, SETTING_CP),
                                    .chunks =
                                        (int)setting_integer(job->settings, SETTING_PP_CHUNKS)};
            int64_t group = (int64_t)tp * pp * layout.cp;

            if (job->world % group != 0)
                continue;
            layout.dp = job->world / (int)group;
            if (!may_be(job->settings, SETTING_TP, tp) || !may_be(job->settings, SETTING_PP, pp) ||
                !may_be(job->settings, SETTING_DP, layout.dp))
                continue;
            if (append_layout(plans, layout, job, device, error) < 0) {
                plan_list_destroy(plans);
                return -1;
            }
        }
    if (plans->count == 0)
        return nothing_to_try(job, error);
    qsort(plans->list, plans->count, sizeof(*plans->list), compare);
    while (plans->accepted < plans->count && plans->list[plans->accepted].refusal == PLAN_ACCEPTED)
        plans->accepted++;
    return 0;
}

void plan_list_destroy(struct plan_list *plans)
{
    free(plans->list);
    *plans = (struct plan_list){0};
}

/* The fastest of the layouts with tp x pp = `group`, into *best if any is accepted, else one that
 * cannot be, if there is one; the least memory that one needs into *least. */
static int best_of_group(struct plan *best, size_t *least, int group, const struct plan_job *job,
                         const struct plan_device *device, struct error *error)
{
    int cp = (int)setting_integer(job->settings, SETTING_CP);
    struct stage_work work;

    training_work(&work, job->settings, job->model);
    *best = (struct plan){.refusal = PLAN_LAYOUT};
    for (int tp = 1; tp <= group && tp <= device->per_node; tp++) {
        struct plan plan = {
            .layout = {.tp = tp,
                       .pp = group / tp,
                       .dp = job->world / group / cp,
                       .cp = cp,
                       .chunks = (int)setting_integer(job->settings, SETTING_PP_CHUNKS)},
            .micro_batch = work.micro_batch,
            .recompute = work.recompute,
            .recompute_layers = work.recompute_layers,
        };

        if (group % tp != 0)
            continue;
        if (plan_evaluate(&plan, job, device, error) < 0)
            return -1;
        if (plan.refusal == PLAN_MEMORY && (*least == 0 || plan.memory.total < *least))
            *least = plan.memory.total;
        if (plan.refusal == PLAN_ACCEPTED &&
            (best->refusal != PLAN_ACCEPTED || plan.step_s < best->step_s))
            *best = plan;
        else if (plan.refusal == PLAN_LAYOUT && !*best->reason)
            *best = plan;
    }
    return 0;
}

int plan_default_layout(struct layout *layout, const struct plan_job *job,
                        const struct plan_device *device, struct error *error)
{
    int cp = (int)setting_integer(job->settings, SETTING_CP);
    struct plan impossible = {.reason = ""};
    size_t least = 0;

    for (int group = 1; group * cp <= job->world; group++) {
        struct plan best;

        if (job->world % (group * cp) != 0 ||
            !may_be(job->settings, SETTING_DP, job->world / (group * cp)))
            continue;
        if (best_of_group(&best, &least, group, job, device, error) < 0)
            return -1;
        if (best.refusal == PLAN_ACCEPTED) {
            *layout = best.layout;
            return 0;
        }
        if (!*impossible.reason)
            impossible = best;
    }
    if (least == 0 && !*impossible.reason)
        return nothing_to_try(job, error);
    if (least == 0)
        return error_set(
            error, EXIT_STATUS_CONFIGURATION,
            "no layout of %d ranks is possible: with tp=%d pp=%d dp=%d, %s (mtllm-plan "
            "shows all)",
            job->world, impossible.layout.tp, impossible.layout.pp, impossible.layout.dp,
            impossible.reason);
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "no layout of %d ranks fits into the %.4g GiB of a device: the least that one "
                     "needs is %.4g GiB; use more ranks, --recompute=full%s a smaller "
                     "--micro-batch-size%s (mtllm-plan shows all)",
                     job->world, device->memory_bytes / (1 << 30), (double)least / (1 << 30),
                     device->gpu ? "," : " or", device->gpu ? " or --optimizer-state=bf16" : "");
}
