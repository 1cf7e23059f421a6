#include "ckpt/command.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/disk.h"

enum { MOST_OPTIONS = 8, OPTION_HELP = 1000 };

int command_parse(const struct command *command, int argc, char **argv,
                  const struct option *options, const char **value, int least, int most,
                  struct error *error)
{
    struct option all[MOST_OPTIONS + 2] = {{"help", no_argument, NULL, OPTION_HELP}};
    int option;

    for (int i = 0; i < MOST_OPTIONS && options[i].name; i++)
        all[i + 1] = options[i];
    opterr = 0;
    optind = 0; /* glibc: begin anew */
    while ((option = getopt_long(argc, argv, ":", all, NULL)) != -1)
        switch (option) {
        case 0:
            break;
        case OPTION_HELP:
            fputs(command->usage, stdout);
            return 0;
        case ':':
            return error_set(error, EXIT_STATUS_USAGE, "%s: needs a value", argv[optind - 1]);
        case '?':
            return error_set(error, EXIT_STATUS_USAGE,
                             "%s: not an option of %s, or one that takes no value; see mtllm-ckpt "
                             "%s --help",
                             argv[optind - 1], command->name, command->name);
        default:
            *value = optarg;
        }
    if (argc - optind < least || argc - optind > most)
        return error_set(error, EXIT_STATUS_USAGE,
                         "%s: %d name%s given, which is too %s; see mtllm-ckpt %s --help",
                         command->name, argc - optind, argc - optind == 1 ? "" : "s",
                         argc - optind < least ? "few" : "many", command->name);
    return optind;
}

const char *command_size(uint64_t bytes, char text[32])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    int unit = 0;

    while (value >= 1024 && unit < 5) {
        value /= 1024;
        unit++;
    }
    snprintf(text, 32, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}

void command_warn(void *user, const char *text)
{
    (void)user;
    fprintf(stderr, "%s: passed over: %s\n", program_invocation_short_name, text);
}

int command_open(struct checkpoint **checkpoint, const char *path, struct error *error)
{
    char directory[DISK_PATH_SIZE];

    if (checkpoint_resolve(path, directory, sizeof(directory), command_warn, NULL, error) < 0)
        return -1;
    return checkpoint_open(checkpoint, directory, error);
}

bool command_chunk(const int64_t shape[2], int64_t start[2], int64_t extent[2])
{
    int64_t rows = COMMAND_CHUNK / shape[1];

    if (extent[0] == 0) {
        start[0] = start[1] = 0;
    } else if (start[1] + extent[1] < shape[1]) {
        start[1] += extent[1];
    } else {
        start[0] += extent[0];
        start[1] = 0;
    }
    if (start[0] == shape[0])
        return false;
    if (rows < 1)
        rows = 1;
    extent[0] = shape[0] - start[0] < rows ? shape[0] - start[0] : rows;
    extent[1] = shape[1] - start[1] < COMMAND_CHUNK ? shape[1] - start[1] : COMMAND_CHUNK;
    return true;
}

int command_print_json(json_t *json, struct error *error)
{
    int result = 0;

    if (!json || json_dumpf(json, stdout, JSON_INDENT(2)) < 0)
        result = error_set(error, EXIT_STATUS_IO, "cannot print the answer");
    else
        putchar('\n');
    json_decref(json);
    return result;
}
