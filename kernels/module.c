#include "kernels/module.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

/* Where it is installed, or, for a build that is not, where $MTLLM_MODULES says. */
static void module_path(char *path, size_t size)
{
    const char *directory = getenv("MTLLM_MODULES");

    snprintf(path, size, "%s/mtllm-cuda.so", directory ? directory : MTLLM_MODULES_DIR);
}

const struct cuda_module *cuda_module_load(struct error *error)
{
    static const struct cuda_module *loaded; /* every step asks for it */
    const struct cuda_module *module;
    char path[PATH_MAX];
    void *handle;

    if (loaded)
        return loaded;
    module_path(path, sizeof(path));
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        error_set(error, EXIT_STATUS_CONFIGURATION, "no CUDA backend: %s", dlerror());
        return NULL;
    }
    module = dlsym(handle, "mtllm_cuda_module");
    if (!module || module->version != CUDA_MODULE_VERSION) {
        error_set(error, EXIT_STATUS_CONFIGURATION,
                  "%s: not of this version of mtllm; install both from one build", path);
        dlclose(handle);
        return NULL;
    }
    loaded = module;
    return module;
}
