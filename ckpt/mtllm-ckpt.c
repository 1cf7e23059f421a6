/* mtllm-ckpt: look at checkpoints, check, compare and prune them; mtllm-ckpt(1). */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ckpt/command.h"
#include "core/standard_streams.h"

static const char usage[] = "Usage: mtllm-ckpt COMMAND [OPTION]... DIR...\n"
                            "Look at the checkpoints of mtllm.\n"
                            "\n"
                            "  list    the checkpoints of a run, and which of them are complete\n"
                            "  show    one checkpoint: state, settings, tensors\n"
                            "  verify  check every byte\n"
                            "  diff    compare two checkpoints bit by bit\n"
                            "  prune   remove old checkpoints\n"
                            "\n"
                            "DIR is a run directory, its ckpt/ or one checkpoint in it.\n"
                            "mtllm-ckpt COMMAND --help tells more; so does mtllm-ckpt(1).\n";

static const struct command *const commands[] = {
    &command_list, &command_show, &command_verify, &command_diff, &command_prune,
};

static int run(int argc, char **argv, struct error *error)
{
    if (argc < 2)
        return error_set(error, EXIT_STATUS_USAGE,
                         "expected a command: list, show, verify, diff or prune; see --help");
    if (strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("mtllm-ckpt (mtllm) " MTLLM_VERSION);
        return 0;
    }
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
        if (strcmp(argv[1], commands[i]->name) == 0)
            return commands[i]->run(commands[i], argc - 1, argv + 1, error);
    return error_set(error, EXIT_STATUS_USAGE,
                     "%s: not a command; use list, show, verify, diff or prune", argv[1]);
}

int main(int argc, char **argv)
{
    struct error error = {0};
    int status;

    standard_streams_open();
    status = run(argc, argv, &error);
    if (fflush(stdout) != 0 && status >= 0)
        status = error_set_errno(&error, "cannot print the answer");
    return status < 0 ? error_print(&error) : status;
}
