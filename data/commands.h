/* What mtllm-data can do: one table entry a command, each in a file of its own. */
#ifndef MTLLM_DATA_COMMANDS_H
#define MTLLM_DATA_COMMANDS_H

#include "data/options.h"

extern const struct command command_tokenize; /* tokenize.c */
extern const struct command command_info;     /* info.c */
extern const struct command command_show;     /* show.c */
extern const struct command command_merge;    /* merge.c */
extern const struct command command_split;    /* split.c */

#endif
