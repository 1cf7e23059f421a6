/* mtllm-ckpt verify: every byte of one checkpoint or of all of a run's. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "ckpt/command.h"
#include "ckpt/disk.h"

/* What is known of the checkpoint at hand. */
struct verdict {
    json_t *list;   /* of all checkpoints, or NULL for text */
    json_t *faults; /* of this one */
    int damaged;    /* checkpoints */
};

static void complain(void *user, const char *text)
{
    struct verdict *verdict = user;

    if (verdict->list)
        json_array_append_new(verdict->faults, json_string(text));
    else
        printf("%s\n", text);
}

static int verify(struct verdict *verdict, const char *directory, struct error *error)
{
    int faults;

    verdict->faults = json_array();
    faults = checkpoint_verify(directory, complain, verdict, error);
    if (faults > 0)
        verdict->damaged++;
    if (faults >= 0 && verdict->list)
        json_array_append_new(verdict->list,
                              json_pack("{s:s, s:b, s:O}", "directory", directory, "good",
                                        faults == 0, "faults", verdict->faults));
    else if (faults >= 0)
        printf("%s: %s\n", directory, faults ? "damaged" : "good");
    json_decref(verdict->faults);
    return faults < 0 ? -1 : 0;
}

static int verify_all(struct verdict *verdict, const char *path, struct error *error)
{
    char root[DISK_PATH_SIZE], directory[DISK_PATH_SIZE];
    int64_t *steps;
    size_t count;
    int result = 0;

    if (!disk_is_directory(path))
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: no such directory; name a run, its ckpt/ or one checkpoint in it",
                         path);
    if (checkpoint_is_one(path))
        return verify(verdict, path, error);
    checkpoint_root(path, root, sizeof(root));
    if (checkpoint_list(root, &steps, &count, error) < 0)
        return -1;
    if (count == 0)
        result = error_set(error, EXIT_STATUS_DATA,
                           "%s: neither a checkpoint (manifest.json) nor a directory of some "
                           "(step-*)",
                           root);
    for (size_t i = count; i-- > 0 && result == 0;) {
        checkpoint_path(root, steps[i], directory, sizeof(directory));
        result = verify(verdict, directory, error);
    }
    free(steps);
    return result;
}

static int run(const struct command *command, int argc, char **argv, struct error *error)
{
    int as_json = 0, first, result = 0;
    const struct option options[] = {{"json", no_argument, &as_json, 1}, {0}};
    struct verdict verdict = {0};

    first = command_parse(command, argc, argv, options, NULL, 1, INT_MAX, error);
    if (first <= 0)
        return first;
    if (as_json)
        verdict.list = json_array();
    for (int i = first; i < argc && result == 0; i++)
        result = verify_all(&verdict, argv[i], error);
    if (as_json && result == 0)
        result = command_print_json(verdict.list, error);
    else
        json_decref(verdict.list);
    if (result < 0)
        return -1;
    return verdict.damaged ? EXIT_STATUS_DATA : EXIT_STATUS_OK;
}

const struct command command_verify = {
    .name = "verify",
    .usage = "Usage: mtllm-ckpt verify [--json] DIR...\n"
             "Check every byte of a checkpoint, or of every checkpoint of a run. Says which\n"
             "files are damaged, where, and which tensors are there.\n"
             "Exit status: 0 all good, 65 damaged or no checkpoint.\n"
             "\n"
             "  --json  print a JSON array\n"
             "  --help  print this and exit\n",
    .run = run,
};
