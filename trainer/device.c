#include "trainer/device.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "core/log.h"
#include "kernels/module.h"

/* This rank's share of the cores it may run on. */
static int default_threads(const struct world *world)
{
    cpu_set_t set;
    int cores = 1;

    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        cores = CPU_COUNT(&set);
    return cores / world->local_size > 1 ? cores / world->local_size : 1;
}

static int threads_of(const struct settings *settings, const struct world *world)
{
    const char *omp = getenv("OMP_NUM_THREADS");

    if (setting_is_set(settings, SETTING_THREADS))
        return (int)setting_integer(settings, SETTING_THREADS);
    if (omp && atoi(omp) > 0)
        return atoi(omp);
    return default_threads(world);
}

/* The module, when a GPU is to be used; NULL without an error when the CPU is. */
static int find_module(const struct cuda_module **module, const char *wanted, struct error *error)
{
    struct error reason = {0};

    *module = NULL;
    if (strcmp(wanted, "cpu") == 0)
        return 0;
    *module = cuda_module_load(&reason);
    if (*module && (*module)->device_count() > 0)
        return 0;
    if (strcmp(wanted, "cuda") == 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION, "device=cuda: %s",
                         *module ? "this process sees no GPU; ask Slurm for one (--gpus-per-task=1)"
                                 : reason.text);
    *module = NULL;
    return 0;
}

static int open_cpu(const struct kernels **kernels, const struct settings *settings,
                    const struct world *world, struct error *error)
{
    const char *dtype = setting_text(settings, SETTING_DTYPE);

    if (strcmp(dtype, "auto") != 0 && strcmp(dtype, "fp32") != 0)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "dtype=%s: CPUs compute in fp32; leave it away or use --device=cuda",
                         dtype);
    *kernels = kernels_cpu(threads_of(settings, world));
    return 0;
}

int device_open(const struct kernels **kernels, const struct settings *settings,
                const struct world *world, struct error *error)
{
    const char *dtype = setting_text(settings, SETTING_DTYPE);
    struct cuda_options options = {.attention = setting_text(settings, SETTING_ATTENTION)};
    const struct cuda_module *module;
    int count;

    if (find_module(&module, setting_text(settings, SETTING_DEVICE), error) < 0)
        return -1;
    if (!module)
        return open_cpu(kernels, settings, world, error);
    count = module->device_count();
    if (count > 1 && world->local_rank >= count)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "%d ranks on this node, but it has %d GPUs; start one rank a GPU",
                         world->local_size, count);
    options.device = count > 1 ? world->local_rank : 0;
    options.dtype = strcmp(dtype, "auto") == 0 ? DTYPE_BF16 : (enum dtype)dtype_from_name(dtype);
    *kernels = module->open(&options, error);
    return *kernels ? 0 : -1;
}

/* The module behind a backend, NULL on CPUs. */
static const struct cuda_module *module_of(const struct kernels *kernels)
{
    struct error error;

    return strcmp(kernels->name, "cuda") == 0 ? cuda_module_load(&error) : NULL;
}

const char *device_name(const struct kernels *kernels)
{
    const struct cuda_module *module = module_of(kernels);

    return module ? module->device_name() : kernels->name;
}

/* --- speed ----------------------------------------------------------------------------------- */

double device_peak_tflops(const struct kernels *kernels)
{
    /* The first that is part of the device's name holds. */
    static const struct {
        const char *name;
        double tflops; /* dense bf16 and fp16 */
    } devices[] = {
        {"H100 PCIe", 756}, {"H100 NVL", 835}, {"H100", 989.4}, {"H200", 989.4},
        {"H800", 989.4},    {"H20", 148},      {"B200", 2250},  {"B100", 1800},
        {"A100", 312},      {"A800", 312},     {"L40", 181},
    };
    const struct cuda_module *module = module_of(kernels);

    if (!module || kernels->dtype == DTYPE_F32)
        return 0;
    for (size_t i = 0; i < sizeof(devices) / sizeof(*devices); i++)
        if (strstr(module->device_name(), devices[i].name))
            return devices[i].tflops;
    return 0;
}

/* --- memory ---------------------------------------------------------------------------------- */

static double gib(size_t bytes)
{
    return (double)bytes / (1 << 30);
}

double device_memory(const struct kernels *kernels, const struct settings *settings)
{
    const struct cuda_module *module = module_of(kernels);
    size_t total = 0, used;

    if (setting_is_set(settings, SETTING_DEVICE_MEMORY))
        return setting_real(settings, SETTING_DEVICE_MEMORY) * (1 << 30);
    if (module)
        module->memory(&total, &used);
    return (double)total;
}

double device_memory_used(const struct kernels *kernels)
{
    const struct cuda_module *module = module_of(kernels);
    struct rusage usage = {0};
    size_t total, used = 0;

    if (module) {
        module->memory(&total, &used);
        return (double)used;
    }
    (void)getrusage(RUSAGE_SELF, &usage); /* cannot fail */
    return 1024.0 * (double)usage.ru_maxrss;
}

/* A rank's memory by what it is for. */
struct shares {
    uint64_t whole, weights, gradients, state;
};

int device_report_plan(const struct stage *stage, struct team *team, struct error *error)
{
    const struct cuda_module *module = module_of(stage->kernels);
    struct shares mine = {stage->memory_bytes, stage->weight_bytes, stage->gradient_bytes,
                          stage->state_bytes};
    int ranks = comm_size(team->world), most = 0;
    struct shares *all = calloc((size_t)ranks, sizeof(*all));
    size_t total, used;
    char device[64] = "";
    int result;

    if (!all)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    result = team_gather(team, all, &mine, sizeof(mine), error);
    for (int rank = 1; rank < ranks; rank++)
        if (all[rank].whole > all[most].whole)
            most = rank;
    if (module) {
        module->memory(&total, &used);
        snprintf(device, sizeof(device), "; the device has %.2f GiB", gib(total));
    }
    if (result == 0)
        log_info("%s: %.2f GiB planned on rank %d, which takes most, in bytes: weights %llu, "
                 "gradients %llu, optimizer state %llu, activations %llu%s",
                 module ? module->device_name() : "memory", gib(all[most].whole), most,
                 (unsigned long long)all[most].weights, (unsigned long long)all[most].gradients,
                 (unsigned long long)all[most].state,
                 (unsigned long long)(all[most].whole - all[most].weights - all[most].gradients -
                                      all[most].state),
                 device);
    free(all);
    return result;
}

void device_report_use(const struct stage *stage)
{
    const struct cuda_module *module = module_of(stage->kernels);
    size_t total, used;

    if (!module)
        return;
    module->memory(&total, &used);
    log_info("%s: %.2f GiB in use, %.2f of them planned, the rest CUDA's and its libraries'",
             module->device_name(), gib(used), gib(stage->memory_bytes));
}
