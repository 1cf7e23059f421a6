/* The layout of a run that names neither tp nor pp. */
#include <stdio.h>
#include <string.h>

#include "ckpt/weights.h"
#include "core/log.h"
#include "trainer/device.h"
#include "trainer/plan.h"
#include "trainer/training.h"

int training_find_model(struct model *model, const struct settings *settings, struct error *error)
{
    struct weights *init = NULL;
    int result;

    if (setting_is_set(settings, SETTING_LAYERS) || !setting_is_set(settings, SETTING_INIT))
        return model_from_settings(model, settings, error);
    if (weights_open(&init, setting_text(settings, SETTING_INIT), error) < 0)
        return error_prefix(error, "init: ");
    *model = *weights_model(init);
    result = model_override(model, settings, error);
    weights_close(init);
    return result;
}

static int plan_layout(struct layout *layout, const struct plan_device *device,
                       const struct settings *settings, const struct world *world,
                       struct error *error)
{
    struct error unknown = {0};
    struct plan_job job = {.settings = settings, .world = world->size};
    struct model model;
    char cp[16] = "";

    /* It may be in a checkpoint that is still to be found; what else is wrong is said where the
     * model is settled. */
    if (training_find_model(&model, settings, &unknown) < 0)
        return layout_from_settings(layout, settings, NULL, world->size, "--", error);
    job.model = &model;
    if (setting_is_set(settings, SETTING_GLOBAL_BATCH_SIZE))
        job.global_batch = setting_integer(settings, SETTING_GLOBAL_BATCH_SIZE);
    if (plan_default_layout(layout, &job, device, error) < 0)
        return -1;
    if (layout->cp > 1)
        snprintf(cp, sizeof(cp), " cp=%d", layout->cp);
    if (layout->tp * layout->pp > 1)
        log_info("layout: tp=%d pp=%d dp=%d%s, the smallest whose ranks fit into %.4g GiB",
                 layout->tp, layout->pp, layout->dp, cp, device->memory_bytes / (1 << 30));
    return 0;
}

int training_choose_layout(struct layout *layout, const struct settings *settings,
                           const struct world *world, const struct kernels *kernels,
                           struct error *error)
{
    struct plan_device device = {
        .name = kernels->name,
        .kernels = kernels,
        .gpu = strcmp(kernels->name, "cuda") == 0,
        .memory_bytes = device_memory(kernels, settings),
        .per_node = world->local_size,
    };
    struct {
        struct layout layout;
        struct error error;
    } choice = {.error.status = 0};

    if (setting_is_set(settings, SETTING_TP) || setting_is_set(settings, SETTING_PP) ||
        world->size == 1 || device.memory_bytes == 0)
        return layout_from_settings(layout, settings, NULL, world->size, "--", error);
    plan_device_rates(&device, settings, device_name(kernels));
    if (world->rank == 0 || !device.gpu)
        (void)plan_layout(&choice.layout, &device, settings, world, &choice.error);
    /* The first rank's GPU stands for all: they must agree before they can talk about it. */
    if (device.gpu && world_share(world, &choice, sizeof(choice), error) < 0)
        return -1;
    *layout = choice.layout;
    *error = choice.error;
    return choice.error.status == 0 ? 0 : -1;
}
