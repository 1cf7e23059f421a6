/* mtllm-ckpt diff: are two checkpoints the same training state, bit by bit? */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/command.h"

struct comparison {
    struct checkpoint *one, *other;
    void *one_bits, *other_bits; /* [COMMAND_CHUNK] as stored */
    float *one_values, *other_values;
    int differences;
};

/* How far apart two numbers are; not-a-number is farther than anything. */
static double distance(float one, float other)
{
    double apart = fabs((double)one - (double)other);

    if (isnan(apart))
        return one == other ? 0 : INFINITY; /* inf - inf */
    return apart;
}

static void compare_state(struct comparison *comparison)
{
    const struct checkpoint_state *one = checkpoint_get_state(comparison->one);
    const struct checkpoint_state *other = checkpoint_get_state(comparison->other);
    const struct {
        const char *name;
        int64_t one, other;
    } counts[] = {
        {"step", one->step, other->step},
        {"samples", one->samples, other->samples},
        {"tokens", one->tokens, other->tokens},
        {"skipped", one->skipped, other->skipped},
        {"trained_samples", one->trained_samples, other->trained_samples},
        {"scale_clean_steps", one->scale_clean_steps, other->scale_clean_steps},
        {"scale_overflows_left", one->scale_overflows_left, other->scale_overflows_left},
    };

    for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++)
        if (counts[i].one != counts[i].other) {
            printf("%s: %" PRId64 ", %" PRId64 "\n", counts[i].name, counts[i].one,
                   counts[i].other);
            comparison->differences++;
        }
    if (one->loss_scale != other->loss_scale) {
        printf("loss_scale: %.17g, %.17g\n", one->loss_scale, other->loss_scale);
        comparison->differences++;
    }
}

/* Of a kind that both have with one shape and dtype. */
static int compare_values(struct comparison *comparison, const struct checkpoint_tensor *tensor,
                          enum checkpoint_kind kind, struct error *error)
{
    enum dtype dtype = tensor->dtype[kind];
    size_t size = dtype_bytes(dtype);
    int64_t start[2], extent[2] = {0, 0}, differing = 0;
    double farthest = 0;

    while (command_chunk(tensor->shape, start, extent)) {
        size_t count = (size_t)(extent[0] * extent[1]);

        if (checkpoint_read(comparison->one, tensor->name, kind, start, extent, dtype,
                            comparison->one_bits, error) < 0 ||
            checkpoint_read(comparison->other, tensor->name, kind, start, extent, dtype,
                            comparison->other_bits, error) < 0)
            return -1;
        if (memcmp(comparison->one_bits, comparison->other_bits, count * size) == 0)
            continue;
        dtype_convert(comparison->one_values, DTYPE_F32, comparison->one_bits, dtype, count);
        dtype_convert(comparison->other_values, DTYPE_F32, comparison->other_bits, dtype, count);
        for (size_t i = 0; i < count; i++) {
            if (memcmp((char *)comparison->one_bits + i * size,
                       (char *)comparison->other_bits + i * size, size) == 0)
                continue;
            differing++;
            farthest =
                fmax(farthest, distance(comparison->one_values[i], comparison->other_values[i]));
        }
    }
    if (differing) {
        printf("%s (%s): %" PRId64 " of %" PRId64 " elements differ, max abs difference %g\n",
               tensor->name, checkpoint_kind_name(kind), differing,
               tensor->shape[0] * tensor->shape[1], farthest);
        comparison->differences++;
    }
    return 0;
}

static int compare_kind(struct comparison *comparison, const struct checkpoint_tensor *one,
                        const struct checkpoint_tensor *other, enum checkpoint_kind kind,
                        struct error *error)
{
    if (!one->present[kind] && !other->present[kind])
        return 0;
    if (one->present[kind] && other->present[kind] && one->dtype[kind] == other->dtype[kind])
        return compare_values(comparison, one, kind, error);
    comparison->differences++;
    if (one->present[kind] && other->present[kind])
        printf("%s (%s): %s, %s\n", one->name, checkpoint_kind_name(kind),
               dtype_name(one->dtype[kind]), dtype_name(other->dtype[kind]));
    else
        printf("%s (%s): only in %s\n", one->name, checkpoint_kind_name(kind),
               checkpoint_directory(one->present[kind] ? comparison->one : comparison->other));
    return 0;
}

static int compare_tensor(struct comparison *comparison, const struct checkpoint_tensor *one,
                          struct error *error)
{
    const struct checkpoint_tensor *other = checkpoint_find_tensor(comparison->other, one->name);

    if (!other) {
        printf("%s: only in %s\n", one->name, checkpoint_directory(comparison->one));
        comparison->differences++;
        return 0;
    }
    if (one->dimensions != other->dimensions || one->shape[0] != other->shape[0] ||
        one->shape[1] != other->shape[1]) {
        printf("%s: %" PRId64 " x %" PRId64 ", %" PRId64 " x %" PRId64 "\n", one->name,
               one->shape[0], one->shape[1], other->shape[0], other->shape[1]);
        comparison->differences++;
        return 0;
    }
    for (int kind = 0; kind < CHECKPOINT_KINDS; kind++)
        if (compare_kind(comparison, one, other, (enum checkpoint_kind)kind, error) < 0)
            return -1;
    return 0;
}

static int compare_all(struct comparison *comparison, struct error *error)
{
    compare_state(comparison);
    for (size_t i = 0; i < checkpoint_tensor_count(comparison->one); i++)
        if (compare_tensor(comparison, checkpoint_get_tensor(comparison->one, i), error) < 0)
            return -1;
    for (size_t i = 0; i < checkpoint_tensor_count(comparison->other); i++) {
        const char *name = checkpoint_get_tensor(comparison->other, i)->name;

        if (checkpoint_find_tensor(comparison->one, name))
            continue;
        printf("%s: only in %s\n", name, checkpoint_directory(comparison->other));
        comparison->differences++;
    }
    return 0;
}

static int run(const struct command *command, int argc, char **argv, struct error *error)
{
    const struct option options[] = {{0}};
    struct comparison comparison = {0};
    int first = command_parse(command, argc, argv, options, NULL, 2, 2, error), result = -1;

    if (first <= 0)
        return first;
    comparison.one_bits = malloc((size_t)COMMAND_CHUNK * sizeof(float));
    comparison.other_bits = malloc((size_t)COMMAND_CHUNK * sizeof(float));
    comparison.one_values = malloc((size_t)COMMAND_CHUNK * sizeof(float));
    comparison.other_values = malloc((size_t)COMMAND_CHUNK * sizeof(float));
    if (!comparison.one_bits || !comparison.other_bits || !comparison.one_values ||
        !comparison.other_values)
        error_set(error, EXIT_STATUS_SYSTEM, "no memory to compare");
    else if (command_open(&comparison.one, argv[first], error) == 0 &&
             command_open(&comparison.other, argv[first + 1], error) == 0)
        result = compare_all(&comparison, error);
    if (result == 0) {
        if (comparison.differences == 0)
            printf("no difference\n");
        result = comparison.differences ? COMMAND_DIFFERENT : 0;
    }
    checkpoint_close(comparison.one);
    checkpoint_close(comparison.other);
    free(comparison.one_bits);
    free(comparison.other_bits);
    free(comparison.one_values);
    free(comparison.other_values);
    return result;
}

const struct command command_diff = {
    .name = "diff",
    .usage = "Usage: mtllm-ckpt diff A B\n"
             "Compare two checkpoints: step, samples, tokens, skipped updates, loss scale, and\n"
             "every bit of every tensor, optimizer state included. The layouts of the writers\n"
             "do not matter.\n"
             "Exit status: 0 no difference, 1 some, 64 wrong usage, 65 a checkpoint that cannot\n"
             "be read.\n"
             "\n"
             "  --help  print this and exit\n",
    .run = run,
};
