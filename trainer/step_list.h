/* A list of steps, as a setting names them: "3,7,10-12". */
#ifndef MTLLM_TRAINER_STEP_LIST_H
#define MTLLM_TRAINER_STEP_LIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

struct step_range {
    int64_t first, last; /* from 1; first <= last */
};

struct step_list {
    struct step_range *ranges; /* [count] */
    size_t count;
};

/* Error: EXIT_STATUS_USAGE, beginning with `name`; EXIT_STATUS_SYSTEM. */
int step_list_parse(struct step_list *list, const char *text, const char *name,
                    struct error *error);
void step_list_destroy(struct step_list *list); /* all zeros is nothing */
bool step_list_contains(const struct step_list *list, int64_t step);

#endif
