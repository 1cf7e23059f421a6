/* The subcommands of mtllm-ckpt; mtllm-ckpt(1). */
#ifndef MTLLM_CKPT_COMMAND_H
#define MTLLM_CKPT_COMMAND_H

#include <getopt.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "ckpt/checkpoint.h"

/* What a subcommand ends with, besides the exit statuses of core/error.h. */
enum { COMMAND_DIFFERENT = 1 };

struct command {
    const char *name;
    const char *usage;
    /* argv[0] is the subcommand. Returns the exit status, or -1 with `error`. */
    int (*run)(const struct command *command, int argc, char **argv, struct error *error);
};

extern const struct command command_list, command_show, command_verify, command_diff, command_prune;

/* Take the options: those without a value through getopt_long's flag pointers, the one with a value
 * into *value. Returns the index of the first operand, of which there must be `least` to `most`; 0
 * when help was asked for and printed; -1 with EXIT_STATUS_USAGE. */
int command_parse(const struct command *command, int argc, char **argv,
                  const struct option *options, const char **value, int least, int most,
                  struct error *error);

/* "1.5 GiB" */
const char *command_size(uint64_t bytes, char text[32]);

/* Tell the user on standard error which checkpoint was passed over; a checkpoint_complaint. */
void command_warn(void *user, const char *text);

/* Open what `path` means; checkpoints passed over are told. */
int command_open(struct checkpoint **checkpoint, const char *path, struct error *error);

/* Go through a tensor of any size in rectangles of bounded size, in order. `extent` begins as
 * zeros; false when there is no more. */
enum { COMMAND_CHUNK = 1 << 20 }; /* elements at most */
bool command_chunk(const int64_t shape[2], int64_t start[2], int64_t extent[2]);

/* Print and free. -1 when there is no memory. */
int command_print_json(json_t *json, struct error *error);

#endif
