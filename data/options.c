#include "data/options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MOST = 63 };

/* Levenshtein's distance, the names cut to NAME_MOST bytes. */
static int name_distance(const char *a, const char *b)
{
    int row[NAME_MOST + 1], rows = (int)strnlen(a, NAME_MOST), columns = (int)strnlen(b, NAME_MOST);

    for (int j = 0; j <= columns; j++)
        row[j] = j;
    for (int i = 0; i < rows; i++) {
        int corner = row[0];

        row[0] = i + 1;
        for (int j = 0; j < columns; j++) {
            int changed = corner + (a[i] != b[j]);

            corner = row[j + 1];
            row[j + 1] = (row[j] < corner ? row[j] : corner) + 1;
            if (changed < row[j + 1])
                row[j + 1] = changed;
        }
    }
    return row[columns];
}

const char *nearest_name(const char *name, const char *const *names, int count)
{
    const char *best = NULL;
    int best_distance = 4; /* farther is no misspelling */

    for (int i = 0; i < count; i++) {
        int distance = name_distance(name, names[i]);

        if (distance < best_distance) {
            best = names[i];
            best_distance = distance;
        }
    }
    return best;
}

static int find_option(const struct command *command, const char *name, size_t length)
{
    for (int i = 0; command->options[i].name; i++)
        if (strlen(command->options[i].name) == length &&
            strncmp(command->options[i].name, name, length) == 0)
            return i;
    return -1;
}

static int unknown_option(const struct command *command, const char *argument, size_t length,
                          struct error *error)
{
    const char *names[OPTIONS_MOST], *near;
    char *name = strndup(argument + 2, length);
    int count = 0;

    for (; command->options[count].name; count++)
        names[count] = command->options[count].name;
    near = name ? nearest_name(name, names, count) : NULL;
    free(name);
    if (near)
        return error_set(error, EXIT_STATUS_USAGE, "%s: no option %.*s; did you mean --%s?",
                         command->name, (int)length + 2, argument, near);
    return error_set(error, EXIT_STATUS_USAGE,
                     "%s: no option %.*s; mtllm-data %s --help lists those there are",
                     command->name, (int)length + 2, argument, command->name);
}

static bool is_choice(const char *choices, const char *value)
{
    size_t length = strlen(value);

    for (const char *at = choices; *at;) {
        size_t n = strcspn(at, "|");

        if (n == length && strncmp(at, value, n) == 0)
            return true;
        at += n + (at[n] == '|');
    }
    return false;
}

/* One option at argv[i]; *used is 2 when its value is the next argument. */
static int parse_option(const struct command *command, char **argv, int argc, int i,
                        const char **values, int *used, struct error *error)
{
    const char *argument = argv[i], *value = "";
    size_t length = strcspn(argument + 2, "=");
    const struct option_entry *entry;
    int option = find_option(command, argument + 2, length);

    if (option < 0)
        return unknown_option(command, argument, length, error);
    entry = &command->options[option];
    if (argument[2 + length] == '=') {
        if (!entry->value)
            return error_set(error, EXIT_STATUS_USAGE, "--%s takes no value", entry->name);
        value = argument + 3 + length;
    } else if (entry->value) {
        if (i + 1 >= argc)
            return error_set(error, EXIT_STATUS_USAGE, "--%s needs a value: --%s=%s", entry->name,
                             entry->name, entry->value);
        value = argv[i + 1];
        *used = 2;
    }
    if (entry->choices && !is_choice(entry->choices, value))
        return error_set(error, EXIT_STATUS_USAGE, "--%s=%s: expected one of %s", entry->name,
                         value, entry->choices);
    values[option] = value;
    return 0;
}

int options_parse(const struct command *command, int argc, char **argv, const char **values,
                  int *operand_count, bool *help, struct error *error)
{
    bool ended = false;

    *operand_count = 0;
    *help = false;
    for (int i = 0; command->options[i].name; i++)
        values[i] = command->options[i].default_value;
    for (int i = 0, used; i < argc; i += used) {
        used = 1;
        if (ended || argv[i][0] != '-' || argv[i][1] == '\0') {
            argv[(*operand_count)++] = argv[i];
        } else if (strcmp(argv[i], "--") == 0) {
            ended = true;
        } else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            *help = true;
            return 0;
        } else if (argv[i][1] != '-') {
            return error_set(error, EXIT_STATUS_USAGE,
                             "%s: no option %s; options are words: mtllm-data %s --help",
                             command->name, argv[i], command->name);
        } else if (parse_option(command, argv, argc, i, values, &used, error) < 0) {
            return -1;
        }
    }
    if (*operand_count < command->least_operands || *operand_count > command->most_operands)
        return error_set(error, EXIT_STATUS_USAGE, "%s: expected %s after the options, found %d %s",
                         command->name, command->operands, *operand_count,
                         *operand_count == 1 ? "word" : "words");
    return 0;
}

const char *option_value(const struct command *command, const char *const *values, const char *name)
{
    int option = find_option(command, name, strlen(name));

    return option < 0 ? NULL : values[option];
}

int option_number(const char *spelled, const char *text, long long least, long long most,
                  long long *number, struct error *error)
{
    char *end;

    errno = 0;
    *number = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno == ERANGE || *number < least || *number > most)
        return error_set(error, EXIT_STATUS_USAGE,
                         "%s: \"%s\" is not a whole number from %lld to %lld", spelled, text, least,
                         most);
    return 0;
}

void options_print_help(const char *program, const struct command *command, FILE *stream)
{
    fprintf(stream, "Usage: %s %s [OPTION]... %s\n%s\n", program, command->name, command->operands,
            command->help);
    if (command->options[0].name)
        fprintf(stream, "\n");
    for (const struct option_entry *entry = command->options; entry->name; entry++) {
        char left[64];
        bool choices = entry->choices && !strstr(entry->help, "|");

        snprintf(left, sizeof(left), "--%s%s%s", entry->name, entry->value ? "=" : "",
                 entry->value ? entry->value : "");
        fprintf(stream, "  %-26s %s", left, entry->help);
        if (choices)
            fprintf(stream, " (%s)", entry->choices);
        if (entry->default_value)
            fprintf(stream, " [%s]", entry->default_value);
        fprintf(stream, "\n");
    }
}
