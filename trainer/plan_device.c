/* The devices that layouts are planned for. */
#include <string.h>
#include <unistd.h>

#include "kernels/attention_workspace.h"
#include "trainer/plan.h"

#define GIB  ((double)(1 << 30))
#define TERA 1e12
#define GIGA 1e9

struct device_type {
    const char *name;
    double memory_gib; /* what the driver says there is; 0: what the host has */
    double product_tflops, attention_tflops, peak_tflops;
    double memory_gbps, link_gbps, network_gbps;
};

/* Products and attention as measured in whole steps, a copy on the device, messages through NCCL
 * inside a node with NVLink (kernels/cuda/NOTES.md); between nodes 400 Gbit/s a GPU, of which nine
 * tenths arrive. A CPU's are those of a few cores. */
static const struct device_type types[] = {
    {"h100", 79.1, 735, 510, 989.4, 3000, 300, 45},
    {"h200", 139.8, 735, 510, 989.4, 4200, 300, 45},
    {"cpu", 0, 0.1, 0.03, 0, 10, 2, 1},
};

/* As kernels/cuda/module.cu has it. */
enum { HEAD_ROWS = 4096 };

static const struct attention_device hopper = {.multiprocessors = 132, .shared_bytes = 227 << 10};

static size_t own_workspace(const struct attention_shape *shape)
{
    return attention_workspace_bytes(shape, &hopper);
}

/* Where cuDNN is wanted and can do it. */
static size_t cudnn_workspace(const struct attention_shape *shape)
{
    size_t own = own_workspace(shape), cudnn;

    if (shape->varying || shape->window > 0 || shape->head_dim % 8 != 0 || shape->head_dim > 128 ||
        shape->rows / shape->sequences % 128 != 0)
        return own;
    cudnn = attention_cudnn_bytes(shape);
    return cudnn > own ? cudnn : own;
}

/* Where cuDNN does what the kernels for Hopper do not. */
static size_t automatic_workspace(const struct attention_shape *shape)
{
    return shape->head_dim == 64 || shape->head_dim == 128 ? own_workspace(shape)
                                                           : cudnn_workspace(shape);
}

static struct kernels facts_of(const struct settings *settings)
{
    const char *attention = setting_text(settings, SETTING_ATTENTION);
    const char *dtype = setting_text(settings, SETTING_DTYPE);
    struct kernels facts = {
        .name = "cuda",
        .dtype = strcmp(dtype, "auto") == 0 ? DTYPE_BF16 : (enum dtype)dtype_from_name(dtype),
        .head_rows = HEAD_ROWS,
        .attention_workspace = automatic_workspace,
    };

    if (strcmp(attention, "flash") == 0 || facts.dtype == DTYPE_F32)
        facts.attention_workspace = own_workspace;
    else if (strcmp(attention, "cudnn") == 0)
        facts.attention_workspace = cudnn_workspace;
    return facts;
}

static const struct device_type *find_type(const char *name)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (strcmp(types[i].name, name) == 0)
            return &types[i];
    return &types[0];
}

static double rate(const struct settings *settings, enum setting_id id, double otherwise,
                   double unit)
{
    return (setting_is_set(settings, id) ? setting_real(settings, id) : otherwise) * unit;
}

static void set_rates(struct plan_device *device, const struct settings *settings,
                      const struct device_type *type)
{
    double share = type->attention_tflops / type->product_tflops;

    device->product_rate = rate(settings, SETTING_PRODUCT_RATE, type->product_tflops, TERA);
    device->attention_rate =
        rate(settings, SETTING_ATTENTION_RATE, device->product_rate / TERA * share, TERA);
    device->peak_rate = type->peak_tflops * TERA;
    device->memory_bandwidth = rate(settings, SETTING_MEMORY_BANDWIDTH, type->memory_gbps, GIGA);
    device->link_bandwidth = rate(settings, SETTING_LINK_BANDWIDTH, type->link_gbps, GIGA);
    device->network_bandwidth = rate(settings, SETTING_NETWORK_BANDWIDTH, type->network_gbps, GIGA);
}

void plan_device_rates(struct plan_device *device, const struct settings *settings,
                       const char *name)
{
    set_rates(device, settings,
              find_type(strstr(name, "H200")  ? "h200"
                        : strstr(name, "cpu") ? "cpu"
                                              : "h100"));
}

/* A rank's share of what this host has. */
static double host_memory(int ranks)
{
    return (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / ranks;
}

int plan_device_from_settings(struct plan_device *device, const struct settings *settings,
                              struct error *error)
{
    const struct device_type *type = find_type(setting_text(settings, SETTING_DEVICE_TYPE));
    const char *dtype = setting_text(settings, SETTING_DTYPE);
    bool gpu = type->memory_gib > 0;

    *device = (struct plan_device){
        .name = type->name,
        .gpu = gpu,
        .per_node = (int)setting_integer(settings, SETTING_GPUS_PER_NODE),
    };
    if (!gpu && strcmp(dtype, "auto") != 0 && strcmp(dtype, "fp32") != 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "dtype=%s: CPUs compute in fp32; leave it away or plan for GPUs "
                         "(--device-type)",
                         dtype);
    if (gpu)
        device->facts = facts_of(settings);
    device->kernels = gpu ? &device->facts : kernels_cpu(1);
    device->memory_bytes = setting_is_set(settings, SETTING_DEVICE_MEMORY)
                               ? setting_real(settings, SETTING_DEVICE_MEMORY) * GIB
                           : gpu ? type->memory_gib * GIB
                                 : host_memory(device->per_node);
    set_rates(device, settings, type);
    return 0;
}
