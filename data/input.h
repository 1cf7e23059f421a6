/* The bytes of one input file: of one whose name ends in .gz or .zst, what was compressed. */
#ifndef MTLLM_DATA_INPUT_H
#define MTLLM_DATA_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/error.h"

struct input;

/* The length of a name without the ending that says how the file is compressed. */
size_t input_name_length(const char *path);
/* Whether what the name asks for was built in. Error: EXIT_STATUS_CONFIGURATION. */
int input_check(const char *path, struct error *error);

/* "-" is standard input. `path` must outlive the input. Error: EXIT_STATUS_IO, or
 * EXIT_STATUS_SYSTEM (no memory). */
int input_open(struct input **input, const char *path, struct error *error);
void input_close(struct input *input); /* NULL is nothing */

/* The next bytes: `size` of them, fewer only at the end. Error (-1): EXIT_STATUS_IO, or
 * EXIT_STATUS_DATA when what was compressed is damaged or cut short. */
ssize_t input_read(struct input *input, char *bytes, size_t size, struct error *error);
/* Of an input just opened, go to the byte at `offset`. Error: as of input_read(), and
 * EXIT_STATUS_DATA when it ends before. */
int input_skip(struct input *input, int64_t offset, struct error *error);

int64_t input_offset(const struct input *input);      /* bytes given so far */
int64_t input_file_offset(const struct input *input); /* bytes of the file that they were */

#endif
