/* mtllm-data: make token files of text, and look at them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/standard_streams.h"
#include "data/commands.h"

static const struct command *const commands[] = {&command_tokenize, &command_info, &command_show,
                                                 &command_merge, &command_split};
enum { COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static void print_usage(void)
{
    printf("Usage: mtllm-data COMMAND [OPTION]... OPERAND...\n"
           "Make token files of text, and look at them.\n\n");
    for (int i = 0; i < COMMANDS; i++)
        printf("  %-9s %-36.*s\n", commands[i]->name, (int)strcspn(commands[i]->help, ".\n"),
               commands[i]->help);
    printf("\n`mtllm-data COMMAND --help` lists a command's options; the manual page is"
           " mtllm-data(1).\n");
}

static int unknown_command(const char *name, struct error *error)
{
    const char *names[COMMANDS], *near;

    for (int i = 0; i < COMMANDS; i++)
        names[i] = commands[i]->name;
    near = nearest_name(name, names, COMMANDS);
    if (near)
        return error_set(error, EXIT_STATUS_USAGE, "no command \"%s\"; did you mean %s?", name,
                         near);
    return error_set(error, EXIT_STATUS_USAGE,
                     "no command \"%s\"; there are tokenize, info, show, merge and split", name);
}

static int run(int argc, char **argv, struct error *error)
{
    const char *values[OPTIONS_MOST];
    const struct command *command = NULL;
    int operands;
    bool help;

    for (int i = 0; i < COMMANDS; i++)
        if (strcmp(argv[1], commands[i]->name) == 0)
            command = commands[i];
    if (!command)
        return unknown_command(argv[1], error);
    if (options_parse(command, argc - 2, argv + 2, values, &operands, &help, error) < 0)
        return -1;
    if (help) {
        options_print_help("mtllm-data", command, stdout);
        return 0;
    }
    return command->run(command, values, argv + 2, operands, error);
}

int main(int argc, char **argv)
{
    struct error error = {0};
    int result = 0;

    standard_streams_open();
    if (argc < 2)
        result = error_set(&error, EXIT_STATUS_USAGE,
                           "no command; there are tokenize, info, show, merge and split"
                           " (mtllm-data --help)");
    else if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        print_usage();
    else if (strcmp(argv[1], "--version") == 0)
        printf("mtllm-data (mtllm) %s\n", MTLLM_VERSION);
    else
        result = run(argc, argv, &error);
    if (result == 0 && (fflush(stdout) != 0 || ferror(stdout)))
        result = error_set_errno(&error, "standard output");
    return result < 0 ? error_print(&error) : EXIT_STATUS_OK;
}
