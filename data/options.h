/* The command lines of mtllm-data: COMMAND [--NAME=VALUE | --NAME VALUE | --FLAG]... OPERAND... */
#ifndef MTLLM_DATA_OPTIONS_H
#define MTLLM_DATA_OPTIONS_H

#include <stdbool.h>
#include <stdio.h>

#include "core/error.h"

enum { OPTIONS_MOST = 24 };

struct option_entry {
    const char *name;          /* "split-documents"; NULL ends a table */
    const char *value;         /* what stands for the value in help; NULL: a flag */
    const char *choices;       /* "a|b|c"; NULL: any value */
    const char *default_value; /* NULL: none */
    const char *help;
};

struct command {
    const char *name;
    const char *operands; /* "PREFIX N" */
    int least_operands, most_operands;
    const char *help;
    const struct option_entry *options;
    int (*run)(const struct command *command, const char *const *values, char *const *operands,
               int operand_count, struct error *error);
};

/* Fill values[] (one for each entry of the command's table: the text given, else the default; ""
 * for a flag given) and move the operands to the front of argv. *help: --help was asked for.
 * Error: EXIT_STATUS_USAGE, with the nearest option there is. */
int options_parse(const struct command *command, int argc, char **argv, const char **values,
                  int *operand_count, bool *help, struct error *error);

/* The value of an option of the table. */
const char *option_value(const struct command *command, const char *const *values,
                         const char *name);
/* A whole number within [least, most]. Error: EXIT_STATUS_USAGE. */
int option_number(const char *spelled, const char *text, long long least, long long most,
                  long long *number, struct error *error);

void options_print_help(const char *program, const struct command *command, FILE *stream);

/* The one of names[] most like `name`; NULL when none is near. */
const char *nearest_name(const char *name, const char *const *names, int count);

#endif
