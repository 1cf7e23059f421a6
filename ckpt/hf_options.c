#include "ckpt/hf_options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/dtype.h"

int hf_option_dtype(const char *text, int *dtype, struct error *error)
{
    *dtype = dtype_from_name(text);
    if (*dtype < 0)
        return error_set(error, EXIT_STATUS_USAGE, "--dtype=%s: expected fp32, bf16 or fp16", text);
    return 0;
}

int hf_option_size(const char *name, const char *text, int64_t *bytes, struct error *error)
{
    static const struct {
        const char *name;
        double bytes;
    } units[] = {
        {"", 1},      {"B", 1},        {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
        {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40},
    };
    char *end;
    double value = strtod(text, &end);

    for (size_t i = 0; end != text && i < sizeof(units) / sizeof(*units); i++)
        if (strcasecmp(end, units[i].name) == 0 && value * units[i].bytes >= 1 &&
            value * units[i].bytes < 0x1p62) {
            *bytes = (int64_t)(value * units[i].bytes);
            return 0;
        }
    return error_set(error, EXIT_STATUS_USAGE, "%s=%s: expected a size, such as 5GB or 500MB", name,
                     text);
}

int hf_option_boolean(const char *name, const char *text, bool *value, struct error *error)
{
    if (strcmp(text, "yes") != 0 && strcmp(text, "no") != 0)
        return error_set(error, EXIT_STATUS_USAGE, "%s=%s: expected yes or no", name, text);
    *value = strcmp(text, "yes") == 0;
    return 0;
}

int hf_option_refuse(int result, char **argv, int next, struct error *error)
{
    if (result == ':')
        return error_set(error, EXIT_STATUS_USAGE, "%s: needs a value", argv[next - 1]);
    return error_set(error, EXIT_STATUS_USAGE,
                     "%s: unknown option, or one that takes no value; "
                     "--help lists those there are",
                     argv[next - 1]);
}

int hf_operands(int argc, char **argv, int first, const char *names, const char **source,
                const char **target, struct error *error)
{
    if (argc - first != 2)
        return error_set(error, EXIT_STATUS_USAGE, "expected %s, got %d name%s; see --help", names,
                         argc - first, argc - first == 1 ? "" : "s");
    *source = argv[first];
    *target = argv[first + 1];
    if (!**source || !**target)
        return error_set(error, EXIT_STATUS_USAGE, "expected %s, one of them is empty", names);
    return 0;
}
