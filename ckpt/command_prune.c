/* mtllm-ckpt prune: make room, as a run with --keep does. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "ckpt/command.h"
#include "ckpt/disk.h"

static int parse_keep(const char *text, struct error *error)
{
    char *end;
    long value;

    if (!text)
        return error_set(error, EXIT_STATUS_USAGE, "prune: say how many to keep, with --keep=N");
    errno = 0;
    value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 1 || value > INT_MAX)
        return error_set(error, EXIT_STATUS_USAGE, "--keep=%s: expected a number from 1 on", text);
    return (int)value;
}

/* Both are newest first. */
static void print_removed(const int64_t *before, size_t before_count, const int64_t *after,
                          size_t after_count)
{
    size_t j = 0;

    for (size_t i = 0; i < before_count; i++) {
        if (j < after_count && before[i] == after[j])
            j++;
        else
            printf("removed step %lld\n", (long long)before[i]);
    }
}

static int run(const struct command *command, int argc, char **argv, struct error *error)
{
    const struct option options[] = {{"keep", required_argument, NULL, 'k'}, {0}};
    const char *value = NULL;
    char root[DISK_PATH_SIZE];
    int64_t *before = NULL, *after = NULL;
    size_t before_count, after_count;
    int keep, first = command_parse(command, argc, argv, options, &value, 1, 1, error);
    int result = -1;

    if (first <= 0)
        return first;
    keep = parse_keep(value, error);
    if (keep < 0)
        return -1;
    if (!disk_is_directory(argv[first]) || checkpoint_is_one(argv[first]))
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: not a run with checkpoints; name a run or the ckpt/ in it",
                         argv[first]);
    checkpoint_root(argv[first], root, sizeof(root));
    if (checkpoint_list(root, &before, &before_count, error) == 0 &&
        checkpoint_prune(root, keep, error) == 0 &&
        checkpoint_list(root, &after, &after_count, error) == 0) {
        print_removed(before, before_count, after, after_count);
        result = 0;
    }
    free(before);
    free(after);
    return result;
}

const struct command command_prune = {
    .name = "prune",
    .usage = "Usage: mtllm-ckpt prune --keep=N RUN\n"
             "Remove complete checkpoints of a run beyond the newest N good ones.\n"
             "\n"
             "  --keep=N  how many to keep, 1 or more\n"
             "  --help    print this and exit\n",
    .run = run,
};
