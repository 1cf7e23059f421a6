#include "core/layout.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct layout_place layout_place(const struct layout *layout, int rank)
{
    return (struct layout_place){
        .tp = rank % layout->tp,
        .cp = rank / layout->tp % layout->cp,
        .dp = rank / (layout->tp * layout->cp) % layout->dp,
        .pp = rank / (layout->tp * layout->cp * layout->dp),
    };
}

int layout_rank(const struct layout *layout, struct layout_place place)
{
    return ((place.pp * layout->dp + place.dp) * layout->cp + place.cp) * layout->tp + place.tp;
}

int layout_kv_sharing(const struct layout *layout, const struct model *model)
{
    return layout->tp > model->kv_heads ? (int)(layout->tp / model->kv_heads) : 1;
}

/* What the head's products are worth in layers. Attention's own work, which depends on the length
 * of sequences, is left out. */
static double head_in_layers(const struct model *model)
{
    int64_t wide = (2 * model->heads + 2 * model->kv_heads) * model->head_dim;
    int64_t mlp = (model->mlp == MODEL_MLP_SWIGLU ? 3 : 2) * model->ffn_size;

    return (double)model->vocab_size / (double)(wide + mlp);
}

/* Layers of the last virtual stage; all have one. */
static int64_t last_layers(const struct layout *layout, const struct model *model)
{
    int64_t others = layout_virtual_stages(layout) - 1, best = 1;
    double head = head_in_layers(model), least = INFINITY;

    for (int64_t last = 1; last <= model->layers - others; last++) {
        int64_t largest = (model->layers - last + others - 1) / others;
        double most = fmax((double)largest, (double)last + head);

        if (most <= least) {
            least = most;
            best = last;
        }
    }
    return best;
}

int64_t layout_first_layer(const struct layout *layout, const struct model *model, int stage)
{
    int64_t others, stages = layout_virtual_stages(layout) - 1, smaller;

    if (stage == 0 || stage == stages + 1)
        return stage == 0 ? 0 : model->layers;
    others = model->layers - last_layers(layout, model);
    smaller = stages - others % stages; /* stages with a layer less */
    return others / stages * stage + (stage > smaller ? stage - smaller : 0);
}

/* "1, 2, 4 or 8": the numbers up to `most` that fit the model, the larger ones left out of a long
 * list. */
static void list_numbers(int64_t most, bool (*fits)(const struct model *model, int64_t number),
                         const struct model *model, char *text, size_t size)
{
    int64_t numbers[16];
    size_t count = 0, used = 0;

    for (int64_t i = 1; i <= most && count < 16; i++)
        if (fits(model, i))
            numbers[count++] = i;
    for (size_t i = 0; i < count && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%lld",
                                 i == 0          ? ""
                                 : i + 1 < count ? ", "
                                                 : " or ",
                                 (long long)numbers[i]);
}

static const char *model_name(const struct settings *settings)
{
    return setting_is_set(settings, SETTING_MODEL) ? setting_text(settings, SETTING_MODEL)
                                                   : "the model";
}

/* Every tensor-parallel rank holds whole query heads and whole columns of the MLP, and whole
 * key/value heads or, with its neighbours, one. */
static bool kv_heads_fit(const struct model *model, int64_t tp)
{
    return model->kv_heads % tp == 0 || tp % model->kv_heads == 0;
}

static bool tp_fits(const struct model *model, int64_t tp)
{
    return kv_heads_fit(model, tp) && model->heads % tp == 0 && model->ffn_size % tp == 0;
}

static int check_tp(const struct layout *layout, const struct settings *settings,
                    const struct model *model, const char *prefix, struct error *error)
{
    const struct {
        const char *what;
        int64_t count;
        bool fits;
    } parts[] = {
        {"key/value heads", model->kv_heads, kv_heads_fit(model, layout->tp)},
        {"query heads", model->heads, model->heads % layout->tp == 0},
        {"MLP columns", model->ffn_size, model->ffn_size % layout->tp == 0},
    };
    char fitting[256];

    list_numbers(model->heads, tp_fits, model, fitting, sizeof(fitting));
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
        if (!parts[i].fits)
            return error_set(error, EXIT_STATUS_CONFIGURATION,
                             "%stp=%d: %s has %lld %s, which %d does not divide; use %s", prefix,
                             layout->tp, model_name(settings), (long long)parts[i].count,
                             parts[i].what, layout->tp, fitting);
    return 0;
}

static bool cp_fits(const struct model *model, int64_t cp)
{
    return model->heads % cp == 0 && kv_heads_fit(model, cp);
}

/* Every rank of a context parallel group attends with whole heads: as many query heads as the
 * others, and whole key/value heads or, with its neighbours, one. */
static int check_cp(const struct layout *layout, const struct settings *settings,
                    const struct model *model, const char *prefix, struct error *error)
{
    const struct model rank = {
        .heads = model->heads / layout->tp,
        .kv_heads = model->kv_heads * layout_kv_sharing(layout, model) / layout->tp,
    };
    char fitting[256];

    if (cp_fits(&rank, layout->cp))
        return 0;
    list_numbers(rank.heads, cp_fits, &rank, fitting, sizeof(fitting));
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "%scp=%d: %s has %lld query and %lld key/value heads a rank with tp=%d, which "
                     "it does not divide; use %s",
                     prefix, layout->cp, model_name(settings), (long long)rank.heads,
                     (long long)rank.kv_heads, layout->tp, fitting);
}

int layout_check(const struct layout *layout, const struct settings *settings,
                 const struct model *model, const char *prefix, struct error *error)
{
    if (check_tp(layout, settings, model, prefix, error) < 0 ||
        check_cp(layout, settings, model, prefix, error) < 0)
        return -1;
    if (layout_chunks(layout) > 1 &&
        strcmp(setting_text(settings, SETTING_PP_SCHEDULE), "zero-bubble") == 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%spp-schedule=zero-bubble: goes with one chunk a stage, not "
                         "%spp-chunks=%d; leave one of them away",
                         prefix, prefix, layout->chunks);
    if (layout_virtual_stages(layout) <= model->layers)
        return 0;
    if (layout->pp <= model->layers)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%spp-chunks=%d: %s has %lld layers, and every chunk of %spp=%d stages "
                         "needs one; use at most %lld",
                         prefix, layout->chunks, model_name(settings), (long long)model->layers,
                         prefix, layout->pp, (long long)(model->layers / layout->pp));
    return error_set(error, EXIT_STATUS_CONFIGURATION,
                     "%spp=%d: %s has %lld layers, and every stage needs one; use at most %lld",
                     prefix, layout->pp, model_name(settings), (long long)model->layers,
                     (long long)model->layers);
}

int layout_from_settings(struct layout *layout, const struct settings *settings,
                         const struct model *model, int world, const char *prefix,
                         struct error *error)
{
    char given[96], factors[64];
    int64_t group; /* at most 2^36 */

    *layout = (struct layout){
        .tp = setting_is_set(settings, SETTING_TP) ? (int)setting_integer(settings, SETTING_TP) : 1,
        .pp = setting_is_set(settings, SETTING_PP) ? (int)setting_integer(settings, SETTING_PP) : 1,
        .dp = setting_is_set(settings, SETTING_DP) ? (int)setting_integer(settings, SETTING_DP) : 0,
        .cp = (int)setting_integer(settings, SETTING_CP),
        .chunks = (int)setting_integer(settings, SETTING_PP_CHUNKS),
    };
    if (model && layout_check(layout, settings, model, prefix, error) < 0)
        return -1;
    group = (int64_t)layout->tp * layout->pp * layout->cp;
    if (world == 0) {
        if (layout->dp == 0)
            layout->dp = 1;
        return 0;
    }
    if (layout->dp == 0 && world % group == 0)
        layout->dp = world / (int)group;
    snprintf(given, sizeof(given), "%stp=%d %spp=%d", prefix, layout->tp, prefix, layout->pp);
    snprintf(factors, sizeof(factors), "%d x %d", layout->tp, layout->pp);
    if (layout->cp > 1) {
        snprintf(given + strlen(given), sizeof(given) - strlen(given), " %scp=%d", prefix,
                 layout->cp);
        snprintf(factors + strlen(factors), sizeof(factors) - strlen(factors), " x %d", layout->cp);
    }
    if (layout->dp == 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%s: one replica takes %s = %lld ranks, which does not divide the %d that "
                         "were started; start a multiple of %lld (srun -n)",
                         given, factors, (long long)group, world, (long long)group);
    if (group * layout->dp != world)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%s %sdp=%d: %s x %d = %lld ranks, but %d were "
                         "started; start that many (srun -n), or leave %sdp to be worked out",
                         given, prefix, layout->dp, factors, layout->dp,
                         (long long)group * layout->dp, world, prefix);
    return 0;
}
